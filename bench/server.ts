import { writeFile } from 'node:fs/promises';
import { Session } from 'node:inspector/promises';
import { makeConfig } from '../src/config.ts';
import { features } from '../src/features.ts';
import { createLog } from '../src/log.ts';
import { startServer } from '../src/server.ts';
import { answer } from './child.ts';

/** The server under test, with the settings that `serve` has if nothing is set; also the line that it logs for each call. */
async function start({ databaseUrl, keyFile }: { databaseUrl: string; keyFile: string }): Promise<number> {
  const config = makeConfig(databaseUrl, { auth: 'trusted', port: 0, keyFile, snapshotStore: 'none' });
  const { port } = await startServer(config, features, createLog(config.logLevel));
  return port;
}

const inspector = new Session();

async function startProfile(): Promise<void> {
  inspector.connect();
  await inspector.post('Profiler.enable');
  await inspector.post('Profiler.setSamplingInterval', { interval: 200 });
  await inspector.post('Profiler.start');
}

async function endProfile(file: string): Promise<void> {
  const { profile } = await inspector.post('Profiler.stop');
  await writeFile(file, JSON.stringify(profile));
  inspector.disconnect();
}

answer({ start, startProfile, endProfile });

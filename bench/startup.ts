import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile, rm } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { createServer } from 'node:net';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { ChannelCredentials, loadPackageDefinition } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { median } from './rounds.ts';
import type { Database, World } from './world.ts';

const MAIN = fileURLToPath(new URL('../src/main.ts', import.meta.url));
const HEALTH = fileURLToPath(new URL('../third_party/proto/grpc/health/v1/health.proto', import.meta.url));
const LIMIT_MS = 60_000;
const SETTLE_MS = 3000;

const HealthClient = (loadPackageDefinition(loadSync(HEALTH)) as any).grpc.health.v1.Health;

/** `serve` on a migrated database: until its health says SERVING, and its memory a little later, when nobody calls. */
export async function measureServe(
  { keyFile }: World,
  { databaseUrl }: Database,
  times: number,
): Promise<{ readyMs: number; idleMb: number | undefined }> {
  const ready: number[] = [];
  const idle: (number | undefined)[] = [];
  for (let time = 0; time < times; time++) {
    const port = await freePort();
    const start = performance.now();
    const flags = [
      '--auth',
      'trusted',
      '--port',
      String(port),
      '--key-file',
      keyFile,
      '--snapshot-store',
      'none',
      '--drain-wait',
      '0s',
    ];
    const child = memoryd(['serve', ...flags], { DATABASE_URL: databaseUrl });
    try {
      await untilServing(port, child);
      ready.push(performance.now() - start);
      await sleep(SETTLE_MS);
      idle.push(await residentMb(child.pid!));
    } finally {
      await end(child);
    }
  }
  const known = idle.filter((mb) => mb !== undefined);
  return { readyMs: median(ready), idleMb: known.length > 0 ? median(known) : undefined };
}

/** `dev` in a folder that is not there yet: until it says that it is ready. */
export async function measureDev(world: World): Promise<number> {
  const start = performance.now();
  const child = memoryd(['dev', '--data', join(world.folder, 'dev'), '--port', '0'], {});
  let said = '';
  try {
    const ready = new Promise<number>((resolve) => {
      child.stdout!.on('data', (text) => {
        said += text;
        if (said.includes('memoryd is ready')) resolve(performance.now() - start);
      });
    });
    return await Promise.race([ready, endOf(child), late()]);
  } finally {
    await end(child);
    // As root the data lie elsewhere, where it says.
    const data = /^Making a database in (.*)\.$/m.exec(said)?.[1];
    if (data) await rm(dirname(data), { recursive: true, force: true });
  }
}

function memoryd(args: string[], env: Record<string, string>): ChildProcess {
  const child = spawn(process.execPath, [MAIN, ...args], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const kill = () => child.kill(); // should the bench be ended from outside
  process.on('exit', kill);
  child.on('exit', () => process.off('exit', kill));
  return child;
}

async function endOf(child: ChildProcess): Promise<never> {
  const [code, signal] = await once(child, 'exit');
  throw new Error(`memoryd ended (${signal ?? code}) before it was ready`);
}

async function late(): Promise<never> {
  await sleep(LIMIT_MS, undefined, { ref: false });
  throw new Error(`memoryd was not ready in ${LIMIT_MS / 1000} s`);
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill('SIGINT');
  await once(child, 'exit');
}

async function untilServing(port: number, child: ChildProcess): Promise<void> {
  child.stdout!.resume();
  let over = false;
  const ask = async () => {
    while (!over && !(await serves(port))) await sleep(5);
  };
  await Promise.race([ask(), endOf(child), late()]).finally(() => {
    over = true;
  });
}

function serves(port: number): Promise<boolean> {
  // A client of its own each time, as one that failed to connect waits a second before it tries again.
  const client = new HealthClient(`127.0.0.1:${port}`, ChannelCredentials.createInsecure(), {
    'grpc.use_local_subchannel_pool': 1,
  });
  return new Promise((resolve) => {
    client.check({ service: '' }, { deadline: Date.now() + 1000 }, (_error: unknown, answer: any) => {
      client.close();
      resolve(answer?.status === 'SERVING' || answer?.status === 1);
    });
  });
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

/** Resident memory in MB, undefined where the system does not tell it in a file. */
async function residentMb(pid: number): Promise<number | undefined> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '');
  const kb = /^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1];
  return kb ? (Number(kb) * 1024) / 1e6 : undefined;
}

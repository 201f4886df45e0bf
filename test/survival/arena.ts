import { readdirSync, readFileSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { addKey } from '../../src/db/key-file.ts';
import { type EmbeddedPostgres, startPostgres } from '../../src/dev/postgres.ts';
import { makeDatabase } from '../database.ts';
import { type ServerProcess, startProcess } from '../fixtures/process.ts';
import { startProxy } from '../proxy.ts';
import { until } from '../support.ts';
import { makeRandom } from './random.ts';
import type { Arena, Postgres } from './scenario.ts';

/** The arena of one scenario, what its servers have complained about, and what clears it away. */
export async function openArena(
  name: string,
  seed: number,
  deadline: number,
  tell: (line: string) => void,
): Promise<{ arena: Arena; errors(): string[]; close(): Promise<void> }> {
  const undo: (() => unknown)[] = [];
  const cleanup = (work: () => unknown) => void undo.push(work);
  const close = async () => {
    for (const work of undo.splice(0).reverse()) {
      await Promise.resolve()
        .then(work)
        .catch((error: Error) => tell(`could not clean up: ${error.message}`));
    }
  };
  const folder = await mkdtemp(join(tmpdir(), 'memoryd-survival-'));
  cleanup(() => rm(folder, { recursive: true, force: true }));
  const keyFile = join(folder, 'keys');
  await addKey(keyFile);
  let databases = 0;
  const servers: ServerProcess[] = [];
  const arena: Arena = {
    seed,
    random: makeRandom(seed, name),
    deadline,
    timeLeft: () => Math.max(0, deadline - Date.now()),
    tell,
    cleanup,
    keyFile,
    storeFlags: ['--snapshot-store', pathToFileURL(join(folder, 'snapshots')).href],
    async startPostgres({ settings = {} } = {}) {
      return openPostgres(join(folder, `postgres${++databases}`), { max_connections: '300', ...settings }, cleanup);
    },
    async startServer({ postgres, ...options }) {
      // Another version may not know the flag.
      const flags = [...(options.main ? [] : arena.storeFlags), ...(options.flags ?? [])];
      const server = await startProcess({ ...options, flags, databaseUrl: postgres.url, keyFile });
      servers.push(server);
      cleanup(async () => {
        server.kill('SIGKILL');
        await server.exited;
      });
      return server;
    },
  };
  const errors = () => servers.flatMap(({ logLines }) => logLines.filter((line) => !line.includes('"level":"info"')));
  return { arena, errors, close };
}

async function openPostgres(
  folder: string,
  settings: Record<string, string>,
  cleanup: Arena['cleanup'],
): Promise<Postgres> {
  let running: EmbeddedPostgres | undefined = await startPostgres({ folder, settings });
  const { data } = running;
  cleanup(() => rm(dirname(data), { recursive: true, force: true })); // as root the data lie elsewhere
  const stop = async () => {
    await running?.stop();
    running = undefined;
  };
  cleanup(stop);
  const link = await startProxy(running.url);
  cleanup(link.close);
  const made = await makeDatabase(link.url, 'memoryd_survival');

  return {
    ...made,
    link,
    async kill(what = 'all') {
      const postmaster = Number.parseInt(await readFile(join(data, 'postmaster.pid'), 'utf8'), 10);
      const children = childrenOf(postmaster);
      const backends = children.filter(({ command }) => /127\.0\.0\.1/.test(command)).slice(0, 1);
      const victims = { all: children, postmaster: [], backend: backends }[what].map(({ pid }) => pid);
      if (what !== 'backend') victims.unshift(postmaster);
      for (const pid of victims) killHard(pid);
      // A Postgres that lost a backend starts again by itself.
      if (what === 'backend') return;
      await until(async () => [postmaster, ...children.map(({ pid }) => pid)].every((pid) => !isAlive(pid)));
      await stop();
    },
    async start() {
      running ??= await startPostgres({ folder, settings });
      link.target = running.url;
    },
    stop,
  };
}

function killHard(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // it has just ended
  }
}

const textOf = (path: string): string => {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return ''; // it has just ended
  }
};

/** The state of a process and its parent, as Linux tells it. */
function statOf(pid: number): { state: string; parent: number } {
  const text = textOf(`/proc/${pid}/stat`);
  const [state = 'X', parent] = text.slice(text.lastIndexOf(')') + 2).split(' ');
  return { state: text ? state : 'X', parent: Number(parent) };
}

const isAlive = (pid: number): boolean => !['X', 'Z'].includes(statOf(pid).state);

function childrenOf(parent: number): { pid: number; command: string }[] {
  return readdirSync('/proc')
    .map(Number)
    .filter((pid) => pid > 0 && statOf(pid).parent === parent)
    .map((pid) => ({ pid, command: textOf(`/proc/${pid}/cmdline`) }));
}

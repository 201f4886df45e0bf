import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ServerProcess } from '../fixtures/process.ts';
import { runSql } from '../support.ts';
import type { Arena, Postgres } from './scenario.ts';

/** What a server holds. */
export interface Footprint {
  /** After a full garbage collection. */
  heapMb: number;
  rssMb: number;
  sockets: number;
  inFlight: number;
  openStreams: number;
  /** Connections of the pool that calls use, and calls that wait for one. */
  poolBusy: number;
  /** Sessions of Postgres that are not idle, or idle in a transaction. */
  backendsBusy: number;
  backends: number;
}

export interface WatchedServer extends ServerProcess {
  footprint(): Promise<Footprint>;
  /** Waits until it holds no more than before, but for a margin of memory; throws with what is left over. */
  recovered(before: Footprint, waitMs: number): Promise<Footprint>;
}

const MARGIN_MB = 12;

/** The same database without the proxy, which takes time of the process that measures. */
export function direct(postgres: Postgres): Postgres {
  const url = new URL(postgres.url);
  url.port = new URL(postgres.link.target).port;
  return { ...postgres, url: url.href };
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  return port;
}

/** A server that can be asked what it holds: by its metrics, by its debugger, and by the sessions that Postgres has of it. */
export async function startWatched(arena: Arena, postgres: Postgres, flags: string[] = []): Promise<WatchedServer> {
  const [debugPort, metricsPort] = [await freePort(), await freePort()];
  const server = await arena.startServer({
    postgres: direct(postgres),
    flags: ['--metrics-port', String(metricsPort), ...flags],
    env: { NODE_OPTIONS: `--inspect=127.0.0.1:${debugPort}` },
  });
  const debug = await openDebugger(debugPort);
  arena.cleanup(() => debug.close());

  async function metric(name: string): Promise<number> {
    const text = await (await fetch(`http://127.0.0.1:${metricsPort}/metrics`)).text();
    return Number(new RegExp(`^${name} (\\S+)$`, 'm').exec(text)?.[1]);
  }

  async function footprint(): Promise<Footprint> {
    const [inFlight, openStreams, used, waiting] = [
      await metric('memoryd_calls_in_flight'),
      await metric('memoryd_open_streams'),
      await metric('memoryd_pool_connections\\{state="used"\\}'),
      await metric('memoryd_pool_connections\\{state="waiting"\\}'),
    ];
    const [backends] = await runSql(
      postgres.ownerUrl,
      `select count(*)::int as total, count(*) filter (where state <> 'idle')::int as busy
       from pg_stat_activity where application_name = 'memoryd' and datname = current_database()`,
    );
    const { memory, resources } = await debug.holdings();
    return {
      heapMb: Math.round(memory.heapUsed / 2 ** 20),
      rssMb: Math.round(memory.rss / 2 ** 20),
      // Without those to Postgres, of which the pool keeps as many as it may.
      sockets: resources.filter((name) => name === 'TCPSocketWrap').length - backends.total,
      inFlight,
      openStreams,
      poolBusy: used + waiting,
      backendsBusy: backends.busy,
      backends: backends.total,
    };
  }

  return Object.assign(server, {
    footprint,
    async recovered(before: Footprint, waitMs: number) {
      const end = Date.now() + waitMs;
      for (;;) {
        const now = await footprint();
        const over = (Object.keys(now) as (keyof Footprint)[]).filter((key) => {
          if (key === 'rssMb' || key === 'backends') return false; // the allocator and the pool keep what they had
          return now[key] > before[key] + (key === 'heapMb' ? MARGIN_MB : 0);
        });
        if (over.length === 0) return now;
        if (Date.now() > end) {
          throw new Error(`left over after ${waitMs} ms: ${over.map((key) => `${key} ${before[key]} → ${now[key]}`)}`);
        }
        await sleep(500);
      }
    },
  });
}

interface Holdings {
  memory: NodeJS.MemoryUsage;
  resources: string[];
}

/** The debugger of a process, for a garbage collection and a look at what is held. */
async function openDebugger(port: number): Promise<{ holdings(): Promise<Holdings>; close(): void }> {
  const [page] = (await (await fetch(`http://127.0.0.1:${port}/json/list`)).json()) as {
    webSocketDebuggerUrl: string;
  }[];
  const socket = new WebSocket(page!.webSocketDebuggerUrl);
  await new Promise((resolve, reject) => {
    socket.addEventListener('open', resolve);
    socket.addEventListener('error', () => reject(new Error('the debugger does not answer')));
  });
  const waiting = new Map<number, (result: any) => void>();
  socket.addEventListener('message', ({ data }) => {
    const { id, result } = JSON.parse(data);
    waiting.get(id)?.(result);
    waiting.delete(id);
  });
  let asked = 0;
  const ask = (method: string, params: object = {}) =>
    new Promise<any>((resolve) => {
      waiting.set(++asked, resolve);
      socket.send(JSON.stringify({ id: asked, method, params }));
    });
  return {
    async holdings() {
      for (let round = 0; round < 2; round++) await ask('HeapProfiler.collectGarbage'); // finalizers free more
      const expression =
        'JSON.stringify({ memory: process.memoryUsage(), resources: process.getActiveResourcesInfo() })';
      return JSON.parse((await ask('Runtime.evaluate', { expression })).result.value);
    },
    close: () => socket.close(),
  };
}

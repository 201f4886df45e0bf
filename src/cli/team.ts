import cluster, { type Worker } from 'node:cluster';
import { once } from 'node:events';
import type { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from 'pino';
import type { stdout } from '../log.ts';
import { JOBS, type Order, type State, type Told } from './worker.ts';

const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 30_000;
// What ends after this was no fault that it started with.
const STABLE_MS = 60_000;
// Whoever has not answered by then cannot be counted on.
const ANSWER_MS = 2000;

/** The log of all processes. */
type Lines = ReturnType<typeof stdout>;

/** The workers of `serve --workers`, seen from the first process, which hands out the connections in turn. */
export interface Team {
  /** Starts them all and resolves to their port. Fails if one of them ends before. */
  start(): Promise<number>;
  /** How those are that serve and answer. */
  states(): Promise<State[]>;
  /** Lets them drain, and resolves when they have ended. */
  stop(): Promise<void>;
}

export function openTeam(size: number, lines: Lines, log: Logger): Team {
  cluster.setupPrimary({ stdio: ['ignore', 'pipe', 'inherit', 'ipc'] });
  lines.setMaxListeners(0); // all of them may wait
  const serving = new Set<Worker>();
  const stopping = new AbortController();
  const kept: Promise<void>[] = [];
  let begun = false;
  let asked = 0;

  const tell = (worker: Worker, order: Order) => worker.send(order, () => {}); // it may just have ended

  /** Keeps a worker in its place: another one when it ends, more slowly each time. */
  async function keep(place: number, ready: (port: number) => void): Promise<void> {
    for (let pauseMs = FIRST_PAUSE_MS; !stopping.signal.aborted; pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS)) {
      const since = performance.now();
      const worker = cluster.fork(place === 0 ? { [JOBS]: 'on' } : {});
      const forwarded = forward(worker.process.stdout!, lines);
      worker.on('message', (told: Told) => {
        if (!('port' in told)) return;
        serving.add(worker);
        log.info({ worker: place, pid: worker.process.pid }, 'worker ready');
        ready(told.port);
      });
      const [code, signal] = await once(worker, 'exit');
      serving.delete(worker);
      await forwarded;
      if (stopping.signal.aborted) return;
      if (!begun) throw new Error('a worker ended before it was ready');
      if (performance.now() - since > STABLE_MS) pauseMs = FIRST_PAUSE_MS;
      log.error({ worker: place, pid: worker.process.pid, code, signal, pauseMs }, 'a worker ended');
      await sleep(pauseMs, undefined, stopping).catch(() => {});
    }
  }

  const ready = (place: number) =>
    new Promise<number>((resolve, reject) => {
      const keeping = keep(place, resolve);
      keeping.catch(reject);
      kept.push(keeping);
    });

  function ask(worker: Worker): Promise<State | undefined> {
    const id = asked++;
    return new Promise((resolve) => {
      const end = (state?: State) => {
        clearTimeout(timer);
        worker.off('message', onMessage);
        resolve(state);
      };
      const onMessage = (told: Told) => 'answer' in told && told.answer === id && end(told.state);
      const timer = setTimeout(end, ANSWER_MS);
      worker.on('message', onMessage);
      tell(worker, { ask: id });
    });
  }

  return {
    async start() {
      const port = await ready(0); // alone, so that what keeps all of them from starting is told once
      await Promise.all(Array.from({ length: size - 1 }, (_, i) => ready(i + 1)));
      begun = true;
      return port;
    },
    async states() {
      const states = await Promise.all([...serving].map(ask));
      return states.filter((state) => state !== undefined);
    },
    async stop() {
      stopping.abort();
      for (const worker of Object.values(cluster.workers ?? {})) tell(worker!, 'stop');
      await Promise.all(kept);
    },
  };
}

/** Passes on whole lines, so that those of different workers never mix; what was cut off by an end is left out. */
async function forward(from: Readable, to: Lines): Promise<void> {
  let rest = Buffer.alloc(0);
  for await (const chunk of from) {
    const bytes = Buffer.concat([rest, chunk]);
    const end = bytes.lastIndexOf('\n') + 1;
    rest = bytes.subarray(end);
    if (end > 0 && !to.write(bytes.toString('utf8', 0, end))) await once(to, 'drain');
  }
}

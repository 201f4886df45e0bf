import type { Worker } from 'node:worker_threads';
import { Interrupted } from '../db/failure.ts';
import type { Limits } from '../db/pool.ts';
import { exhausted, unavailable } from '../rpc/errors.ts';
import { startThread } from '../rpc/thread.ts';
import type { Answer, Jobs } from './worker.ts';

// Reading 256 KiB of YAML takes a third of a second, merging three such documents one to two, and what is made to be slow ten
// times as long: none of it happens in the event loop.
const LIMIT_MS = 10_000;
/** A tenant has one of them at most, so that what takes one of them long keeps only itself waiting. */
const THREADS = 2;
/** Of a tenant. All tenants together are bounded by the calls that may be in flight. */
const MAX_WAITING = 100;

interface Order {
  job: keyof Jobs;
  given: unknown[];
  resolve(answer: unknown): void;
  reject(error: Error): void;
}

interface Line {
  /** A thread works for it. */
  served: boolean;
  waiting: Order[];
}

/** The lines of the tenants, that of whoever was served last at the end. */
const lines = new Map<string, Line>();
const idle: Worker[] = [];
let threads = 0;

/** Has one of the threads that all calls of this process share do something with documents: for each tenant in turn. */
export async function inThread<Name extends keyof Jobs>(
  { identity: { tenant }, limits }: { identity: { tenant: string }; limits: Limits },
  job: Name,
  ...given: Parameters<Jobs[Name]>
): Promise<ReturnType<Jobs[Name]>> {
  const line = lines.get(tenant) ?? { served: false, waiting: [] };
  if (line.waiting.length >= MAX_WAITING)
    throw exhausted('DOCUMENTS_BUSY', 'too many documents of the tenant wait to be read', 1000);
  const { promise, ...settle } = Promise.withResolvers<unknown>();
  const order: Order = { job, given, ...settle };
  line.waiting.push(order);
  lines.set(tenant, line);
  const leave = () => {
    line.waiting = line.waiting.filter((one) => one !== order);
    order.reject(new Interrupted('no time left to wait for the thread'));
  };
  const timer = setTimeout(leave, Math.max(0, limits.deadline - Date.now()));
  limits.signal?.addEventListener('abort', leave);
  if (limits.signal?.aborted) leave();
  serve();
  try {
    return (await promise) as ReturnType<Jobs[Name]>;
  } finally {
    clearTimeout(timer);
    limits.signal?.removeEventListener('abort', leave);
  }
}

/** Gives the threads that have nothing to do to those who wait. */
function serve(): void {
  for (const [tenant, line] of lines) {
    if (line.served) continue;
    const order = line.waiting[0];
    if (!order) {
      lines.delete(tenant);
      continue;
    }
    const thread = idle.pop() ?? start();
    if (!thread) return;
    line.waiting.shift();
    line.served = true;
    lines.delete(tenant);
    lines.set(tenant, line);
    done(thread, order).finally(() => {
      line.served = false;
      serve();
    });
  }
}

function start(): Worker | undefined {
  if (threads === THREADS) return undefined;
  threads++;
  return startThread('documents', import.meta.url, (ended) => {
    threads--;
    if (idle.includes(ended)) idle.splice(idle.indexOf(ended), 1);
  });
}

/** Has a thread do it. It resolves when the thread is free again, or gone. */
function done(thread: Worker, { job, given, resolve, reject }: Order): Promise<void> {
  return new Promise((over) => {
    const end = () => {
      clearTimeout(timer);
      thread.off('message', answered).off('exit', died);
      thread.unref(); // an idle thread keeps no process running
      over();
    };
    const answered = (message: Answer) => {
      idle.push(thread);
      end();
      if ('answer' in message) resolve(message.answer);
      else reject(new Error(`${job} failed: ${message.failure}`));
    };
    const died = () => {
      end();
      reject(unavailable('DOCUMENTS_AWAY', 'the documents cannot be read'));
    };
    const timer = setTimeout(() => thread.terminate(), LIMIT_MS);
    thread.on('message', answered).on('exit', died);
    thread.ref();
    thread.postMessage({ job, given });
  });
}

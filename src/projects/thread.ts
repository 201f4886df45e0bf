import type { Worker } from 'node:worker_threads';
import { Interrupted } from '../db/failure.ts';
import type { Limits } from '../db/pool.ts';
import { exhausted, unavailable } from '../rpc/errors.ts';
import { startThread } from '../rpc/thread.ts';
import type { Answer, Jobs } from './worker.ts';

// Reading 256 KiB of YAML takes a third of a second, merging three such documents one to two, and what is made to be slow ten
// times as long: none of it happens in the event loop.
const LIMIT_MS = 10_000;
const MAX_WAITING = 200;

let worker: Worker | undefined;
let waiting = 0;
let last: Promise<unknown> = Promise.resolve();

/** Has the thread that all calls of this process share do something with documents. It is started by the first. */
export async function inThread<Name extends keyof Jobs>(
  limits: Limits,
  job: Name,
  ...given: Parameters<Jobs[Name]>
): Promise<ReturnType<Jobs[Name]>> {
  if (waiting >= MAX_WAITING) throw exhausted('DOCUMENTS_BUSY', 'too many documents wait to be read', 1000);
  waiting++;
  const turn = last.then(() => {
    if (limits.signal?.aborted || Date.now() >= limits.deadline) throw new Interrupted('the call is over');
    return done(job, given);
  });
  last = turn.catch(() => {}).finally(() => waiting--);
  return new Promise((resolve, reject) => {
    const late = () => reject(new Interrupted('no time left to wait for the thread'));
    const timer = setTimeout(late, Math.max(0, limits.deadline - Date.now()));
    (turn as Promise<ReturnType<Jobs[Name]>>).then(resolve, reject).finally(() => clearTimeout(timer));
  });
}

function done(job: keyof Jobs, given: unknown[]): Promise<unknown> {
  worker ??= startThread('documents', import.meta.url, (ended) => {
    if (worker === ended) worker = undefined;
  });
  const busy = worker;
  return new Promise((resolve, reject) => {
    const end = () => {
      clearTimeout(timer);
      busy.off('message', answered).off('exit', died);
      busy.unref(); // an idle thread keeps no process running
    };
    const answered = (message: Answer) => {
      end();
      if ('answer' in message) resolve(message.answer);
      else reject(new Error(`${job} failed: ${message.failure}`));
    };
    const died = () => {
      end();
      reject(unavailable('DOCUMENTS_AWAY', 'the documents cannot be read'));
    };
    const timer = setTimeout(() => busy.terminate(), LIMIT_MS);
    busy.on('message', answered).on('exit', died);
    busy.ref();
    busy.postMessage({ job, given });
  });
}

import { extname } from 'node:path';
import { Worker } from 'node:worker_threads';

/**
 * Starts a thread for what would hold up the event loop: its script is the `worker` beside the file at `url`, which is
 * JavaScript once it is built. `ended` is called when the thread is gone, however it went.
 */
export function startThread(name: string, url: string, ended: (thread: Worker) => void): Worker {
  const script = new URL(`./worker${extname(new URL(url).pathname)}`, url);
  const thread = new Worker(script, { name, resourceLimits: { maxOldGenerationSizeMb: 512 } });
  thread.on('error', () => {}); // an exit follows
  thread.on('exit', () => ended(thread));
  return thread;
}

import type { Work } from './loop.ts';
import { CONTENT, STATE } from './subjects.ts';

// What chat memories have in common, so that they can be compared: a thread of messages, and a state beside it.

export interface Memory {
  /** The most messages that a thread can have. Any number if left out. */
  readonly most?: number;
  /** Makes a thread of so many messages, and its state. */
  create(thread: string, size: number): Promise<void>;
  append(thread: string, content: string): Promise<unknown>;
  /** The newest messages. */
  last(thread: string, count: number): Promise<unknown[]>;
  putState(thread: string, state: object): Promise<unknown>;
  getState(thread: string): Promise<unknown>;
}

/** Threads of one size, one for each of the workers. */
export interface Threads {
  size: number;
  workers: number;
}

export const OPERATIONS = ['append', 'load last 20', 'put state', 'get state'] as const;

/** Operations tell the thread's size. */
export const sized = (operation: (typeof OPERATIONS)[number], size: number): string =>
  `${operation}, thread of ${size.toLocaleString('en')}`;

const nameOf = (size: number, worker: number) => `t-${size}-${worker}`;

export async function createThreads(memory: Memory, threads: Threads[]): Promise<void> {
  for (const { size, workers } of threads) {
    if (size > (memory.most ?? size)) continue;
    for (let worker = 0; worker < workers; worker++) await memory.create(nameOf(size, worker), size);
  }
}

/** The operations, each with a look at what came back: who forgets is quick. */
export function memoryWork(memory: Memory, threads: Threads[]): Work {
  const work: Work = {};
  for (const { size } of threads) {
    if (size > (memory.most ?? size)) continue;
    const name = (worker: number) => nameOf(size, worker);
    const calls: Record<(typeof OPERATIONS)[number], Work[string]> = {
      append: (worker) => memory.append(name(worker), CONTENT),
      'load last 20': async (worker) => {
        const messages = await memory.last(name(worker), 20);
        if (messages.length !== 20) throw new Error(`asked for 20 messages and got ${messages.length}`);
      },
      'put state': (worker) => memory.putState(name(worker), STATE),
      'get state': async (worker) => {
        const { goal } = ((await memory.getState(name(worker))) ?? {}) as { goal?: string };
        if (goal !== STATE.goal) throw new Error('asked for the state and got none');
      },
    };
    for (const operation of OPERATIONS) work[sized(operation, size)] = calls[operation];
  }
  return work;
}

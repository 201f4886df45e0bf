import { fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';

/** A process of the bench, which does what it is asked. */
export interface Child {
  ask<Answer>(name: string, body?: unknown): Promise<Answer>;
  stop(): void;
}

interface Reply {
  id: number;
  result?: unknown;
  error?: string;
}

/** Runs a file of this folder in a process of its own. Its stdout goes nowhere: the server under test logs to it. */
export function startChild(file: string): Child {
  const child = fork(fileURLToPath(new URL(file, import.meta.url)), [], {
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    serialization: 'advanced', // samples are typed arrays
  });
  const waiting = new Map<number, { resolve: (result: any) => void; reject: (error: Error) => void }>();
  let asked = 0;
  let stopped = false;

  child.on('message', ({ id, result, error }: Reply) => {
    const { resolve, reject } = waiting.get(id)!;
    waiting.delete(id);
    if (error) reject(new Error(`${file}: ${error}`));
    else resolve(result);
  });
  child.on('exit', (code, signal) => {
    stopped = true;
    for (const { reject } of waiting.values()) reject(new Error(`${file} ended (${signal ?? code})`));
  });
  return {
    ask: (name, body) =>
      new Promise((resolve, reject) => {
        if (stopped) return reject(new Error(`${file} has ended`));
        const id = asked++;
        waiting.set(id, { resolve, reject });
        child.send({ id, name, body });
      }),
    stop() {
      if (!stopped) child.disconnect();
      stopped = true;
    },
  };
}

export interface Usage {
  cpuMs: number;
  rssMb: number;
}

function usage(): Usage {
  const { user, system } = process.cpuUsage();
  return { cpuMs: (user + system) / 1000, rssMb: process.memoryUsage.rss() / 1e6 };
}

/** The child's side: answers what it is asked until its parent is gone, however that went. */
export function answer(handlers: Record<string, (body: any) => unknown>): void {
  const all: typeof handlers = { ...handlers, usage };
  process.on('disconnect', () => process.exit());
  process.on('message', async ({ id, name, body }: { id: number; name: string; body: unknown }) => {
    try {
      process.send!({ id, result: await all[name]!(body) });
    } catch (error) {
      process.send!({ id, error: (error as Error).stack ?? String(error) });
    }
  });
}

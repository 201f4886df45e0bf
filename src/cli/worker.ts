import type { Config } from '../config.ts';
import { features } from '../features.ts';
import { createLog } from '../log.ts';
import { startServer } from '../server.ts';
import { endOnUncaught } from './run.ts';

/** What a worker is told: to tell how it is, or to drain and end. */
export type Order = { ask: number } | 'stop';

/** What a worker tells: where it serves, once it does, and what it was asked. */
export type Told = { port: number } | { answer: number; state: State };

export interface State {
  /** Why it cannot serve calls, or undefined. */
  fault?: string | undefined;
  metrics: object[];
}

/** In the environment of the worker that runs the background jobs. */
export const JOBS = 'MEMORYD_WORKER_JOBS';

/** One process of `serve --workers`: a server like any other, which the first process tells when to stop. */
export async function serveAsWorker(config: Config): Promise<void> {
  const log = createLog(config.logLevel);
  endOnUncaught(log);
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => {}); // Ctrl-C reaches all processes
  const { background, ...services } = features;
  const jobs = process.env[JOBS] && background ? { background } : {};
  const server = await startServer({ ...config, metricsPort: undefined }, { ...services, ...jobs }, log);
  const tell = (told: Told) => process.send!(told);

  process.on('message', async (order: Order) => {
    if (order === 'stop') {
      await server.stop();
      process.exit(0);
    }
    const metrics = await server.metrics.registry.getMetricsAsJSON();
    tell({ answer: order.ask, state: { fault: server.fault(), metrics } });
  });
  tell({ port: server.port });
}

import { Logger as JobLogger, parseCronItems, run, type TaskList } from 'graphile-worker';
import type { Logger } from 'pino';
import { jobsPool, QUEUE_SCHEMA } from '../db/queue.ts';
import { describe } from '../rpc/observe.ts';

export interface Job {
  name: string;
  /** Every so many minutes, of all processes together. */
  everyMinutes: number;
  run(signal: AbortSignal): Promise<unknown>;
}

export interface Jobs {
  stop(): Promise<void>;
}

/** Runs background jobs beside the calls: each at its times, and one at a time across processes. */
export async function startJobs(connectionString: string | undefined, jobs: Job[], log: Logger): Promise<Jobs> {
  const ending = new AbortController();
  const taskList: TaskList = {};
  for (const job of jobs) {
    taskList[job.name] = async () => {
      const start = performance.now();
      try {
        const result = await job.run(ending.signal);
        log.debug({ job: job.name, ms: Math.round(performance.now() - start), result }, 'job');
      } catch (error) {
        if (ending.signal.aborted) return;
        log.error({ job: job.name, err: describe(error) }, 'job');
        throw new Error('failed'); // what went wrong is in the log, and stays out of the queue's table
      }
    };
  }
  const items = jobs.map(({ name, everyMinutes }) => ({
    task: name,
    match: `*/${everyMinutes} * * * *`,
    identifier: name,
    // A run that is still waiting or under way is not joined by another.
    options: { queueName: name, jobKey: name, jobKeyMode: 'preserve_run_at' as const, maxAttempts: 3 },
  }));
  const pool = jobsPool(connectionString, 3);
  const runner = await run({
    pgPool: pool,
    schema: QUEUE_SCHEMA,
    taskList,
    parsedCronItems: parseCronItems(items),
    concurrency: 2,
    pollInterval: 5000,
    noHandleSignals: true,
    logger: new JobLogger(() => (level, message) => {
      if (level === 'error' || level === 'warning') log.warn({ jobs: message }, 'background jobs');
    }),
  });
  runner.promise.catch((error) => {
    if (!ending.signal.aborted) log.error({ err: describe(error) }, 'background jobs ended');
  });
  return {
    async stop() {
      ending.abort();
      await runner.stop().catch(() => {});
      await pool.end();
    },
  };
}

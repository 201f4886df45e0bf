import { Logger as JobLogger, parseCronItems, run, type TaskList } from 'graphile-worker';
import type pg from 'pg';
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

/** Runs background jobs beside the calls: each at its times, one at a time across processes. */
export async function startJobs(connectionString: string | undefined, jobs: Job[], log: Logger): Promise<Jobs> {
  const ending = new AbortController();
  const pool = jobsPool(connectionString, 2 + jobs.length);
  const taskList: TaskList = {};
  for (const job of jobs) {
    taskList[job.name] = async () => {
      const start = performance.now();
      try {
        const result = await alone(pool, job.name, () => job.run(ending.signal));
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
    // A run that still waits is not joined by another. No queue: a process that is killed in a run would leave it locked for
    // four hours, and the job with it. The lock of `alone` goes with its process.
    options: { jobKey: name, jobKeyMode: 'preserve_run_at' as const, maxAttempts: 3 },
  }));
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

/** Runs the work unless another process is at it. */
async function alone<T>(pool: pg.Pool, name: string, work: () => Promise<T>): Promise<T | undefined> {
  const client = await pool.connect();
  const lock = async (what: string) => {
    const { rows } = await client.query(`select ${what}(hashtextextended($1, 0)) as done`, [`memoryd.job.${name}`]);
    return rows[0].done;
  };
  try {
    if (!(await lock('pg_try_advisory_lock'))) return undefined;
    try {
      return await work();
    } finally {
      await lock('pg_advisory_unlock');
    }
  } finally {
    client.release();
  }
}

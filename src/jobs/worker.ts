import { Logger as JobLogger, parseCronItems, run, runMigrations, type TaskList } from 'graphile-worker';
import pg from 'pg';
import type { Logger } from 'pino';
import { connectionSettings } from '../db/pool.ts';
import { describe } from '../rpc/observe.ts';

const SCHEMA = 'graphile_worker';

/** A pool that works as memoryd_jobs, who owns the queue, whoever logs in. */
function jobsPool(connectionString: string | undefined, max: number): pg.Pool {
  const pool = new pg.Pool({ ...connectionSettings(connectionString), options: '-c role=memoryd_jobs', max });
  pool.on('error', () => {});
  pool.on('connect', (client) => client.on('error', () => {}));
  return pool;
}

/** Installs the queue, or brings it up to date. The role may create its schema only as long as that takes. */
export async function migrateJobs(connectionString: string | undefined, owner: pg.Client): Promise<void> {
  const grant = (what: string) =>
    owner.query(`do $$ begin execute format('${what}', current_database()); end $$`);
  const pool = jobsPool(connectionString, 1);
  await grant('grant create on database %I to memoryd_jobs');
  try {
    await runMigrations({ pgPool: pool, schema: SCHEMA, logger: new JobLogger(() => () => {}) });
  } finally {
    await grant('revoke create on database %I from memoryd_jobs');
    await pool.end();
  }
}

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
    schema: SCHEMA,
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

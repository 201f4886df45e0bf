import { Logger as JobLogger, runMigrations } from 'graphile-worker';
import pg from 'pg';
import { connectionSettings } from './pool.ts';

export const QUEUE_SCHEMA = 'graphile_worker';

/** A pool that works as memoryd_jobs, who owns the queue, whoever logs in. */
export function jobsPool(connectionString: string | undefined, max: number): pg.Pool {
  const pool = new pg.Pool({ ...connectionSettings(connectionString), options: '-c role=memoryd_jobs', max });
  pool.on('error', () => {});
  pool.on('connect', (client) => client.on('error', () => {}));
  return pool;
}

/**
 * Does something every so often for as long as it is not stopped, one round after the other, with a connection that sees what
 * memoryd_jobs may see of all tenants.
 */
export function rounds(
  connectionString: string | undefined,
  everyMs: number,
  round: (pool: pg.Pool) => Promise<void>,
  failed: (error: unknown) => void,
): { stop(): Promise<void> } {
  const pool = jobsPool(connectionString, 1);
  let stopping = false;
  let timer: NodeJS.Timeout;
  let running: Promise<void> = Promise.resolve();

  function next(): void {
    timer = setTimeout(() => {
      running = round(pool)
        .catch((error) => {
          if (!stopping) failed(error);
        })
        .then(() => {
          if (!stopping) next();
        });
    }, everyMs);
  }
  next();
  return {
    async stop() {
      stopping = true;
      clearTimeout(timer);
      await running;
      await pool.end();
    },
  };
}

/**
 * Renews a claim that lasts so many seconds until told to end. `lost` aborts when it turns out to be another's.
 */
export function keeping(seconds: number, keep: () => Promise<boolean>): { lost: AbortSignal; end(): Promise<void> } {
  const lost = new AbortController();
  let renewal: Promise<void> | undefined;
  const timer = setInterval(
    () => {
      // One at a time: it may wait for a lock, with a connection.
      renewal ??= keep()
        .then(
          (kept) => {
            if (!kept) lost.abort();
          },
          () => {}, // the database is away: the claim may hold until it is back
        )
        .finally(() => {
          renewal = undefined;
        });
    },
    (seconds * 1000) / 3,
  );
  return {
    lost: lost.signal,
    async end() {
      clearInterval(timer);
      await renewal;
    },
  };
}

const LONGEST_WAIT_SECONDS = 15 * 60;

/** A second after the first attempt, then twice as long each time, and never quite the same for two of them. */
export const waitSeconds = (attempts: number): number =>
  Math.min(LONGEST_WAIT_SECONDS, 2 ** (attempts - 1)) * (0.5 + Math.random() / 2);

/** Installs the queue, or brings it up to date. The role may create its schema only as long as that takes. */
export async function migrateJobs(connectionString: string | undefined, owner: pg.Client): Promise<void> {
  const grant = (what: string) => owner.query(`do $$ begin execute format('${what}', current_database()); end $$`);
  const pool = jobsPool(connectionString, 1);
  await grant('grant create on database %I to memoryd_jobs');
  try {
    await runMigrations({ pgPool: pool, schema: QUEUE_SCHEMA, logger: new JobLogger(() => () => {}) });
  } finally {
    await grant('revoke create on database %I from memoryd_jobs');
    await pool.end();
  }
}

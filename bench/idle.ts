import { setTimeout as sleep } from 'node:timers/promises';
import { withClient } from '../src/preflight.ts';
import { startChild, type Usage } from './child.ts';
import type { Watching } from './watchers.ts';
import type { Database, World } from './world.ts';

/** What it costs, in a second, that so many watch threads in which nothing happens. */
export interface IdleWatches {
  watches: number;
  queriesPerSecond: number;
  serverCpuPercent: number;
  postgresCpuPercent: number | undefined;
  /** That the server holds for each. */
  kbPerWatch: number;
}

/** Until no tenant is asked any more often than it must. */
const SETTLE_MS = 5000;
const MEASURE_MS = 10_000;

const SEED = `
  insert into threads (tenant_id, env, user_id, thread_id, thread_uid, create_time, update_time)
  select $1, $2, $3, 'idle-' || n, gen_random_uuid(), now(), now() from generate_series(1, $4::int) n
  returning thread_id`;

// Each statement of a poll is a transaction of its own.
const TRANSACTIONS = `
  select (xact_commit + xact_rollback)::int as n from pg_stat_database where datname = current_database()`;

export async function measureIdleWatches(world: World, database: Database, watches: number): Promise<IdleWatches> {
  const [server, watchers] = [startChild('server.ts'), startChild('watchers.ts')];
  try {
    const { databaseUrl, ownerUrl, scope } = database;
    const port = await server.ask<number>('start', { databaseUrl, keyFile: world.keyFile });
    const { rows } = await withClient(ownerUrl, (client) =>
      client.query(SEED, [scope.tenant, scope.env, scope.user, watches]),
    );
    const before = await server.ask<Usage>('usage');
    const watching: Watching = { address: `127.0.0.1:${port}`, scope, threadIds: rows.map((row) => row.thread_id) };
    await watchers.ask('watchAll', watching);
    await sleep(SETTLE_MS);
    const look = async () => ({
      at: performance.now(),
      server: await server.ask<Usage>('usage'),
      postgresMs: world.postgresCpu(),
      queries: await withClient(ownerUrl, async (client) => (await client.query(TRANSACTIONS)).rows[0].n as number),
    });
    const first = await look();
    await sleep(MEASURE_MS);
    const last = await look();
    const ms = last.at - first.at;
    const { postgresMs } = first;
    return {
      watches,
      queriesPerSecond: ((last.queries - first.queries) / ms) * 1000,
      serverCpuPercent: ((last.server.cpuMs - first.server.cpuMs) / ms) * 100,
      postgresCpuPercent: postgresMs === undefined ? undefined : ((last.postgresMs! - postgresMs) / ms) * 100,
      kbPerWatch: ((last.server.rssMb - before.rssMb) * 1000) / watches,
    };
  } finally {
    server.stop();
    watchers.stop();
  }
}

export function idleLine({
  watches,
  queriesPerSecond,
  serverCpuPercent,
  postgresCpuPercent,
  kbPerWatch,
}: IdleWatches): string {
  const postgres = postgresCpuPercent === undefined ? '' : `, Postgres ${postgresCpuPercent.toFixed(1)} %`;
  return `${watches.toLocaleString('en')} idle watches: ${queriesPerSecond.toFixed(1)} queries/s, server CPU ${serverCpuPercent.toFixed(1)} %${postgres}, ${kbPerWatch.toFixed(0)} kB each`;
}

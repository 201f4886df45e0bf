import { openDatabase } from '../src/db/pool.ts';
import { withClient } from '../src/preflight.ts';
import { sweep } from '../src/tenants/expiry.ts';
import { median } from './rounds.ts';
import type { Database } from './world.ts';

/** How long a sweep takes in which nothing is due, over so many tenants that each have some rows. */
export async function measureSweep(
  { ownerUrl, databaseUrl }: Database,
  tenants: number,
  times: number,
): Promise<number> {
  await withClient(ownerUrl, async (client) => {
    await client.query(
      `with made as (
         insert into tenants (tenant_id, envs) select 'swept-' || i, '{dev}' from generate_series(1, $1::int) i returning tenant_id
       ), called as (
         insert into requests (tenant_id, env, user_id, method, request_id, fingerprint, result)
         select tenant_id, 'dev', 'user', 'm', gen_random_uuid(), '', '[]' from made, generate_series(1, 5)
       )
       insert into threads (tenant_id, env, user_id, thread_id, thread_uid, create_time, update_time)
       select tenant_id, 'dev', 'user', 'thread-' || j, gen_random_uuid(), now(), now() from made, generate_series(1, 5) j`,
      [tenants],
    );
    await client.query('vacuum analyze');
  });
  const database = openDatabase({
    connectionString: databaseUrl,
    poolSize: 1,
    poolWaitMs: 10_000,
    sharedConnections: 0,
    preparedStatements: true,
  });
  try {
    await sweep(database); // what else is due, and the plans
    const took: number[] = [];
    for (let time = 0; time < times; time++) {
      const start = performance.now();
      await sweep(database);
      took.push(performance.now() - start);
    }
    return median(took);
  } finally {
    await database.close();
  }
}

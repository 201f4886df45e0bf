import type pg from 'pg';
import { openDatabase } from '../src/db/pool.ts';
import { reader, type TenantDb } from '../src/db/transaction.ts';
import { Budget_Period, Budget_Scope, UsageDimension } from '../src/gen/memory/v1/usage.ts';
import { withClient } from '../src/preflight.ts';
import { budgetsOf } from '../src/usage/budgets.ts';
import { readUsage } from '../src/usage/report.ts';
import { median } from './rounds.ts';
import type { Database } from './world.ts';

const [USERS, PROJECTS, MODELS, CALLS_OF_SESSION] = [1000, 20, 5, 50];
const BATCH = 250_000;
/** Calls that are in no sums yet: of a time before the period, as an import brings them, and of the last second. */
const WAITING = { old: 200_000, new: 1000 };
const TIMES = 21;
/** A month that has passed, so that nothing of it is of the budgets' period. */
const MONTH = { startDay: '2026-01-01', endDay: '2026-01-31' };
const MONTH_SECONDS = 31 * 86_400;

const { USER, PROJECT, DAY, MODEL } = UsageDimension;

export interface UsageRow {
  told: string;
  rows: number;
  ms: number;
}

/** How long usage takes to be told of a month of so many calls, and what a budget costs a turn while others wait for their sums. */
export async function measureUsage(
  { ownerUrl, databaseUrl, scope }: Database,
  calls: number,
  progress: (line: string) => void,
): Promise<UsageRow[]> {
  const database = openDatabase({
    connectionString: databaseUrl,
    poolSize: 1,
    poolWaitMs: 10_000,
    sharedConnections: 0,
    preparedStatements: true,
  });
  const db: TenantDb = {
    scope,
    query: (...asked) => reader(database, scope, { deadline: Date.now() + 600_000 }).query(...asked),
  };
  const rows: UsageRow[] = [];
  const measure = async (told: string, ask: () => Promise<unknown[]>) => {
    const took: number[] = [];
    let found: unknown[] = [];
    for (let time = 0; time < TIMES; time++) {
      const start = performance.now();
      found = await ask();
      took.push(performance.now() - start);
    }
    rows.push({ told, rows: found.length, ms: median(took) });
  };
  const filter = { userId: '', sessionId: '', projectId: '', provider: '', model: '', ...MONTH };
  const tell =
    (by: UsageDimension[], limit: number, more = {}) =>
    () =>
      readUsage(db, by, { ...filter, ...more }, undefined, limit);
  const budgets = () => budgetsOf(db, '', null);
  try {
    await withClient(ownerUrl, async (client) => {
      await client.query('set synchronous_commit = off');
      for (let from = 0; from < calls; from += BATCH) {
        progress(`${from.toLocaleString('en')} of ${calls.toLocaleString('en')} calls of models`);
        const at = `'${MONTH.startDay}'::timestamptz + n * interval '${MONTH_SECONDS / calls} seconds'`;
        await insertCalls(client, scope, from, Math.min(calls, from + BATCH), at, true);
      }
      progress('their sums');
      await client.query(SUMS);
      await client.query('vacuum analyze');

      progress('reports');
      await measure('nothing: one sum', tell([], 51));
      await measure('day and model', tell([DAY, MODEL], 501));
      await measure('project', tell([PROJECT], 51));
      await measure('day, of one user', tell([DAY], 51, { userId: 'u7' }));
      await measure('user, a page of 50', tell([USER], 51));
      await measure(`user, a page of 500`, tell([USER], 501));

      progress('budgets');
      await client.query(BUDGETS, [scope.tenant, scope.env, scope.user]);
      await measure('budgets of a turn', budgets);
      await insertCalls(client, scope, 0, WAITING.old, `now() - interval '40 days' + n * interval '1 second'`, false);
      await client.query('analyze llm_requests');
      await measure(`the same, while ${WAITING.old.toLocaleString('en')} older calls wait`, budgets);
      await insertCalls(client, scope, 0, WAITING.new, 'now()', false);
      await measure(`and ${WAITING.new.toLocaleString('en')} of today`, budgets);
    });
    return rows;
  } finally {
    await database.close();
  }
}

const insertCalls = (
  client: pg.Client,
  { tenant, env }: { tenant: string; env: string },
  from: number,
  to: number,
  at: string,
  folded: boolean,
) =>
  client.query(
    `insert into llm_requests (tenant_id, env, id, user_id, session_id, project_id, provider, model, prompt_tokens, completion_tokens,
       total_tokens, cost, latency_ms, status, create_time, folded)
     select $1, $2, uuid_v7(at), 'u' || s % ${USERS}, md5('session ' || s)::uuid, 'p' || s % ${PROJECTS}, 'provider',
       'm' || n % ${MODELS}, 900, 100, 1000, 0.001, 800, 'ok', at, $5
     from (select n, n / ${CALLS_OF_SESSION} as s, ${at} as at from generate_series($3::int, $4::int - 1) n) c`,
    [tenant, env, from, to, folded],
  );

// As the service makes them, but at once.
const SUMS = `
  insert into usage_rollups (tenant_id, env, grain, subject, day, user_id, project_id, provider, model, requests, prompt_tokens,
    cached_tokens, completion_tokens, total_tokens, cost, latency_ms)
  select tenant_id, env, g.grain, g.subject, (create_time at time zone 'UTC')::date, g.user_id, g.project_id, provider, model,
    count(*), sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens), sum(total_tokens), sum(cost), sum(latency_ms)
  from llm_requests r cross join lateral (values
    (1, '', '', ''),
    (2, r.project_id, '', ''),
    (3, r.user_id, '', r.project_id),
    (4, coalesce(r.session_id::text, ''), r.user_id, r.project_id)
  ) g (grain, subject, user_id, project_id)
  group by tenant_id, env, g.grain, g.subject, 5, g.user_id, g.project_id, provider, model`;

const BUDGETS = `
  insert into budgets (tenant_id, env, scope, subject, period, cost_limit, enforce, by_admin, revision, create_time, update_time, updated_by)
  select $1, $2, scope, subject, ${Budget_Period.MONTH}, 1000000, true, true, 1, now(), now(), 'user'
  from (values (${Budget_Scope.TENANT}, ''), (${Budget_Scope.USER}, $3)) b (scope, subject)`;

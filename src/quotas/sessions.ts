import { sqlState } from '../db/failure.ts';
import { query } from '../db/statement.ts';
import { type TenantTx, together } from '../db/transaction.ts';
import type { Call } from '../rpc/context.ts';
import { overQuota } from '../rpc/quotas.ts';
import { liveSession } from '../threads/repository.ts';

// How many live sessions a tenant has is one number for all its envs, in a row that all its creates lock: so only where there
// is a quota. Who creates adds to it, who ends or deletes takes away, and what expires stays in it until all are counted anew.
// That is done before a create is refused, at most once a second, and every minute.

/** More than any limit, so that who meets it has them counted. */
export const UNCOUNTED = Number.MAX_SAFE_INTEGER;

/** The limit of an import, which is counted but not refused. */
export const ANY_NUMBER = Number.MAX_SAFE_INTEGER;

/**
 * The CTE that adds the session of the CTE `saved` if that is new. `limit` is the tenant's, null if it has none: where it is
 * passed, the table's constraint undoes the transaction. What is proposed has to keep to it even where a row is there.
 */
export const added = (limit: string) => `added as (
    insert into quota_counts as q (tenant_id, sessions, session_limit)
    select $1, case when exists (select from quota_counts c where c.tenant_id = $1) then 1 else ${UNCOUNTED} end, ${limit}::bigint
    from saved where saved.created and ${limit} is not null
    on conflict (tenant_id) do update set sessions = least(q.sessions + 1, ${UNCOUNTED}), session_limit = excluded.session_limit
    returning 1
  )`;

/** The CTE that takes away a session that was live until now: those of a CTE with their `expire_time`. */
export const takenAway = (ended: string, limit: string) => `taken_away as (
    update quota_counts q set sessions = q.sessions - 1, session_limit = null
    from ${ended} e
    where q.tenant_id = $1 and ${limit}::bigint is not null and q.sessions < ${UNCOUNTED}
      and (e.expire_time is null or e.expire_time > q.session_count_time)
    returning 1
  )`;

/** Has the live sessions of a tenant counted anew by who creates the next one. */
export const uncount = (which: string) => `
    update quota_counts q set sessions = ${UNCOUNTED}, session_limit = null, session_count_time = '-infinity'
    ${which}`;

const BEGIN = query(`
  insert into quota_counts (tenant_id, sessions) values ($1, ${UNCOUNTED}) on conflict do nothing`);

// The row's lock keeps creates away until the new number is there.
const LOCK = query<{ envs: string[] }>(`
  select t.envs from quota_counts q join tenants t on t.tenant_id = q.tenant_id
  where q.tenant_id = $1 and q.session_count_time <= clock_timestamp() - interval '1 second'
  for update of q`);

const COUNT = query<{ n: number }>(`
  select count(*)::int as n from sessions s where s.tenant_id = $1 and s.env = $4 and ${liveSession('s')}`);

const STORE = query(`
  update quota_counts set sessions = $4::bigint, session_limit = null, session_count_time = clock_timestamp() where tenant_id = $1`);

/** Literal, as in the prologue of a transaction: one statement for each name that envs have, of which there are few. */
const inEnv = (env: string) => query<{ n: number }>(`set local app.env = '${env}'`);

/** Counts the live sessions of the tenant anew, unless that was done within a second. The transaction is of no env. */
export async function countSessions(tx: TenantTx): Promise<void> {
  const [, [row]] = await together([tx.query(BEGIN), tx.query(LOCK)]);
  if (!row) return;
  const counted = await together(row.envs.flatMap((env) => [tx.query(inEnv(env)), tx.query(COUNT, [env])]));
  await tx.final(STORE, [counted.flat().reduce((sum, { n }) => sum + n, 0)]);
}

const isOver = (error: unknown): boolean =>
  sqlState(error) === '23514' && (error as { constraint?: string }).constraint === 'quota_counts_sessions';

/** Runs a change that may create a session. Before the tenant's quota refuses it, they are counted anew. */
export async function withinSessions<T>(call: Call, create: () => Promise<T>): Promise<T> {
  const { tenant, membership } = call.identity;
  const limit = membership.quotas.maxSessions;
  if (!limit) return create();
  try {
    return await create();
  } catch (error) {
    if (!isOver(error)) throw error;
  }
  await call.as({ env: '', user: '' }).change({ requestId: '' }, async (tx) => {
    await countSessions(tx);
    return [];
  });
  return create().catch((error) => {
    throw isOver(error) ? overQuota(tenant, 'maxSessions', limit) : error;
  });
}

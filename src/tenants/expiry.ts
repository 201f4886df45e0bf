import type { Database } from '../db/pool.ts';
import { query } from '../db/statement.ts';
import { type TenantDb, transaction } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { ExpiryStats } from '../gen/memory/v1/admin_service.ts';
import { UNMATCHED } from '../profiles/email-matches.ts';
import { everyPlace } from './places.ts';

const BATCH = 1000;
/** Of sessions, which take along all that their turns left: thousands of rows each. */
const SESSION_BATCH = 100;

/** How long acknowledged hand-offs, and the tombstones of what was deleted, are kept. */
const ACKED_DAYS = 7;
const TOMBSTONE_DAYS = 30;
/** How long a merge of profiles can be undone: as long as what they held before is kept. */
const UNDO_DAYS = 30;

/** A few of the threads that were deleted or cleared. */
const OF_DROPPED =
  'thread_uid in (select thread_uid from dropped_threads d where d.tenant_id = $1 and d.env = $2 order by drop_time limit 10)';

/** Each kind of thing that goes by itself: its table, and which of its rows are due. */
const KINDS: { kind: string; table: string; due: string; batch?: number }[] = [
  { kind: 'bundles', table: 'bundles', due: 'expire_time <= now()' },
  { kind: 'email_matches', table: 'email_matches', due: UNMATCHED },
  { kind: 'handoffs', table: 'handoffs', due: `ack_time <= now() - interval '${ACKED_DAYS} days'` },
  { kind: 'memories', table: 'memories', due: 'expire_time <= now() and delete_time is null' },
  { kind: 'messages', table: 'messages', due: OF_DROPPED },
  { kind: 'merges', table: 'profile_merges', due: `create_time <= now() - interval '${UNDO_DAYS} days'` },
  { kind: 'requests', table: 'requests', due: `create_time <= now() - interval '24 hours'` },
  { kind: 'session_keys', table: 'session_keys', due: 'expire_time <= now()' },
  {
    kind: 'sessions',
    table: 'sessions',
    due: 'expire_time <= now() and delete_time is null',
    batch: SESSION_BATCH,
  },
  { kind: 'messages', table: 'thread_events', due: OF_DROPPED },
  { kind: 'messages', table: 'thread_readings', due: OF_DROPPED },
  { kind: 'tombstones', table: 'memories', due: `delete_time <= now() - interval '${TOMBSTONE_DAYS} days'` },
  { kind: 'tombstones', table: 'sessions', due: `delete_time <= now() - interval '${TOMBSTONE_DAYS} days'` },
  { kind: 'tombstones', table: 'threads', due: `delete_time <= now() - interval '${TOMBSTONE_DAYS} days'` },
];

// One statement for all kinds, as nearly always there is nothing to do: a walk over many tenants is then one round trip
// each. Locked rows are skipped; they belong to a call, or to another sweep.
const SWEEP = query<{ kind: string; n: number }>(`
  with ${KINDS.map(
    ({ table, due, batch = BATCH }, i) => `gone_${i} as (
    delete from ${table}
    where tenant_id = $1 and env = $2 and ctid = any (array(
      select ctid from ${table} where tenant_id = $1 and env = $2 and ${due} limit ${batch} for update skip locked))
    returning 1
  )`,
  ).join(', ')}, emptied as (
    delete from dropped_threads d
    where tenant_id = $1 and env = $2 and not exists (
      select from messages m where m.tenant_id = $1 and m.env = $2 and m.thread_uid = d.thread_uid
      union all select from thread_events e where e.tenant_id = $1 and e.env = $2 and e.thread_uid = d.thread_uid
      union all select from thread_readings r where r.tenant_id = $1 and r.env = $2 and r.thread_uid = d.thread_uid)
    returning 1
  ), counts as (
    select kind, sum(n)::int as n from (
      ${KINDS.map(({ kind }, i) => `select '${kind}' as kind, count(*) as n from gone_${i}`).join(' union all ')}
    ) c group by kind having sum(n) > 0
  ), counted as (
    insert into expiry_stats as e (tenant_id, env, kind, swept_count, last_sweep_time)
    select $1, $2, kind, n, now() from counts
    on conflict (tenant_id, env, kind) do update
      set swept_count = e.swept_count + excluded.swept_count, last_sweep_time = excluded.last_sweep_time
    returning 1
  )
  select kind, n from counts`);

/** Removes what has expired, of all tenants, in batches. Resolves to the counts by kind. */
export async function sweep(database: Database, signal?: AbortSignal): Promise<Map<string, number>> {
  const total = new Map<string, number>();
  await everyPlace(database, signal, async (scope) => {
    for (let more = true; more; ) {
      signal?.throwIfAborted();
      const limits = { deadline: Date.now() + 60_000, signal };
      const counts = await transaction(database, scope, undefined, limits, { repeatable: true }, (tx) =>
        tx.final(SWEEP),
      );
      for (const { kind, n } of counts) total.set(kind, (total.get(kind) ?? 0) + n);
      more = counts.some(({ kind, n }) => n >= (KINDS.find((of) => of.kind === kind)!.batch ?? BATCH));
    }
  });
  return total;
}

const STATS = query<{ kind: string; sweptCount: number; pendingCount: number; lastSweepTime: Timestamp | null }>(`
  select k.kind, coalesce(e.swept_count, 0) as swept_count, k.pending_count, e.last_sweep_time
  from (
    select kind, sum(n) as pending_count from (
      ${KINDS.map(
        ({ kind, table, due }) =>
          `select '${kind}' as kind, count(*) as n from (select from ${table} where tenant_id = $1 and env = $2 and ${due} limit 10000) r`,
      ).join(' union all ')}
    ) c group by kind
  ) k
  left join expiry_stats e on e.tenant_id = $1 and e.env = $2 and e.kind = k.kind
  order by k.kind`);

export async function expiryStats(db: TenantDb): Promise<ExpiryStats[]> {
  const rows = await db.query(STATS);
  return rows.map((row) => ExpiryStats.fromPartial({ ...row, lastSweepTime: row.lastSweepTime ?? undefined }));
}

import { dueEvents, pruneAll } from '../audit/prune.ts';
import type { Keyring } from '../db/keyring.ts';
import type { Database } from '../db/pool.ts';
import { query } from '../db/statement.ts';
import { type TenantDb, transaction } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { ExpiryStats } from '../gen/memory/v1/admin_service.ts';
import { unmatched } from '../profiles/email-matches.ts';
import { dueMessages } from '../threads/retention.ts';
import { duePlaces } from './places.ts';
import { RETAINED, retain } from './retention.ts';
import { BATCH, type Count, dueRows, type Kind, removal } from './sweeping.ts';

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

const DROPPED = { due: OF_DROPPED, hint: { table: 'dropped_threads', due: 'true' } };

/** Each kind of thing that goes by itself: its table, and which of its rows are due. */
const KINDS: Kind[] = [
  { kind: 'bundles', table: 'bundles', due: 'expire_time <= now()' },
  {
    kind: 'email_matches',
    table: 'email_matches',
    due: unmatched('email_matches'),
    hint: { table: 'email_matches', due: 'true' },
  },
  { kind: 'handoffs', table: 'handoffs', due: `ack_time <= now() - interval '${ACKED_DAYS} days'` },
  { kind: 'memories', table: 'memories', due: 'expire_time <= now() and delete_time is null' },
  { kind: 'messages', table: 'messages', ...DROPPED },
  { kind: 'merges', table: 'profile_merges', due: `create_time <= now() - interval '${UNDO_DAYS} days'` },
  { kind: 'requests', table: 'requests', due: `create_time <= now() - interval '24 hours'` },
  { kind: 'session_keys', table: 'session_keys', due: 'expire_time <= now()' },
  {
    kind: 'sessions',
    table: 'sessions',
    due: 'expire_time <= now() and delete_time is null',
    batch: SESSION_BATCH,
  },
  { kind: 'messages', table: 'thread_events', ...DROPPED },
  { kind: 'messages', table: 'thread_readings', ...DROPPED },
  { kind: 'tombstones', table: 'memories', due: `delete_time <= now() - interval '${TOMBSTONE_DAYS} days'` },
  { kind: 'tombstones', table: 'sessions', due: `delete_time <= now() - interval '${TOMBSTONE_DAYS} days'` },
  { kind: 'tombstones', table: 'threads', due: `delete_time <= now() - interval '${TOMBSTONE_DAYS} days'` },
];

const SWEEP = removal(
  KINDS,
  `emptied as (
    delete from dropped_threads d
    where tenant_id = $1 and env = $2 and not exists (
      select from messages m where m.tenant_id = $1 and m.env = $2 and m.thread_uid = d.thread_uid
      union all select from thread_events e where e.tenant_id = $1 and e.env = $2 and e.thread_uid = d.thread_uid
      union all select from thread_readings r where r.tenant_id = $1 and r.env = $2 and r.thread_uid = d.thread_uid)
    returning 1
  ),`,
);

const everyDuePlace = duePlaces(KINDS);

/**
 * Removes what has expired, or is older than its tenant keeps it, of all tenants, in batches. Audit events stay without the keys
 * that sign what is left of their chains. Resolves to the counts by kind.
 */
export async function sweep(database: Database, signal?: AbortSignal, keyring?: Keyring): Promise<Map<string, number>> {
  const total = new Map<string, number>();
  const count = (counts: Count[]) => {
    for (const { kind, n } of counts) total.set(kind, (total.get(kind) ?? 0) + n);
  };
  await everyDuePlace(database, signal, async (scope) => {
    const limits = { deadline: Date.now() + 60_000, signal };
    const counts = await transaction(database, scope, undefined, limits, { repeatable: true }, (tx) => tx.final(SWEEP));
    count(counts);
    return counts.some(({ kind, n }) => n >= (KINDS.find((of) => of.kind === kind)!.batch ?? BATCH));
  });
  await retain(database, count, signal);
  if (keyring) await pruneAll({ database, keyring }, count, signal);
  return total;
}

const STATS = query<{ kind: string; sweptCount: number; pendingCount: number; lastSweepTime: Timestamp | null }>(`
  select kind, coalesce(e.swept_count, 0) as swept_count, k.pending_count, e.last_sweep_time
  from (
    select kind, sum(n)::bigint as pending_count from (
      ${[...KINDS, ...RETAINED]
        .map((kind) => `select '${kind.kind}' as kind, count(*) as n from (${dueRows(kind, '', 10_000)}) r`)
        .join(' union all ')}
      union all select 'retention_messages', count(*) from (${dueMessages(10_000)}) r
      union all ${dueEvents(10_000)}
    ) c group by kind
  ) k
  left join (
    select kind, sum(swept_count)::bigint as swept_count, max(last_sweep_time) as last_sweep_time from expiry_stats
    where tenant_id = $1 and env in ($2, '')
    group by kind
  ) e using (kind)
  order by kind`);

export async function expiryStats(db: TenantDb): Promise<ExpiryStats[]> {
  const rows = await db.query(STATS);
  return rows.map((row) => ExpiryStats.fromPartial({ ...row, lastSweepTime: row.lastSweepTime ?? undefined }));
}

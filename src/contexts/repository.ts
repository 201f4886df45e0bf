import { audited, requested, wiped } from '../db/change.ts';
import { change, json, pointRead, query, type Statement } from '../db/statement.ts';
import type { TenantDb, TenantTx } from '../db/transaction.ts';
import type { ContextEntry, SessionContext } from '../gen/memory/v1/context.ts';
import { deleted, notFound } from '../rpc/errors.ts';
import { liveSession } from '../threads/repository.ts';
import { foldEntries, fromStored, KEPT_BYTES, LIVE_BYTES, type StoredEntry, toStored } from './context.ts';
import { type Archived, pack, unpack } from './snapshot.ts';

/** Where a session's context stands. */
export interface ContextState {
  /** The session. */
  id: string;
  lastOrdinal: number;
  archivedThrough: number;
  archivedCount: number;
  liveBytes: number;
}

const STATE = 'session_id as id, last_ordinal, archived_through, archived_count, live_bytes';

const LIVE = liveSession('s');

// The session's row, which each append locks first, so that ordinals have no gap and DeleteSession misses no entry.
const TOUCHED = `
    update sessions s
    set last_activity_time = greatest(s.last_activity_time, c.at),
      expire_time = case when s.sliding_ttl is null then s.expire_time else c.at + s.sliding_ttl end
    from (select clock_timestamp() as at) c
    where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $11::uuid and ${LIVE}
    returning s.id`;
const HELD = `
    select s.id from sessions s
    where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $11::uuid and ${LIVE}
    for no key update`;

const append = (session: string) =>
  change<ContextState>(`
  with session as (${session}
  ), context as (
    insert into session_contexts as c (tenant_id, env, session_id, user_id, last_ordinal, live_bytes, update_time)
    select $1, $2, id, $3, jsonb_array_length($12::jsonb), $13::int, clock_timestamp() from session
    on conflict (tenant_id, env, session_id) do update
      set last_ordinal = c.last_ordinal + excluded.last_ordinal, live_bytes = c.live_bytes + excluded.live_bytes,
        update_time = greatest(c.update_time, excluded.update_time)
    returning c.*
  ), appended as (
    insert into context_entries (tenant_id, env, session_id, ordinal, user_id, kind, data, byte_size, create_time)
    select $1, $2, c.session_id, c.last_ordinal - jsonb_array_length($12) + e.ord, $3, (v ->> 'kind')::smallint, v -> 'data',
      (v ->> 'size')::int, c.update_time
    from context c, jsonb_array_elements($12) with ordinality as e (v, ord)
    returning 1
  )
  select ${STATE} from context`);

const APPEND = append(TOUCHED);
const APPEND_TO_HELD = append(HELD);

// What is over the size that is kept, counted from the newest on.
const OLDEST = query<StoredEntry & { ordinal: number; createTime: ContextEntry['createTime'] }>(`
  select ordinal, kind, data, create_time
  from (
    select e.*, sum(byte_size) over (order by ordinal desc rows unbounded preceding) as kept
    from context_entries e
    where tenant_id = $1 and env = $2 and user_id = $3 and session_id = $4::uuid
  ) e
  where kept > $5::int
  order by ordinal`);

const ARCHIVE = change<{ moved: number }>(`
  with moved as (
    delete from context_entries
    where tenant_id = $1 and env = $2 and user_id = $3 and session_id = $11::uuid and ordinal <= $12::bigint
    returning byte_size
  ), archived as (
    insert into context_archives (tenant_id, env, session_id, first_ordinal, last_ordinal, user_id, byte_size, snapshot, create_time)
    select $1, $2, $11, (v ->> 'first')::bigint, (v ->> 'last')::bigint, $3, (v ->> 'size')::int,
      decode(v ->> 'snapshot', 'base64'), clock_timestamp()
    from jsonb_array_elements($13::jsonb) v
    returning 1
  )
  update session_contexts c
  set archived_through = $12, archived_count = c.archived_count + m.count, live_bytes = c.live_bytes - m.bytes
  from (select count(*) as count, sum(byte_size)::int as bytes from moved) m
  where c.tenant_id = $1 and c.env = $2 and c.user_id = $3 and c.session_id = $11
  returning m.count as moved`);

async function appendBy(
  tx: TenantTx,
  statement: Statement<ContextState>,
  sessionId: string,
  entries: readonly ContextEntry[],
): Promise<boolean> {
  const stored = entries.map(toStored);
  const bytes = stored.reduce((sum, { size }) => sum + size, 0);
  const [context] = await tx.query(statement, [sessionId, json(stored), bytes]);
  if (context && context.liveBytes > LIVE_BYTES) await archiveOldest(tx, sessionId);
  return context !== undefined;
}

/** Moves the oldest entries into snapshots, while the session's row is locked: nobody else sees them in between. */
async function archiveOldest(tx: TenantTx, sessionId: string): Promise<void> {
  const rows = await tx.query(OLDEST, [sessionId, KEPT_BYTES]);
  const snapshots = await pack(
    rows.map(({ ordinal, createTime, ...row }) => ({ ordinal, entry: { entry: fromStored(row), createTime } })),
  );
  const values = snapshots.map(({ bytes, ...snapshot }) => ({ ...snapshot, snapshot: bytes.toString('base64') }));
  const [archived] = await tx.query(ARCHIVE, [sessionId, rows.at(-1)!.ordinal, json(values)]);
  if (archived?.moved !== rows.length) throw new Error('other entries were moved than were compressed');
}

/**
 * Appends entries to a session whose row this transaction has locked already (after its thread's row), and which it has
 * moved by its own writes. False if the session is not live.
 */
export async function appendEntries(
  tx: TenantTx,
  sessionId: string,
  entries: readonly ContextEntry[],
): Promise<boolean> {
  return appendBy(tx, APPEND_TO_HELD, sessionId, entries);
}

const ENTRIES = `select json_agg(json_build_array(kind, data) order by ordinal) from context_entries e`;

const APPENDED = change<AppendedRow>(`
  with result as materialized (
    select ${STATE} from session_contexts
    where tenant_id = $1 and env = $2 and user_id = $3 and session_id = $11::uuid
  ), ${audited('context.append', 'result', {
    resource: `'sessions/' || id`,
    session: 'id',
    metadata: `jsonb_build_object('count', $12::int, 'archived_count', archived_count)`,
  })}, ${requested('result')}
  select result.*, (
    ${ENTRIES}
    where e.tenant_id = $1 and e.env = $2 and e.user_id = $3 and e.session_id = result.id
  ) as live
  from result`);

/** What an append left. A replay has no `live`: see {@link getContextAt}. */
export interface AppendedRow extends ContextState {
  live?: [number, Record<string, unknown>][] | null;
}

/** Appends entries to a live session, as a change of its own. Gives no rows if the session is not live. */
export async function appendContext(
  tx: TenantTx,
  sessionId: string,
  entries: readonly ContextEntry[],
): Promise<AppendedRow[]> {
  if (!(await appendBy(tx, APPEND, sessionId, entries))) return [];
  return tx.final(APPENDED, [sessionId, entries.length]);
}

export function contextFromRow(row: AppendedRow): SessionContext {
  return withState(foldEntries((row.live ?? []).map(([kind, data]) => fromStored({ kind, data }))), row);
}

const withState = (context: SessionContext, { archivedCount, liveBytes }: ContextState): SessionContext => ({
  ...context,
  compressedCount: archivedCount,
  sizeBytes: liveBytes,
});

interface ContextRow extends AppendedRow {
  deleted: boolean;
  archives?: [number, string][] | null;
}

const read = (archives: string) => `
  select s.id, s.delete_time is not null as deleted, coalesce(c.last_ordinal, 0) as last_ordinal,
    coalesce(c.archived_through, 0) as archived_through, coalesce(c.archived_count, 0) as archived_count,
    coalesce(c.live_bytes, 0) as live_bytes, (
      ${ENTRIES}
      where e.tenant_id = $1 and e.env = $2 and e.session_id = s.id${archives && ' and e.ordinal <= $6::bigint'}
    ) as live${archives}
  from sessions s
  left join session_contexts c on c.tenant_id = $1 and c.env = $2 and c.session_id = s.id
  where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $4::uuid and (s.expire_time is null or s.expire_time > now())`;

const READ = pointRead<ContextRow>(read(''));

// Whole snapshots of the entries $5 to $6, as many as $7 bytes hold: what follows is not even read.
const READ_ARCHIVED = query<ContextRow>(
  read(`, (
      select json_agg(json_build_array(a.first_ordinal, encode(a.snapshot, 'base64')) order by a.first_ordinal)
      from (
        select a.first_ordinal, a.snapshot, sum(a.byte_size) over (order by a.first_ordinal rows unbounded preceding) as running
        from context_archives a
        where a.tenant_id = $1 and a.env = $2 and a.session_id = s.id and a.last_ordinal >= $5::bigint and a.first_ordinal <= $6
      ) a
      where a.running <= $7::int
    ) as archives`),
);

const RESPONSE_BYTES = 2 * 1024 * 1024;

/** What a session touched; with the compressed entries after that many, the oldest first, as far as 2 MiB reach. */
export async function getContext(db: TenantDb, sessionId: string, archivedAfter?: number): Promise<SessionContext> {
  if (archivedAfter === undefined) return contextFromRow(there(await db.query(READ, [sessionId])));
  const rest = [archivedAfter + 1, Number.MAX_SAFE_INTEGER];
  const row = there(await db.query(READ_ARCHIVED, [sessionId, ...rest, RESPONSE_BYTES]));
  const archived = (await unpackAll(row)).filter(({ ordinal }) => ordinal > archivedAfter);
  return { ...contextFromRow(row), compressed: archived.map(({ entry }) => entry) };
}

/**
 * What a session had touched when an append left it so: the same answer again, from the entries themselves, which stay
 * what they are wherever they have moved to since.
 */
export async function getContextAt(db: TenantDb, state: ContextState): Promise<SessionContext> {
  const first = state.archivedThrough + 1;
  const row = there(await db.query(READ_ARCHIVED, [state.id, first, state.lastOrdinal, RESPONSE_BYTES]));
  const archived = (await unpackAll(row)).filter(({ ordinal }) => ordinal >= first && ordinal <= state.lastOrdinal);
  const live = (row.live ?? []).map(([kind, data]) => fromStored({ kind, data }));
  return withState(foldEntries([...archived.map(({ entry }) => entry.entry!), ...live]), state);
}

function there([row]: ContextRow[]): ContextRow {
  if (!row) throw notFound('session');
  if (row.deleted) throw deleted('session');
  return row;
}

async function unpackAll({ archives }: ContextRow): Promise<Archived[]> {
  const runs = (archives ?? []).map(([first, snapshot]) => unpack(first, Buffer.from(snapshot, 'base64')));
  return (await Promise.all(runs)).flat();
}

/** The CTEs that wipe what the sessions of a CTE touched. Their rows must be locked since an earlier statement. */
export const wipedContexts = (sessions: string) =>
  wiped(['session_contexts', 'context_entries', 'context_archives'], sessions);

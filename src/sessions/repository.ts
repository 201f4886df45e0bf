import { wipedContexts } from '../contexts/repository.ts';
import { audited, requested } from '../db/change.ts';
import { ended } from '../db/lease.ts';
import { change, parseTimestamp, pointRead, query } from '../db/statement.ts';
import { type TenantDb, type TenantTx, together } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import type { PinnedRef, Session, SummaryRef } from '../gen/memory/v1/session.ts';
import { takenAway } from '../quotas/sessions.ts';
import { deleted, etagMismatch, invalid, notFound, type RpcError } from '../rpc/errors.ts';
import { etagOf } from '../rpc/validate.ts';
import { sessionEnded } from '../threads/append.ts';
import { QUEUE_DROPPED } from '../threads/removal.ts';
import { liveSession } from '../threads/repository.ts';
import { wipedTurns } from '../turns/repository.ts';
import { wipedCalls } from '../usage/calls.ts';

const COLUMNS = `id, user_id, surface_id, project_id, thread_id, title, preferences, pinned_refs, summary_refs, state, metadata,
    metrics, tool_id, workspace_path, process_id, email, anonymous, pinned, archived, create_time, update_time,
    last_activity_time, end_time, expire_time, revision`;
export const COLUMNS_OF_S = COLUMNS.replace(/(\w+)/g, 's.$1');

export const READABLE = 's.delete_time is null and (s.expire_time is null or s.expire_time > now())';
export const LIVE = liveSession('s');

export interface SessionRow extends Record<string, any> {
  id: string;
  revision: number;
  pinnedRefs: Record<string, unknown>[];
  summaryRefs: Record<string, unknown>[];
}

/** The session of a row. One that was deleted has left only its id in the results kept for replays. */
export function sessionFromRow(row: SessionRow): Session {
  if (row.gone) throw deleted('session');
  // Field by field, also below: a general conversion of every key took a tenth of the CPU of a GetSession.
  return {
    id: row.id,
    userId: row.userId,
    surfaceId: row.surfaceId,
    projectId: row.projectId,
    threadId: row.threadId,
    title: row.title,
    preferences: row.preferences,
    pinnedRefs: row.pinnedRefs.map(pinnedRef),
    summaryRefs: row.summaryRefs.map(summaryRef),
    state: row.state,
    metadata: row.metadata,
    metrics: row.metrics,
    toolId: row.toolId,
    workspacePath: row.workspacePath,
    processId: row.processId,
    email: row.email,
    anonymous: row.anonymous,
    pinned: row.pinned,
    archived: row.archived,
    createTime: row.createTime,
    updateTime: row.updateTime,
    lastActivityTime: row.lastActivityTime,
    endTime: row.endTime ?? undefined,
    expireTime: row.expireTime ?? undefined,
    revision: row.revision,
    etag: etagOf(row.revision),
  };
}

function pinnedRef({ id, kind, uri = '', text = '', pin_time: time }: Record<string, any>): PinnedRef {
  return { id, kind, uri, text, pinTime: time && parseTimestamp(time) };
}

function summaryRef({
  id,
  uri = '',
  text = '',
  through_seq: throughSeq = 0,
  create_time: time,
}: Record<string, any>): SummaryRef {
  return { id, uri, text, throughSeq, createTime: time && parseTimestamp(time) };
}

export const LAST_SEQ = `(
      select t.last_seq from threads t
      where t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_id = s.thread_id and t.delete_time is null)`;

export interface SavedRow extends SessionRow {
  created: boolean;
  sealedKey: string | null;
  /** Where the session's thread stood, if that was asked for. Null if there was none. */
  lastSeq?: number | null;
  /** The session whose state this one started with. */
  recoveredFrom?: string | null;
}

interface StateRow {
  revision: number;
  surfaceId: string;
  projectId: string;
  threadId: string;
  deleted: boolean;
  ended: boolean;
}

const STATE = pointRead<StateRow>(`
  select s.revision, s.surface_id, s.project_id, s.thread_id, s.delete_time is not null as deleted, s.end_time is not null as ended
  from sessions s
  where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and (s.expire_time is null or s.expire_time > now())
    and case when $4::uuid is null
      then s.surface_id = $5::text and s.project_id = $6::text and $7::text in (s.key_thread_id, s.thread_id) and ${LIVE}
      else s.id = $4 end`);

/** Why a write found no session to change: with an id, or by its key and an etag. */
export async function whyNotSaved(
  db: TenantDb,
  upsert: { id: string; surfaceId: string; projectId: string; threadId: string },
): Promise<RpcError> {
  const { id, surfaceId, projectId, threadId } = upsert;
  const [state] = await db.query(STATE, [id || null, surfaceId, projectId, threadId]);
  if (!id) return etagMismatch(state ? etagOf(state.revision) : '');
  if (!state) return notFound('session');
  if (state.deleted) return deleted('session');
  if (state.ended) return sessionEnded();
  const violations = [
    { field: 'session.surface_id', given: surfaceId, stored: state.surfaceId },
    { field: 'session.project_id', given: projectId, stored: state.projectId },
    { field: 'session.thread_id', given: threadId, stored: state.threadId },
  ].filter(({ given, stored }) => given && given !== stored);
  if (violations.length > 0)
    return invalid(violations.map(({ field }) => ({ field, description: 'immutable', reason: 'IMMUTABLE' })));
  return etagMismatch(etagOf(state.revision));
}

const GET = pointRead<SessionRow & { deleteTime: Timestamp | null }>(`
  select ${COLUMNS}, delete_time from sessions
  where tenant_id = $1 and env = $2 and user_id = $3 and id = $4::uuid and (expire_time is null or expire_time > now())`);

export async function getSession(db: TenantDb, id: string): Promise<Session> {
  const [row] = await db.query(GET, [id]);
  if (!row) throw notFound('session');
  if (row.deleteTime) throw deleted('session');
  return sessionFromRow(row);
}

const LIST = query<SessionRow & { byteSize: number; lastActivityTime: Timestamp }>(`
  select ${COLUMNS}, byte_size from (
    select s.*, sum(byte_size) over (order by last_activity_time desc, id desc rows unbounded preceding) as running
    from (
      select * from sessions
      where tenant_id = $1 and env = $2 and user_id = $3 and delete_time is null and (expire_time is null or expire_time > now())
        and $4 in ('', surface_id) and $5 in ('', project_id) and $6 in ('', thread_id) and $7 in ('', tool_id)
        and $8 in ('', workspace_path) and $9 in ('', process_id)
        and ($10::boolean is null or pinned = $10) and ($11::boolean is null or archived = $11)
        and ($12::boolean is null or (end_time is not null) = $12)
        and ($13::timestamptz is null or last_activity_time >= $13)
        and ($14::timestamptz is null or (last_activity_time, id) < ($14, $15::uuid))
      order by last_activity_time desc, id desc limit $16::int
    ) s
  ) s
  where running - byte_size <= 1048576
  order by last_activity_time desc, id desc`);

export type ListedRow = SessionRow & { byteSize: number; lastActivityTime: Timestamp };

export async function listSessions(
  db: TenantDb,
  filters: (string | boolean | null | undefined)[],
  after: string[] | undefined,
  limit: number,
): Promise<ListedRow[]> {
  return db.query(LIST, [...filters, after?.[0], after?.[1], limit]);
}

const resume = (target: string) =>
  change<SavedRow>(`
  with target as materialized (${target}
  ), saved as (
    update sessions s
    set last_activity_time = greatest(s.last_activity_time, c.at),
      expire_time = case when s.sliding_ttl is null then s.expire_time else c.at + s.sliding_ttl end
    from target, (select clock_timestamp() as at) c
    where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = target.id and ${LIVE}
    returning ${COLUMNS_OF_S}, false as created, ${LAST_SEQ} as last_seq
  ), ${audited('sessions.resume', 'saved', { resource: `'sessions/' || id`, session: 'id' })}, ${requested('saved')}
  select * from saved`);

const RESUME = resume('select $11::uuid as id');

// Locked: one that ends meanwhile is passed over for the next.
const RESUME_PROJECT = resume(`
    select s.id from sessions s
    where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.project_id = $11 and ${LIVE}
    order by s.last_activity_time desc, s.id desc limit 1
    for no key update`);

export async function resumeSession(tx: TenantTx, id: string): Promise<SavedRow[]> {
  return tx.query(RESUME, [id]);
}

/** Resumes the user's session of a project that was active last. */
export async function resumeProject(tx: TenantTx, projectId: string): Promise<SavedRow[]> {
  return tx.query(RESUME_PROJECT, [projectId]);
}

const END = change<SessionRow>(`
  with saved as (
    update sessions s
    set end_time = coalesce(s.end_time, c.at), update_time = case when s.end_time is null then c.at else s.update_time end,
      revision = s.revision + (s.end_time is null)::int
    from (select clock_timestamp() as at) c
    where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $11::uuid and s.delete_time is null
      and (s.expire_time is null or s.expire_time > now()) and ($12::bigint is null or s.revision = $12)
    returning ${COLUMNS_OF_S}, s.end_time = c.at as newly
  ), newly_ended as (
    select expire_time from saved where newly
  ), ${takenAway('newly_ended', '$13')}, revoked as (
    delete from session_keys k using saved where k.tenant_id = $1 and k.env = $2 and k.session_id = saved.id
    returning 1
  ), ${audited('sessions.end', 'saved', { resource: `'sessions/' || id`, session: 'id' })}, ${requested('saved')}
  select * from saved`);

/** `limit` is how many live sessions the tenant may have, if that is bounded. */
export async function endSession(
  tx: TenantTx,
  id: string,
  revision: number | undefined,
  limit: number | undefined,
): Promise<SessionRow[]> {
  return tx.final(END, [id, revision, limit]);
}

// The thread's row is locked first, as appends take the two rows in that order, and in a statement of its own: the next one
// then sees the sessions that others made or deleted while this one waited, which tell whether the thread goes as well, and
// what others wrote into this one. The count is there before the session's row is looked for.
const LOCK = query<{ id: string }>(`
  with thread as materialized (
    select t.thread_id from threads t
    join sessions s on s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $4::uuid and s.thread_id = t.thread_id
    where t.tenant_id = $1 and t.env = $2 and t.user_id = $3
    for update of t
  )
  select s.id from sessions s
  where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $4 and (select count(*) from thread) >= 0
  for no key update of s`);

// What the session held is wiped, also from the results kept for replays; the row stays as a tombstone that refuses late
// writes.
const DELETE = change<{ id: string; threadDeleted: boolean }>(`
  with before as materialized (
    select s.expire_time from sessions s
    where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $11::uuid and ${LIVE}
  ), gone as (
    update sessions s
    set delete_time = c.at, end_time = null, expire_time = null, sliding_ttl = null, title = '', email = '', email_key = '', preferences = '{}',
      pinned_refs = '[]', summary_refs = '[]', state = '{}', metadata = '{}', metrics = '{}', workspace_path = '', revision = s.revision + 1
    from (select clock_timestamp() as at) c
    where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $11::uuid and s.delete_time is null
      and (s.expire_time is null or s.expire_time > now()) and ($12::bigint is null or s.revision = $12)
    returning s.id, s.thread_id, s.delete_time
  ), was_live as (
    select before.expire_time from before, gone
  ), ${takenAway('was_live', '$13')}, dropped as (
    update threads t set delete_time = gone.delete_time, revision = t.revision + 1, ${ended('t')}
    from gone
    where t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_id = gone.thread_id and t.delete_time is null
      and not exists (
        select from sessions s
        where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.thread_id = gone.thread_id and s.id <> gone.id and ${LIVE})
    returning t.thread_uid, t.delete_time
  ), ${QUEUE_DROPPED}, revoked as (
    delete from session_keys k using gone where k.tenant_id = $1 and k.env = $2 and k.session_id = gone.id
    returning 1
  ), ${wipedContexts('gone')}, ${wipedTurns('gone')}, ${wipedCalls('gone')}, scrubbed as (
    update requests r set result = jsonb_build_array(jsonb_build_object('id', gone.id, 'gone', true))
    from gone
    where r.tenant_id = $1 and r.env = $2 and r.user_id in ($10, '')
      and r.method in ('MemoryService/UpsertSession', 'MemoryService/ResumeSession', 'MemoryService/EndSession',
        'MemoryService/RestoreSessionState', 'ConversationService/BeginTurn', 'ConversationService/CommitTurn')
      and r.result -> 0 ->> 'id' = gone.id::text
    returning 1
  ), result as materialized (
    select id, exists (select from dropped) as thread_deleted from gone
  ), ${audited('sessions.delete', 'result', {
    resource: `'sessions/' || id`,
    session: 'id',
    metadata: `jsonb_build_object('thread_deleted', thread_deleted)`,
  })}, ${requested('result')}
  select * from result`);

export async function deleteSession(
  tx: TenantTx,
  id: string,
  revision: number | undefined,
  limit: number | undefined,
): Promise<{ threadDeleted: boolean }[]> {
  const [, rows] = await together([tx.query(LOCK, [id]), tx.final(DELETE, [id, revision, limit])]);
  return rows;
}

const BY_KEY = pointRead<{ sessionId: string; userId: string }>(`
  select session_id, user_id from session_keys
  where tenant_id = $1 and env = $2 and $3 in ('', user_id) and key_hash = $4::bytea and expire_time > now()`);

/** The session and user of a session key that still works. */
export async function findBySessionKey(
  db: TenantDb,
  hash: Buffer,
): Promise<{ sessionId: string; userId: string } | undefined> {
  const [row] = await db.query(BY_KEY, [hash]);
  return row;
}

import { pointRead } from '../db/statement.ts';
import type { TenantDb } from '../db/transaction.ts';
import { EventKind } from '../threads/event.ts';
import type { MessageRow } from '../threads/repository.ts';

// Of many threads, or sessions, of a tenant those whose revision has passed the one that is known.
const MOVED_THREADS = pointRead<{ place: number }>(`
  select w.place from unnest($4::text[], $5::text[], $6::bigint[]) with ordinality w (user_id, thread_id, known, place)
  join threads t on t.tenant_id = $1 and t.env = $2 and t.user_id = w.user_id and t.thread_id = w.thread_id
  where t.revision > w.known`);

// One that has expired, or that the sweep has removed, has moved as well.
const MOVED_SESSIONS = pointRead<{ place: number }>(`
  select w.place from unnest($4::text[], $5::uuid[], $6::bigint[]) with ordinality w (user_id, session_id, known, place)
  left join sessions s on s.tenant_id = $1 and s.env = $2 and s.user_id = w.user_id and s.id = w.session_id
  where s.id is null or s.revision > w.known or s.expire_time <= now()`);

// The audit trail of the tenant and env, with the tenant's own: whether something was committed since, that nothing older can
// come before any more.
const MOVED_TRAIL = pointRead<{ place: number }>(`
  select w.place from unnest($4::text[], $5::text[], $6::bigint[]) with ordinality w (user_id, id, known, place)
  where exists (
    select from audit_events e
    where e.tenant_id = $1 and e.env in ($2, '') and e.xid > w.known::text::xid8 and e.xid < pg_snapshot_xmin(pg_current_snapshot()))`);

export const SUBJECT_KINDS = ['thread', 'session', 'trail'] as const;
export type SubjectKind = (typeof SUBJECT_KINDS)[number];
export interface Known {
  user: string;
  id: string;
  /** The last revision that was seen. Of a trail the number of a transaction. */
  revision: number;
}

const MOVED = { thread: MOVED_THREADS, session: MOVED_SESSIONS, trail: MOVED_TRAIL };

/** Those of the subjects that have something new. */
export async function movedOf<S extends Known>(db: TenantDb, kind: SubjectKind, subjects: S[]): Promise<S[]> {
  const columns = [
    subjects.map((subject) => subject.user),
    subjects.map((subject) => subject.id),
    subjects.map((subject) => String(subject.revision)),
  ];
  const rows = await db.query(MOVED[kind], columns);
  return rows.map(({ place }) => subjects[place - 1]!);
}

export const PAGE_EVENTS = 200;
export const PAGE_BYTES = 256 * 1024;

// The thread's state and its next events, all of one snapshot. A text that has been joined into its message is cut out of it.
const EVENTS = pointRead<EventRow>(`
  with thread as materialized (
    select thread_uid, revision, base_revision, base_seq, delete_time is not null as deleted from threads
    where tenant_id = $1 and env = $2 and user_id = $3 and thread_id = $4
  ), next as materialized (
    select e.*, sum(e.byte_length) over (order by e.revision) as running from (
      select e.* from thread_events e
      where e.tenant_id = $1 and e.env = $2 and e.thread_uid = (select thread_uid from thread) and e.revision > $5::bigint
      order by e.revision limit ${PAGE_EVENTS}
    ) e
  )
  select t.thread_uid, t.revision as head, t.base_revision, t.base_seq, t.deleted,
    coalesce(a.revision, t.base_revision) as anchor_revision, coalesce(a.last_seq, t.base_seq) as anchor_seq,
    e.revision, e.kind, e.seq, e.last_seq, e.state, e.byte_offset, e.running,
    case when e.kind = ${EventKind.TEXT} then coalesce(e.text, (
      select convert_from(substring(convert_to(m.content, 'UTF8') from e.byte_offset + 1 for e.byte_length), 'UTF8') from messages m
      where m.tenant_id = $1 and m.env = $2 and m.thread_uid = e.thread_uid and m.seq = e.seq)) end as text
  from thread t
  left join lateral (
    select a.revision, a.last_seq from thread_events a
    where a.tenant_id = $1 and a.env = $2 and a.thread_uid = t.thread_uid and a.revision <= $5
    order by a.revision desc limit 1
  ) a on true
  left join next e on e.running - e.byte_length <= ${PAGE_BYTES}
  order by e.revision`);

export interface EventRow {
  threadUid: string;
  /** The thread's revision. */
  head: number;
  baseRevision: number;
  baseSeq: number;
  deleted: boolean;
  /** The last event up to the position, or else the base. */
  anchorRevision: number;
  anchorSeq: number;
  /** Null if there is no event after the position. */
  revision: number | null;
  kind: number;
  seq: number;
  lastSeq: number;
  state: number;
  byteOffset: number;
  text: string | null;
  /** Bytes of text up to and with this event. */
  running: number;
}

/** The thread, once for each of the next events, or once if there is none. Nothing if there is no thread. */
export async function nextEvents(db: TenantDb, threadId: string, after: number): Promise<EventRow[]> {
  return db.query(EVENTS, [threadId, after]);
}

// Those that were appended with their content, unless that came as text events; of the others what came when they ended. They
// are counted in the order of the events that need them, so that at least the first event can be told.
const MESSAGES = pointRead<WatchedRow>(`
  select id, session_id, seq, client_id, role, case when seq = any ($6::bigint[]) and not streamed then content else '' end as content,
    metadata, tool_call_id, token_count, forwarded_from, create_time, state, delete_time, streamed, own as byte_size
  from (
    select m.*, sum(own) over (order by place) as running from (
      select m.*, w.place,
        200 + case when m.seq = any ($6) and not m.streamed then m.byte_size else coalesce(pg_column_size(m.metadata), 0) end as own
      from unnest($5::bigint[]) with ordinality w (seq, place)
      join messages m on m.tenant_id = $1 and m.env = $2 and m.user_id = $3 and m.thread_uid = $4::uuid and m.seq = w.seq
    ) m
  ) m
  where running - own <= ${PAGE_BYTES}`);

export type WatchedRow = MessageRow & { streamed: boolean };

/** The messages of these seqs, each named once, with the content of the `appended` ones, up to the size of a page. */
export async function messagesAt(
  db: TenantDb,
  threadUid: string,
  seqs: number[],
  appended: number[],
): Promise<WatchedRow[]> {
  return db.query(MESSAGES, [threadUid, seqs.map(String), appended.map(String)]);
}

import { pointRead, rowFromJson } from '../db/statement.ts';
import type { TenantDb } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { ForwardedFrom, Message, MessageState, Thread } from '../gen/memory/v1/message.ts';
import { deleted, notFound } from '../rpc/errors.ts';
import { CONTENT_BYTES } from './message.ts';

/** A session that has neither ended, nor expired, nor was deleted. */
export const liveSession = (row: string): string =>
  `${row}.end_time is null and ${row}.delete_time is null and (${row}.expire_time is null or ${row}.expire_time > now())`;

/** How many messages a thread holds: its holes, of which an index has no others, are not among them. */
export const messagesOf = (t: string) => `(${t}.last_seq - ${t}.base_seq - (
        select count(*) from messages h
        where h.tenant_id = $1 and h.env = $2 and h.thread_uid = ${t}.thread_uid and h.seq > ${t}.base_seq and h.delete_time is not null))`;

/** The text of a message: as long as it is being streamed, most of it is in the thread's events. */
export const contentOf = (
  m: string,
) => `case when ${m}.state = ${MessageState.STREAMING} then ${m}.content || coalesce((
      select string_agg(e.text, '' order by e.revision) from thread_events e
      where e.tenant_id = $1 and e.env = $2 and e.thread_uid = ${m}.thread_uid and e.seq = ${m}.seq and e.text is not null), '')
    else ${m}.content end`;

/** What a message adds to a page, told without reading it. One that is being streamed counts as large as it may become. */
export const sizeOf = (m: string) =>
  `${m}.byte_size + case when ${m}.state = ${MessageState.STREAMING} then ${CONTENT_BYTES} else 0 end`;

/** Whether a message can be taken elsewhere: it is neither deleted nor still being streamed. */
export const settled = (m: string) => `(${m}.delete_time is null and ${m}.state <> ${MessageState.STREAMING})`;

// The thread's uid is a scalar, so that every plan walks the primary key from the position. Rows past 1 MiB are never
// read: 500 messages may hold 128 MiB.
const page = (compare: '<' | '>', order: 'desc' | 'asc') =>
  pointRead<ListedRow>(`
  select m.id, m.session_id, m.seq, m.client_id, m.role, ${contentOf('m')} as content, m.metadata, m.tool_call_id, m.token_count,
    m.forwarded_from, m.create_time, m.state, m.delete_time, m.size as byte_size,
    (select revision from threads where tenant_id = $1 and env = $2 and user_id = $3 and thread_id = $4) as revision
  from (
    select m.*, sum(size) over (order by seq ${order} rows unbounded preceding) as running
    from (
      select m.*, ${sizeOf('m')} as size from messages m
      where m.tenant_id = $1 and m.env = $2
        and m.thread_uid = (select thread_uid from threads where tenant_id = $1 and env = $2 and user_id = $3 and thread_id = $4 and delete_time is null)
        and m.seq ${compare} $5::bigint
      order by m.seq ${order} limit $6::int
    ) m
  ) m
  where m.running - m.size <= 1048576
  order by m.seq ${order}`);

const NEWEST_FIRST = page('<', 'desc');
const OLDEST_FIRST = page('>', 'asc');

export interface MessageRow {
  id: string;
  sessionId: string | null;
  seq: number;
  clientId: string | null;
  role: number;
  content: string;
  metadata: Message['metadata'] | null;
  toolCallId: string;
  /** Null if it was stored before tokens were counted. */
  tokenCount: number | null;
  forwardedFrom: Record<string, unknown> | null;
  createTime: Timestamp;
  /** Left out for messages of a bundle, which are complete. */
  state?: Message['state'];
  deleteTime?: Timestamp | null;
  byteSize: number;
}

export interface ListedRow extends MessageRow {
  /** The thread's. */
  revision: number;
}

export async function listMessages(
  db: TenantDb,
  threadId: string,
  from: { seq: number; ascending: boolean },
  limit: number,
): Promise<ListedRow[]> {
  return db.query(from.ascending ? OLDEST_FIRST : NEWEST_FIRST, [threadId, from.seq, limit]);
}

/** A row of the table, or of a bundle, as the message of its thread. */
export function messageFromRow(row: Omit<MessageRow, 'byteSize'>, threadId: string): Message {
  return Message.fromPartial({
    ...row,
    role: row.role as Message['role'],
    threadId,
    sessionId: row.sessionId ?? '',
    clientId: row.clientId ?? '',
    metadata: row.metadata ?? undefined,
    tokenCount: row.tokenCount ?? 0,
    state: row.state ?? MessageState.COMPLETE,
    deleteTime: row.deleteTime ?? undefined,
    forwardedFrom: row.forwardedFrom ? ForwardedFrom.fromPartial(rowFromJson(row.forwardedFrom)) : undefined,
  });
}

const GET = pointRead<Omit<MessageRow, 'byteSize'> & { threadId: string }>(`
  select m.id, m.session_id, m.seq, m.client_id, m.role, ${contentOf('m')} as content, m.metadata, m.tool_call_id, m.token_count,
    m.forwarded_from, m.create_time, m.state, m.delete_time, t.thread_id
  from messages m
  join threads t on t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_uid = m.thread_uid and t.delete_time is null
  where m.tenant_id = $1 and m.env = $2 and m.user_id = $3 and m.id = $4::uuid`);

export async function getMessage(db: TenantDb, id: string): Promise<Message> {
  const [row] = await db.query(GET, [id]);
  if (!row) throw notFound('message');
  if (row.deleteTime) throw deleted('message');
  return messageFromRow(row, row.threadId);
}

/** Whether a live session of the user points to a thread: then it exists, though no message was appended yet. */
export const awaited = (threadId: string) => `exists (
      select from sessions s
      where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.thread_id = ${threadId}
        and ${liveSession('s')})`;

const COUNT = pointRead<{ n: number }>(`
  select ${messagesOf('t')} as n from threads t
  where t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_id = $4 and t.delete_time is null`);

/** How many messages a thread holds. */
export async function countMessages(db: TenantDb, threadId: string): Promise<number> {
  const [row] = await db.query(COUNT, [threadId]);
  return row?.n ?? 0;
}

const STATE = pointRead<{ there: boolean; deleted: boolean; revision: number }>(`
  select t.thread_id is not null or ${awaited('$4')} as there, t.delete_time is not null as deleted, coalesce(t.revision, 0) as revision
  from (select) one
  left join threads t on t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_id = $4`);

/** Refuses a thread that is not there. One that may be created may be missing, but not deleted. Resolves to its revision. */
export async function requireThread(
  db: TenantDb,
  threadId: string,
  { what = 'thread', mayBeMissing = false }: { what?: string; mayBeMissing?: boolean } = {},
): Promise<number> {
  const [thread] = await db.query(STATE, [threadId]);
  if (!thread!.there && !mayBeMissing) throw notFound(what);
  if (thread!.deleted) throw deleted(what);
  return thread!.revision;
}

const LIST = pointRead<{
  threadId: string;
  threadUid: string;
  lastSeq: number;
  createTime: Timestamp;
  updateTime: Timestamp;
  revision: number;
}>(`
  select thread_id, thread_uid, last_seq, create_time, update_time, revision from threads
  where tenant_id = $1 and env = $2 and user_id = $3 and delete_time is null
    and thread_uid < coalesce($4::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
  order by thread_uid desc limit $5::int`);

export async function listThreads(
  db: TenantDb,
  after: string | undefined,
  limit: number,
): Promise<(Thread & { threadUid: string })[]> {
  const rows = await db.query(LIST, [after, limit]);
  return rows.map(({ threadUid, ...row }) => ({ ...Thread.fromPartial(row), threadUid }));
}

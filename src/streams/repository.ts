import { audited } from '../db/change.ts';
import { fenced } from '../db/lease.ts';
import { change, query } from '../db/statement.ts';
import { type TenantDb, type TenantTx, together } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { MessageState } from '../gen/memory/v1/message.ts';
import { targeted, touchSessions } from '../threads/append.ts';
import { EventKind } from '../threads/event.ts';
import { contentOf, liveSession } from '../threads/repository.ts';

// Every statement that changes a message being streamed locks its row of message_streams first and its thread's second. Who
// opens the message becomes its writer: whoever wrote it before finds another writer there, and stores nothing any more.

/** How long a stream is believed to live without a sign of life from the server that stores it. */
const LEASE = `interval '6 seconds'`;
export const SIGN_OF_LIFE_MS = 2000;

export interface StreamedRow {
  id: string;
  threadId: string;
  seq: number;
  clientId: string;
  createTime: Timestamp;
  tokenCount: number | null;
  role: number;
  toolCallId: string;
  state: MessageState;
  streamed: boolean;
  deleted: boolean;
  content: string;
  /** Who is writing it. */
  writer: string | null;
}

const FIND = query<StreamedRow>(`
  with ${targeted('$4', '$5')}, found as materialized (
    select m.id, t.thread_id from target
    join threads t on t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_id = target.thread_id and t.delete_time is null
    join messages m on m.tenant_id = $1 and m.env = $2 and m.thread_uid = t.thread_uid and m.client_id = $6
  ), stream as materialized (
    select s.message_id from message_streams s, found
    where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.message_id = found.id
    for update of s
  )
  select found.id from found
  join threads t on t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_id = found.thread_id
  where (select count(*) from stream) >= 0
  for update of t`);

const READ = query<StreamedRow>(`
  select m.id, t.thread_id, m.seq, m.client_id, m.create_time, m.token_count, m.role, m.tool_call_id, m.state, m.streamed, m.delete_time is not null as deleted,
    ${contentOf('m')} as content, s.writer
  from messages m
  left join message_streams s on s.tenant_id = $1 and s.env = $2 and s.message_id = m.id
  join threads t on t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_uid = m.thread_uid and t.delete_time is null
  where m.tenant_id = $1 and m.env = $2 and m.user_id = $3 and m.id = $4::uuid`);

export interface Target {
  threadId: string;
  sessionId: string;
  clientId: string;
}

/** The message with that client_id, if there is one, locked against those who write or delete it. */
export async function findStreamed(
  tx: TenantTx,
  { threadId, sessionId, clientId }: Target,
): Promise<StreamedRow | undefined> {
  const [found] = await tx.query(FIND, [threadId, sessionId || null, clientId]);
  return found && readStreamed(tx, found.id);
}

export async function readStreamed(tx: TenantDb, id: string): Promise<StreamedRow | undefined> {
  const [row] = await tx.query(READ, [id]);
  return row;
}

const START = change<{ id: string }>(`
  with message as (
    update messages m set state = ${MessageState.STREAMING}, streamed = true, token_count = 0, tsv = null
    from threads t
    where m.tenant_id = $1 and m.env = $2 and m.user_id = $3 and m.id = $11::uuid and m.delete_time is null
      and t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_uid = m.thread_uid and t.delete_time is null
      and ${fenced('t', '$13::bigint', '$14::boolean', 'clock_timestamp()')}
    returning m.id, m.thread_uid, m.seq
  ), stream as (
    insert into message_streams as s (tenant_id, env, message_id, thread_uid, seq, user_id, session_id, writer, byte_length, expire_time)
    select $1, $2, id, thread_uid, seq, $3, $16::uuid, $12::uuid, $15::int, c.until
    from message, (select clock_timestamp() + ${LEASE} as until) c
    on conflict (tenant_id, env, message_id) do update
      set writer = excluded.writer, session_id = excluded.session_id, expire_time = excluded.expire_time
    returning s.message_id as id
  ), ${audited('messages.stream', 'stream', {
    resource: `'messages/' || id`,
    session: '$16::uuid',
    metadata: `jsonb_build_object('from_byte', $15)`,
  })}
  select id from stream`);

export interface Writer {
  messageId: string;
  /** A UUID of this opening. */
  writer: string;
  fencingToken: number;
  /** Whether the message needs no turn. */
  exempt: boolean;
}

const writerValues = ({ messageId, writer, fencingToken, exempt }: Writer) => [messageId, writer, fencingToken, exempt];

/** Makes this opening the message's writer. False if it may not write: its turn was taken. */
export async function startStream(
  tx: TenantTx,
  by: Writer,
  storedBytes: number,
  sessionId: string | null,
): Promise<boolean> {
  return (await tx.final(START, [...writerValues(by), storedBytes, sessionId])).length > 0;
}

// Own parameters of all statements that write: $11 the message, $12 its writer, $13 the fencing token, $14 whether none is
// needed.

/** Whether the session that a stream was opened through, if there is one, may still be written to. */
const ADMITTED = `(s.session_id is null or exists (
      select from sessions f
      where f.tenant_id = $1 and f.env = $2 and f.user_id = $3 and f.id = s.session_id and ${liveSession('f')}))`;

/** The CTEs up to `thread`, whose next revision is taken: no row if the writer is not the one, or its turn was taken. */
const advance = (stream: string) => `stream as materialized (
    select s.message_id, s.thread_uid, s.seq, s.session_id, s.byte_length from message_streams s
    where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.message_id = $11::uuid and s.writer = $12::uuid
      and ${stream}
    for update
  ), thread as (
    update threads t set revision = t.revision + 1, update_time = greatest(t.update_time, c.at)
    from stream, (select clock_timestamp() as at) c
    where t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_uid = stream.thread_uid and t.delete_time is null
      and ${fenced('t', '$13::bigint', '$14::boolean', 'c.at')}
    returning t.thread_id, t.thread_uid, t.revision, t.last_seq, stream.message_id, stream.seq, stream.session_id, stream.byte_length
  )`;

// A batch is a row of its own: a text that grows in place would be rewritten with each of them.
const STORE = change<{ revision: number }>(`
  with ${advance(`s.byte_length = $15::int and ${ADMITTED}`)}, moved as (
    update message_streams s set byte_length = s.byte_length + octet_length($16::text), expire_time = clock_timestamp() + ${LEASE}
    from thread
    where s.tenant_id = $1 and s.env = $2 and s.message_id = thread.message_id
    returning 1
  ), event as (
    insert into thread_events (tenant_id, env, thread_uid, revision, user_id, kind, seq, last_seq, byte_offset, byte_length, text, create_time)
    select $1, $2, thread_uid, revision, $3, ${EventKind.TEXT}, seq, last_seq, byte_length, octet_length($16), $16, clock_timestamp()
    from thread
    returning revision
  )
  select revision from event`);

/** Stores more of the text. False if this opening may not write any more. */
export async function storeText(tx: TenantTx, by: Writer, offset: number, text: string): Promise<boolean> {
  return (await tx.final(STORE, [...writerValues(by), offset, text])).length > 0;
}

const KEEP = query<{ id: string }>(`
  update message_streams set expire_time = clock_timestamp() + ${LEASE}
  where tenant_id = $1 and env = $2 and user_id = $3 and message_id = $4::uuid and writer = $5::uuid
  returning message_id as id`);

/** A sign of life, while there is nothing to store. */
export async function keepStream(tx: TenantTx, { messageId, writer }: Writer): Promise<boolean> {
  return (await tx.final(KEEP, [messageId, writer])).length > 0;
}

/** Joins the text into the message and ends its stream, in the state $15, with the count $16 and the metadata $17. */
const end = (action: string, stream: string) =>
  change<StreamedRow>(`
  with ${advance(stream)}, added as materialized (
    select coalesce(string_agg(e.text, '' order by e.revision), '') as text
    from thread_events e, thread
    where e.tenant_id = $1 and e.env = $2 and e.thread_uid = thread.thread_uid and e.seq = thread.seq and e.text is not null
  ), message as (
    update messages m
    set content = m.content || added.text, state = $15::smallint, token_count = $16::int, metadata = coalesce($17::jsonb, m.metadata),
      search_language = l.search_language, tsv = message_tsv(l.search_language, m.content || added.text)
    from thread, added, tenants l
    where l.tenant_id = $1 and m.tenant_id = $1 and m.env = $2 and m.thread_uid = thread.thread_uid and m.seq = thread.seq
    returning m.id, m.seq, m.client_id, m.create_time, m.state, m.token_count, m.role, m.tool_call_id, m.streamed
  ), emptied as (
    update thread_events e set text = null
    from thread
    where e.tenant_id = $1 and e.env = $2 and e.thread_uid = thread.thread_uid and e.seq = thread.seq and e.text is not null
    returning 1
  ), event as (
    insert into thread_events (tenant_id, env, thread_uid, revision, user_id, kind, seq, last_seq, state, byte_offset, create_time)
    select $1, $2, thread_uid, revision, $3, ${EventKind.FINISHED}, seq, last_seq, $15, byte_length, clock_timestamp()
    from thread
    returning 1
  ), closed as (
    delete from message_streams s using thread where s.tenant_id = $1 and s.env = $2 and s.message_id = thread.message_id
    returning 1
  ), ${touchSessions('thread')}, result as materialized (
    select message.*, thread.thread_id, thread.session_id, thread.byte_length from message, thread
  ), ${audited(action, 'result', {
    resource: `'messages/' || id`,
    session: 'session_id',
    metadata: `jsonb_build_object('thread_id', thread_id, 'seq', seq, 'bytes', byte_length)`,
  })}
  select *, false as deleted, '' as content, null as writer from result`);

const FINISH = end('messages.finish', ADMITTED);
const INTERRUPT = end('messages.interrupt', 'true');

/** Completes the message. Nothing if this opening may not write any more. */
export async function finishStream(
  tx: TenantTx,
  by: Writer,
  tokenCount: number,
  metadata: string | null,
): Promise<StreamedRow | undefined> {
  const [row] = await tx.final(FINISH, [...writerValues(by), MessageState.COMPLETE, tokenCount, metadata]);
  return row;
}

// Text whose COMMIT is still on its way when a stream breaks holds this lock. The statement that joins the text must begin after
// it: one that waited for it would not see that text, which was told already, and leave it out.
const LOCK = query(`
  select from message_streams where tenant_id = $1 and env = $2 and message_id = $4::uuid and writer = $5::uuid for update`);

/** Marks the message as interrupted, unless another has become its writer. Its tokens are counted when it is read. */
export async function interruptStream(tx: TenantTx, messageId: string, writer: string): Promise<boolean> {
  const values = [messageId, writer, 0, true, MessageState.INTERRUPTED, null, null];
  const [, ended] = await together([tx.query(LOCK, [messageId, writer]), tx.final(INTERRUPT, values)]);
  return ended.length > 0;
}

// The streams of threads that are gone are in nobody's way, and only forgotten.
const STALE = query<{ messageId: string; writer: string; userId: string; there: boolean }>(`
  select s.message_id, s.writer, s.user_id, exists (
    select from threads t
    where t.tenant_id = $1 and t.env = $2 and t.user_id = s.user_id and t.thread_uid = s.thread_uid and t.delete_time is null) as there
  from message_streams s
  where s.tenant_id = $1 and s.env = $2 and s.expire_time <= clock_timestamp()
  order by s.message_id limit 1000`);
const FORGET = query(`
  delete from message_streams where tenant_id = $1 and env = $2 and message_id = $4::uuid and writer = $5::uuid`);

export const staleStreams = (db: TenantDb) => db.query(STALE);

export async function forgetStream(tx: TenantTx, messageId: string, writer: string): Promise<void> {
  await tx.final(FORGET, [messageId, writer]);
}

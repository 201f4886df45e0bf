import { status } from '@grpc/grpc-js';
import { v7 as uuidv7 } from 'uuid';
import { audited, requested } from '../db/change.ts';
import { fenced, type LeaseState, stateOf } from '../db/lease.ts';
import { change, json, pointRead } from '../db/statement.ts';
import type { FinalTx, TenantDb } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { type Message, MessageRole, MessageState } from '../gen/memory/v1/message.ts';
import { conflict, deleted, invalid, leaseHeld, notFound, RpcError, staleToken } from '../rpc/errors.ts';
import { overQuota } from '../rpc/quotas.ts';
import { liveSession, messagesOf } from './repository.ts';

/**
 * What a write to a thread moves in the live sessions that point to it, as CTEs. `thread` is the CTE with the written
 * thread's id. A session whose row is locked is left out: who locks it writes it, which moves the same, and may be waiting
 * for the thread that is locked here. Looked for once: as a LATERAL it was run again for each session of a tenant of which
 * Postgres had no statistics yet, 1.2 s for an append with 1,200 of them.
 */
export const touchSessions = (thread: string) => `free as materialized (
    select f.id from sessions f
    where f.tenant_id = $1 and f.env = $2 and f.user_id = $3 and f.thread_id = (select thread_id from ${thread})
      and ${liveSession('f')}
    for no key update skip locked
  ), touched as (
    update sessions s
    set last_activity_time = w.at,
      expire_time = case when s.sliding_ttl is null then s.expire_time else w.at + s.sliding_ttl end
    from free, (select clock_timestamp() as at) w
    where s.tenant_id = $1 and s.env = $2 and s.id = free.id
    returning 1
  )`;

/** The CTEs up to `target`, the thread that a write names, or that of its live session. No row if the two do not agree. */
export const targeted = (thread: string, session: string) => `session as materialized (
    select thread_id from sessions
    where tenant_id = $1 and env = $2 and user_id = $3 and id = ${session}::uuid
      and ${liveSession('sessions')}
  ), target as materialized (
    select coalesce(nullif(${thread}::text, ''), (select thread_id from session)) as thread_id
    where ${session}::uuid is null or exists (select from session where ${thread} in ('', thread_id))
  )`;

/** Whether a stored message is not the one of the input `v`. While it is being streamed, its row does not tell all of it. */
const differs = (m: string) => `((${m}.role, ${m}.content, ${m}.metadata, ${m}.tool_call_id) is distinct from
        ((v ->> 'role')::smallint, v ->> 'content', v -> 'metadata', v ->> 'toolCallId') or ${m}.state = ${MessageState.STREAMING})`;

/**
 * Whether a thread `t` has room for the messages of `excluded` within a limit, null for none. It belongs into the WHERE of the
 * statement that writes, as a fence does. Holes are counted only where it would be full with them; what is deleted meanwhile
 * may be missed, never what is appended.
 */
export const hasRoom = (limit: string) => `(${limit} is null or excluded.last_seq = 0
      or t.last_seq - t.base_seq + excluded.last_seq <= ${limit} or ${messagesOf('t')} + excluded.last_seq <= ${limit})`;

// One statement, so one round trip and one look at the thread row, whose lock makes seq gap-free and the fence exact. The
// look-up of stored client_ids is LATERAL: as a join it would hash the whole thread. A token proves that the thread was there.
const APPEND = change<AppendedRow>(`
  with ${targeted('$11', '$13')}, known as materialized (
    select t.thread_uid from threads t, target
    where t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_id = target.thread_id and t.delete_time is null
  ), input as materialized (
    select e.ord, (v ->> 'id')::uuid as id, v ->> 'clientId' as client_id, (v ->> 'role')::smallint as role,
      v ->> 'content' as content, v -> 'metadata' as metadata, v ->> 'toolCallId' as tool_call_id, (v ->> 'tokens')::int as token_count,
      m.id as stored_id, m.seq as stored_seq, m.create_time as stored_time,
      ${differs('m')} as differs
    from jsonb_array_elements($12::jsonb) with ordinality as e (v, ord)
    left join lateral (
      select m.* from messages m
      where m.tenant_id = $1 and m.env = $2 and m.thread_uid = (select thread_uid from known) and m.client_id = v ->> 'clientId'
      limit 1
    ) m on v ? 'clientId'
  ), fresh as materialized (
    select *, row_number() over (order by ord) as n from input where stored_id is null
  ), thread as (
    insert into threads as t (tenant_id, env, user_id, thread_id, thread_uid, last_seq, revision, create_time, update_time)
    select $1, $2, $3, target.thread_id, $14::uuid, f.n, f.n, f.at, f.at
    from target, (select count(*) as n, clock_timestamp() as at from fresh) f
    where not exists (select from input where stored_id is not null and differs)
      and ($15::bigint = 0 or exists (select from known)) and ($17::bigint is null or f.n <= $17)
    on conflict (tenant_id, env, user_id, thread_id) do update
      set last_seq = t.last_seq + excluded.last_seq, revision = t.revision + excluded.revision,
        update_time = case when excluded.last_seq = 0 then t.update_time else greatest(t.update_time, excluded.update_time) end
      where t.delete_time is null and ${fenced('t', '$15', '$16::boolean', 'excluded.update_time')} and ${hasRoom('$17')}
    returning t.thread_id, t.thread_uid, t.last_seq - (select count(*) from fresh) as base
  ), inserted as (
    insert into messages (tenant_id, env, thread_uid, seq, id, user_id, session_id, client_id, role, content, metadata, tool_call_id, token_count, create_time,
      search_language, tsv)
    select $1, $2, t.thread_uid, t.base + f.n, f.id, $3, $13::uuid, f.client_id, f.role, f.content, f.metadata, f.tool_call_id, f.token_count, clock_timestamp(),
      l.search_language, message_tsv(l.search_language, f.content)
    from thread t, fresh f, tenants l
    where l.tenant_id = $1
    order by f.n
    returning id, seq, create_time
  ), ${touchSessions('thread')}, result as materialized (
    select coalesce(n.id, i.stored_id) as id, t.thread_id, coalesce(n.seq, i.stored_seq) as seq, i.client_id,
      coalesce(n.create_time, i.stored_time) as create_time, n.id is not null as fresh
    from thread t cross join input i left join inserted n on n.id = i.id
    order by i.ord
  ), ${audited('messages.append', 'inserted', {
    resource: `'threads/' || (select thread_id from thread)`,
    session: '$13::uuid',
    metadata: `jsonb_build_object('first_seq', seq, 'count', (select count(*) from inserted))`,
  })}, ${requested('result')}
  select * from result`);

export interface AppendedRow {
  id: string;
  threadId: string;
  seq: number;
  clientId: string | null;
  createTime: Timestamp;
  /** Stored by this call, rather than known by its client_id. */
  fresh: boolean;
}

interface WhyNotWritten extends LeaseState {
  sessionThread: string | null;
  sessionGone: boolean;
  sessionDeleted: boolean;
  sessionEnded: boolean;
  threadDeleted: boolean;
  admitted: boolean;
  reused: boolean;
  messageDeleted: boolean;
  messages: number | null;
}

const WHY_NOT_WRITTEN = pointRead<WhyNotWritten>(`
  select s.thread_id as session_thread, s.id is null or coalesce(s.expire_time <= now(), false) as session_gone,
    s.delete_time is not null as session_deleted, s.end_time is not null as session_ended,
    t.delete_time is not null as thread_deleted,
    ${fenced('t', '$7::bigint', '$8::boolean', 'clock_timestamp()')} as admitted, ${stateOf('t')}, exists (
      select from jsonb_array_elements($6::jsonb) v
      join messages m on m.tenant_id = $1 and m.env = $2 and m.thread_uid = t.thread_uid and m.client_id = v ->> 'clientId'
      where ${differs('m')}) as reused, exists (
      select from jsonb_array_elements($6::jsonb) v
      join messages m on m.tenant_id = $1 and m.env = $2 and m.thread_uid = t.thread_uid and m.client_id = v ->> 'clientId'
      where m.delete_time is not null) as message_deleted, ${messagesOf('t')} as messages
  from (select) one
  left join sessions s on s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $5::uuid
  left join threads t on t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_id = coalesce(nullif($4::text, ''), s.thread_id)`);

export interface Append {
  threadId: string;
  sessionId: string;
  messages: Message[];
  /** Of each message, as this service counted it. */
  tokenCounts: number[];
  /** 0 for none. */
  fencingToken: number;
  /** How many messages the thread may hold. */
  messageLimit: number | undefined;
}

/** Each message as the statements read it. */
const inputOf = (messages: Message[], tokenCounts: number[] = []) =>
  messages.map(({ clientId, role, content, metadata, toolCallId }, i) => ({
    id: uuidv7(),
    ...(clientId && { clientId }),
    role,
    content,
    ...(metadata && { metadata }),
    toolCallId,
    tokens: tokenCounts[i],
  }));

/** People type while a model answers: what only they say needs no turn. */
const onlyHuman = ({ messages }: Append) => messages.every((message) => message.role === MessageRole.HUMAN);

/** Appends messages, all or none. Gives no rows if it refused: see {@link whyNotAppended}. */
export async function appendMessages(tx: FinalTx, append: Append): Promise<AppendedRow[]> {
  const { threadId, sessionId, messages, tokenCounts, fencingToken, messageLimit } = append;
  const input = json(inputOf(messages, tokenCounts));
  return tx.final(APPEND, [
    threadId,
    input,
    sessionId || null,
    uuidv7(),
    fencingToken,
    onlyHuman(append),
    messageLimit,
  ]);
}

export function whyNotAppended(db: TenantDb, append: Append): Promise<RpcError> {
  const { messages, messageLimit } = append;
  const named = inputOf(messages.filter((message) => message.clientId));
  return whyNotWritten(
    db,
    append,
    onlyHuman(append),
    named,
    messageLimit && { more: messages.length, limit: messageLimit },
  );
}

/** Why a write to a thread was refused, that may be one of those that need no turn, and may name messages by client_id. */
export async function whyNotWritten(
  db: TenantDb,
  { threadId, sessionId, fencingToken }: { threadId: string; sessionId: string; fencingToken: number },
  exempt: boolean,
  named: object[] = [],
  room?: { more: number; limit: number } | 0,
): Promise<RpcError> {
  const values = [threadId, sessionId || null, json(named), fencingToken, exempt];
  const [why] = await db.query(WHY_NOT_WRITTEN, values);
  if (sessionId) {
    if (why!.sessionDeleted) return deleted('session');
    if (why!.sessionGone) return notFound('session');
    if (why!.sessionEnded) return sessionEnded();
    if (threadId && threadId !== why!.sessionThread) {
      return invalid([{ field: 'thread_id', description: "not the session's thread" }]);
    }
  }
  if (why!.threadDeleted) return deleted('thread');
  if (!why!.admitted) return fencingToken ? staleToken() : turnHeld(why!);
  if (why!.messageDeleted) return deleted('message');
  if (why!.reused) return clientIdReused();
  if (room && (why!.messages ?? 0) + room.more > room.limit) return threadFull(db, room.limit);
  return conflict('the thread changed at the same time');
}

export const threadFull = (db: TenantDb, limit: number) => overQuota(db.scope.tenant, 'maxMessagesPerThread', limit);

export const clientIdReused = () =>
  new RpcError(status.ALREADY_EXISTS, 'CLIENT_ID_REUSED', 'a client_id was used for a message with other content');

export const messageStreaming = () =>
  new RpcError(status.FAILED_PRECONDITION, 'MESSAGE_STREAMING', 'a message is still being streamed');

export const turnHeld = (lease: LeaseState) => leaseHeld('TURN_HELD', "the thread's turn", lease);

export const sessionEnded = () => new RpcError(status.FAILED_PRECONDITION, 'SESSION_ENDED', 'the session has ended');

import { v7 as uuidv7 } from 'uuid';
import { wipedContexts } from '../contexts/repository.ts';
import { audited, requested } from '../db/change.ts';
import { ended, fenced } from '../db/lease.ts';
import { change, query } from '../db/statement.ts';
import type { TenantTx } from '../db/transaction.ts';
import { wipedTurns } from '../turns/repository.ts';
import { wipedCalls } from '../usage/calls.ts';
import { targeted } from './append.ts';
import { EventKind } from './event.ts';
import { awaited, liveSession } from './repository.ts';

/** The CTEs that drop the thread rows of a CTE `dropped`: their messages are invisible at once, and left to the sweep. */
export const QUEUE_DROPPED = `queued as (
    insert into dropped_threads (tenant_id, env, thread_uid, user_id, drop_time)
    select $1, $2, thread_uid, $3, delete_time from dropped
    returning 1
  )`;

/**
 * The CTEs that take the summaries of a thread's sessions away, also from the results kept for replays (rows of a statement,
 * or of a handler): they stand for messages that are gone.
 */
const unsummarised = (thread: string) => `unsummarised as (
    update sessions s set summary_refs = '[]', revision = s.revision + 1, update_time = clock_timestamp()
    from ${thread} w
    where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.thread_id = w.thread_id and s.delete_time is null
      and s.summary_refs <> '[]'
    returning 1
  ), unsummarised_results as (
    update requests r
    set result = jsonb_set(jsonb_set(r.result, '{0,summary_refs}', '[]', false), '{0,summaryRefs}', '[]', false)
    from ${thread} w
    join sessions s on s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.thread_id = w.thread_id and s.delete_time is null
    where r.tenant_id = $1 and r.env = $2 and r.user_id in ($10, '') and r.result -> 0 ->> 'id' = s.id::text
      and coalesce(r.result -> 0 -> 'summary_refs', r.result -> 0 -> 'summaryRefs') <> '[]'
    returning 1
  )`;

const DELETE_THREAD = change<{ threadId: string }>(`
  with dropped as (
    update threads set delete_time = clock_timestamp(), revision = revision + 1, ${ended('threads')}
    where tenant_id = $1 and env = $2 and user_id = $3 and thread_id = $11 and delete_time is null
    returning thread_id, thread_uid, delete_time
  ), ${QUEUE_DROPPED}, ${unsummarised('dropped')}, ${audited('threads.delete', 'dropped', { resource: `'threads/' || thread_id` })},
  ${requested('dropped')}
  select thread_id from dropped`);

export async function deleteThread(tx: TenantTx, threadId: string): Promise<{ threadId: string }[]> {
  return tx.final(DELETE_THREAD, [threadId]);
}

// Both removals lock in a statement of their own, in the order of all writers (stream, thread, sessions): the next
// statement then sees what others wrote while this one waited.
const LOCK_MESSAGE = query(`
  with stream as materialized (
    select message_id from message_streams
    where tenant_id = $1 and env = $2 and user_id = $3 and message_id = $4::uuid
    for update
  )
  select t.thread_id from messages m
  join threads t on t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_uid = m.thread_uid and t.delete_time is null
  where m.tenant_id = $1 and m.env = $2 and m.user_id = $3 and m.id = $4 and (select count(*) from stream) >= 0
  for update of t`);

const DELETE_MESSAGE = change<DeletedRow>(`
  with gone as (
    update messages m set content = '', metadata = null, token_count = 0, tsv = null, delete_time = clock_timestamp()
    from threads t
    where m.tenant_id = $1 and m.env = $2 and m.user_id = $3 and m.id = $11::uuid and m.delete_time is null
      and t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_uid = m.thread_uid and t.delete_time is null
    returning m.id, m.thread_uid, m.seq, t.thread_id
  ), thread as (
    update threads t set revision = t.revision + 1
    from gone
    where t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_id = gone.thread_id
    returning t.revision, t.last_seq
  ), stopped as (
    delete from message_streams s using gone where s.tenant_id = $1 and s.env = $2 and s.message_id = gone.id
    returning 1
  ), emptied as (
    update thread_events e set text = null
    from gone
    where e.tenant_id = $1 and e.env = $2 and e.thread_uid = gone.thread_uid and e.seq = gone.seq and e.text is not null
    returning 1
  ), event as (
    insert into thread_events (tenant_id, env, thread_uid, revision, user_id, kind, seq, last_seq, create_time)
    select $1, $2, gone.thread_uid, thread.revision, $3, ${EventKind.DELETED}, gone.seq, thread.last_seq, clock_timestamp()
    from gone, thread
    returning 1
  ), result as materialized (
    select gone.id, gone.thread_id, gone.seq, coalesce((
      select jsonb_agg(c) from (
        select jsonb_build_object('sessionId', s.id, 'summaryId', ref ->> 'id') as c
        from sessions s, jsonb_array_elements(s.summary_refs) ref
        where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.thread_id = gone.thread_id and ${liveSession('s')}
          and (ref ->> 'through_seq')::bigint >= gone.seq
        limit 100
      ) c), '[]') as covering
    from gone
  ), ${audited('messages.delete', 'result', {
    resource: `'messages/' || id`,
    metadata: `jsonb_build_object('thread_id', thread_id, 'seq', seq)`,
  })}, ${requested('result')}
  select * from result`);

export interface DeletedRow {
  id: string;
  threadId: string;
  seq: number;
  covering: { sessionId: string; summaryId: string }[];
}

/** Empties a message. Nothing if it is not there. */
export async function deleteMessage(tx: TenantTx, id: string): Promise<DeletedRow[]> {
  await tx.query(LOCK_MESSAGE, [id]);
  return tx.final(DELETE_MESSAGE, [id]);
}

const LOCK_HISTORY = query(`
  with ${targeted('$4', '$5')}, thread as materialized (
    select t.thread_id from threads t, target
    where t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_id = target.thread_id
    for update of t
  )
  select s.id from sessions s, target
  where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.thread_id = target.thread_id and s.delete_time is null
    and (select count(*) from thread) >= 0
  for no key update of s`);

// The messages go as those of a deleted thread do: the thread gets a new uid, and the old one is left to the sweep.
const CLEAR = change<ClearedRow>(`
  with ${targeted('$11', '$12')}, before as materialized (
    select t.thread_uid, clock_timestamp() as delete_time from threads t, target
    where t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_id = target.thread_id and t.delete_time is null
  ), thread as (
    insert into threads as t (tenant_id, env, user_id, thread_id, thread_uid, revision, base_revision, create_time, update_time)
    select $1, $2, $3, target.thread_id, $14::uuid, 1, 1, c.at, c.at
    from target, (select clock_timestamp() as at) c
    where exists (select from before) or ${awaited('target.thread_id')}
    on conflict (tenant_id, env, user_id, thread_id) do update
      set thread_uid = excluded.thread_uid, revision = t.revision + 1, base_revision = t.revision + 1, base_seq = t.last_seq,
        update_time = greatest(t.update_time, excluded.update_time)
      where t.delete_time is null and ${fenced('t', '$13::bigint', 'false', 'excluded.update_time')}
    returning t.thread_id, t.last_seq
  ), dropped as (
    select before.* from before, thread
  ), ${QUEUE_DROPPED}, cleared as materialized (
    select s.id from sessions s, thread
    where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.thread_id = thread.thread_id and s.delete_time is null
  ), ${wipedContexts('cleared')}, ${wipedTurns('cleared')}, ${wipedCalls('cleared')}, ${unsummarised('thread')}, scrubbed as (
    update requests r set result = jsonb_set(r.result, '{0,turn}', 'null')
    from cleared
    where r.tenant_id = $1 and r.env = $2 and r.user_id = $3 and r.method = 'ConversationService/CommitTurn'
      and r.result -> 0 ->> 'id' = cleared.id::text
    returning 1
  ), result as materialized (
    select thread_id, last_seq, array(select id from cleared order by id limit 100) as session_ids from thread
  ), ${audited('threads.clear', 'result', {
    resource: `'threads/' || thread_id`,
    session: '$12::uuid',
    metadata: `jsonb_build_object('through_seq', last_seq)`,
  })}, ${requested('result')}
  select * from result`);

export interface ClearedRow {
  threadId: string;
  lastSeq: number;
  sessionIds: string[];
}

export interface Clear {
  threadId: string;
  sessionId: string;
  /** 0 for none. */
  fencingToken: number;
}

/** Wipes a thread and what its sessions hold of it. Nothing if it refused. */
export async function clearHistory(tx: TenantTx, { threadId, sessionId, fencingToken }: Clear): Promise<ClearedRow[]> {
  await tx.query(LOCK_HISTORY, [threadId, sessionId || null]);
  return tx.final(CLEAR, [threadId, sessionId || null, fencingToken, uuidv7()]);
}

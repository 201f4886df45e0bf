import { sqlState } from '../db/failure.ts';
import type { Database } from '../db/pool.ts';
import { query } from '../db/statement.ts';
import { type Scope, type TenantTx, together, transaction } from '../db/transaction.ts';
import { MessageState } from '../gen/memory/v1/message.ts';
import { keptSince } from '../tenants/aging.ts';
import { BATCH, COUNTED } from '../tenants/sweeping.ts';
import { EventKind } from './event.ts';

/** How long it waits for a thread that others write; then for the next sweep. */
const LOCK_MS = 1000;
const LOCK_NOT_AVAILABLE = '55P03';
const THREADS = 1000;
/** Of what happened in a thread besides appends, removed with its messages. */
const EVENTS = 5000;

const SINCE = keptSince('messages');
const STAYS = (m: string) =>
  `(${m}.create_time > ${SINCE} or ${m}.state = ${MessageState.STREAMING} and ${m}.delete_time is null)`;

// No message is older than that of its thread (migration 22).
const aged = (t = '') => `${t}delete_time is null and coalesce(${t}oldest_time, ${t}create_time) <= ${SINCE}`;
const AGED = `t.tenant_id = $1 and t.env = $2 and ${aged('t.')}`;

/** The threads of which messages may be due. */
export const THREADS_AGED = { table: 'threads', due: aged() };

/** The messages that are due: in each thread those before the first that stays. */
export const dueMessages = (limit: number): string => `
  select from threads t
  join lateral (
    select from messages m
    where m.tenant_id = $1 and m.env = $2 and m.thread_uid = t.thread_uid and m.seq > t.base_seq and m.seq < coalesce((
      select s.seq from messages s
      where s.tenant_id = $1 and s.env = $2 and s.thread_uid = t.thread_uid and s.seq > t.base_seq and ${STAYS('s')}
      order by s.seq limit 1), t.last_seq + 1)
  ) m on true
  where ${AGED} limit ${limit}`;

interface Thread {
  userId: string;
  threadId: string;
  threadUid: string;
  /** As text, since its microseconds count. */
  since: string;
}

const THREADS_DUE = query<Thread>(`
  select t.user_id, t.thread_id, t.thread_uid, coalesce(t.oldest_time, t.create_time)::text as since from threads t
  where ${AGED} and (coalesce(t.oldest_time, t.create_time), t.thread_uid) > ($4::timestamptz, $5::uuid)
  order by coalesce(t.oldest_time, t.create_time), t.thread_uid limit ${THREADS}`);
const FIRST = ['-infinity', '00000000-0000-0000-0000-000000000000'];

// In a statement of its own: the next one then sees what others wrote while this one waited.
const LOCK = query(`
  select thread_uid from threads
  where tenant_id = $1 and env = $2 and user_id = $3 and thread_id = $4 and delete_time is null
  for update`);

// The thread then begins after what is removed, as one that was cleared: at the revision from which the next message would
// be appended. What happened up to there goes with the messages; what happened later to one of them is still told.
const REMOVE = query<{ n: number }>(`
  with thread as materialized (
    select t.* from threads t where t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_id = $4 and t.delete_time is null
  ), ahead as materialized (
    select m.seq, ${STAYS('m')} is not false as stays from messages m
    where m.tenant_id = $1 and m.env = $2 and m.thread_uid = (select thread_uid from thread) and m.seq > (select base_seq from thread)
    order by m.seq limit ${BATCH}
  ), due as materialized (
    select max(seq) as seq from ahead
    where seq < coalesce((select min(seq) from ahead where stays), (select last_seq + 1 from thread))
      and seq <= greatest((select min(seq) from ahead), coalesce((
        select e.last_seq from thread_events e
        where e.tenant_id = $1 and e.env = $2 and e.thread_uid = (select thread_uid from thread)
        order by e.revision offset ${EVENTS} limit 1), (select last_seq from thread)))
  ), free as materialized (
    select m.seq from messages m
    where m.tenant_id = $1 and m.env = $2 and m.thread_uid = (select thread_uid from thread)
      and m.seq > (select base_seq from thread) and m.seq <= (select seq from due)
    for update skip locked
  ), through as materialized (
    select case when locked.seq is null then due.seq else locked.seq - 1 end as seq
    from due, (select min(seq) as seq from ahead where seq <= (select seq from due) and seq not in (select seq from free)) locked
  ), gone as (
    delete from messages m
    where m.tenant_id = $1 and m.env = $2 and m.thread_uid = (select thread_uid from thread)
      and m.seq > (select base_seq from thread) and m.seq <= (select seq from through)
    returning m.seq
  ), base as materialized (
    select t.thread_uid, max(gone.seq) as seq, max(gone.seq) = t.last_seq as whole, case
      when max(gone.seq) = t.last_seq then t.revision + 1
      else max(gone.seq) + coalesce((
        select e.revision - e.last_seq from thread_events e
        where e.tenant_id = $1 and e.env = $2 and e.thread_uid = t.thread_uid and e.revision < coalesce((
          select n.revision from thread_events n
          where n.tenant_id = $1 and n.env = $2 and n.thread_uid = t.thread_uid and n.last_seq > (select seq from through)
          order by n.revision limit 1), t.revision + 1)
        order by e.revision desc limit 1), t.base_revision - t.base_seq) end as revision
    from thread t, gone group by t.thread_uid, t.last_seq, t.revision, t.base_revision, t.base_seq
  ), oldest as materialized (
    select coalesce((
      select m.create_time from messages m
      where m.tenant_id = $1 and m.env = $2 and m.thread_uid = t.thread_uid and m.seq > coalesce((select seq from base), t.base_seq)
      order by m.seq limit 1), clock_timestamp()) as time
    from thread t
  ), moved as (
    update threads t
    set oldest_time = oldest.time, base_seq = coalesce(b.seq, t.base_seq), base_revision = coalesce(b.revision, t.base_revision),
      revision = t.revision + (b.seq is not null)::int
    from oldest left join base b on true
    where t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_id = $4
      and (b.seq is not null or t.oldest_time is distinct from oldest.time)
    returning t.revision, t.last_seq
  ), forgotten as (
    delete from thread_events e using base b
    where e.tenant_id = $1 and e.env = $2 and e.thread_uid = b.thread_uid and e.revision <= b.revision
    returning 1
  ), told as (
    insert into thread_events (tenant_id, env, thread_uid, revision, user_id, kind, seq, last_seq, create_time)
    select $1, $2, b.thread_uid, moved.revision, $3, ${EventKind.CLEARED}, b.seq, moved.last_seq, clock_timestamp()
    from base b, moved where not b.whole
    returning 1
  ), counts as (
    select 'retention_messages' as kind, count(*)::int as n from gone having count(*) > 0
  ), ${COUNTED}
  select n from counts`);

/** Removes a batch of the oldest messages of a thread of the scope's user. Resolves to how many. */
export async function removeOldest(tx: TenantTx, threadId: string): Promise<number> {
  const [, [removed]] = await together([tx.query(LOCK, [threadId]), tx.final(REMOVE, [threadId])]);
  return removed?.n ?? 0;
}

/** Removes the messages of a tenant and env that are older than it keeps them, thread by thread. Resolves to how many. */
export async function retainMessages(database: Database, scope: Scope, signal?: AbortSignal): Promise<number> {
  const limits = () => {
    signal?.throwIfAborted();
    return { deadline: Date.now() + 60_000, signal, lockMs: LOCK_MS };
  };
  const batchOf = ({ userId, threadId }: Thread) =>
    transaction(database, { ...scope, user: userId }, undefined, limits(), { repeatable: true }, (tx) =>
      removeOldest(tx, threadId),
    ).catch((error) => {
      if (sqlState(error) === LOCK_NOT_AVAILABLE) return 0;
      throw error;
    });
  let total = 0;
  for (let after = FIRST; ; ) {
    const threads = await transaction(database, scope, undefined, limits(), { repeatable: true }, (tx) =>
      tx.final(THREADS_DUE, after),
    );
    // One that still has some that are due comes again, as its oldest time has moved on.
    for (const thread of threads) {
      let n: number;
      do total += n = await batchOf(thread);
      while (n === BATCH);
    }
    const last = threads.at(-1);
    if (!last) return total;
    after = [last.since, last.threadUid];
  }
}

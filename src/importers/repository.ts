import { json, pointRead, query } from '../db/statement.ts';
import type { TenantDb, TenantTx } from '../db/transaction.ts';

const STANDING = pointRead<Standing>(`
  select exists (select from tenant_members where tenant_id = $1 and env = $2 and user_id = $3) as member,
    exists (select from erasures where tenant_id = $1 and env = $2 and user_id = $3) as erased,
    coalesce((select delete_time is not null from threads where tenant_id = $1 and env = $2 and user_id = $3 and thread_id = $6), false) as deleted,
    s.id is not null as known, case when s.live then s.id end as session_id
  from (select) one
  left join lateral (
    select s.id, s.end_time is null and s.delete_time is null and (s.expire_time is null or s.expire_time > now()) as live
    from sessions s
    where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.surface_id = $4 and s.project_id = $5 and s.key_thread_id = $6
    order by live desc, s.id desc limit 1
  ) s on true`);

/** What is here already of a session that is to be imported. */
export interface Standing {
  /** Whether its user is a member. */
  member: boolean;
  /** Whether everything of the user is being erased. */
  erased: boolean;
  /** Whether its thread was deleted here. */
  deleted: boolean;
  /** Whether there is a session of its key, live or not. */
  known: boolean;
  /** The live one. */
  sessionId: string | null;
}

export interface SessionKey {
  surfaceId: string;
  projectId: string;
  threadId: string;
}

export async function standingOf(db: TenantDb, { surfaceId, projectId, threadId }: SessionKey): Promise<Standing> {
  const [standing] = await db.query(STANDING, [surfaceId, projectId, threadId]);
  return standing!;
}

const KNOWN = pointRead<{ clientId: string }>(`
  select m.client_id from threads t
  join messages m on m.tenant_id = $1 and m.env = $2 and m.thread_uid = t.thread_uid and m.client_id = any ($5::text[])
  where t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_id = $4 and t.delete_time is null`);

/** Those of these client_ids that the thread has. */
export async function knownIds(db: TenantDb, threadId: string, clientIds: string[]): Promise<string[]> {
  const rows = await db.query(KNOWN, [threadId, clientIds]);
  return rows.map(({ clientId }) => clientId);
}

const BACKDATE_SESSION = query(`
  update sessions set create_time = least(create_time, $5::timestamptz), last_activity_time = least(last_activity_time, $6::timestamptz)
  where tenant_id = $1 and env = $2 and user_id = $3 and id = $4::uuid`);

/** Gives a session that was made in this transaction its times of before. */
export async function backdateSession(tx: TenantTx, id: string, created: string, active: string): Promise<void> {
  await tx.query(BACKDATE_SESSION, [id, created, active]);
}

// Times never go back along seq, nor past now: what came before in the thread, by another way, is not younger.
const BACKDATE = query(`
  with given as materialized (
    select (v ->> 'seq')::bigint as seq, (v ->> 'time')::timestamptz as time from jsonb_array_elements($5::jsonb) v
  ), thread as materialized (
    select thread_uid, create_time from threads where tenant_id = $1 and env = $2 and user_id = $3 and thread_id = $4
  ), before as materialized (
    select m.create_time from messages m, thread
    where m.tenant_id = $1 and m.env = $2 and m.thread_uid = thread.thread_uid and m.seq < (select min(seq) from given)
    order by m.seq desc limit 1
  ), dated as materialized (
    select seq, least(clock_timestamp(), greatest((select create_time from before), max(time) over (order by seq))) as time from given
  ), moved as (
    update messages m set create_time = dated.time
    from dated, thread
    where m.tenant_id = $1 and m.env = $2 and m.thread_uid = thread.thread_uid and m.seq = dated.seq
    returning 1
  ), timed as (
    update threads t
    set create_time = least(t.create_time, (select min(time) from dated)), oldest_time = null, update_time = (select max(time) from dated)
    where t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_id = $4
    returning 1
  )
  update sessions s set last_activity_time = (select max(time) from dated)
  where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $6::uuid`);

/** Gives messages that were appended in this transaction their times of before, and so their thread and session. */
export async function backdate(
  tx: TenantTx,
  threadId: string,
  sessionId: string | null,
  times: { seq: number; time: string }[],
): Promise<void> {
  if (times.length > 0) await tx.query(BACKDATE, [threadId, json(times), sessionId]);
}

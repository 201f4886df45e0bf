import { v7 as uuidv7 } from 'uuid';
import { change, query } from '../db/statement.ts';
import { type TenantDb, type TenantTx, together } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { EmailMatch } from '../gen/memory/v1/profile_service.ts';

/** Who has an address now, by profile and by session. */
const holders = (key: string) => `(
      select p.user_id, null::uuid as session_id from profiles p
      where p.tenant_id = $1 and p.env = $2 and p.email_key = ${key} and p.email_key <> ''
      union all
      select s.user_id, s.id from sessions s
      where s.tenant_id = $1 and s.env = $2 and s.email_key = ${key} and s.email_key <> '' and s.delete_time is null
        and (s.expire_time is null or s.expire_time > now()))`;

/** Whether a match of the table is none any more. */
export const unmatched = (row: string): string =>
  `(select count(distinct h.user_id) from ${holders(`${row}.email_key`)} h) < 2`;

// Of two users who come with an address at once, the second waits here, and then sees what the first stored.
const LOCK = query(`select pg_advisory_xact_lock(hashtextextended($1 || '/' || $2 || '/' || $4, 0))`);

// The event is of no user: members, who read their own events, learn nothing of each other.
const NOTE = change(`
  with seen as (
    insert into email_matches (tenant_id, env, id, email_key, detect_time)
    select $1, $2, $12::uuid, $11::text, clock_timestamp()
    where (select count(distinct h.user_id) from ${holders('$11')} h) > 1
    on conflict (tenant_id, env, email_key) do nothing
    returning id
  )
  insert into audit_events (tenant_id, env, id, user_id, actor, action, outcome, resource, request_id, trace_id)
  select $1, $2, $8, '', $4, 'profiles.email_match', 1, 'email-matches/' || id, $6, $9 from seen`);

/** Records that several users have an address, if they do: after the statement that stored it, in its transaction. */
export async function noteEmail(tx: TenantTx, key: string): Promise<void> {
  await together([tx.query(LOCK, [key]), tx.step.query(NOTE, [key, uuidv7()])]);
}

export interface MatchRow {
  id: string;
  email: string;
  detectTime: Timestamp;
  holders: { user_id: string; in_profile: boolean; session_ids: string[] | null; session_count: number }[];
}

const LIST = query<MatchRow>(`
  select m.id, m.email_key as email, m.detect_time, h.holders
  from email_matches m, lateral (
    select jsonb_agg(u order by u.user_id) filter (where u.place <= 100) as holders, count(*) as n
    from (
      select h.user_id, bool_or(h.session_id is null) as in_profile, count(h.session_id) as session_count,
        (array_agg(h.session_id order by h.session_id desc) filter (where h.session_id is not null))[1:10] as session_ids,
        row_number() over (order by h.user_id) as place
      from ${holders('m.email_key')} h
      group by h.user_id
    ) u
  ) h
  where m.tenant_id = $1 and m.env = $2 and m.id < coalesce($5::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff') and h.n > 1
    and ($4 = '' or exists (select from ${holders('m.email_key')} o where o.user_id = $4))
  order by m.id desc limit $6::int`);

export async function listEmailMatches(db: TenantDb, userId: string, after: string | undefined, limit: number) {
  return db.query(LIST, [userId, after, limit]);
}

export const matchFromRow = ({ holders: who, ...row }: MatchRow): EmailMatch =>
  EmailMatch.fromPartial({
    ...row,
    holders: who.map((holder) => ({
      userId: holder.user_id,
      inProfile: holder.in_profile,
      sessionIds: holder.session_ids ?? [],
      sessionCount: holder.session_count,
    })),
  });

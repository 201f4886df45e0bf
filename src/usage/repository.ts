import { pointRead, query, type Statement, type Value } from '../db/statement.ts';
import type { TenantDb } from '../db/transaction.ts';
import { notFound } from '../rpc/errors.ts';
import { idsBetween } from './ids.ts';
import { type LlmRow, llmColumns } from './llm-request.ts';

// What a call belongs to is the user's own, and was not deleted; that it has ended is no reason not to count it.
const PLACE = pointRead<{ id: string; projectId: string; hasTurn: boolean }>(`
  select s.id, s.project_id, $5::uuid is null or exists (
    select from turns t where t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.session_id = s.id and t.id = $5) as has_turn
  from sessions s where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $4::uuid and s.delete_time is null`);

/** The user's session, with its project, if it has the turn that is named. */
export async function placeOf(db: TenantDb, sessionId: string, turnId: string) {
  const [place] = await db.query(PLACE, [sessionId, turnId || null]);
  if (!place) throw notFound('session');
  if (!place.hasTurn) throw notFound('turn');
  return place;
}

export interface LlmFilter {
  userId: string;
  sessionId: string;
  turnId: string;
  projectId: string;
  provider: string;
  model: string;
  status: string;
  startTime: string | null;
  endTime: string | null;
}

// A user or a session that is named is a place in an index, which a condition that may be left out is not.
const list = (ofUser: boolean, ofSession: boolean) =>
  query<LlmRow & { byteSize: number }>(`
  select ${llmColumns('r')}, r.request, r.response,
    octet_length(coalesce(r.request::text, '')) + octet_length(coalesce(r.response::text, '')) + 1000 as byte_size
  from llm_requests r
  where r.tenant_id = $1 and r.env = $2 and ${ofUser ? 'r.user_id = $4' : `$4 = ''`}
    and ${ofSession ? 'r.session_id = $5::uuid' : '$5::uuid is null'} and ($6::uuid is null or r.turn_id = $6)
    and $7 in ('', r.project_id) and $8 in ('', r.provider) and $9 in ('', r.model) and $10 in ('', r.status)
    and ($11::timestamptz is null or r.create_time >= $11) and ($12::timestamptz is null or r.create_time < $12)
    and r.id > $13::uuid and r.id < $14::uuid
  order by r.id desc limit $15::int`);

const LISTS = [list(false, false), list(false, true), list(true, false), list(true, true)];

export async function listLlmRequests(
  db: TenantDb,
  filter: LlmFilter,
  after: string | undefined,
  limit: number,
): Promise<(LlmRow & { byteSize: number })[]> {
  const { userId, sessionId, turnId, projectId, provider, model, status, startTime, endTime } = filter;
  const { from, to } = idsBetween(startTime, endTime);
  const values = [userId, sessionId || null, turnId || null, projectId, provider, model, status, startTime, endTime];
  return db.query(LISTS[Number(userId !== '') * 2 + Number(sessionId !== '')]!, [
    ...values,
    from,
    after && after < to ? after : to,
    limit,
  ]);
}

// The lines are made where the rows are: they pass through here as they are.
const exported = (ofUser: boolean) =>
  query<{ id: string; line: string }>(`
  select r.id, row_to_json(r)::text as line from (
    select ${llmColumns('r')} from llm_requests r
    where r.tenant_id = $1 and r.env = $2 and ${ofUser ? 'r.user_id = $4' : `$4 = ''`}
      and ($5::timestamptz is null or r.create_time >= $5) and ($6::timestamptz is null or r.create_time < $6)
      and r.id > $7::uuid and r.id < $8::uuid
    order by r.id limit $9::int
  ) r
  order by r.id`);

const EXPORTS: Record<'user' | 'all', Statement<{ id: string; line: string }>> = {
  user: exported(true),
  all: exported(false),
};

export async function exportLines(
  db: TenantDb,
  filter: { userId: string; startTime: string | null; endTime: string | null },
  after: string | undefined,
  limit: number,
): Promise<{ id: string; line: string }[]> {
  const { userId, startTime, endTime } = filter;
  const { from, to } = idsBetween(startTime, endTime);
  const values: Value[] = [userId, startTime, endTime, after && after > from ? after : from, to, limit];
  return db.query(EXPORTS[filter.userId ? 'user' : 'all'], values);
}

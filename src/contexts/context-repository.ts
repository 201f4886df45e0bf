import { pointRead, query } from '../db/statement.ts';
import type { TenantDb } from '../db/transaction.ts';
import { openDrafts } from '../drafts/repository.ts';
import { relevantMemories } from '../memories/relevant.ts';
import type { MemoryRow } from '../memories/repository.ts';
import type { Entry } from '../profiles/accumulate.ts';
import { writtenProfile } from '../projects/repository.ts';
import { deleted, notFound } from '../rpc/errors.ts';
import { type MessageRow, settled } from '../threads/repository.ts';
import type { JsonObject } from '../wire/struct.ts';
import type { AppendedRow } from './repository.ts';

const LIVE = 's.delete_time is null and (s.expire_time is null or s.expire_time > now())';

/** What a context is made of, except messages. Sections that are not wanted are not read. */
export interface ContextRow extends AppendedRow {
  deleted: boolean;
  threadId: string;
  preferences: JsonObject | null;
  pinnedRefs: Record<string, unknown>[] | null;
  summaryRefs: Record<string, unknown>[] | null;
  latestTurn: Record<string, unknown> | null;
  /** The entries of the user's profile. */
  profile: Entry[] | null;
  projectProfile: Record<string, unknown> | null;
  drafts: Record<string, unknown>[] | null;
  /** Of the thread's messages; null if there are none. */
  firstSeq: number | null;
  memories?: MemoryRow[];
}

// $5 names the sections that are wanted.
const CONTEXT = pointRead<ContextRow>(`
  select s.id, s.delete_time is not null as deleted, s.thread_id,
    case when 'preferences' = any ($5::text[]) then s.preferences end as preferences,
    case when 'pinned' = any ($5) then s.pinned_refs end as pinned_refs,
    case when 'summaries' = any ($5) then s.summary_refs end as summary_refs,
    coalesce(c.last_ordinal, 0) as last_ordinal, coalesce(c.archived_through, 0) as archived_through,
    coalesce(c.archived_count, 0) as archived_count, coalesce(c.live_bytes, 0) as live_bytes,
    case when 'session_context' = any ($5) then (
      select json_agg(json_build_array(kind, data) order by ordinal) from context_entries e
      where e.tenant_id = $1 and e.env = $2 and e.session_id = s.id
    ) end as live,
    case when 'latest_turn' = any ($5) then (
      select row_to_json(t) from (
        select id, session_id, query, response, intent, planner_reasoning, reflection, tasks, results, report, truncated, first_seq,
          last_seq, create_time
        from turns t
        where t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.session_id = s.id
        order by t.id desc limit 1
      ) t
    ) end as latest_turn,
    case when 'profile' = any ($5) then coalesce((
      select p.entries from profiles p where p.tenant_id = $1 and p.env = $2 and p.user_id = $3
    ), '[]') end as profile,
    case when 'project_profile' = any ($5) then ${writtenProfile('s')} end as project_profile,
    case when 'drafts' = any ($5) then ${openDrafts('s')} end as drafts,
    case when 'messages' = any ($5) then (
      select m.seq from messages m
      where m.tenant_id = $1 and m.env = $2 and m.thread_uid = t.thread_uid and ${settled('m')}
      order by m.seq limit 1
    ) end as first_seq
  from sessions s
  left join session_contexts c on c.tenant_id = $1 and c.env = $2 and c.session_id = s.id
  left join threads t on t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_id = s.thread_id and t.delete_time is null
  where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $4::uuid and (s.expire_time is null or s.expire_time > now())`);

// The newest messages, until $5 of them, $6 tokens or $7 bytes are reached. They are walked in batches, as a running sum over
// the thread would read all of it; each batch has a limit that the planner knows, so that it takes the index whatever the
// thread's length. The first message that is too much is told without its content. One that was stored without a count
// is taken for fewer tokens than text commonly has; its length is told without reading it.
const BATCH = `
        where m.tenant_id = $1 and m.env = $2 and m.thread_uid = (select thread_uid from thread) and m.seq < w.above
          and ${settled('m')}
        order by m.seq desc limit 64`;
const TOKENS = 'coalesce(m.token_count, octet_length(m.content) / 8)';
const NEWEST = `
  with recursive thread as materialized (
    select t.thread_uid, t.last_seq from sessions s
    join threads t on t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_id = s.thread_id and t.delete_time is null
    where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $4::uuid and ${LIVE}
  ), walk as (
    select null::bigint as top, last_seq + 1 as above, 0 as n, 0::bigint as tokens, 0::bigint as bytes from thread
    union all
    select w.above, b.low, w.n + b.n, w.tokens + b.tokens, w.bytes + b.bytes
    from walk w, lateral (
      select min(seq) as low, count(*)::int as n, sum(tokens) as tokens, sum(byte_size) as bytes
      from (
        select * from (
          select m.seq, ${TOKENS} as tokens, m.byte_size from messages m${BATCH}
        ) m
        order by seq desc limit least(64, $5::int - w.n)
      ) m
    ) b
    where w.n < $5 and w.tokens <= $6::bigint and w.bytes <= $7::bigint and b.n > 0
  )
  select m.id, m.session_id, m.seq, m.client_id, m.role, m.token_count, m.byte_size, m.create_time, u.unread,
    case when u.unread is null then m.content end as content, case when u.unread is null then m.metadata end as metadata,
    m.tool_call_id, m.forwarded_from, m.state
  from (
    select m.*, ${TOKENS} as own, sum(${TOKENS}) over newest as tokens, sum(m.byte_size) over newest as bytes
    from (select top as above, above as low from walk where top is not null) w, lateral (
        select m.* from messages m${BATCH}
      ) m
    where m.seq >= w.low
    window newest as (order by m.seq desc rows unbounded preceding)
  ) m, lateral (
    select case when m.tokens > $6 then 'tokens' when m.bytes > $7 then 'bytes' end as unread
  ) u
  where m.tokens - m.own <= $6 and m.bytes - m.byte_size <= $7
  order by m.seq desc`;

export type NewestRow = Omit<MessageRow, 'content'> & { content: string | null; unread: 'tokens' | 'bytes' | null };

const FEW = pointRead<NewestRow>(NEWEST);
const MANY = query<NewestRow>(NEWEST);

export interface NewestLimits {
  rows: number;
  tokens: number;
  bytes: number;
}

/** What a context is made of. The statements are sent at once. */
export async function readMaterial(
  db: TenantDb,
  sessionId: string,
  wanted: string[],
  newest: NewestLimits,
  memoryQuery: string,
): Promise<{ context: ContextRow; messages: NewestRow[] }> {
  const { rows, tokens, bytes } = newest;
  // Many of them would keep the calls waiting whose reads share the connection.
  const statement = rows <= 100 || tokens <= 50_000 ? FEW : MANY;
  const [[context], messages, memories] = await Promise.all([
    db.query(CONTEXT, [sessionId, wanted]),
    wanted.includes('messages') ? db.query(statement, [sessionId, rows, tokens, bytes]) : [],
    wanted.includes('memories') ? relevantMemories(db, sessionId, memoryQuery) : undefined,
  ]);
  if (!context) throw notFound('session');
  if (context.deleted) throw deleted('session');
  return { context: { ...context, memories }, messages };
}

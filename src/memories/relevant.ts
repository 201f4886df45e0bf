import { pointRead, query } from '../db/statement.ts';
import type { TenantDb } from '../db/transaction.ts';
import { searchWords } from '../search/words.ts';
import { JOINED, live, type MemoryRow, READ } from './repository.ts';

const MOST = 20;
const MOST_BYTES = 256 * 1024;

const NOTHING_SOUGHT = 'select null::uuid as id, null::bigint as place where false';
const SOUGHT = `select f.id, f.place from session s, search_memories($1, $2, s.project_id, $5::text, null, null, null, null, ${MOST})
      with ordinality as f (id, score, place)`;

// References are entries of kind 4. What exceeds the limit is not read.
const relevant = (found: string) => `
  with session as materialized (
    select s.id, s.project_id from sessions s where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $4::uuid
  ), referenced as (
    select m.id, max(e.ordinal) as ordinal from session s
    join context_entries e on e.tenant_id = $1 and e.env = $2 and e.session_id = s.id and e.kind = 4
    join memories m on m.tenant_id = $1 and m.env = $2 and m.project_id = s.project_id and m.key = e.data ->> 'key' and ${live('m')}
    group by m.id
  ), used as (
    select u.memory_id, u.use_time from session s, lateral (
      select u.memory_id, u.use_time from memory_uses u
      join memories m on m.tenant_id = $1 and m.env = $2 and m.id = u.memory_id and ${live('m')}
      where u.tenant_id = $1 and u.env = $2 and u.project_id = s.project_id
      order by u.use_time desc, u.memory_id desc limit ${MOST}
    ) u
  ), found as (
    ${found}
  ), relevant as (
    select id, row_number() over (order by max(ordinal) desc nulls last, max(found) nulls last, max(use_time) desc, id desc) as place from (
      select id, ordinal, null::bigint as found, null::timestamptz as use_time from referenced
      union all select id, null, place, null from found
      union all select memory_id, null, null, use_time from used
    ) r group by id
    order by place limit ${MOST}
  )
  select * from (
    ${READ}, r.place, sum(v.byte_size) over (order by r.place rows unbounded preceding) as running
    from relevant r
    join memories m on m.tenant_id = $1 and m.env = $2 and m.id = r.id ${JOINED}
    join memory_uses u on u.tenant_id = $1 and u.env = $2 and u.memory_id = m.id
  ) m
  where running <= ${MOST_BYTES}
  order by place`;

const RELEVANT = pointRead<MemoryRow>(relevant(NOTHING_SOUGHT));
const RELEVANT_TO_QUERY = query<MemoryRow>(relevant(SOUGHT));

/**
 * The memories that matter to a session: of its project, those that it references, those that a query finds, then those
 * that were used last.
 */
export async function relevantMemories(db: TenantDb, sessionId: string, sought: string): Promise<MemoryRow[]> {
  const words = searchWords(sought);
  return words ? db.query(RELEVANT_TO_QUERY, [sessionId, words]) : db.query(RELEVANT, [sessionId]);
}

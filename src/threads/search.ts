import { query, timestampText } from '../db/statement.ts';
import type { TenantDb } from '../db/transaction.ts';
import type { SearchMessagesRequest } from '../gen/memory/v1/conversation_service.ts';
import type { Snippet } from '../gen/memory/v1/snippet.ts';
import { makeMarks } from '../search/snippets.ts';
import { searchWords } from '../search/words.ts';
import type { MessageRow } from './repository.ts';

// The function looks, as it sees through row-level security; what it found is read here, under the policies. Snippets cost
// more than all the rest, so they are made only of what the page holds: rows past 1 MiB are dropped before.
const SEARCH = query<FoundRow>(`
  with found as materialized (
    select * from search_messages($1, $2, $3, $4::text, nullif($5::text, ''), $6::uuid, $7::smallint[], $8::timestamptz, $9::timestamptz,
      $10::uuid, $11::real, $12::uuid, $13::int) with ordinality as f (id, rank, newest_id, place)
  ), page as materialized (
    select f.rank, f.newest_id, f.place, t.thread_id, m.*,
      sum(m.byte_size) over (order by f.place rows unbounded preceding) as running
    from found f
    join messages m on m.tenant_id = $1 and m.env = $2 and m.user_id = $3 and m.id = f.id
    join threads t on t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_uid = m.thread_uid
  )
  select id, session_id, seq, client_id, role, content, metadata, tool_call_id, token_count, forwarded_from, create_time, state, byte_size,
    thread_id, rank, newest_id,
    ts_headline(search_language::regconfig, left(content, 131072), to_tsquery(search_language::regconfig, $4), $14::text) as headline
  from page
  where running - byte_size <= 1048576
  order by place`);

export interface FoundRow extends MessageRow {
  threadId: string;
  rank: number;
  /** The newest match when the first page was asked for. */
  newestId: string;
  headline: string;
}

/** Where a page begins: after this rank and id, among what was there when the first page was asked for. */
export type SearchPosition = [rank: string, id: string, newestId: string];

export interface Found {
  rows: FoundRow[];
  snippetsOf(row: FoundRow): Snippet[];
}

/** Finds messages of the user, best match first. */
export async function searchMessages(
  db: TenantDb,
  { query: typed, threadId, sessionId, roles, startTime, endTime }: SearchMessagesRequest,
  after: SearchPosition | undefined,
  limit: number,
): Promise<Found> {
  const words = searchWords(typed);
  if (!words) return { rows: [], snippetsOf: () => [] };
  const { options, snippetsOf } = makeMarks();
  const filters = [
    threadId,
    sessionId || null,
    roles.length > 0 ? roles.map(String) : null,
    timestampText(startTime),
    timestampText(endTime),
  ];
  const [rank, id, newestId] = after ?? [];
  const rows = await db.query(SEARCH, [words, ...filters, newestId, rank, id, limit, options]);
  return { rows, snippetsOf: ({ headline }) => snippetsOf(headline) };
}

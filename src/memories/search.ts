import { json, pointRead, query } from '../db/statement.ts';
import type { TenantDb } from '../db/transaction.ts';
import type { Snippet } from '../gen/memory/v1/snippet.ts';
import { makeMarks } from '../search/snippets.ts';
import { correctableWords, searchWords } from '../search/words.ts';
import type { JsonObject } from '../wire/struct.ts';
import { JOINED, live, type MemoryRow, READ } from './repository.ts';

/** Where fewer hold the words as they were typed, words that may have been meant are looked for as well. */
const FEW = 10;
/** Of a query; a word costs some milliseconds in a large project. */
const MAX_CORRECTED = 16;
/** Of each order, as many are fused. */
const FUSED = 500;
/** Of reciprocal rank fusion, as it was published: places far down count little, and the first ones not for all. */
const RRF_K = 60;

export interface FoundRow extends MemoryRow {
  score: number;
  headline: string;
}

/** Whether words are looked for as they were typed, or as they may have been meant. */
type Spelling = 'typed' | 'likely';

/** After which score and id a page begins. */
export type SearchPosition = [score: string, id: string, spelling: Spelling];

// The functions look, as they see through row-level security; what they found is read here, under the policies. Snippets
// cost more than all the rest, so they are made only of what the page holds: rows past 1 MiB are dropped before.
// $4 project, $5 words, $6 likely ones, $7 metadata, $8 and $9 position, $10 how many, $11 options of headlines.
const reading = (found: string) =>
  query<FoundRow>(`
  with ${found}, page as materialized (
    ${READ}, f.score, f.place, sum(v.byte_size) over (order by f.place rows unbounded preceding) as running
    from found f
    join memories m on m.tenant_id = $1 and m.env = $2 and m.id = f.id and ${live('m')} ${JOINED}
    join memory_uses u on u.tenant_id = $1 and u.env = $2 and u.memory_id = m.id
  )
  select page.*, ts_headline(l.search_language::regconfig, page.value,
    to_tsquery(l.search_language::regconfig, coalesce($6, $5)), $11::text) as headline
  from page, tenants l
  where l.tenant_id = $1 and running - byte_size <= 1048576
  order by place`);

const BY_WORDS = reading(`found as materialized (
    select * from search_memories($1, $2, $4, $5::text, $6::text, $7::jsonb, $8::real, $9::uuid, $10::int)
      with ordinality as f (id, score, place)
  )`);

// All embeddings of the project are compared: see docs/decisions.md. $12 is what they are compared with.
const BY_BOTH = reading(`by_words as (
    select id, place from search_memories($1, $2, $4, $5::text, $6::text, $7::jsonb, null, null, ${FUSED}) with ordinality as f (id, score, place)
  ), by_nearness as (
    select e.memory_id as id, row_number() over (order by e.embedding <=> $12::vector, e.memory_id) as place
    from memory_embeddings e
    join memories m on m.tenant_id = $1 and m.env = $2 and m.id = e.memory_id and m.version = e.version and ${live('m')}
    where e.tenant_id = $1 and e.env = $2 and e.project_id = $4 and e.dimension = vector_dims($12::vector)
      and ($7 is null or exists (
        select from memory_versions v
        where v.tenant_id = $1 and v.env = $2 and v.memory_id = m.id and v.version = m.version and v.metadata @> $7))
    order by place limit ${FUSED}
  ), fused as (
    select id, sum(1.0 / (${RRF_K} + place))::real as score
    from (select * from by_words union all select * from by_nearness) p group by id
  ), found as materialized (
    select f.*, row_number() over (order by f.score desc, f.id desc) as place from fused f
    where $9::uuid is null or (f.score, f.id) < ($8::real, $9)
    order by place limit $10::int
  )`);

const SIMILAR = pointRead<{ word: string; likely: string }>(
  `select word, likely from similar_memory_words($1, $2, $4, $5::text[])`,
);

export interface Sought {
  projectId: string;
  query: string;
  embedding: number[];
  metadataFilter?: JsonObject | undefined;
}

export interface Found {
  rows: FoundRow[];
  position(row: FoundRow): SearchPosition;
  snippetsOf(row: FoundRow): Snippet[];
}

/** Finds memories of a project, best match first. An embedding finds what is alike, so words are then taken as they are. */
export async function searchMemories(
  db: TenantDb,
  { projectId, query: typed, embedding, metadataFilter }: Sought,
  after: SearchPosition | undefined,
  limit: number,
): Promise<Found> {
  const { options, snippetsOf } = makeMarks();
  const found = (rows: FoundRow[], spelling: Spelling): Found => ({
    rows,
    position: (row) => [String(row.score), row.id, spelling],
    snippetsOf: (row) => snippetsOf(row.headline),
  });
  const words = searchWords(typed);
  if (!words && embedding.length === 0) return found([], 'typed');

  const [score, id, spelling = 'typed'] = after ?? [];
  const values = (likely?: string, most = limit) => [
    projectId,
    words,
    likely,
    json(metadataFilter),
    score,
    id,
    most,
    options,
  ];
  if (embedding.length > 0) return found(await db.query(BY_BOTH, [...values(), json(embedding)]), 'typed');
  if (spelling === 'typed') {
    const rows = await db.query(BY_WORDS, values(undefined, Math.max(limit, FEW)));
    const likely = after || rows.length >= FEW ? undefined : await likelyWords(db, projectId, typed);
    if (!likely) return found(rows.slice(0, limit), 'typed');
    return found(await db.query(BY_WORDS, values(likely)), 'likely');
  }
  return found(await db.query(BY_WORDS, values(await likelyWords(db, projectId, typed))), 'likely');
}

/** The query with the words that may have been meant. Undefined if there are no others. */
async function likelyWords(db: TenantDb, projectId: string, typed: string): Promise<string | undefined> {
  const words = correctableWords(typed).slice(0, MAX_CORRECTED);
  const similar = words.length > 0 ? await db.query(SIMILAR, [projectId, words]) : [];
  if (similar.length === 0) return undefined;
  const likely = new Map<string, string[]>();
  for (const { word, likely: other } of similar) likely.set(word, [...(likely.get(word) ?? []), other]);
  return searchWords(typed, likely);
}

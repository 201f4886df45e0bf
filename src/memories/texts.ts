import type { Database } from '../db/pool.ts';
import { query } from '../db/statement.ts';
import { type Scope, transaction } from '../db/transaction.ts';
import { everyPlace } from '../tenants/places.ts';

/** A word's row is fresh for so many days: whoever writes the word again leaves the row alone. */
const FRESH_DAYS = 6;
/** After so many, it is looked whether the word is used still. What writes it meanwhile has long committed. */
const CHECK_DAYS = 7;

/**
 * The CTE that stores which words there are in projects: those of `source`, memories with project_id, key and value. Fresh ones
 * are not even locked, as all who write to a project share them; new ones are in order, so that nobody waits in a circle.
 */
export const vocabulary = (source: string) => `vocabulary as (
    insert into memory_words (tenant_id, env, project_id, word, check_time)
    select $1, $2, m.project_id, w.word, now() from ${source} m, memory_vocabulary(m.key, m.value) w (word)
    where not exists (
      select from memory_words k
      where k.tenant_id = $1 and k.env = $2 and k.project_id = m.project_id and k.word = w.word
        and k.check_time > now() - interval '${FRESH_DAYS} days')
    group by m.project_id, w.word order by m.project_id, w.word
    on conflict (tenant_id, env, project_id, word) do update set check_time = excluded.check_time
    returning 1
  )`;

/** The CTEs that store what is searched of memories: of `source`, with id, project_id, key, version and value. */
export const indexed = (source: string) => `texts as (
    insert into memory_texts as t (tenant_id, env, memory_id, project_id, version, search_language, tsv)
    select $1, $2, m.id, m.project_id, m.version, l.search_language, memory_tsv(l.search_language, m.key, m.value)
    from ${source} m, tenants l where l.tenant_id = $1
    on conflict (tenant_id, env, memory_id) do update
      set version = excluded.version, search_language = excluded.search_language, tsv = excluded.tsv
      where t.version <= excluded.version
    returning 1
  ), ${vocabulary(source)}`;

/** What is searched of some memories, made anew where it is in another language than $4, or of another version or none. */
export const DERIVE_MEMORIES = query<{ position: string[]; n: number }>(`
  with step as materialized (
    select m.id, m.project_id, m.key, m.version from memories m
    where m.tenant_id = $1 and m.env = $2 and m.id > $5::uuid and m.delete_time is null
    order by m.id limit 100
  ), stale as materialized (
    select step.*, v.value from step
    join memory_versions v on v.tenant_id = $1 and v.env = $2 and v.memory_id = step.id and v.version = step.version
    where not exists (
      select from memory_texts t
      where t.tenant_id = $1 and t.env = $2 and t.memory_id = step.id and t.version = step.version and t.search_language = $4)
  ), ${indexed('stale')}
  select array[id::text] as position, (select count(*) from stale)::int as n from step order by id desc limit 1`);

const LOOKED_AT = 100;

const FORGET = query<{ looked: number; forgotten: number }>(`
  with due as materialized (
    select project_id, word from memory_words
    where tenant_id = $1 and env = $2 and check_time <= now() - interval '${CHECK_DAYS} days'
    order by check_time limit ${LOOKED_AT} for update skip locked
  ), judged as materialized (
    select project_id, word, memory_word_is_used($1, $2, project_id, word) as used from due
  ), kept as (
    update memory_words w set check_time = now() from judged j
    where w.tenant_id = $1 and w.env = $2 and w.project_id = j.project_id and w.word = j.word and j.used
    returning 1
  ), forgotten as (
    delete from memory_words w using judged j
    where w.tenant_id = $1 and w.env = $2 and w.project_id = j.project_id and w.word = j.word and not j.used
    returning 1
  )
  select (select count(*) from judged)::int as looked, (select count(*) from forgotten)::int as forgotten`);

/** Forgets the words that no memory uses any more, of all tenants. Resolves to how many. */
export async function forgetWords(database: Database, signal?: AbortSignal): Promise<number> {
  let count = 0;
  await everyPlace(database, signal, async (scope: Scope) => {
    const limits = { deadline: Date.now() + 60_000, signal };
    const [done] = await transaction(database, scope, undefined, limits, { repeatable: true }, (tx) =>
      tx.final(FORGET),
    );
    count += done!.forgotten;
    return done!.looked === LOOKED_AT;
  });
  return count;
}

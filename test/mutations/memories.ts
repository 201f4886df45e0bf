import { type Mutant, mutant } from './mutant.ts';

const MIGRATION = 'migrations/0011_memory_search.sql';

/** Bugs of what finds memories. */
export const MEMORIES: Mutant[] = [
  mutant(
    'the functions of search look wherever their arguments say',
    MIGRATION,
    'if tenant is distinct from current_setting',
    'if false and tenant is distinct from current_setting',
    'memory-search',
  ),
  mutant(
    'a search finds memories of other projects',
    MIGRATION,
    't.project_id = project and t.tsv @@ any_language',
    't.tsv @@ any_language',
    'memory-search',
  ),
  mutant(
    'a search finds by the words of a former version',
    MIGRATION,
    'm.id = r.memory_id and m.version = t.version',
    'm.id = r.memory_id',
    'memory-search',
  ),
  mutant(
    'what may have been meant ranks with what was typed',
    MIGRATION,
    'then 1 + ts_rank_cd(t.tsv, q.typed, 33)',
    'then ts_rank_cd(t.tsv, q.typed, 33)',
    'memory-search',
  ),
  mutant(
    'words of the key weigh as those of the value',
    MIGRATION,
    `memory_key_words(key)), 'A')`,
    `memory_key_words(key)), 'D')`,
    'memory-search',
  ),
  mutant(
    'a put leaves the words of the former version',
    'src/memories/texts.ts',
    'where t.version <= excluded.version',
    'where false',
    'memory-search',
  ),
  mutant('words that are used are forgotten', 'src/memories/texts.ts', ' and not j.used', '', 'memory-search'),
  {
    bug: 'the etag of a deleted memory fits the next one with its key',
    edits: [
      { file: 'src/memories/repository.ts', find: '`"${id}.${version}"`', replace: '`"${version}"`' },
      { file: 'src/memories/repository.ts', find: "|| ${row}.id || '.' ||", replace: '||' },
    ],
    caughtBy: ['memories'],
  },
  mutant(
    'a put that comes as the memory expires is refused',
    'src/memories/repository.ts',
    'throw new Overtaken(',
    'console.debug(',
    'memories',
  ),
  mutant(
    'a deleted memory leaves its words',
    'src/memories/repository.ts',
    `['memory_uses', 'memory_texts', 'memory_embeddings']`,
    `['memory_uses', 'memory_embeddings']`,
    'memory-search',
  ),
  mutant(
    'the second page of a search forgets what may have been meant',
    'src/memories/search.ts',
    '[String(row.score), row.id, spelling]',
    "[String(row.score), row.id, 'typed']",
    'memory-search',
  ),
  mutant(
    'a context takes referenced memories of any project',
    'src/memories/relevant.ts',
    'm.project_id = s.project_id and m.key',
    'm.key',
    'context',
  ),
];

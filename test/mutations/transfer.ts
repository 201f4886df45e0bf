import { type Mutant, mutant } from './mutant.ts';

/** Bugs that move too much, too little, or something else. */
export const TRANSFER: Mutant[] = [
  mutant(
    'an export holds what a deleted thread held',
    'src/transfer/rules.ts',
    'messages: ofLiveThread,\n',
    '\n',
    'transfer: hold nothing of another one, nor what belongs to none',
  ),
  mutant(
    'an export of a project holds threads that another project shares',
    'src/transfer/rules.ts',
    "s.project_id not in ($3, '')",
    'false',
    'transfer: hold nothing of another one, nor what belongs to none',
  ),
  mutant(
    'an import believes a file that was altered',
    'src/transfer/file.ts',
    'JSON.stringify(found) !== JSON.stringify(footer)',
    'found.rows !== footer.rows',
    'transfer',
  ),
  mutant(
    'an import stores before it knows whether the rest differs',
    'src/transfer/import.ts',
    'if (differing.length > 0) throw differs',
    'if (differing.length < 0) throw differs',
    'transfer: refuses to store over something else',
  ),
  mutant(
    'a tenant appears before all of it is there',
    'src/transfer/export.ts',
    "...[...envs, ...(whole ? [''] : [])].flatMap(",
    "...part(tables.find(({ name }) => name === 'tenants')!, ''), ...[...envs, ...(whole ? [''] : [])].flatMap(",
    'transfer-command',
  ),
  mutant(
    'a page of an export skips a row',
    'src/transfer/export.ts',
    'at = rows.at(-1)!.position;',
    'at = rows.at(-1)!.position.map((key) => (/^\\d+$/.test(key) ? String(Number(key) + 1) : key));',
    'transfer-command: needs no more memory than of little',
  ),
  mutant(
    'an import changes a session that is here already',
    'src/importers/importer.ts',
    'if (standing.known) return standing.sessionId;',
    '',
    'importers',
  ),
  mutant(
    'what was deleted comes back with an import',
    'src/importers/repository.ts',
    'coalesce((select delete_time is not null from',
    'coalesce((select delete_time is null and false from',
    'importers',
  ),
  mutant(
    'imported messages are younger than those after them',
    'src/importers/repository.ts',
    'max(time) over (order by seq)',
    'time',
    'importers',
  ),
  mutant(
    'a project is exported with events of another',
    'src/transfer/rules.ts',
    "else ${rest} ~ '${kinds}' end",
    'else true end',
    'transfer: hold no events of another whose id goes on',
  ),
  mutant(
    'words of deleted memories are exported',
    'src/transfer/rules.ts',
    "  memory_words: 'words",
    "  memory_word: 'words",
    'transfer',
  ),
];

import { expect } from 'chai';
import { STEPS, type Step } from '../src/erasures/rules.ts';
import { readTables, type Table } from '../src/transfer/catalog.ts';
import { ownerUrl, runSql } from './support.ts';

/** Tables that hold nothing of a person, each with the reason. */
const UNTOUCHED: Record<string, string> = {
  tenants: 'the tenant itself',
  expiry_stats: 'counts',
  quota_counts: 'counts',
  reading_rounds: 'a place in the order of all messages',
  memory_uses: 'when a memory was read, not by whom',
  memory_texts: 'words of what is the project’s',
  memory_words: 'words of what is the project’s',
  memory_embeddings: 'of what is the project’s',
  erasures: 'forgets whom it is of when it is done',
  erased_users: 'a digest, which only a key of the service makes of a name',
  audit_events: 'an erasure replaces the name by the functions of the audit trail',
  audit_blocks: 'hashes of events, whose salts are destroyed',
};

const NAMES_PEOPLE = /user|actor|_by$|holder|review|approv|member|subject|owner|author|email/;

const stepsOf = (table: string): Step[] => STEPS.filter((step) => step.table === table);

/** What nobody has said yet what an erasure does to: tables, and columns that name people. */
function forgotten(tables: Table[]): string[] {
  const named = (name: string) => tables.find((table) => table.name === name)!;
  const goes = (table: Table): boolean =>
    stepsOf(table.name).some(({ set }) => !set) || table.parents.some(({ target }) => goes(named(target)));
  const touched = tables.filter(({ name }) => !(name in UNTOUCHED));
  const unsaid = touched.filter((table) => stepsOf(table.name).length === 0 && !goes(table)).map(({ name }) => name);
  const columns = touched.flatMap((table) => {
    const ofOne = goes(table) && table.columns.some(({ name }) => name === 'user_id');
    const said = (column: string) =>
      stepsOf(table.name).some(({ set, where }) =>
        set ? column in set : new RegExp(`\\bt\\.${column}\\b`).test(where),
      );
    const people = table.columns.filter(({ name }) => NAMES_PEOPLE.test(name));
    return people.filter(({ name }) => !ofOne && !said(name)).map(({ name }) => `${table.name}.${name}`);
  });
  return [...unsaid, ...columns];
}

describe('what an erasure does', () => {
  let tables: Table[];

  before(async () => {
    tables = await readTables(async (sql) => ({ rows: await runSql(ownerUrl(), sql) }));
  });

  it('is said of every table of tenants, and of every column that names people', () => {
    expect(forgotten(tables), 'say it in src/erasures/rules.ts, or here why nothing').to.deep.equal([]);
    const names = tables.map(({ name }) => name);
    expect(names).to.include.members(Object.keys(UNTOUCHED));
    expect(names).to.include.members(STEPS.map(({ table }) => table));
  });

  it('is missed of a new table, of a new table below one that stays, and of a new column', () => {
    const column = (name: string) => ({ ...tables[0]!.columns[0]!, name });
    const table = (name: string, parents: Table['parents'] = []): Table => ({
      ...tables[0]!,
      ...{ name, columns: ['tenant_id', 'env', 'id', 'author'].map(column), parents },
    });
    const below = (target: string) => [
      { target, columns: ['tenant_id', 'env', 'id'], references: ['tenant_id', 'env', 'id'] },
    ];
    const more = [table('notes'), table('remarks', below('memories')), table('echoes', below('sessions'))];
    expect(forgotten([...tables, ...more])).to.include.members(['notes', 'remarks', 'notes.author', 'echoes.author']);
    const read = tables.map((one) =>
      one.name === 'memories' ? { ...one, columns: [...one.columns, column('read_by')] } : one,
    );
    expect(forgotten(read)).to.deep.equal(['memories.read_by']);
  });
});

/** A table that holds what belongs to tenants. */
export interface Table {
  name: string;
  /** Those that are stored rather than generated, but for tenant and env, in the order of the table. */
  columns: { name: string; type: string }[];
  /** The primary key, without tenant and env. */
  key: string[];
  /** Whether rows are of an env. The tenant's own row is of all of them. */
  ofEnv: boolean;
  parents: { target: string; columns: string[]; references: string[] }[];
}

const TABLES = `
  select c.relname as name,
    (select json_agg(json_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod)) order by a.attnum)
      from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = '') as columns,
    (select json_agg(a.attname order by k.n) from pg_index i, unnest(i.indkey::int[]) with ordinality k (attnum, n), pg_attribute a
      where i.indrelid = c.oid and i.indisprimary and a.attrelid = c.oid and a.attnum = k.attnum) as key,
    (select coalesce(json_agg(json_build_object('target', t.relname,
        'columns', (select json_agg(a.attname order by n) from unnest(f.conkey) with ordinality k (attnum, n)
          join pg_attribute a on a.attrelid = f.conrelid and a.attnum = k.attnum),
        'references', (select json_agg(a.attname order by n) from unnest(f.confkey) with ordinality k (attnum, n)
          join pg_attribute a on a.attrelid = f.confrelid and a.attnum = k.attnum)) order by f.conname), '[]')
      from pg_constraint f join pg_class t on t.oid = f.confrelid where f.conrelid = c.oid and f.contype = 'f') as parents
  from pg_class c
  where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
    and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id')
  order by c.relname`;

/** Every table of tenants, those that are referred to before those that refer to them. */
export async function readTables(run: (sql: string) => Promise<{ rows: any[] }>): Promise<Table[]> {
  const { rows } = await run(TABLES);
  const tables = rows.map(
    ({ name, columns, key, parents }): Table => ({
      name,
      columns: columns.filter((column: { name: string }) => !SCOPE.includes(column.name)),
      key: key.filter((column: string) => !SCOPE.includes(column)),
      ofEnv: key.includes('env'),
      parents,
    }),
  );
  return inOrder(tables);
}

const SCOPE = ['tenant_id', 'env'];
const DIRECTORY = ['tenants', 'tenant_members'];

export const isDirectory = (table: string): boolean => DIRECTORY.includes(table);

function inOrder(tables: Table[]): Table[] {
  const ordered: Table[] = [];
  const add = (table: Table) => {
    if (ordered.includes(table)) return;
    for (const { target } of table.parents) {
      const parent = tables.find(({ name }) => name === target);
      if (parent && parent !== table) add(parent);
    }
    ordered.push(table);
  };
  for (const table of tables) add(table);
  return ordered;
}

import type pg from 'pg';
import { readSchemaState } from '../db/migrate.ts';
import { isDirectory, readTables, type Table } from './catalog.ts';
import { type Batch, FORMAT, type Footer, framed, type Header, store, written } from './file.ts';
import { columnsOf, exported, ofProject, ROWS } from './rules.ts';

export interface ExportScope {
  tenant: string;
  /** Those of the tenant that are wanted, in order. */
  envs: string[];
  /** All envs, and what belongs to none of them. */
  whole: boolean;
  /** '' for all. */
  project: string;
}

const LANGUAGES = 'select array[search_language] || former_languages as languages from tenants where tenant_id = $1';

const NOW = 'select now()::text as now';

const PAGE_BYTES = 4 * 1024 * 1024;
const MOST_ROWS = 2000;
const FIRST_ROWS = 64;

/**
 * Writes what the service holds of a tenant, as one snapshot shows it: whatever is written meanwhile is not in it. The snapshot
 * is held as long as it takes, and as long Postgres cannot remove what is deleted meanwhile.
 */
export async function exportTo(
  file: string,
  client: pg.Client,
  scope: ExportScope,
  tell: (batch: Batch) => void,
): Promise<Footer> {
  await client.query('begin isolation level repeatable read read only');
  await client.query(
    `set local statement_timeout = 0; set local idle_in_transaction_session_timeout = 0; set local timezone = 'UTC';
    set local datestyle = 'ISO'; set local intervalstyle = 'postgres'; set local bytea_output = 'hex'; set local extra_float_digits = 1`,
  );
  const tables = await readTables((sql) => client.query(sql));
  const { version } = await readSchemaState((sql) => client.query(sql));
  const sections = sectionsOf(tables, scope);
  const header: Header = {
    memoryd_export: FORMAT,
    schema: version,
    time: (await client.query(NOW)).rows[0].now,
    ...scope,
    languages: (await client.query(LANGUAGES, [scope.tenant])).rows[0].languages,
    tables: Object.fromEntries(
      sections.map(({ table }) => [table.name, columnsOf(table, scope.project).map(({ name }) => name)]),
    ),
  };
  let footer: Footer | undefined;
  const text = written(header, rowsOf(client, scope, sections, tell), (whole) => {
    footer = whole;
  });
  await store(file, text);
  await client.query('commit');
  return footer!;
}

/** The rows of a table that are of one env, or of the tenant as a whole, under an empty name. */
interface Section {
  table: Table;
  env: string;
  condition: string;
}

/** What an export holds, in its order: env by env, and the directory last, so that a tenant appears when the rest is there. */
function sectionsOf(all: Table[], { envs, whole, project }: ExportScope): Section[] {
  const part = (table: Table, env: string): Section[] => {
    const inside = ofProject(table, all);
    if (project && !inside) return [];
    const conditions = [ROWS[table.name], project ? inside : undefined].filter((condition) => condition !== undefined);
    return [{ table, env, condition: conditions.map((of) => ` and ${of('t')}`).join('') }];
  };
  const tables = exported(all);
  const rest = tables.filter(({ name }) => !isDirectory(name));
  return [
    ...[...envs, ...(whole ? [''] : [])].flatMap((env) => rest.flatMap((table) => part(table, env))),
    ...tables
      .filter(({ name }) => isDirectory(name))
      .flatMap((table) => (table.ofEnv ? envs : ['']).flatMap((env) => part(table, env))),
  ];
}

async function* rowsOf(
  client: pg.Client,
  scope: ExportScope,
  sections: Section[],
  tell: (batch: Batch) => void,
): AsyncGenerator<Batch> {
  for (const { table, env, condition } of sections) {
    await client.query(`set local app.tenant_id = '${scope.tenant}'; set local app.env = '${env}'`);
    for await (const lines of pages(client, scope, { table, env, condition })) {
      const batch = { env, table: table.name, lines };
      tell(batch);
      yield batch;
    }
  }
}

/**
 * A page of a table as lines, each with its position: the first one, or what is after a position. A page ends at 4 MiB, as rows
 * may be larger than most. The project, if it is about one, comes before the number of rows and the position.
 */
function pageOf({ envs, whole, project }: ExportScope, { table, env, condition }: Section, first: boolean): string {
  const { before, after } = framed(env, table.name);
  const own = columnsOf(table, project);
  const columns = own.map(({ name }) => {
    // A part of the tenant is a tenant of these envs.
    const partly = table.name === 'tenants' && name === 'envs' && !whole;
    return partly ? `array['${envs.join(`', '`)}'] as envs` : `t.${name}`;
  });
  // In a row a column that is JSON's null would look like one that is not there.
  const structs = own.filter(({ type }) => type === 'jsonb').map(({ name }) => name);
  const typeOf = (name: string) => `jsonb_typeof(t.${name})`;
  const nulls = structs.map((name) => `case when ${typeOf(name)} = 'null' then '${name}' end`).join(', ');
  const marked = `case when 'null' in (${structs.map(typeOf).join(', ')}) then ',"json_null":' || to_json(array_remove(array[${nulls}], null)) else '' end`;

  const rowsAt = project ? 4 : 3;
  // The tenant's own row has no key besides.
  const keys = table.key.length > 0 ? table.key : ['tenant_id'];
  const key = keys.map((column) => `t.${column}`).join(', ');
  const position = keys.map((column, i) => {
    const { type } = table.columns.find(({ name }) => name === column) ?? { type: 'text' };
    return `$${rowsAt + i + 1}::text::${type}`;
  });
  return `
    select line, position from (
      select line, position, place, sum(octet_length(line)) over (order by place) - octet_length(line) as bytes_before
      from (
        select '${before}' || (select row_to_json(r)::text from (select ${columns.join(', ')}) r)${structs.length > 0 ? ` || ${marked}` : ''} || '${after}' as line,
          array[${keys.map((column) => `t.${column}::text`).join(', ')}] as position, row_number() over (order by ${key}) as place
        from ${table.name} t
        where t.tenant_id = $1 and ${table.ofEnv ? 't.env' : `''`} = $2${condition}${first ? '' : ` and (${key}) > (${position.join(', ')})`}
        order by ${key} limit $${rowsAt}::int
      ) page
    ) sized
    where bytes_before < ${PAGE_BYTES} order by place`;
}

/** A table page by page along its primary key. */
async function* pages(client: pg.Client, scope: ExportScope, section: Section): AsyncGenerator<string[]> {
  const [first, next] = [pageOf(scope, section, true), pageOf(scope, section, false)];
  const values = [scope.tenant, section.env, ...(scope.project ? [scope.project] : [])];
  let limit = FIRST_ROWS;
  let at: string[] = [];
  for (;;) {
    const { rows } = await client.query<{ line: string; position: string[] }>(at.length > 0 ? next : first, [
      ...values,
      limit,
      ...at,
    ]);
    if (rows.length === 0) return;
    yield rows.map(({ line }) => line);
    at = rows.at(-1)!.position;
    // Large rows would be made in vain where the page ends before them.
    limit = rows.length < limit ? Math.max(1, rows.length * 2) : Math.min(MOST_ROWS, limit * 2);
  }
}

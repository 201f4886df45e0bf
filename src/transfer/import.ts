import { randomUUID } from 'node:crypto';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type pg from 'pg';
import { readSchemaState } from '../db/migrate.ts';
import type { Database } from '../db/pool.ts';
import { query } from '../db/statement.ts';
import { reader, transaction } from '../db/transaction.ts';
import { UserError } from '../errors.ts';
import { uncount } from '../quotas/sessions.ts';
import { fold } from '../usage/fold.ts';
import { isDirectory, readTables, type Table } from './catalog.ts';
import { type Batch, type Footer, type Header, read, spool } from './file.ts';
import { CALL_MS, checkSchema, type Statements, scopeOf, statementsOf, type Target, take } from './rows.ts';
import { columnsOf, exported, FORMERLY_TAKEN } from './rules.ts';

export interface ImportOptions {
  /** `-` for stdin. */
  file: string;
  /** Where it goes, if elsewhere than where it comes from. */
  tenant?: string | undefined;
  env?: string | undefined;
  /** Only checks and compares. */
  dryRun: boolean;
}

export interface Imported {
  rows: number;
  tenant: string;
  stored: number;
  /** Whether the tenant was there: then it keeps its name, its policies and the members that it has. */
  there: boolean;
}

/** How far it is: rows, and bytes of the file. */
export type Tell = (phase: 'checked' | 'stored', rows: number, bytes: number) => void;

/** An import under way: what the file says of itself, and where its rows go. */
interface Import {
  file: string;
  header: Header;
  tables: Map<string, Table>;
  statements: Map<string, Statements>;
  target: Target;
  there: boolean;
}

/**
 * Stores what an export holds. First the whole file is read: that it is whole, unaltered and differs nowhere from what is there
 * already. Only then rows are stored, batch by batch, each batch whole or not at all. What is there already is left alone: so
 * an import that was interrupted goes on when it is run again, and one that was not changes nothing.
 */
export async function importFrom(
  options: ImportOptions,
  client: pg.Client,
  database: Database,
  tell: Tell,
): Promise<Imported> {
  if (options.file === '-') {
    const file = join(tmpdir(), `memoryd-import-${randomUUID()}`);
    try {
      await spool(file);
      return await importFrom({ ...options, file }, client, database, tell);
    } finally {
      await rm(file, { force: true });
    }
  }
  const { begun, footer } = await check(options, client, database, tell);
  begun.target.about = { rows: footer.rows, sha256: footer.sha256 };
  const stored = options.dryRun ? 0 : await store(begun, tell);
  return { rows: footer.rows, tenant: begun.target.tenant, stored, there: begun.there };
}

const MOST_TOLD = 20;

const limits = () => ({ deadline: Date.now() + CALL_MS });

async function check(
  { file, tenant, env }: ImportOptions,
  client: pg.Client,
  database: Database,
  tell: Tell,
): Promise<{ begun: Import; footer: Footer }> {
  const tables = new Map(exported(await readTables((sql) => client.query(sql))).map((table) => [table.name, table]));
  let begun: Import | undefined;
  const begin = async (header: Header) => {
    checkSchema(header, await readSchemaState((sql) => client.query(sql)));
    const unknown = (await client.query(UNKNOWN_LANGUAGES, [header.languages])).rows.map(({ language }) => language);
    if (unknown.length > 0)
      throw new UserError(`it is searched in ${unknown.join(', ')}, which this Postgres does not know`);
    const { there, ...place } = await placeOf(client, header, tenant ?? header.tenant, env);
    const target = { database, ...place, about: {} };
    await refuseErased(target, header, file);
    begun = { file, tables, header, statements: new Map(), target, there };
  };
  const empty = new Map<string, boolean>();
  const differing: string[] = [];
  const visit = async (batch: Batch, bytes: number) => {
    if (FORMERLY_TAKEN.includes(batch.table)) return;
    const { target, there } = begun!;
    const statements = statementsFor(begun!, batch);
    const name = `${batch.env} ${batch.table}`;
    if (!empty.has(name)) empty.set(name, await isEmpty(target, tables.get(batch.table)!, batch.env));
    if (!empty.get(name) && !(there && isDirectory(batch.table))) {
      const outcome = await take(target, statements, batch, 'compare');
      differing.push(...outcome.differing.map((key) => `${batch.table} ${key}`));
      differing.splice(MOST_TOLD + 1);
    }
    tell('checked', batch.lines.length, bytes);
  };
  const footer = await read(file, visit, begin);
  if (differing.length > 0) throw differs(file, begun!.target.tenant, differing);
  return { begun: begun!, footer };
}

// What arrives in a language that is not the tenant's is found in it, until it is derived anew.
const ADD_LANGUAGES = query(`
  update tenants set former_languages = former_languages || array(select l from unnest($4::text[]) l where l <> all (search_language || former_languages)),
    language_time = clock_timestamp()
  where tenant_id = $1 and not $4 <@ (search_language || former_languages)`);

const RECOUNT = query(uncount('where q.tenant_id = $1'));

async function store(begun: Import, tell: Tell): Promise<number> {
  const { file, header, target, there } = begun;
  const { database } = target;
  await transaction(database, scopeOf(target, ''), undefined, limits(), { repeatable: true }, (tx) =>
    tx.final(ADD_LANGUAGES, [header.languages]),
  );
  // Each env gets one event, with the first rows that change it.
  const changed = new Set(['']);
  let stored = 0;
  const visit = async (batch: Batch, bytes: number) => {
    if (FORMERLY_TAKEN.includes(batch.table)) return;
    const how = there && isDirectory(batch.table) ? 'add' : 'store';
    const outcome = await take(target, statementsFor(begun, batch), batch, how, !changed.has(batch.env));
    if (outcome.stored > 0) changed.add(batch.env);
    stored += outcome.stored;
    // Those of a whole tenant have their sums with them.
    if (header.project && batch.table === 'llm_requests') await fold(database, scopeOf(target, batch.env));
    tell('stored', batch.lines.length, bytes);
  };
  await read(file, visit);
  await transaction(database, scopeOf(target, ''), undefined, limits(), { repeatable: true }, (tx) =>
    tx.final(RECOUNT),
  );
  return stored;
}

/** The statements for a batch, made at the first one of its table. */
function statementsFor({ file, header, tables, statements, target }: Import, { env, table: name }: Batch): Statements {
  const made = statements.get(name);
  const columns = header.tables[name];
  if (!columns || !(env === '' || target.envs.has(env))) {
    throw new UserError(`${file} has a row of ${env} ${name}, which its first line does not name`);
  }
  if (made) return made;
  const table = tables.get(name);
  const missing = columns.filter((column) => !table?.columns.some((own) => own.name === column));
  // Such as embeddings, where the extension for them is not installed.
  if (!table || missing.length > 0) {
    throw new UserError(`${file} has rows of ${name} with ${missing.join(', ')}, which is not known here`);
  }
  // What older versions exported, and this place fills itself, is passed over.
  const taken = columnsOf(table).map((own) => own.name);
  const fresh = statementsOf(
    table,
    columns.filter((column) => taken.includes(column)),
  );
  statements.set(name, fresh);
  return fresh;
}

function differs(file: string, tenant: string, differing: string[]): UserError {
  const lines = differing.slice(0, MOST_TOLD).map((key) => `\n  ${key}`);
  const more = differing.length > MOST_TOLD ? '\n  …' : '';
  return new UserError(
    `${file} differs from what tenant ${tenant} holds already, so nothing was stored:${lines.join('')}${more}`,
  );
}

/** Whether there is nothing to compare where the rows go. */
async function isEmpty(target: Target, { name, ofEnv }: Table, env: string): Promise<boolean> {
  const any = query(`select 1 as n from ${name} where tenant_id = $1 and ${ofEnv ? 'env' : `''`} = $2 limit 1`);
  return (await reader(target.database, scopeOf(target, env), limits()).query(any)).length === 0;
}

const UNKNOWN_LANGUAGES = `
  select l as language from unnest($1::text[]) l
  where not exists (select from pg_ts_config where cfgname = l and pg_ts_config_is_visible(oid))`;

const ERASED_SINCE = query(`
  select 1 as n from erasures
  where tenant_id = $1 and env = $2 and coalesce(finish_time, 'infinity') >= coalesce($4::timestamptz, '-infinity') limit 1`);

/** Refuses what may bring back somebody who was erased since. */
async function refuseErased(target: Target, { time }: Header, file: string): Promise<void> {
  for (const env of target.envs.values()) {
    const db = reader(target.database, { tenant: target.tenant, env, user: '' }, limits());
    if ((await db.query(ERASED_SINCE, [time])).length === 0) continue;
    throw new UserError(
      `${file} may hold somebody who was erased from ${env} of tenant ${target.tenant} since: export it anew`,
    );
  }
}

type Place = Pick<Target, 'tenant' | 'envs'> & { there: boolean };

const TENANT = 'select envs from tenants where tenant_id = $1';

/** Where the envs of a file go. What is less than a tenant needs one that is there. */
async function placeOf(
  client: pg.Client,
  { envs: from, project }: Header,
  tenant: string,
  env: string | undefined,
): Promise<Place> {
  if (env !== undefined && from.length !== 1) {
    throw new UserError(`--env is for an export of one env; this one has ${from.join(', ')}`);
  }
  const envs = new Map(from.map((name) => [name, env ?? name]));
  const [found] = (await client.query(TENANT, [tenant])).rows;
  if (!found && project)
    throw new UserError(`there is no tenant ${tenant} to take project ${project}: create it first`);
  const missing = [...envs.values()].filter((name) => found && !found.envs.includes(name));
  if (missing.length > 0) throw new UserError(`tenant ${tenant} has no env ${missing.join(', ')}: add it first`);
  return { tenant, there: found !== undefined, envs };
}

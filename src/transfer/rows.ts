import { audited, commandStamp } from '../db/change.ts';
import { sqlState } from '../db/failure.ts';
import type { SchemaState } from '../db/migrate.ts';
import type { Database } from '../db/pool.ts';
import { change, type Statement } from '../db/statement.ts';
import { type Scope, type TenantTx, transaction } from '../db/transaction.ts';
import { UserError } from '../errors.ts';
import type { Table } from './catalog.ts';
import type { Batch, Header } from './file.ts';
import { ACTIONS, DERIVED, FOLLOWING } from './rules.ts';

/** Where rows go. */
export interface Target {
  database: Database;
  tenant: string;
  /** The env of the file, and the one that it goes into. */
  envs: Map<string, string>;
  /** What the audit trail says of the import. */
  about: object;
}

/** What came of a batch. */
export interface Outcome {
  stored: number;
  /** The keys of the first rows that are there otherwise. */
  differing: string[];
}

interface Row {
  stored: number;
  differing: string[] | null;
}

export const CALL_MS = 10 * 60_000;

/** Statements of one table: one that stores rows, and one that only compares them with what is there. */
export interface Statements {
  store: Statement<Row>;
  compare: Statement<Row>;
}

// $11 are the lines, and $12 the envs of a tenant. What is there is compared as it was before the statement, row by row: a join
// would read the whole table for each batch, as nothing is known yet of a table that is being filled.
export function statementsOf(table: Table, columns: string[]): Statements {
  const { name } = table;
  const derived = DERIVED[name] ?? {};
  const following = FOLLOWING[name];
  const all = [...columns, ...Object.keys(derived)];
  // A part of a tenant may go into an env of another name.
  const ownEnvs = (column: string) => name === 'tenants' && column === 'envs';
  const valueIn = ({ name: column, type }: { name: string; type: string }) => {
    if (ownEnvs(column)) return '$12::text[]';
    return type === 'jsonb' ? `case when x.json_null ? '${column}' then 'null' else r.${column} end` : `r.${column}`;
  };
  const given = table.columns
    .filter((column) => columns.includes(column.name))
    .map((column) => `${valueIn(column)} as ${column.name}`)
    .join(', ');
  const keys = table.key;
  const joined = [
    `t.tenant_id = $1`,
    ...(table.ofEnv ? ['t.env = $2'] : []),
    ...keys.map((key) => `t.${key} = g.${key}`),
  ];
  const place = table.ofEnv ? 'tenant_id, env' : 'tenant_id';
  const values = all.map((column) => derived[column] ?? `g.${column}`).join(', ');
  const rows = (row: string) => `(${columns.map((column) => `${row}.${column}`).join(', ')})`;
  const input = `given as materialized (
    select e.n, ${given}
    from json_array_elements($11::json) with ordinality as e (line, n), json_to_record(e.line) as x ("row" json, json_null jsonb),
      json_populate_record(null::${name}, x."row") r
  ), same as materialized (
    select g.n from given g, lateral (select * from ${name} t where ${joined.join(' and ')} limit 1) t
    where ${rows('t')} is not distinct from ${rows('g')}
  )`;
  const keyOf = keys.length > 0 ? `json_build_array(${keys.map((key) => `g.${key}`).join(', ')})::text` : '$1';
  const outcome = (stored: string, differing: string) => `
    select ${stored} as stored,
      (select json_agg(key) from (select ${keyOf} as key from given g where ${differing} order by n limit 5) d) as differing`;
  const notThere = (cte: string) => `not exists (select from ${cte} x where x.n = g.n)`;
  // One that is neither stored nor the same has met another row: of its key, or of another key that must be the only one.
  const keyOfStored = keys.length > 0 ? keys.map((key) => `x.${key} = g.${key}`).join(' and ') : 'true';
  return {
    store: change<Row>(`
      with ${input}, stored as (
        insert into ${name} (${place}, ${all.join(', ')})
        select $1, ${table.ofEnv ? '$2, ' : ''}${values} from given g where ${notThere('same')} order by g.n
        on conflict do nothing
        returning ${keys.length > 0 ? keys.join(', ') : 'tenant_id'}
      )${following ? `, fresh as (select g.* from given g where exists (select from stored x where ${keyOfStored})), ${following}` : ''}
      ${outcome('(select count(*)::int from stored)', `${notThere('same')} and not exists (select from stored x where ${keyOfStored})`)}`),
    compare: change<Row>(`
      with ${input}
      ${outcome('0', `${notThere('same')} and exists (select from ${name} t where ${joined.join(' and ')})`)}`),
  };
}

const AUDIT = change(`
  with moved as (select 1), ${audited(ACTIONS.import, 'moved', { resource: `'tenants/' || $1`, metadata: '$11::jsonb' })}
  select 1 from moved`);

export const scopeOf = ({ tenant, envs }: Target, env: string): Scope => ({
  tenant,
  env: env === '' ? '' : envs.get(env)!,
  user: '',
});

/**
 * Compares the rows of a batch with those that are there, or stores those that are not: all or none of them, but for `add`,
 * which leaves what is there as it is.
 */
export async function take(
  target: Target,
  statements: Statements,
  batch: Batch,
  how: 'compare' | 'store' | 'add',
  withEvent = false,
): Promise<Outcome> {
  const limits = { deadline: Date.now() + CALL_MS };
  const work = async (tx: TenantTx): Promise<Outcome> => {
    const envs = batch.table === 'tenants' ? [[...target.envs.values()]] : [];
    const values = [`[${batch.lines.join(',')}]`, ...envs];
    const [row] = await tx.query(how === 'compare' ? statements.compare : statements.store, values);
    const outcome = { ...row!, differing: row!.differing ?? [] };
    if (how === 'store' && outcome.differing.length > 0) throw new Differs(batch, outcome);
    if (withEvent && outcome.stored > 0) await tx.query(AUDIT, [JSON.stringify(target.about)]);
    return outcome;
  };
  try {
    return await transaction(
      target.database,
      scopeOf(target, batch.env),
      commandStamp('Import'),
      limits,
      { repeatable: true },
      work,
    );
  } catch (error) {
    const state = sqlState(error);
    if (!/^2[23]/.test(state)) throw error;
    // Postgres would tell the value as well.
    throw new UserError(`a row of ${batch.table} does not fit the database (${state})`);
  }
}

/** Rows are there with the same keys and other values. Nothing of the batch was stored. */
export class Differs extends UserError {
  constructor({ table }: Batch, { differing }: Outcome) {
    super(
      `${table} ${differing.join(', ')}: there since the import began, but not as in the file. What was stored before stays; run it again when that is settled`,
    );
  }
}

/** Refuses what rows of another schema may mean otherwise. */
export function checkSchema({ schema }: Header, here: SchemaState): void {
  if (schema > here.version) {
    throw new UserError(`it was exported at schema ${schema}, which is newer than this one, ${here.version}`);
  }
  if (schema < here.compatibleFrom) {
    throw new UserError(
      `it was exported at schema ${schema}; this database takes what was exported from ${here.compatibleFrom} on`,
    );
  }
}

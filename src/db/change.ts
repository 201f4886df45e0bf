import { v7 as uuidv7 } from 'uuid';
import { finalAmongOthers } from './gather.ts';
import type { Database, Limits } from './pool.ts';
import { change, rowFromJson, type Statement, type Value } from './statement.ts';
import {
  type FinalTx,
  leading,
  retried,
  type Scope,
  type Stamp,
  type TenantTx,
  transactionOnce,
} from './transaction.ts';

/**
 * The audit event of a change, as one of the CTEs of its statement: written if `source`, the CTE that tells whether
 * the change happened, has rows. The other arguments are SQL expressions over the first of these rows.
 */
export function audited(
  action: string,
  source: string,
  about: { resource: string; session?: string; metadata?: string },
): string {
  return `audited as (
    insert into audit_events (tenant_id, env, id, user_id, actor, action, outcome, resource, session_id, request_id, trace_id, metadata)
    select $1, $2, $8, $3, $4, '${action}', 1, ${about.resource}, ${about.session ?? 'null'}, $6, $9, ${about.metadata ?? 'null::jsonb'}
    from ${source} limit 1
    returning 1
  )`;
}

const stampOf = (actor: string, method: string): Stamp => ({
  actor,
  method,
  requestId: null,
  fingerprint: null,
  eventId: uuidv7(),
  traceId: '',
  requester: '',
});

/** The stamp of a change by whoever runs a command of memoryd: the audit trail knows it as `cli`. */
export const commandStamp = (method: string): Stamp => stampOf('cli', `cli/${method}`);

/** The stamp of what the service does by itself. */
export const serviceStamp = (method: string): Stamp => stampOf('memoryd', method);

/**
 * Stores the rows of `source` as the result of the call's request_id, if it has one: the last CTE of a change. A plain
 * insert: when the same request_id comes twice at once, the second one waits for the first, fails, and is undone whole.
 * With `evenIfEmpty` no rows are a result as well.
 */
export function requested(source: string, { evenIfEmpty = false } = {}): string {
  return `requested as (
    insert into requests (tenant_id, env, user_id, method, request_id, fingerprint, result)
    select $1, $2, $10, $5, $6, $7, coalesce((select jsonb_agg(to_jsonb(r)) from ${source} r), '[]')
    where $6 is not null${evenIfEmpty ? '' : ` and exists (select from ${source})`}
    returning 1
  )`;
}

/**
 * The CTEs that delete what these tables hold of the sessions of a CTE. The sessions' rows must be locked since an earlier
 * statement, else what is written meanwhile is missed.
 */
export const wiped = (tables: string[], sessions: string): string =>
  tables
    .map(
      (table) => `wiped_${table} as (
    delete from ${table} w using ${sessions} where w.tenant_id = $1 and w.env = $2 and w.session_id = ${sessions}.id
    returning 1
  )`,
    )
    .join(', ');

/** The request_id was used for another request. */
export class RequestIdReused extends Error {}

const STORED = change<{ fingerprint: Buffer; result: Record<string, unknown>[] }>(`
  with forgotten as (
    delete from requests
    where tenant_id = $1 and env = $2 and user_id = $10 and method = $5 and request_id = $6
      and create_time <= now() - interval '24 hours'
    returning 1
  )
  select fingerprint, result from requests
  where tenant_id = $1 and env = $2 and user_id = $10 and method = $5 and request_id = $6
    and create_time > now() - interval '24 hours'`);

/** What there is to know of a call that makes a change once. */
export interface Once {
  /** Told if the change had been made before. */
  replayed?(): void;
  /** Why it may not be made now. */
  refusal?: Error | undefined;
}

/**
 * Makes a change once: `work` runs in one transaction and gives the rows of the statement that stored them with
 * `requested`. If it fails or refuses, for whatever reason, and the request_id has a stored result, these rows are the
 * answer: then the change had been made before.
 */
export const changeOnce = <Row>(
  database: Database,
  scope: Scope,
  stamp: Stamp,
  limits: Limits,
  work: (tx: TenantTx) => Promise<Row[]>,
  call?: Once,
): Promise<Row[]> =>
  once(database, scope, stamp, limits, () => transactionOnce(database, scope, stamp, limits, work), call);

/** The same for a change of one statement that locks one row: it may go in one transaction with those of other calls. */
export function changeAmongOthers<Row>(
  database: Database,
  scope: Scope,
  stamp: Stamp,
  limits: Limits,
  locks: string,
  work: (tx: FinalTx) => Promise<Row[]>,
  call?: Once,
): Promise<Row[]> {
  const final = (statement: Statement<any>, values: Value[] = []) =>
    finalAmongOthers(database, scope, limits, locks, {
      statement,
      values: [...leading(statement, scope, stamp), ...values],
    });
  return once(database, scope, stamp, limits, () => work({ scope, final }), call);
}

function once<Row>(
  database: Database,
  scope: Scope,
  stamp: Stamp,
  limits: Limits,
  work: () => Promise<Row[]>,
  { replayed, refusal }: Once = {},
): Promise<Row[]> {
  const run = refusal ? () => Promise.reject(refusal) : work;
  if (!stamp.requestId) return retried(limits, { repeatable: false }, run);
  return retried(limits, { repeatable: true, recover }, run);

  async function recover(): Promise<Row[] | undefined> {
    const [found] = await transactionOnce(database, scope, stamp, limits, (tx) => tx.final(STORED));
    if (!found) return undefined;
    if (!stamp.fingerprint!.is(found.fingerprint))
      throw new RequestIdReused('this request_id was used for another request');
    replayed?.();
    return found.result.map(rowFromJson);
  }
}

const STORE = (action: string) =>
  change<{ done: number }>(`
  with result as (
    select $11::jsonb as rows, $12::text as resource, $13::uuid as session_id, $14::jsonb as metadata
  ), ${audited(action, 'result', { resource: 'resource', session: 'session_id', metadata: 'metadata' })}, requested as (
    insert into requests (tenant_id, env, user_id, method, request_id, fingerprint, result)
    select $1, $2, $10, $5, $6, $7, jsonb_build_array(rows) from result where $6 is not null
    returning 1
  )
  select 1 as done`);

/**
 * Ends a change that was made in steps: its one audit event, the result that a replay gives again, and COMMIT.
 */
export function finisher(action: string) {
  const statement = STORE(action);
  return async <Result extends object>(
    tx: TenantTx,
    about: { resource: string; sessionId: string | null; metadata: object },
    result: Result,
  ): Promise<Result[]> => {
    const values = [JSON.stringify(result), about.resource, about.sessionId, JSON.stringify(about.metadata)];
    await tx.final(statement, values);
    return [result];
  };
}

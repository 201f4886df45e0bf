import type { Duration } from '../gen/google/protobuf/duration.ts';
import { audited, requested } from './change.ts';
import { ended, free, held, renewed, taken } from './lease.ts';
import { change, type Statement, secondsOf, type Value } from './statement.ts';
import type { TenantTx } from './transaction.ts';

// Taking, keeping and ending the leases of a table's rows (see lease.ts): threads and sections have theirs alike.

const DEFAULT_SECONDS = 60;
const lasting = (ttl: Duration | undefined) => (ttl ? secondsOf(ttl) : DEFAULT_SECONDS);

/**
 * A table whose rows have leases, as SQL. Its row is `t`, and its own parameters are from $13, in all three statements: $11 is
 * the holder or the token, $12 how long the lease holds.
 */
export interface Leased {
  table: string;
  /** What names a row: columns and their values, after tenant_id and env. */
  key: Record<string, string>;
  /** The other columns of a row that its first lease makes. */
  made: Record<string, string>;
  /** More that a lease which is taken sets. */
  sets?: string;
  /** When a row can have a lease at all. */
  live: string;
  /** What a lease is told as, beside its holder, its token and when it ends. */
  columns: string;
  /** The actions of the audit events, and their resource by the columns. They never hold the token: others read them. */
  actions: { take: string; keep: string; end: string };
  resource: string;
}

export interface LeaseStatements<Row> {
  take: Statement<Row>;
  keep: Statement<Row>;
  end: Statement<Row>;
}

export function leaseStatements<Row>(of: Leased): LeaseStatements<Row> {
  const { table, key, made, sets = '', live, actions, resource } = of;
  const columns = `${of.columns}, t.lease_holder as holder, t.fencing_token, t.lease_expire_time as expire_time`;
  const keys = Object.keys(key).join(', ');
  const row = `t.tenant_id = $1 and t.env = $2 and ${Object.entries(key)
    .map(([name, value]) => `t.${name} = ${value}`)
    .join(' and ')} and ${live}`;
  const about = { resource, metadata: `jsonb_build_object('holder', holder)` };
  return {
    take: change<Row>(`
  with lease as (
    insert into ${table} as t (tenant_id, env, ${keys}, ${Object.keys(made)}, create_time, update_time, lease_holder, lease_expire_time, fencing_token)
    select $1, $2, ${Object.values(key)}, ${Object.values(made)}, c.at, c.at, $11::text, c.at + make_interval(secs => $12::float8), 1
    from (select clock_timestamp() as at) c
    on conflict (tenant_id, env, ${keys}) do update
      set ${taken('t', 'excluded')}${sets}
      where ${live} and ${free('t', 'excluded.create_time')}
    returning ${columns}
  ), ${audited(actions.take, 'lease', about)}, ${requested('lease')}
  select * from lease`),
    keep: change<Row>(`
  with lease as (
    update ${table} t set ${renewed('c.at + make_interval(secs => $12::float8)')}
    from (select clock_timestamp() as at) c
    where ${row} and ${held('t', '$11::bigint')}
    returning ${columns}
  ), ${audited(actions.keep, 'lease', about)}, ${requested('lease')}
  select * from lease`),
    end: change<Row>(`
  with lease as (
    update ${table} t set ${ended('t')}
    where ${row} and ${held('t', '$11::bigint')} and $12::float8 is null
    returning ${of.columns}
  ), ${audited(actions.end, 'lease', { resource })}, ${requested('lease')}
  select * from lease`),
  };
}

/** Takes a lease. `own` are the parameters from $13. Nothing if it is held. */
export async function takeLease<Row>(
  tx: TenantTx,
  { take }: LeaseStatements<Row>,
  holder: string,
  ttl: Duration | undefined,
  own: Value[],
): Promise<Row | undefined> {
  const [lease] = await tx.final(take, [holder, lasting(ttl), ...own]);
  return lease;
}

/** Keeps a lease. Nothing if the token is stale. */
export async function keepLease<Row>(
  tx: TenantTx,
  { keep }: LeaseStatements<Row>,
  fencingToken: number,
  ttl: Duration | undefined,
  own: Value[],
): Promise<Row | undefined> {
  const [lease] = await tx.final(keep, [fencingToken, lasting(ttl), ...own]);
  return lease;
}

/** Ends a lease. False if the token is stale. */
export async function endLease<Row>(
  tx: TenantTx,
  { end }: LeaseStatements<Row>,
  fencingToken: number,
  own: Value[],
): Promise<boolean> {
  return (await tx.final(end, [fencingToken, null, ...own])).length > 0;
}

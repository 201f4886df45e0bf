import type pg from 'pg';
import { audited } from '../db/change.ts';
import { change, pointRead, query, type Statement } from '../db/statement.ts';
import type { TenantDb, TenantTx } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { Erasure, Erasure_State, type ErasureCount } from '../gen/memory/v1/erasure.ts';
import { receiptOf } from './receipt.ts';
import { assigned, STEPS, type Step } from './rules.ts';

const { RUNNING, DONE } = Erasure_State;
const BATCH = 1000;

/** Rows by table. */
export type Counts = Record<string, number>;

export interface ErasureRow {
  id: string;
  userId: string | null;
  state: Erasure_State;
  waitingFor: string;
  removed: Counts;
  renamed: Counts;
  createTime: Timestamp;
  finishTime: Timestamp | null;
  receipt: string;
  signature: string;
}

const COLUMNS = 'id, user_id, state, waiting_for, removed, renamed, create_time, finish_time, receipt, signature';

export function erasureFromRow({ removed, renamed, receipt, signature, ...row }: ErasureRow): Erasure {
  const kinds = [...new Set([...Object.keys(removed), ...Object.keys(renamed)])].sort();
  const counts: ErasureCount[] = kinds.map((kind) => ({
    kind,
    removedCount: removed[kind] ?? 0,
    renamedCount: renamed[kind] ?? 0,
  }));
  return Erasure.fromPartial({
    ...row,
    userId: row.userId ?? '',
    finishTime: row.finishTime ?? undefined,
    counts,
    receipt: receipt ? receiptOf(receipt, signature) : undefined,
  });
}

const knows = (table: string, where: string) =>
  `exists (select from ${table} t where t.tenant_id = $1 and t.env = $2 and ${where.replaceAll('$3', '$12')})`;

// Whatever an erasure would change: first what has indexes, as the rest is looked through only for who is not known by these.
const KNOWN = [
  ...['audit_events', 'llm_requests'].map((table) => knows(table, 't.user_id = $3')),
  ...STEPS.filter(({ where }) => where.includes('$3')).map(({ table, where }) => knows(table, where)),
];

const START = change<ErasureRow>(`
  with started as (
    insert into erasures (tenant_id, env, id, user_id, pseudonym, due_time, create_time)
    select $1, $2, $11::uuid, $12::text, 'erased-' || gen_random_uuid(), c.at, c.at
    from (select clock_timestamp() as at) c
    where case ${KNOWN.map((known) => `when ${known} then true`).join(' ')} else false end
    on conflict (tenant_id, env, user_id) where user_id is not null do nothing
    returning ${COLUMNS}
  ), refused as (
    insert into erased_users (tenant_id, env, digest, erase_time)
    select $1, $2, $13, create_time from started
    on conflict (tenant_id, env, digest) do update set erase_time = excluded.erase_time
    returning 1
  )
  select * from started`);

/** Begins to erase a user. Gives no row if nothing is known of the user, or if it has begun before. */
export async function startErasure(tx: TenantTx, id: string, userId: string, digest: string) {
  return tx.query(START, [id, userId, digest]);
}

const UNDER_WAY = query<ErasureRow>(
  `select ${COLUMNS} from erasures where tenant_id = $1 and env = $2 and user_id = $4`,
);

export async function erasureUnderWay(db: TenantDb, userId: string): Promise<ErasureRow | undefined> {
  const [row] = await db.query(UNDER_WAY, [userId]);
  return row;
}

const GET = pointRead<ErasureRow>(
  `select ${COLUMNS} from erasures where tenant_id = $1 and env = $2 and id = $4::uuid`,
);

export async function getErasure(db: TenantDb, id: string): Promise<ErasureRow | undefined> {
  const [row] = await db.query(GET, [id]);
  return row;
}

const LIST = pointRead<ErasureRow>(`
  select ${COLUMNS} from erasures
  where tenant_id = $1 and env = $2 and id < coalesce($4::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
  order by id desc limit $5::int`);

export async function listErasures(db: TenantDb, after: string | undefined, limit: number): Promise<ErasureRow[]> {
  return db.query(LIST, [after, limit]);
}

// Over the tenants, as the role that may see where erasures are due, but nothing of them.
const DUE_TENANTS = `
  select distinct tenant_id as tenant, env from erasures where due_time <= clock_timestamp() limit 1000`;

export async function tenantsWithDueErasures(pool: pg.Pool): Promise<{ tenant: string; env: string }[]> {
  return (await pool.query(DUE_TENANTS)).rows;
}

/** An erasure that a worker has taken. */
export interface Claim {
  id: string;
  worker: string;
  pseudonym: string;
}

const CLAIM = query<{ id: string; userId: string; pseudonym: string; attempts: number }>(`
  update erasures set worker = $4::uuid, state = ${RUNNING}, attempts = attempts + 1,
    due_time = clock_timestamp() + make_interval(secs => $5::float8)
  where tenant_id = $1 and env = $2 and id = (
    select id from erasures where tenant_id = $1 and env = $2 and due_time <= clock_timestamp()
    order by due_time limit 1 for update skip locked)
  returning id, user_id, pseudonym, attempts`);

/** Takes an erasure that is due, for so long: until then nobody else does it. Undefined if none is. */
export async function claimErasure(tx: TenantTx, worker: string, seconds: number) {
  const [row] = await tx.final(CLAIM, [worker, seconds]);
  return row;
}

const KEEP = query(`
  update erasures set due_time = clock_timestamp() + make_interval(secs => $6::float8)
  where tenant_id = $1 and env = $2 and id = $4::uuid and worker = $5::uuid
  returning 1`);

/** Keeps it for longer. False if somebody else has it by now. */
export async function keepErasure(tx: TenantTx, { id, worker }: Claim, seconds: number): Promise<boolean> {
  return (await tx.final(KEEP, [id, worker, seconds])).length > 0;
}

const PUT_OFF = query(`
  update erasures set worker = null, waiting_for = $6, attempts = case when $6 in ('RETRY', 'SNAPSHOT_STORE') then attempts else 0 end,
    due_time = clock_timestamp() + make_interval(secs => $7::float8)
  where tenant_id = $1 and env = $2 and id = $4::uuid and worker = $5::uuid
  returning 1`);

/** Gives it back, to be gone on with later. */
export async function putOffErasure(tx: TenantTx, { id, worker }: Claim, waitingFor: string, seconds: number) {
  await tx.final(PUT_OFF, [id, worker, waitingFor, seconds]);
}

// Rows are waited for: what is skipped would not be missed at the end. $4 is the erasure, $5 its worker. What another worker
// has by now is left to that one.
const HELD = `held as materialized (
    select id, pseudonym from erasures where tenant_id = $1 and env = $2 and id = $4::uuid and worker = $5::uuid for update
  )`;

const counted = (column: string, kind: string, n: string) => `counted as (
    update erasures e set ${column} = e.${column} || jsonb_build_object('${kind}', coalesce((e.${column} ->> '${kind}')::bigint, 0) + c.n)
    from held, (select ${n} as n) c
    where e.tenant_id = $1 and e.env = $2 and e.id = held.id and c.n > 0
    returning 1
  )`;

export interface Taken {
  /** Rows that the statement's snapshot showed: as long as it shows any, the erasure is not done. */
  seen: number;
  /** Those that could be taken: not what was changed meanwhile, in which case it may be elsewhere by now. */
  taken: number;
}

/** The statement that takes a step with a batch of rows, and counts them. */
export function statementOf({ table, where, once, set, batch = BATCH, also }: Step): Statement<Taken> {
  const column = also?.column ?? 'tenant_id';
  const these = (rows: string) => `t.tenant_id = $1 and t.env = $2 and t.ctid = any (array(select ctid from ${rows}))`;
  return query(`
  with ${HELD}, seen as materialized (
    select t.ctid from ${table} t
    where t.tenant_id = $1 and t.env = $2 and ${where} and exists (select from held)
    limit ${batch}
  ), found as materialized (
    select t.ctid from ${table} t where ${these('seen')} and ${where}${once ? ` and ${once}` : ''} for update of t
  ), done as (
    ${set ? `update ${table} t set ${assigned(set)} from held h where ${these('found')}` : `delete from ${table} t where ${these('found')}`}
    returning t.${column}
  ), ${also ? `${also.cte}, ` : ''}${counted(set ? 'renamed' : 'removed', table, '(select count(*) from done)')}
  select (select count(*)::int from seen) as seen, (select count(*)::int from done) as taken`);
}

/** Takes a step with a batch of rows. */
export async function takeStep(tx: TenantTx, statement: Statement<Taken>, { id, worker }: Claim): Promise<Taken> {
  const [row] = await tx.final(statement, [id, worker]);
  return row!;
}

const LOOK = query<Outlook>(`
  select greatest(0, extract(epoch from create_time + make_interval(secs => $5::float8) - clock_timestamp()))::float8 as late_seconds,
    (select count(*)::int from snapshots s where s.tenant_id = $1 and s.env = $2 and s.rewrite) as rewriting
  from erasures where tenant_id = $1 and env = $2 and id = $4::uuid`);

export interface Outlook {
  /** How long calls that began before may still write. */
  lateSeconds: number;
  /** Snapshots that are not stored anew yet. */
  rewriting: number;
}

export async function outlookOf(tx: TenantTx, id: string, settledSeconds: number): Promise<Outlook> {
  const [row] = await tx.final(LOOK, [id, settledSeconds]);
  return row!;
}

const FORGOT = query(`
  update erasures set renamed = renamed || jsonb_build_object('audit_events', coalesce((renamed ->> 'audit_events')::bigint, 0) + $6::bigint)
  where tenant_id = $1 and env = $2 and id = $4::uuid and worker = $5::uuid
  returning 1`);

/** Counts audit events in the transaction that renames in them, which fails if another worker has the erasure. */
export async function countForgotten(tx: TenantTx, { id, worker }: Claim, events: number): Promise<void> {
  const counted = await tx.query(FORGOT, [id, worker, events]);
  if (counted.length === 0) throw new Error('another worker has the erasure');
}

const LOCK = query<ErasureRow & { now: Timestamp }>(`
  select ${COLUMNS}, clock_timestamp() as now from erasures
  where tenant_id = $1 and env = $2 and id = $4::uuid and worker = $5::uuid for update`);

// From here on nothing tells whose it was, nor what stands for them.
const FINISH = change<ErasureRow>(`
  with done as (
    update erasures set state = ${DONE}, user_id = null, pseudonym = null, waiting_for = '', worker = null, due_time = null,
      finish_time = $12::timestamptz, receipt = $13::text, signature = $14
    where tenant_id = $1 and env = $2 and id = $11::uuid
    returning id
  ), ${audited('users.erased', 'done', {
    resource: `'erasures/' || id`,
    metadata: `jsonb_build_object('receipt_sha256', encode(sha256(convert_to($13::text, 'UTF8')), 'hex'))`,
  })}
  select id from done`);

/** Ends an erasure with its receipt, which `sign` makes of what it has come to. Nothing happens if another worker has it. */
export async function finishErasure(
  tx: TenantTx,
  { id, worker }: Claim,
  sign: (row: ErasureRow & { now: Timestamp }) => { finishTime: string; text: string; signature: string },
): Promise<void> {
  const [row] = await tx.query(LOCK, [id, worker]);
  if (!row) return;
  const { finishTime, text, signature } = sign(row);
  await tx.final(FINISH, [id, finishTime, text, signature]);
}

import { v7 as uuidv7 } from 'uuid';
import { audited, requested } from '../db/change.ts';
import { ended, free, held, type LeaseState, renewed, stateOf, taken } from '../db/lease.ts';
import { change, pointRead, query, secondsOf } from '../db/statement.ts';
import type { TenantDb, TenantTx } from '../db/transaction.ts';
import type { Duration } from '../gen/google/protobuf/duration.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { TurnLease } from '../gen/memory/v1/turn.ts';
import { conflict, deleted, type RpcError, staleToken } from '../rpc/errors.ts';
import type { Check } from '../rpc/validate.ts';
import { requireThread, turnHeld } from '../threads/repository.ts';

const MIN_SECONDS = 1;
const MAX_SECONDS = 600;
const DEFAULT_SECONDS = 60;

export function checkLeaseTtl(check: Check, field: string, ttl: Duration | undefined): void {
  if (ttl) check.duration(field, ttl, MIN_SECONDS, MAX_SECONDS);
}

const lasting = (ttl: Duration | undefined) => (ttl ? secondsOf(ttl) : DEFAULT_SECONDS);

export interface LeaseRow {
  threadId: string;
  holder: string;
  fencingToken: number;
  expireTime: Timestamp;
}

export const leaseFromRow = (row: LeaseRow): TurnLease => TurnLease.fromPartial(row);

const LEASE = 't.thread_id, t.lease_holder as holder, t.fencing_token, t.lease_expire_time as expire_time';
const THREAD = 't.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_id = $11 and t.delete_time is null';

// The events never hold the token: others of the user, and the tenant's admins, read them.
const RESOURCE = `'threads/' || thread_id`;
const HOLDER = `jsonb_build_object('holder', holder)`;

const ACQUIRE = change<LeaseRow>(`
  with lease as (
    insert into threads as t (tenant_id, env, user_id, thread_id, thread_uid, create_time, update_time, lease_holder, lease_expire_time, fencing_token)
    select $1, $2, $3, $11::text, $14::uuid, c.at, c.at, $12::text, c.at + make_interval(secs => $13::float8), 1
    from (select clock_timestamp() as at) c
    on conflict (tenant_id, env, user_id, thread_id) do update
      set ${taken('t', 'excluded')}
      where t.delete_time is null and ${free('t', 'excluded.create_time')}
    returning ${LEASE}
  ), ${audited('turns.acquire', 'lease', { resource: RESOURCE, metadata: HOLDER })}, ${requested('lease')}
  select * from lease`);

/** Takes the turn of a thread, which is made if it is not there. Nothing if it refused: see {@link whyNotAcquired}. */
export async function acquireTurn(
  tx: TenantTx,
  threadId: string,
  holder: string,
  ttl: Duration | undefined,
): Promise<LeaseRow | undefined> {
  const [lease] = await tx.final(ACQUIRE, [threadId, holder, lasting(ttl), uuidv7()]);
  return lease;
}

const STATE = pointRead<LeaseState & { deleted: boolean }>(`
  select t.delete_time is not null as deleted, ${stateOf('t')}
  from threads t
  where t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_id = $4`);

export async function whyNotAcquired(db: TenantDb, threadId: string): Promise<RpcError> {
  const [thread] = await db.query(STATE, [threadId]);
  if (thread?.deleted) return deleted('thread');
  // One that has lapsed since is told as it was: with nothing left to wait for.
  if (thread?.leaseHolder) return turnHeld(thread);
  return conflict('the turn was given back at the same time');
}

const RENEW = change<LeaseRow>(`
  with lease as (
    update threads t set ${renewed('c.at + make_interval(secs => $13::float8)')}
    from (select clock_timestamp() as at) c
    where ${THREAD} and ${held('t', '$12::bigint')}
    returning ${LEASE}
  ), ${audited('turns.renew', 'lease', { resource: RESOURCE, metadata: HOLDER })}, ${requested('lease')}
  select * from lease`);

/** Nothing if it refused: see {@link whyStale}. */
export async function renewTurn(
  tx: TenantTx,
  threadId: string,
  fencingToken: number,
  ttl: Duration | undefined,
): Promise<LeaseRow | undefined> {
  const [lease] = await tx.final(RENEW, [threadId, fencingToken, lasting(ttl)]);
  return lease;
}

const RELEASE = change<{ threadId: string }>(`
  with lease as (
    update threads t set ${ended('t')}
    where ${THREAD} and ${held('t', '$12::bigint')}
    returning t.thread_id
  ), ${audited('turns.release', 'lease', { resource: RESOURCE })}, ${requested('lease')}
  select thread_id from lease`);

/** Gives the turn back. False if it refused: see {@link whyStale}. */
export async function releaseTurn(tx: TenantTx, threadId: string, fencingToken: number): Promise<boolean> {
  return (await tx.final(RELEASE, [threadId, fencingToken])).length > 0;
}

/** Why a token was refused: the thread is not there, or the token is not the one of its lease. */
export async function whyStale(db: TenantDb, threadId: string): Promise<RpcError> {
  await requireThread(db, threadId);
  return staleToken();
}

const LOCK = query<{ held: boolean }>(`
  select ${held('t', '$5::bigint')} as held from threads t
  where t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.delete_time is null
    and t.thread_id = (select thread_id from sessions where tenant_id = $1 and env = $2 and user_id = $3 and id = $4::uuid)
  for update`);

/**
 * Whether a token is that of the turn of a session's thread. If it is, it stays so until the transaction ends; if not: see
 * {@link whyStale}.
 */
export async function holdsFence(tx: TenantDb, sessionId: string, fencingToken: number): Promise<boolean> {
  const [thread] = await tx.query(LOCK, [sessionId, fencingToken]);
  return thread?.held ?? false;
}

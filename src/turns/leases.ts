import { v7 as uuidv7 } from 'uuid';
import { held, type LeaseState, stateOf } from '../db/lease.ts';
import { endLease, keepLease, leaseStatements, takeLease } from '../db/leased.ts';
import { pointRead, query } from '../db/statement.ts';
import type { TenantDb, TenantTx } from '../db/transaction.ts';
import type { Duration } from '../gen/google/protobuf/duration.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { TurnLease } from '../gen/memory/v1/turn.ts';
import { conflict, deleted, type RpcError, staleToken } from '../rpc/errors.ts';
import { turnHeld } from '../threads/append.ts';
import { requireThread } from '../threads/repository.ts';

export interface LeaseRow {
  threadId: string;
  holder: string;
  fencingToken: number;
  expireTime: Timestamp;
}

export const leaseFromRow = (row: LeaseRow): TurnLease => TurnLease.fromPartial(row);

const LEASES = leaseStatements<LeaseRow>({
  table: 'threads',
  key: { user_id: '$3', thread_id: '$13::text' },
  made: { thread_uid: '$14::uuid' },
  live: 't.delete_time is null',
  columns: 't.thread_id',
  actions: { take: 'turns.acquire', keep: 'turns.renew', end: 'turns.release' },
  resource: `'threads/' || thread_id`,
});

/** Takes the turn of a thread, which is made if it is not there. Nothing if it refused: see {@link whyNotAcquired}. */
export async function acquireTurn(
  tx: TenantTx,
  threadId: string,
  holder: string,
  ttl: Duration | undefined,
): Promise<LeaseRow | undefined> {
  return takeLease(tx, LEASES, holder, ttl, [threadId, uuidv7()]);
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

/** Nothing if it refused: see {@link whyStale}. */
export async function renewTurn(
  tx: TenantTx,
  threadId: string,
  fencingToken: number,
  ttl: Duration | undefined,
): Promise<LeaseRow | undefined> {
  return keepLease(tx, LEASES, fencingToken, ttl, [threadId]);
}

/** Gives the turn back. False if it refused: see {@link whyStale}. */
export async function releaseTurn(tx: TenantTx, threadId: string, fencingToken: number): Promise<boolean> {
  return endLease(tx, LEASES, fencingToken, [threadId]);
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

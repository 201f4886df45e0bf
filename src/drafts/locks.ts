import { type LeaseState, stateOf } from '../db/lease.ts';
import { endLease, keepLease, leaseStatements, takeLease } from '../db/leased.ts';
import { pointRead } from '../db/statement.ts';
import type { TenantDb, TenantTx } from '../db/transaction.ts';
import type { Duration } from '../gen/google/protobuf/duration.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { SectionLock } from '../gen/memory/v1/draft.ts';
import { conflict, leaseHeld, notFound, type RpcError, staleToken } from '../rpc/errors.ts';

/** A section of a project's document. */
export interface Section {
  projectId: string;
  sectionId: string;
}

export interface LockRow extends Section {
  userId: string;
  holder: string;
  fencingToken: number;
  expireTime: Timestamp;
}

export const lockFromRow = (row: LockRow): SectionLock => SectionLock.fromPartial(row);

const LEASES = leaseStatements<LockRow>({
  table: 'drafts',
  key: { project_id: '$13::text', section_id: '$14::text' },
  made: { created_by: '$3', updated_by: '$3', locked_by: '$3' },
  sets: ', locked_by = excluded.locked_by',
  live: 'true',
  columns: 't.project_id, t.section_id, t.locked_by as user_id',
  actions: { take: 'sections.lock', keep: 'sections.renew', end: 'sections.unlock' },
  resource: `'projects/' || project_id || '/drafts/' || section_id`,
});

/** Takes the lock of a section, which is made if it is not there. Nothing if it refused: see {@link whyNotLocked}. */
export async function lockSection(
  tx: TenantTx,
  { projectId, sectionId }: Section,
  holder: string,
  ttl: Duration | undefined,
): Promise<LockRow | undefined> {
  return takeLease(tx, LEASES, holder, ttl, [projectId, sectionId]);
}

/** Nothing if it refused: see {@link whyStale}. */
export async function renewLock(
  tx: TenantTx,
  { projectId, sectionId }: Section,
  fencingToken: number,
  ttl: Duration | undefined,
): Promise<LockRow | undefined> {
  return keepLease(tx, LEASES, fencingToken, ttl, [projectId, sectionId]);
}

/** Gives the lock back. False if it refused: see {@link whyStale}. */
export async function unlockSection(
  tx: TenantTx,
  { projectId, sectionId }: Section,
  fencingToken: number,
): Promise<boolean> {
  return endLease(tx, LEASES, fencingToken, [projectId, sectionId]);
}

const STATE = pointRead<LeaseState & { userId: string }>(`
  select ${stateOf('t')}, t.locked_by as user_id from drafts t
  where t.tenant_id = $1 and t.env = $2 and t.project_id = $4 and t.section_id = $5`);

export async function whyNotLocked(db: TenantDb, { projectId, sectionId }: Section): Promise<RpcError> {
  const [state] = await db.query(STATE, [projectId, sectionId]);
  if (state?.leaseHolder) return leaseHeld('SECTION_HELD', 'the section', state);
  return conflict('the lock was given back at the same time');
}

/** Why a token was refused: there is no such section, or the token is not the one of its lock. */
export async function whyStale(db: TenantDb, { projectId, sectionId }: Section): Promise<RpcError> {
  const [state] = await db.query(STATE, [projectId, sectionId]);
  return state ? staleToken() : notFound('section');
}

/** Who holds a section now, for all to see: without the token. */
export async function sectionLock(db: TenantDb, section: Section): Promise<SectionLock | undefined> {
  const [state] = await db.query(STATE, [section.projectId, section.sectionId]);
  return state && lockFromState(section, state);
}

export function lockFromState(section: Section, state: LeaseState & { userId: string }): SectionLock | undefined {
  const { leaseHolder, leaseExpireTime, leaseLeftMs, userId } = state;
  if (leaseHolder === null || (leaseLeftMs ?? 0) <= 0) return undefined;
  return SectionLock.fromPartial({ ...section, holder: leaseHolder, userId, expireTime: leaseExpireTime ?? undefined });
}

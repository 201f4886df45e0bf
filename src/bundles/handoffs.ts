import { status } from '@grpc/grpc-js';
import { audited, requested } from '../db/change.ts';
import { change, pointRead } from '../db/statement.ts';
import type { TenantDb, TenantTx } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import type { Handoff } from '../gen/memory/v1/bundle.ts';
import { notFound, RpcError } from '../rpc/errors.ts';
import { type BundleRow, bundledMessages, bundleFromRow } from './repository.ts';

export interface LeaseRow {
  id: string;
  userId: string;
  bundleId: string;
  destination: string;
  targetThreadId: string;
  leaseToken: string;
  leaseExpireTime: Timestamp;
  attempt: number;
  createTime: Timestamp;
}

// Locked rows are skipped, so that pullers do not wait for each other; what exceeds 1 MiB stays for the next pull: lists of
// numbers take up to four times their text on the wire.
const PULL = change<LeaseRow>(`
  with waiting as materialized (
    select h.id, h.bundle_id from handoffs h
    where h.tenant_id = $1 and h.env = $2 and h.destination = $11 and h.ack_time is null
      and (h.lease_expire_time is null or h.lease_expire_time <= clock_timestamp())
      and exists (
        select from bundles b
        where b.tenant_id = $1 and b.env = $2 and b.id = h.bundle_id and (b.expire_time is null or b.expire_time > now()))
      and not exists (select from erasures e where e.tenant_id = $1 and e.env = $2 and e.user_id = h.user_id)
    order by h.id limit $12::int
    for update skip locked
  ), sized as materialized (
    select w.id, b.byte_size as size, sum(b.byte_size) over (order by w.id) - b.byte_size as before
    from waiting w join bundles b on b.tenant_id = $1 and b.env = $2 and b.id = w.bundle_id
  ), leased as (
    update handoffs h
    set lease_token = gen_random_uuid(), lease_expire_time = clock_timestamp() + make_interval(secs => $13::float8), attempt = attempt + 1
    from sized
    where h.tenant_id = $1 and h.env = $2 and h.id = sized.id and (sized.before = 0 or sized.before + sized.size <= 1048576)
    returning h.id, h.user_id, h.bundle_id, h.destination, h.target_thread_id, h.lease_token, h.lease_expire_time, h.attempt, h.create_time
  ), ${audited('handoffs.pull', 'leased', {
    resource: `'handoffs/' || destination`,
    metadata: `jsonb_build_object('count', (select count(*) from leased))`,
  })}, ${requested('leased', { evenIfEmpty: true })}
  select * from leased order by id`);

export async function pullHandoffs(
  tx: TenantTx,
  destination: string,
  most: number,
  leaseSeconds: number,
): Promise<LeaseRow[]> {
  return tx.final(PULL, [destination, most, leaseSeconds]);
}

const BUNDLES = pointRead<BundleRow & { messages: Record<string, unknown>[] }>(`
  select id, source_thread_id, source_project_id, message_count, create_time, expire_time, messages from bundles
  where tenant_id = $1 and env = $2 and id = any ($4::uuid[])`);

/** The leases with their bundles. */
export async function handoffsOf(db: TenantDb, leases: LeaseRow[]): Promise<Handoff[]> {
  if (leases.length === 0) return [];
  const rows = await db.query(BUNDLES, [leases.map((lease) => lease.bundleId)]);
  const bundles = new Map(
    rows.map((row) => [row.id, { ...bundleFromRow(row), messages: bundledMessages(row.messages, row.sourceThreadId) }]),
  );
  return leases.map(({ bundleId, ...lease }) => ({ ...lease, bundle: bundles.get(bundleId) }));
}

// Acknowledging again with the same token is fine: the answer to the first may have been lost.
const ACK = change<{ id: string }>(`
  with acked as (
    update handoffs set ack_time = coalesce(ack_time, clock_timestamp())
    where tenant_id = $1 and env = $2 and id = $11::uuid and lease_token = $12::uuid
      and (ack_time is not null or lease_expire_time > clock_timestamp())
    returning id
  ), ${audited('handoffs.ack', 'acked', { resource: `'handoffs/' || id` })}, ${requested('acked')}
  select id from acked`);

const EXISTS = pointRead<{ id: string }>(`select id from handoffs where tenant_id = $1 and env = $2 and id = $4::uuid`);

export async function ackHandoff(tx: TenantTx, id: string, leaseToken: string): Promise<{ id: string }[]> {
  return tx.final(ACK, [id, leaseToken]);
}

export async function whyNotAcked(db: TenantDb, id: string): Promise<RpcError> {
  const [handoff] = await db.query(EXISTS, [id]);
  if (!handoff) return notFound('hand-off');
  return new RpcError(status.ABORTED, 'STALE_LEASE_TOKEN', 'the lease has ended or was taken over');
}

import { createHash, randomBytes } from 'node:crypto';
import type { TenantScope } from '../db/transaction.ts';

// How the audit trail of a tenant and env is chained. A block names events, with a salted hash of each, its leaf. Its own hash
// goes over these and over the hash of the block before, and its signature over that hash: the newest one vouches for all.
// What an erasure leaves of an event, and that retention has removed blocks, is told by blocks as well.

export const BlockKind = { EVENTS: 1, ERASURE: 2, PRUNING: 3 } as const;

/** The columns of an event as text, as the database writes them. */
export interface ChainedEvent {
  id: string;
  xid: string;
  /** Its create_time, in microseconds since 1970. */
  micros: string;
  userId: string;
  actor: string;
  action: string;
  outcome: string;
  resource: string;
  sessionId: string | null;
  requestId: string | null;
  traceId: string;
  metadata: string | null;
}

/** Selects a {@link ChainedEvent}. */
export const CHAINED = `id, xid::text as xid, (extract(epoch from create_time) * 1000000)::bigint::text as micros, user_id, actor,
    action, outcome::text as outcome, resource, session_id, request_id, trace_id, metadata::text as metadata`;

/** A place in the order of events. */
export interface Position {
  xid: string;
  id: string;
}

const NIL = '00000000-0000-0000-0000-000000000000';
export const START: Position = { xid: '0', id: NIL };
/** After all events of the transactions before this one. */
export const before = (xid: string): Position => ({ xid, id: NIL });

export function comparePositions(a: Position, b: Position): number {
  const [x, y] = [BigInt(a.xid), BigInt(b.xid)];
  if (x !== y) return x < y ? -1 : 1;
  return a.id < b.id ? -1 : a.id > b.id ? 1 : 0;
}

/** What a block says. */
export interface BlockBody {
  kind: number;
  about: number | null;
  upto: Position;
  newestMicros: number;
  ids: string[];
  leaves: Buffer;
}

export interface Block extends BlockBody {
  blockNo: number;
  salts: Buffer;
  prev: Buffer;
  hash: Buffer;
  signature: string;
}

const SALT_BYTES = 16;
const LEAF_BYTES = 32;
export const NO_HASH = Buffer.alloc(LEAF_BYTES);

export const newSalt = (): Buffer => randomBytes(SALT_BYTES);
export const saltAt = (salts: Buffer, i: number): Buffer => salts.subarray(i * SALT_BYTES, (i + 1) * SALT_BYTES);
export const leafAt = (leaves: Buffer, i: number): Buffer => leaves.subarray(i * LEAF_BYTES, (i + 1) * LEAF_BYTES);

export function leafOf(event: ChainedEvent, salt: Buffer): Buffer {
  const { id, xid, micros, userId, actor, action, outcome, resource, sessionId, requestId, traceId, metadata } = event;
  const columns = [id, xid, micros, userId, actor, action, outcome, resource, sessionId, requestId, traceId, metadata];
  return createHash('sha256').update(salt).update(JSON.stringify(columns)).digest();
}

/** The leaves of events, each with a salt of its own. */
export function leavesOf(events: ChainedEvent[]): { ids: string[]; leaves: Buffer; salts: Buffer } {
  const salts = events.map(newSalt);
  return {
    ids: events.map((event) => event.id),
    leaves: Buffer.concat(events.map((event, i) => leafOf(event, salts[i]!))),
    salts: Buffer.concat(salts),
  };
}

export function hashOf({ tenant, env }: TenantScope, blockNo: number, prev: Buffer, body: BlockBody): Buffer {
  const { kind, about, upto, newestMicros, ids, leaves } = body;
  const head = [tenant, env, blockNo, kind, about, upto.xid, upto.id, newestMicros, ids];
  return createHash('sha256').update(prev).update(leaves).update(JSON.stringify(head)).digest();
}

/** What a block's signature is bound to; what it signs is the block's hash. */
export const signing = ({ tenant, env }: TenantScope): string[] => ['audit block', tenant, env];

/** What a block says of an event. */
export interface Sealed {
  blockNo: number;
  leaf: Buffer;
  salt: Buffer;
}

const LOOKED_AT = 200;

/** Whether an event that differs is right but for its place: it has the transaction, the time or the id of another one. */
export function isReordered(event: ChainedEvent, differing: ChainedEvent[], sealed: Map<string, Sealed>): boolean {
  const matches = (as: ChainedEvent) => {
    const { leaf, salt } = sealed.get(as.id)!;
    return leafOf(as, salt).equals(leaf);
  };
  return differing
    .slice(0, LOOKED_AT)
    .some(
      ({ id, xid, micros }) =>
        id !== event.id &&
        [{ xid }, { micros }, { xid, micros }, { id }, { id, xid }].some((place) => matches({ ...event, ...place })),
    );
}

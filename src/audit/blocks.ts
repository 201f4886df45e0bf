import type { Keyring } from '../db/keyring.ts';
import type { Database } from '../db/pool.ts';
import { query } from '../db/statement.ts';
import { type TenantScope, type TenantTx, together, transaction } from '../db/transaction.ts';
import { aheadText } from './ahead.ts';
import { type BlockBody, hashOf, NO_HASH, type Position, START, signing } from './chain.ts';

/** What the work on the chain of a tenant and env needs. */
export interface Chaining {
  database: Database;
  keyring: Keyring;
}

/** The newest block of a chain, and the clock. */
export interface Head {
  /** 0: there is none. */
  blockNo: number;
  upto: Position;
  hash: Buffer;
  signature: string;
  /** All transactions before this one are over. */
  horizon: string;
  nowMicros: number;
}

// One at a time goes on with a chain. Each of these is a statement of its own, so that each sees what was there when it began.
const LOCK = query(`select pg_advisory_xact_lock(hashtextextended('memoryd.audit/' || $1 || '/' || $2, 0))`);
const HORIZON = query<{ horizon: string; nowMicros: number }>(`
  select pg_snapshot_xmin(pg_current_snapshot())::text as horizon, (extract(epoch from clock_timestamp()) * 1000000)::bigint as now_micros`);
const HEAD = query<{ blockNo: number; upto: string; uptoId: string; hash: Buffer; signature: string }>(`
  select block_no, upto::text as upto, upto_id, hash, signature from audit_blocks
  where tenant_id = $1 and env = $2
  order by block_no desc limit 1`);

// A primary key that is there already: another has gone on with the chain in spite of the lock, and this one begins again.
const APPEND = query(`
  insert into audit_blocks (tenant_id, env, block_no, kind, about, upto, upto_id, newest_micros, ids, leaves, salts, prev, hash, signature)
  values ($1, $2, $4::bigint, $5::smallint, $6::bigint, $7::xid8, $8::uuid, $9::bigint, $10::uuid[], $11::bytea, $12::bytea,
    $13::bytea, $14::bytea, $15)
  returning 1`);

/** The database numbers its transactions as another did that had this chain before. */
export class ForeignNumbers extends Error {}

/** Nothing is added to a chain whose end nobody vouches for: its signature would vouch for that as well. */
export class UnknownHead extends Error {}

const WORK_MS = 60_000;

/** Goes on with a chain in one transaction, which no other does meanwhile. */
export function chained<T>(
  { database, keyring }: Chaining,
  scope: TenantScope,
  signal: AbortSignal | undefined,
  work: (tx: TenantTx, head: Head) => Promise<T>,
): Promise<T> {
  const limits = { deadline: Date.now() + WORK_MS, signal };
  return transaction(database, { ...scope, user: '' }, undefined, limits, { repeatable: true }, async (tx) => {
    const [, [now], [newest]] = await together([tx.query(LOCK), tx.query(HORIZON), tx.query(HEAD)] as const);
    const head: Head = {
      ...(newest
        ? { ...newest, upto: { xid: newest.upto, id: newest.uptoId } }
        : { blockNo: 0, upto: START, hash: NO_HASH, signature: '' }),
      ...now!,
    };
    // New events would come before those that are sealed.
    const { upto, horizon } = head;
    if (BigInt(upto.xid) > BigInt(horizon)) throw new ForeignNumbers(aheadText({ ...scope, upto: upto.xid, horizon }));
    if (newest && !keyring.verifies(signing(scope), head.hash.toString('hex'), head.signature)) {
      const [id = 'none'] = /^[a-z0-9]{1,16}(?=\.)/.exec(head.signature) ?? [];
      const why = keyring.knows(head.signature)
        ? 'has a bad signature'
        : `is not signed with a key of the key file: it names ${id}`;
      throw new UnknownHead(`block ${head.blockNo} of the audit trail of ${scope.tenant}/${scope.env} ${why}`);
    }
    return work(tx, head);
  });
}

/** Adds a block to the chain. Its salts stay outside of its hash: an erasure destroys them. */
export async function append(
  { keyring }: Chaining,
  tx: TenantTx,
  head: Head,
  body: BlockBody,
  salts: Buffer,
): Promise<void> {
  const blockNo = head.blockNo + 1;
  const hash = hashOf(tx.scope, blockNo, head.hash, body);
  const { kind, about, upto, newestMicros, ids, leaves } = body;
  const said = [blockNo, kind, about, upto.xid, upto.id, newestMicros, ids, leaves, salts];
  await tx.final(APPEND, [...said, head.hash, hash, keyring.sign(signing(tx.scope), hash.toString('hex'))]);
}

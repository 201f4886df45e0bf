import type { Keyring } from '../db/keyring.ts';
import type { Limits } from '../db/pool.ts';
import { query } from '../db/statement.ts';
import { type TenantScope, type TenantTx, transactionOnce } from '../db/transaction.ts';
import type { Chaining } from './blocks.ts';
import {
  type Block,
  BlockKind,
  CHAINED,
  type ChainedEvent,
  comparePositions,
  isReordered,
  leafAt,
  leafOf,
  type Position,
  type Sealed,
  START,
  saltAt,
} from './chain.ts';
import { type Anchor, chainCheck, isIntact, type Tell } from './chain-check.ts';

export interface Verified {
  blocks: number;
  events: number;
  /** Events that no block has sealed yet. */
  waiting: number;
  /** The last block: to be noted where nobody who owns the database can change it. */
  head: Anchor;
}

type BlockRow = Omit<Block, 'upto'> & { upto: string; uptoId: string };

const COLUMNS = `block_no, kind, about, upto::text as upto, upto_id, newest_micros, ids, leaves, salts, prev, hash, signature`;
const BLOCKS = query<BlockRow>(`
  select ${COLUMNS} from audit_blocks
  where tenant_id = $1 and env = $2 and block_no > $4::bigint
  order by block_no limit 20`);
const ERASURES = query<BlockRow>(`
  select ${COLUMNS} from audit_blocks
  where tenant_id = $1 and env = $2 and kind = ${BlockKind.ERASURE} and about between $4::bigint and $5::bigint
  order by block_no`);
const NAMED = query<ChainedEvent>(`
  select ${CHAINED} from audit_events where tenant_id = $1 and env = $2 and id = any ($4::uuid[])`);
const NOT_NAMED = query<Position>(`
  select xid::text as xid, id from audit_events e
  where e.tenant_id = $1 and e.env = $2 and (e.xid, e.id) > ($4::xid8, $5::uuid) and (e.xid, e.id) <= ($6::xid8, $7::uuid)
    and e.id <> all ($8::uuid[])
  order by e.xid, e.id limit 1000`);
const NAMED_ELSEWHERE = query<{ blockNo: number }>(`
  select block_no from audit_blocks
  where tenant_id = $1 and env = $2 and kind = ${BlockKind.EVENTS} and $4::uuid = any (ids) limit 1`);
const REMOVED_UP_TO = query<{ about: number }>(`
  select coalesce(max(about), 0) as about from audit_blocks where tenant_id = $1 and env = $2 and kind = ${BlockKind.PRUNING}`);
const WAITING = query<{ n: number }>(`
  select count(*)::int as n from audit_events e where e.tenant_id = $1 and e.env = $2 and (e.xid, e.id) > ($4::xid8, $5::uuid)`);

const fromRow = ({ upto, uptoId, ...row }: BlockRow): Block => ({ ...row, upto: { xid: upto, id: uptoId } });

/**
 * Compares the audit trail of a tenant and env with its chain, in one snapshot, some blocks at a time, and tells what differs as
 * it is found.
 */
export const verifyPlace = (
  { database, keyring }: Chaining,
  scope: TenantScope,
  limits: Limits,
  anchor: Anchor | undefined,
  tell: Tell,
): Promise<Verified> =>
  transactionOnce(database, { ...scope, user: '' }, undefined, { ...limits, snapshot: true }, async (tx) => {
    const [removed] = await tx.query(REMOVED_UP_TO);
    const chain = chainCheck(scope, keyring, removed!.about, anchor, tell);
    const counts = { blocks: 0, events: 0 };
    let position = START;
    for (let after = 0; ; ) {
      const blocks = (await tx.query(BLOCKS, [after])).map(fromRow);
      if (blocks.length === 0) break;
      const unbounded = blocks.filter((block) => chain.next(block).gap);
      await checkEvents(tx, keyring, blocks, position, unbounded, tell);
      counts.blocks += blocks.length;
      for (const { kind, ids } of blocks) if (kind === BlockKind.EVENTS) counts.events += ids.length;
      ({ upto: position, blockNo: after } = blocks.at(-1)!);
    }
    const [{ n: waiting } = { n: 0 }] = await tx.query(WAITING, [position.xid, position.id]);
    return { ...counts, waiting, head: chain.end() };
  });

/** The events of blocks that follow each other. Of those that are `unbounded` nobody knows where they begin. */
async function checkEvents(
  tx: TenantTx,
  keyring: Keyring,
  blocks: Block[],
  from: Position,
  unbounded: Block[],
  tell: Tell,
): Promise<void> {
  const sealing = blocks.filter(({ kind }) => kind === BlockKind.EVENTS);
  if (sealing.length === 0) return;
  const erasures = (await tx.query(ERASURES, [sealing[0]!.blockNo, sealing.at(-1)!.blockNo])).map(fromRow);
  const sealed = new Map<string, Sealed>();
  const put = ({ ids, leaves, salts }: Block, blockNo: number) => {
    for (const [i, id] of ids.entries()) sealed.set(id, { blockNo, leaf: leafAt(leaves, i), salt: saltAt(salts, i) });
  };
  for (const block of sealing) put(block, block.blockNo);
  for (const block of erasures) if (isIntact(tx.scope, keyring, block)) put(block, block.about!);

  const ids = [...sealed.keys()];
  const events = new Map((await tx.query(NAMED, [ids])).map((event) => [event.id, event]));
  const differing = [...events.values()].filter((event) => {
    const { leaf, salt } = sealed.get(event.id)!;
    return !leafOf(event, salt).equals(leaf);
  });
  for (const [eventId, { blockNo }] of sealed) if (!events.has(eventId)) tell({ blockNo, eventId, what: 'removed' });
  for (const event of differing) {
    const what = isReordered(event, differing, sealed) ? 'reordered' : 'changed';
    tell({ blockNo: sealed.get(event.id)!.blockNo, eventId: event.id, what });
  }

  const { upto } = blocks.at(-1)!;
  for (let position: Position | undefined = from; position; ) {
    const others: Position[] = await tx.query(NOT_NAMED, [position.xid, position.id, upto.xid, upto.id, ids]);
    for (const event of others) {
      const block = blocks.find((one) => comparePositions(event, one.upto) <= 0)!;
      if (unbounded.includes(block) || (await tx.query(NAMED_ELSEWHERE, [event.id])).length > 0) continue;
      tell({ blockNo: block.blockNo, eventId: event.id, what: 'inserted' });
    }
    position = others.at(-1);
  }
}

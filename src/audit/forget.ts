import { query } from '../db/statement.ts';
import { reader, type TenantScope, type TenantTx } from '../db/transaction.ts';
import { append, type Chaining, chained, type Head } from './blocks.ts';
import {
  BlockKind,
  CHAINED,
  type ChainedEvent,
  comparePositions,
  leafAt,
  leafOf,
  leavesOf,
  type Position,
  START,
  saltAt,
} from './chain.ts';
import { type Erased, NAMING_FIELDS, redacted, resourcesNaming } from './redact.ts';
import { sealPlace } from './seal.ts';

const SCANNED = 5000;

// Theirs, or such as name them where events name users. $7 are the resources that do.
const NAMING = query<{ xid: string; id: string; last: boolean; named: boolean }>(`
  with scanned as materialized (
    select e.xid, e.id, row_number() over (order by e.xid desc, e.id desc) = 1 as last,
      e.user_id = $6 or e.actor = $6 or e.resource = any ($7::text[])
        or ${NAMING_FIELDS.map((field) => `e.metadata ->> '${field}' = $6`).join(' or ')} as named
    from (
      select * from audit_events e
      where e.tenant_id = $1 and e.env = $2 and (e.xid, e.id) > ($4::xid8, $5::uuid)
      order by e.xid, e.id limit ${SCANNED}
    ) e
  )
  select xid::text as xid, id, last, coalesce(named, false) as named from scanned where named or last
  order by scanned.xid, scanned.id`);

interface Salted {
  blockNo: number;
  kind: number;
  upto: string;
  uptoId: string;
  ids: string[];
  leaves: Buffer;
  salts: Buffer;
}

const SALTED = 'block_no, kind, upto::text as upto, upto_id, ids, leaves, salts';
const BLOCK_OF = query<Salted>(`
  select ${SALTED} from audit_blocks b
  where b.tenant_id = $1 and b.env = $2 and b.kind = ${BlockKind.EVENTS} and (b.upto, b.upto_id) >= ($4::xid8, $5::uuid)
  order by b.upto, b.upto_id, b.block_no limit 1`);
const ERASURES_OF = query<Salted>(`
  select ${SALTED} from audit_blocks
  where tenant_id = $1 and env = $2 and kind = ${BlockKind.ERASURE} and about = $4::bigint
  order by block_no`);
const EVENTS = query<ChainedEvent>(`
  select ${CHAINED} from audit_events e
  where e.tenant_id = $1 and e.env = $2 and e.id = any ($4::uuid[])`);
const ERASE = query('select erase_from_audit($1, $2, $4::jsonb, $5::jsonb)');

export interface Forgotten {
  /** How many events were changed. 0 if all were before. */
  events: number;
  /** False if some wait for a transaction that is still running: then it must be done again. */
  complete: boolean;
}

/** Takes note of how many events a transaction changes, in that transaction. */
export type Forgot = (tx: TenantTx, events: number) => Promise<void>;

/**
 * Replaces what the audit events of a tenant and env hold of a user by a pseudonym, block by block, in a transaction each. For
 * each block a signed one follows that tells what the events say now, and what could tell what they said is destroyed: the
 * chain verifies as before. It can be interrupted at any point, and done again. The events of the tenant itself (env '') tell
 * what its operators did, and no admin of an env takes their names away.
 */
export async function forgetInAudit(
  chaining: Chaining,
  scope: TenantScope,
  erased: Erased,
  signal?: AbortSignal,
  forgot: Forgot = async () => {},
): Promise<Forgotten> {
  await sealPlace(chaining, scope, signal);
  const resources = resourcesNaming(erased.user);
  let events = 0;
  for (let position = START; ; ) {
    signal?.throwIfAborted();
    const db = reader(chaining.database, { ...scope, user: '' }, { deadline: Date.now() + 60_000, signal });
    const found = await db.query(NAMING, [position.xid, position.id, erased.user, resources]);
    const named = found.filter((event) => event.named);
    if (named.length > 0) {
      const done = await chained(chaining, scope, signal, (tx, head) =>
        forgetIn(chaining, tx, head, named, erased, forgot),
      );
      if (!done) return { events, complete: false };
      events += done.events;
      position = done.upto;
    } else {
      const last = found.at(-1);
      if (!last) return { events, complete: true };
      position = last;
    }
  }
}

/** In the block of the first of these events. Undefined if none has sealed it yet. */
async function forgetIn(
  chaining: Chaining,
  tx: TenantTx,
  head: Head,
  named: Position[],
  erased: Erased,
  forgot: Forgot,
): Promise<{ events: number; upto: Position } | undefined> {
  const [block] = await tx.query(BLOCK_OF, [named[0]!.xid, named[0]!.id]);
  if (!block) return undefined;
  const upto = { xid: block.upto, id: block.uptoId };
  const ids = named.filter((event) => comparePositions(event, upto) <= 0).map(({ id }) => id);
  const own = new Set(ids);
  const sealing = [block, ...(await tx.query(ERASURES_OF, [block.blockNo]))];
  const events = await tx.query(EVENTS, [ids]);
  // What does not verify is erased as well, but not vouched for.
  const sealed = events.filter((event) => verifies(event, sealing)).map(({ id }) => id);
  for (const { salts, ids: all } of sealing) {
    for (const [i, id] of all.entries()) if (own.has(id)) saltAt(salts, i).fill(0);
  }
  const changed = JSON.stringify(events.map((event) => redacted(event, erased)));
  const salted = sealing.map(({ blockNo, salts }) => ({ block_no: blockNo, salts: salts.toString('hex') }));
  await tx.query(ERASE, [changed, JSON.stringify(salted)]);
  await forgot(tx, events.length);

  const after = await tx.query(EVENTS, [sealed]);
  const { salts, ...said } = leavesOf(after);
  const about = { kind: BlockKind.ERASURE, about: block.blockNo, upto: head.upto, newestMicros: head.nowMicros };
  await append(chaining, tx, head, { ...about, ...said }, salts);
  return { events: events.length, upto };
}

/** Whether an event is as the last block that names it says. */
function verifies(event: ChainedEvent, sealing: Salted[]): boolean {
  const block = sealing.findLast(({ ids }) => ids.includes(event.id));
  if (!block) return false;
  const i = block.ids.indexOf(event.id);
  return leafOf(event, saltAt(block.salts, i)).equals(leafAt(block.leaves, i));
}

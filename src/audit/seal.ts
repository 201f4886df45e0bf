import { query } from '../db/statement.ts';
import type { TenantScope } from '../db/transaction.ts';
import { append, type Chaining, chained } from './blocks.ts';
import { BlockKind, before, CHAINED, type ChainedEvent, leavesOf, START } from './chain.ts';
import { dueChains, inChains } from './chains.ts';

const BLOCK_EVENTS = 1000;

// Where there are events to seal, or the last block is to be signed anew. `limit` keeps the planner from reading whole tables.
const WAITING = dueChains(
  'newest',
  `not starts_with(b.signature, $5 || '.') or coalesce((
      select true from audit_events e
      where e.tenant_id = t.tenant_id and e.env = w.env and (e.xid, e.id) > (coalesce(b.upto, '0'), coalesce(b.upto_id, '${START.id}'))
        and e.xid < pg_snapshot_xmin(pg_current_snapshot())
      limit 1), false)`,
);

// Whoever writes now is not below the horizon, and what is below it has been committed or never will be.
const UNSEALED = query<ChainedEvent>(`
  select ${CHAINED} from audit_events e
  where e.tenant_id = $1 and e.env = $2 and (e.xid, e.id) > ($4::xid8, $5::uuid) and e.xid < $6::xid8
  order by e.xid, e.id limit ${BLOCK_EVENTS}`);

/**
 * Seals the committed events of a tenant and env, a block of them, but for those whose transaction, or an older one, is still
 * running. If there are none and the last block was signed with a key that is not the newest, an empty block follows, so that
 * the chain verifies without that key. Resolves to the number of events: a full block of them may not have been all.
 */
const sealBlock = (chaining: Chaining, scope: TenantScope, signal: AbortSignal | undefined): Promise<number> =>
  chained(chaining, scope, signal, async (tx, head) => {
    const events = await tx.query(UNSEALED, [head.upto.xid, head.upto.id, head.horizon]);
    const last = events.at(-1);
    const outdated = head.blockNo > 0 && !head.signature.startsWith(`${chaining.keyring.newest}.`);
    if (!last && !outdated) return 0;
    const upto = last && events.length === BLOCK_EVENTS ? { xid: last.xid, id: last.id } : before(head.horizon);
    const newestMicros = last ? Math.max(...events.map(({ micros }) => Number(micros))) : head.nowMicros;
    const { salts, ...said } = leavesOf(events);
    await append(chaining, tx, head, { kind: BlockKind.EVENTS, about: null, upto, newestMicros, ...said }, salts);
    return events.length;
  });

/** Seals all that are committed, block by block. Resolves to the number of events. */
export async function sealPlace(chaining: Chaining, scope: TenantScope, signal?: AbortSignal): Promise<number> {
  for (let total = 0; ; ) {
    signal?.throwIfAborted();
    const sealed = await sealBlock(chaining, scope, signal);
    total += sealed;
    if (sealed < BLOCK_EVENTS) return total;
  }
}

/** Seals what is committed in all tenants. Resolves to the number of events by chain. */
export async function sealAll(chaining: Chaining, signal?: AbortSignal): Promise<Map<string, number>> {
  const { database, keyring } = chaining;
  const counts = new Map<string, number>();
  const seal = async (scope: TenantScope) => {
    const sealed = await sealBlock(chaining, scope, signal);
    const name = scope.env ? `${scope.tenant}/${scope.env}` : scope.tenant;
    if (sealed > 0) counts.set(name, (counts.get(name) ?? 0) + sealed);
    return sealed === BLOCK_EVENTS;
  };
  await inChains(database, WAITING, [keyring.newest], seal, signal);
  return counts;
}

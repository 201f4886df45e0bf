import { query } from '../db/statement.ts';
import { type TenantScope, transaction } from '../db/transaction.ts';
import { keptSince } from '../tenants/aging.ts';
import { COUNTED, type Count } from '../tenants/sweeping.ts';
import { append, type Chaining, chained } from './blocks.ts';
import { BlockKind } from './chain.ts';
import { dueChains, inChains } from './chains.ts';

const BATCH_EVENTS = 1000;

const KIND = 'retention_audit';

const CUTOFF = `(extract(epoch from ${keptSince('audit')}) * 1000000)::bigint`;

// Whether the oldest block is due.
const DUE = dueChains('oldest', `b.newest_micros <= ${CUTOFF.replaceAll('$1', 't.tenant_id')}`);

/** The last of the blocks, from the oldest on, that hold nothing younger. */
export const LAST_DUE = query<{ blockNo: number; hash: Buffer }>(`
  select b.block_no, b.hash from audit_blocks b
  where b.tenant_id = $1 and b.env = $2 and ${CUTOFF} is not null and b.block_no = coalesce((
    select k.block_no - 1 from audit_blocks k
    where k.tenant_id = $1 and k.env = $2 and k.newest_micros > ${CUTOFF}
    order by k.block_no limit 1), $4::bigint)`);

const PRUNE = query<{ blocks: number; events: number }>(`
  with pruned as materialized (
    select blocks, events from prune_audit($1, $2, ${BATCH_EVENTS})
  ), counts as (
    select '${KIND}' as kind, events as n from pruned where events > 0
  ), ${COUNTED}
  select blocks, events from pruned`);

/** How many events are due in a place, with those of the tenant itself, at most so many. */
export const dueEvents = (limit: number): string => `
  select '${KIND}' as kind, least(coalesce(sum(cardinality(b.ids)), 0), ${limit}) as n from (
    select o.kind, o.ids, o.newest_micros from unnest(array[$2, '']) w (env) cross join lateral (
      select * from audit_blocks b where b.tenant_id = $1 and b.env = w.env order by b.block_no limit 1000) o
  ) b
  where b.kind = ${BlockKind.EVENTS} and b.newest_micros <= ${CUTOFF}`;

/**
 * Removes the oldest blocks of a chain whose events have all reached the age up to which the tenant keeps them, with these
 * events, in bounded batches. First a signed block tells which is the last one to go, and its hash: the chain verifies from
 * there on. Events that no block has sealed yet stay. Resolves to the number of events. It can be interrupted, and done again.
 */
export async function pruneAudit(chaining: Chaining, scope: TenantScope, signal?: AbortSignal): Promise<number> {
  await chained(chaining, scope, signal, async (tx, head) => {
    const [last] = await tx.query(LAST_DUE, [head.blockNo]);
    if (!last) return;
    const said = { kind: BlockKind.PRUNING, about: last.blockNo, upto: head.upto, newestMicros: head.nowMicros };
    await append(chaining, tx, head, { ...said, ids: [], leaves: last.hash }, Buffer.alloc(0));
  });
  for (let removed = 0; ; ) {
    signal?.throwIfAborted();
    const limits = { deadline: Date.now() + 60_000, signal };
    const place = { ...scope, user: '' };
    const [gone] = await transaction(chaining.database, place, undefined, limits, { repeatable: true }, (tx) =>
      tx.final(PRUNE),
    );
    if (gone!.blocks === 0) return removed;
    removed += gone!.events;
  }
}

/** Does so in all tenants that keep audit events only for so many days. */
export async function pruneAll(
  chaining: Chaining,
  count: (counts: Count[]) => void,
  signal?: AbortSignal,
): Promise<void> {
  const prune = async (scope: TenantScope) => {
    const n = await pruneAudit(chaining, scope, signal);
    if (n > 0) count([{ kind: KIND, n }]);
    return false;
  };
  await inChains(chaining.database, DUE, [], prune, signal);
}

import { pointRead, query } from '../db/statement.ts';
import { reader, type TenantScope, transaction } from '../db/transaction.ts';
import { append, type Chaining, chained } from './blocks.ts';
import { BlockKind } from './chain.ts';

const BATCH_EVENTS = 1000;

const CUTOFF = `(extract(epoch from now() - $4::int * interval '24 hours') * 1000000)::bigint`;

// A hint: nearly always nothing is due.
const IS_DUE = pointRead<{ due: boolean }>(`
  select newest_micros < ${CUTOFF} as due from audit_blocks
  where tenant_id = $1 and env = $2
  order by block_no limit 1`);

// The last of the blocks, from the oldest on, that hold nothing newer.
const LAST_DUE = query<{ blockNo: number; hash: Buffer }>(`
  select b.block_no, b.hash from audit_blocks b
  where b.tenant_id = $1 and b.env = $2 and b.block_no = coalesce((
    select k.block_no - 1 from audit_blocks k
    where k.tenant_id = $1 and k.env = $2 and k.newest_micros >= ${CUTOFF}
    order by k.block_no limit 1), $5::bigint)`);

const PRUNE = query<{ blocks: number; events: number }>(
  `select blocks, events from prune_audit($1, $2, ${BATCH_EVENTS})`,
);

/**
 * Removes the oldest blocks of a tenant and env whose events are all older than so many times 24 hours, with these events, in
 * bounded batches. First a signed block tells which is the last one to go, and its hash: the chain verifies from there on.
 * Events that no block has sealed yet stay. Env '' is the tenant's own trail. Resolves to the number of events. It can be
 * interrupted, and done again.
 */
export async function pruneAudit(
  chaining: Chaining,
  scope: TenantScope,
  days: number,
  signal?: AbortSignal,
): Promise<number> {
  const place = { ...scope, user: '' };
  const limits = () => ({ deadline: Date.now() + 60_000, signal });
  const [oldest] = await reader(chaining.database, place, limits()).query(IS_DUE, [days]);
  if (!oldest?.due) return 0;
  await chained(chaining, scope, signal, async (tx, head) => {
    const [last] = await tx.query(LAST_DUE, [days, head.blockNo]);
    if (!last) return;
    const said = { kind: BlockKind.PRUNING, about: last.blockNo, upto: head.upto, newestMicros: head.nowMicros };
    await append(chaining, tx, head, { ...said, ids: [], leaves: last.hash }, Buffer.alloc(0));
  });
  for (let removed = 0; ; ) {
    signal?.throwIfAborted();
    const [gone] = await transaction(chaining.database, place, undefined, limits(), { repeatable: true }, (tx) =>
      tx.final(PRUNE),
    );
    if (gone!.blocks === 0) return removed;
    removed += gone!.events;
  }
}

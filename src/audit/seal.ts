import { pointRead, query } from '../db/statement.ts';
import type { TenantScope } from '../db/transaction.ts';
import { append, type Chaining, chained } from './blocks.ts';
import { BlockKind, before, CHAINED, type ChainedEvent, leavesOf } from './chain.ts';
import { everyChain } from './chains.ts';

const BLOCK_EVENTS = 1000;

// A hint only, for the place and for the tenant's own: most have nothing new.
const WAITING = pointRead<{ env: string; signature: string; waiting: boolean }>(`
  select w.env, coalesce(b.signature, '') as signature, exists (
    select from audit_events e
    where e.tenant_id = $1 and e.env = w.env and (e.xid, e.id) > (coalesce(b.upto, '0'), coalesce(b.upto_id, '00000000-0000-0000-0000-000000000000'))
      and e.xid < pg_snapshot_xmin(pg_current_snapshot())) as waiting
  from unnest(array[$2, '']) w (env)
  left join lateral (
    select b.upto, b.upto_id, b.signature from audit_blocks b
    where b.tenant_id = $1 and b.env = w.env
    order by b.block_no desc limit 1
  ) b on true`);

// Whoever writes now is not below the horizon, and what is below it has been committed or never will be.
const UNSEALED = query<ChainedEvent>(`
  select ${CHAINED} from audit_events e
  where e.tenant_id = $1 and e.env = $2 and (e.xid, e.id) > ($4::xid8, $5::uuid) and e.xid < $6::xid8
  order by e.xid, e.id limit ${BLOCK_EVENTS}`);

/**
 * Seals the committed events of a tenant and env, block by block, but for those whose transaction, or an older one, is still
 * running. If there are none and the last block was signed with a key that is not the newest, an empty block follows, so that
 * the chain verifies without that key. Resolves to the number of events.
 */
export async function sealPlace(
  chaining: Chaining,
  scope: TenantScope,
  signal?: AbortSignal,
  { signAnew = false } = {},
): Promise<number> {
  for (let total = 0; ; ) {
    signal?.throwIfAborted();
    const sealed = await chained(chaining, scope, signal, async (tx, head) => {
      const events = await tx.query(UNSEALED, [head.upto.xid, head.upto.id, head.horizon]);
      const last = events.at(-1);
      if (!last && !(signAnew && chaining.keyring.signer(head.signature) !== 'newest')) return 0;
      const upto = last && events.length === BLOCK_EVENTS ? { xid: last.xid, id: last.id } : before(head.horizon);
      const newestMicros = last ? Math.max(...events.map(({ micros }) => Number(micros))) : head.nowMicros;
      const { salts, ...said } = leavesOf(events);
      await append(chaining, tx, head, { kind: BlockKind.EVENTS, about: null, upto, newestMicros, ...said }, salts);
      return events.length;
    });
    total += sealed;
    if (sealed < BLOCK_EVENTS) return total;
  }
}

/** Seals what is committed in all tenants. Resolves to the number of events by chain. */
export async function sealAll(chaining: Chaining, signal?: AbortSignal): Promise<Map<string, number>> {
  const counts = new Map<string, number>();
  await everyChain(
    chaining.database,
    WAITING,
    async (scope, { signature, waiting }) => {
      const signAnew = signature !== '' && chaining.keyring.signer(signature) !== 'newest';
      if (!waiting && !signAnew) return;
      const sealed = await sealPlace(chaining, scope, signal, { signAnew });
      if (sealed > 0) counts.set(scope.env ? `${scope.tenant}/${scope.env}` : scope.tenant, sealed);
    },
    signal,
  );
  return counts;
}

import type { Database } from '../db/pool.ts';
import { type FinalTx, transaction } from '../db/transaction.ts';
import { Budget_Period } from '../gen/memory/v1/usage.ts';
import { retainMessages, THREADS_AGED } from '../threads/retention.ts';
import { type Aging, keptSince } from './aging.ts';
import { duePlaces } from './places.ts';
import { type Count, type Kind, removal } from './sweeping.ts';

const aged = (kind: Aging, table: string, { time = 'create_time', also = '' } = {}): Kind => ({
  kind: `retention_${kind}`,
  table,
  due: `${time} <= ${keptSince(kind)}${also}`,
  order: time,
});

/** What tenants keep only for so many days, but for messages, which go in the order of their threads. */
export const RETAINED: Kind[] = [
  aged('turns', 'turns'),
  // The time of a result is that of its turn.
  aged('turns', 'turn_results', { time: 'update_time' }),
  aged('turns', 'tool_calls'),
  aged('turns', 'prompts'),
  aged('checkpoints', 'state_checkpoints'),
  // Until it is in the sums a call is nowhere else.
  aged('usage', 'llm_requests', { also: ' and folded' }),
  {
    kind: 'retention_usage',
    table: 'usage_rollups',
    due: `day < (${keptSince('usage')} at time zone 'UTC')::date
      and (day < date_trunc('month', now() at time zone 'UTC') or not exists (
        select from budgets b where b.tenant_id = $1 and b.env = $2 and b.period = ${Budget_Period.MONTH}))`,
    order: 'day',
    hint: { table: 'usage_rollups', due: `day < (${keptSince('usage')} at time zone 'UTC')::date` },
  },
];

const REMOVE = removal(RETAINED);

/** A batch of each kind but messages. */
export const removeAged = (tx: FinalTx): Promise<Count[]> => tx.final(REMOVE);

const everyDuePlace = duePlaces([...RETAINED, THREADS_AGED], `policies -> 'retention' <> '{}'`);

/** Removes what is older than its tenant keeps it, in batches. */
export async function retain(
  database: Database,
  count: (counts: Count[]) => void,
  signal?: AbortSignal,
): Promise<void> {
  await everyDuePlace(database, signal, async (scope) => {
    const limits = { deadline: Date.now() + 60_000, signal };
    const counts = await transaction(database, scope, undefined, limits, { repeatable: true }, removeAged);
    count(counts);
    if (counts.length > 0) return true;
    const n = await retainMessages(database, scope, signal);
    if (n > 0) count([{ kind: 'retention_messages', n }]);
    return false;
  });
}

import { isLost } from '../db/failure.ts';
import type { Database } from '../db/pool.ts';
import { query, type Statement } from '../db/statement.ts';
import type { TenantScope } from '../db/transaction.ts';
import { inDue, type Places } from '../tenants/places.ts';

/**
 * The chains of all tenants, those of envs `w.env` of tenants `t` and those of the tenants themselves, for which `condition` holds
 * with the newest block, or the oldest, as `b`.
 */
export const dueChains = (order: 'newest' | 'oldest', condition: string): Statement<Places> =>
  query<Places>(`
  select tenant_id, array(
    select w.env from unnest(envs || ''::text) as w (env)
    left join lateral (
      select b.upto, b.upto_id, b.signature, b.newest_micros from audit_blocks b
      where b.tenant_id = t.tenant_id and b.env = w.env
      order by b.block_no ${order === 'newest' ? 'desc' : ''} limit 1
    ) b on true
    where ${condition}
  ) as envs
  from tenants t where tenant_id > $4 order by tenant_id limit 1000`);

/**
 * Takes steps at chains, in turns, as long as they tell that there is more to do. One that fails does not hold up the others: the
 * first failure is thrown in the end.
 */
export async function inChains(
  database: Database,
  due: Statement<Places>,
  values: string[],
  step: (scope: TenantScope) => Promise<boolean>,
  signal?: AbortSignal,
): Promise<void> {
  const failures: unknown[] = [];
  await inDue(due, values, database, signal, async ({ tenant, env }) => {
    try {
      return await step({ tenant, env });
    } catch (error) {
      if (signal?.aborted || isLost(error)) throw error;
      failures.push(error);
    }
    return false;
  });
  if (failures.length > 0) throw failures[0];
}

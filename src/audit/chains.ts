import { isLost } from '../db/failure.ts';
import type { Database } from '../db/pool.ts';
import type { Statement } from '../db/statement.ts';
import { reader, type TenantScope } from '../db/transaction.ts';
import { everyPlace } from '../tenants/places.ts';

/**
 * Visits, one after the other, the chains of which `hint` tells in each place: that of the env, and that of the tenant itself.
 * One that fails does not hold up the others: the first failure is thrown when all have been visited. A path of a policy may
 * be named, as of {@link everyPlace}.
 */
export async function everyChain<Hint extends { env: string }>(
  database: Database,
  hint: Statement<Hint>,
  visit: (scope: TenantScope, hint: Hint) => Promise<void>,
  signal?: AbortSignal,
  policy?: string[],
): Promise<void> {
  const failures: unknown[] = [];
  const visitPlace = async (scope: TenantScope) => {
    const db = reader(database, { ...scope, user: '' }, { deadline: Date.now() + 60_000, signal });
    for (const found of await db.query(hint)) {
      signal?.throwIfAborted();
      try {
        await visit({ tenant: scope.tenant, env: found.env }, found);
      } catch (error) {
        if (signal?.aborted || isLost(error)) throw error;
        failures.push(error);
      }
    }
    return false;
  };
  await everyPlace(database, signal, visitPlace, policy);
  if (failures.length > 0) throw failures[0];
}

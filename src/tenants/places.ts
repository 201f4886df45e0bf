import type { Database } from '../db/pool.ts';
import { query } from '../db/statement.ts';
import { type Scope, transaction } from '../db/transaction.ts';

const TENANTS = query<{ tenantId: string; envs: string[] }>(
  `select tenant_id, envs from tenants
   where tenant_id > $4 and ($5::text is null or policies -> $5 <> '{}') order by tenant_id limit 1000`,
);

const DIRECTORY: Scope = { tenant: '', env: '', user: '' };

/** Visits each env of each tenant, one after the other; if a policy is named, of the tenants that have it. */
export async function everyPlace(
  database: Database,
  signal: AbortSignal | undefined,
  visit: (scope: Scope) => Promise<void>,
  policy?: 'retention',
): Promise<void> {
  for (let after = ''; ; ) {
    const limits = { deadline: Date.now() + 60_000, signal };
    const tenants = await transaction(database, DIRECTORY, undefined, limits, { repeatable: true }, (tx) =>
      tx.final(TENANTS, [after, policy]),
    );
    if (tenants.length === 0) return;
    for (const { tenantId, envs } of tenants) for (const env of envs) await visit({ tenant: tenantId, env, user: '' });
    after = tenants.at(-1)!.tenantId;
  }
}

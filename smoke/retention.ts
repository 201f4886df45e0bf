import { same } from './surprise.ts';

const ADMIN = 'memory.v1.AdminService';
const OPERATOR = { 'x-scopes': 'memory:operator' };

interface Stage {
  tenantId: string;
  /** An admin of the tenant. */
  admin: Record<string, string>;
  ok(method: string, request: object, headers?: Record<string, string>): Promise<any>;
  say(step: string, answer: string): void;
}

/** A tenant says for how long it keeps messages, and takes it back. */
export async function retention({ tenantId, admin, ok, say }: Stage): Promise<void> {
  const keep = async (messagesDays: number) => {
    const policies = { retention: { messagesDays } };
    const { tenant } = await ok(`${ADMIN}/UpdateTenant`, { tenant: { tenantId, policies } }, OPERATOR);
    return tenant.policies.retention;
  };
  const messagesDays = 3650;
  same('the policy', await keep(messagesDays), { messagesDays });
  const { stats } = await ok(`${ADMIN}/GetExpiryStats`, {}, admin);
  const { pendingCount } = stats.find(({ kind }: { kind: string }) => kind === 'retention_messages');
  same('the messages that are that old', Number(pendingCount), 0);
  say('UpdateTenant', `keeps messages for ${messagesDays} days; GetExpiryStats: ${pendingCount} of them are older`);
  same('the policy, taken away', (await keep(0)) ?? null, null);
}

import { status } from '@grpc/grpc-js';
import { LRUCache } from 'lru-cache';
import type { Keyring } from '../db/keyring.ts';
import type { Database, Limits } from '../db/pool.ts';
import { pointRead, rowFromJson } from '../db/statement.ts';
import { reader, type Scope } from '../db/transaction.ts';
import { TenantPolicies_Membership, TenantPolicies_Pii } from '../gen/memory/v1/tenant.ts';
import { RpcError } from './errors.ts';
import { NO_QUOTAS, type Quotas } from './quotas.ts';

/** What the directory knows of a user in a tenant and env. */
export interface Membership {
  /** Whether the tenant exists and declares the env. */
  known: boolean;
  /** 0 if the user is not in the table of members. */
  role: number;
  membership: number;
  pii: number;
  /** Whether the tenant has messages read for profiles. */
  extracts: boolean;
  /** Whether there are budgets in the tenant and env: without, no call asks for them. */
  budgets: boolean;
  quotas: Quotas;
  /** What the tenant's content came to when it was last measured, if there is a quota for it. */
  stored: { bytes: number; time: number };
  /** Whether everything of the user was erased, or is being. */
  erased: boolean;
}

export interface Memberships {
  find(tenant: string, env: string, user: string, limits: Limits): Promise<Membership>;
  /** Forgets what is cached of a tenant, so that this process sees a change at once. */
  forget(tenant: string): void;
}

// Who was made a member again after an erasure is somebody new.
const FIND = pointRead<{
  known: boolean;
  role: number;
  membership: number | null;
  pii: number | null;
  extracts: boolean;
  budgets: boolean;
  quotas: Record<string, number> | null;
  storedBytes: number | null;
  storedTime: number | null;
  erased: boolean;
}>(`
  select $2 = any (t.envs) as known, coalesce(m.role, 0) as role,
    (t.policies ->> 'membership')::int as membership, (t.policies ->> 'pii')::int as pii, t.extract_time is not null as extracts,
    exists (select from budgets b where b.tenant_id = $1 and b.env = $2) as budgets,
    t.policies -> 'quotas' as quotas, q.stored_bytes, extract(epoch from q.stored_bytes_time)::float8 as stored_time,
    exists (select from erasures e where e.tenant_id = $1 and e.env = $2 and e.user_id = $3) or exists (
      select from erased_users e
      where e.tenant_id = $1 and e.env = $2 and e.digest = any ($4::text[]) and e.erase_time >= coalesce(m.create_time, '-infinity')) as erased
  from tenants t
  left join quota_counts q on q.tenant_id = t.tenant_id
  left join tenant_members m on m.tenant_id = t.tenant_id and m.env = $2 and m.user_id = $3
  where t.tenant_id = $1`);

export const NOT_MEASURED = { bytes: 0, time: 0 };

/** Of whom the directory knows nothing. */
export const NOBODY: Membership = {
  known: false,
  role: 0,
  membership: 0,
  pii: 0,
  extracts: false,
  budgets: false,
  quotas: NO_QUOTAS,
  stored: NOT_MEASURED,
  erased: false,
};

/** What stands for users who were erased. */
export const erasedDigests = (keyring: Keyring, { tenant, env, user }: Scope): string[] =>
  keyring.signatures(['erased-user', tenant, env], user);

/** Refuses to store the name of a user who is erased, or is being: what another server stores within {@link TTL_MS} the job still finds. */
export async function refuseErased(
  members: Memberships,
  { identity: { tenant, env }, limits }: { identity: { tenant: string; env: string }; limits: Limits },
  users: string[],
): Promise<void> {
  const found = await Promise.all(users.map((user) => members.find(tenant, env, user, limits)));
  if (found.some(({ erased }) => erased))
    throw new RpcError(
      status.FAILED_PRECONDITION,
      'USER_ERASED',
      'everything of the user was erased, or is being: afterwards PutMember begins anew',
    );
}

// Long enough to spare nearly every call the look-up, short enough for a removal to take effect in seconds.
export const TTL_MS = 3000;

export function memberships(database: Database, keyring: Keyring): Memberships {
  const cache = new LRUCache<string, Membership, { limits: Limits; tenant: string; env: string; user: string }>({
    max: 100_000,
    ttl: TTL_MS,
    async fetchMethod(_key, _stale, { context: { limits, tenant, env, user } }) {
      const scope = { tenant, env, user };
      const [row] = await reader(database, scope, limits).query(FIND, [erasedDigests(keyring, scope)]);
      if (!row) return NOBODY;
      return {
        known: row.known,
        role: row.role,
        membership: row.membership ?? TenantPolicies_Membership.EXPLICIT,
        pii: row.pii ?? TenantPolicies_Pii.REJECT,
        extracts: row.extracts,
        budgets: row.budgets,
        quotas: row.quotas ? rowFromJson(row.quotas) : NO_QUOTAS,
        stored: row.storedTime === null ? NOT_MEASURED : { bytes: row.storedBytes ?? 0, time: row.storedTime },
        erased: row.erased,
      };
    },
  });
  return {
    async find(tenant, env, user, limits) {
      const key = `${tenant} ${env} ${user}`;
      const cached = cache.get(key);
      if (cached) return cached;
      // The look-up is shared by all calls that wait for it, so it must not end with the first one's deadline.
      const context = {
        limits: { deadline: Date.now() + Math.max(1000, limits.deadline - Date.now()) },
        tenant,
        env,
        user,
      };
      return (await cache.fetch(key, { context })) ?? NOBODY;
    },
    forget(tenant) {
      for (const key of cache.keys()) if (key.startsWith(`${tenant} `)) cache.delete(key);
    },
  };
}

import type { Limits } from '../db/pool.ts';
import { Member_Role, TenantPolicies_Membership } from '../gen/memory/v1/tenant.ts';
import type { Caller } from './caller.ts';
import type { Identity } from './context.ts';
import { denied, unauthenticated } from './errors.ts';
import { SCOPES } from './identity.ts';
import { type Membership, type Memberships, NOBODY } from './membership.ts';

/** Who may call a method. Nothing set: a member of the tenant and env that the metadata names. */
export interface Access {
  /** Anyone, without any identity (reflection). */
  public?: boolean;
  /** A service may leave out the user: the handler finds or mints one. */
  userOptional?: boolean;
  /** Needs this scope and no user. */
  scope?: string;
  /** Needs an admin of the tenant and env, or an operator. */
  admin?: boolean;
  /** Needs an operator, who names neither tenant nor user. */
  operator?: boolean;
}

const OUTSIDE: Membership = { ...NOBODY, known: true };

/** Refuses a caller that may not call the method. The answer is the same whether a tenant is unknown or not the caller's. */
export async function authorize(
  members: Memberships,
  caller: Caller,
  access: Access,
  limits: Limits,
): Promise<Identity> {
  if (access.public) return { ...caller, membership: OUTSIDE };
  const operator = caller.scopes.has(SCOPES.operator);
  if (access.operator) {
    if (!operator) throw denied('SCOPE_REQUIRED', `needs the scope ${SCOPES.operator}`);
    return { ...caller, membership: OUTSIDE };
  }

  const { tenant, env, user } = caller;
  if (!tenant || !env) throw unauthenticated('IDENTITY_REQUIRED', `${tenant ? 'x-env' : 'x-tenant-id'} is missing`);
  const userless = access.userOptional || access.scope !== undefined || (access.admin && operator);
  if (!user && !userless) throw unauthenticated('IDENTITY_REQUIRED', 'x-user-id is missing');
  if (access.scope && !caller.scopes.has(access.scope))
    throw denied('SCOPE_REQUIRED', `needs the scope ${access.scope}`);

  const membership = await members.find(tenant, env, user, limits);
  const notMember = () => denied('NOT_A_MEMBER', 'not a member of this tenant and env');
  if (!membership.known || membership.erased) throw notMember();
  if (access.scope || (access.admin && operator)) return { ...caller, membership };
  if (!isMember(membership, caller) && !(access.userOptional && !user && caller.vouched)) throw notMember();
  if (access.admin && membership.role !== Member_Role.ADMIN) throw denied('ADMIN_REQUIRED', 'needs an admin');
  return { ...caller, membership };
}

/** In the table, or vouched for where the tenant's policy takes that. Nobody who was erased, until put into the table anew. */
export function isMember(membership: Membership, caller: Caller): boolean {
  if (membership.erased) return false;
  return membership.role !== 0 || (membership.membership === TenantPolicies_Membership.TOKEN && caller.vouched);
}

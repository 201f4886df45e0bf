import { Member_Role } from '../gen/memory/v1/tenant.ts';
import type { Call } from '../rpc/context.ts';
import { denied } from '../rpc/errors.ts';

export const isAdmin = ({ identity }: Call): boolean => identity.membership.role === Member_Role.ADMIN;

/** Whose usage a call may read: that of the user that it names, '' for all, which only admins may ask for. */
export function whoseUsage(call: Call, userId: string): string {
  if (isAdmin(call)) return userId;
  if (userId && userId !== call.identity.user) throw denied('ADMIN_REQUIRED', "other users' usage is for admins");
  return call.identity.user;
}

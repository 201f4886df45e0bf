import type { Metadata } from '@grpc/grpc-js';
import type { Caller } from './caller.ts';
import { denied, unauthenticated } from './errors.ts';
import { SLUG, textFault } from './validate.ts';

export type Authenticate = (metadata: Metadata) => Caller | Promise<Caller>;

export const SCOPES = { actAs: 'memory:act-as', handoff: 'memory:handoff', operator: 'memory:operator' } as const;

/** The value of a header that may be given once, '' if it is not there. */
export function header(metadata: Metadata, name: string): string {
  const values = metadata.get(name);
  if (values.length > 1) throw unauthenticated('MALFORMED_IDENTITY', `${name} is given more than once`);
  return values.length === 0 ? '' : String(values[0]);
}

/** The tenant, env and user that the headers name, each well-formed or ''. */
export function namedIdentity(metadata: Metadata): { tenant: string; env: string; user: string } {
  const tenant = header(metadata, 'x-tenant-id');
  const env = header(metadata, 'x-env');
  const user = decodeUser(header(metadata, 'x-user-id'));
  if (tenant && !SLUG.test(tenant)) throw unauthenticated('MALFORMED_IDENTITY', 'x-tenant-id is malformed');
  if (env && !SLUG.test(env)) throw unauthenticated('MALFORMED_IDENTITY', 'x-env is malformed');
  if (user && textFault(user, 1, 128)) throw unauthenticated('MALFORMED_IDENTITY', 'x-user-id is malformed');
  return { tenant, env, user };
}

// Header values are ASCII: other characters come percent-encoded, and so do a literal percent sign and a comma, as HTTP
// joins a header that is given twice by commas.
function decodeUser(value: string): string {
  if (value.includes(',')) throw unauthenticated('MALFORMED_IDENTITY', 'x-user-id is given more than once');
  if (!value.includes('%')) return value;
  try {
    return decodeURIComponent(value);
  } catch {
    throw unauthenticated('MALFORMED_IDENTITY', 'x-user-id is not valid percent-encoding');
  }
}

/** `--auth=trusted`: whoever reaches the port is believed. It is a loopback port, or the peer has shown a certificate. */
export function trustHeaders(metadata: Metadata): Caller {
  const named = namedIdentity(metadata);
  const scopes = new Set(
    header(metadata, 'x-scopes')
      .split(/[\s,]+/)
      .filter(Boolean),
  );
  return { ...named, actor: named.user || 'service', scopes, vouched: true };
}

/** Refuses a header that says something else than the token. */
export function agree(name: string, said: string, token: string): void {
  if (said && said !== token) throw denied('TOKEN_MISMATCH', `${name} disagrees with the token`);
}

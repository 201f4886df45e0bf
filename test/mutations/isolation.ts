import { type Mutant, mutant } from './mutant.ts';

const GET_SESSION = `where tenant_id = $1 and env = $2 and user_id = $3 and id = $4::uuid and (expire_time is null or expire_time > now())\`);

export async function getSession`;
const withoutTenant = {
  file: 'src/sessions/repository.ts',
  find: GET_SESSION,
  replace: GET_SESSION.replace('tenant_id = $1 and ', ''),
};
const withoutPolicies = {
  file: 'migrations/0001_foundation.sql',
  find: 'alter table %I enable row level security',
  replace: 'alter table %I disable row level security',
};

/** Bugs that show somebody what is another's. */
export const ISOLATION: Mutant[] = [
  {
    bug: 'a session is read without naming its tenant',
    edits: [withoutTenant],
    caughtBy: ['isolation-predicates: answers another tenant for what exists'],
  },
  { bug: 'row-level security is off', edits: [withoutPolicies], caughtBy: ['rls'] },
  { bug: 'both of these', edits: [withoutTenant, withoutPolicies], caughtBy: ['isolation'] },
  mutant(
    'row-level security does not hold for the owner',
    'migrations/0001_foundation.sql',
    'alter table %I force row level security',
    'alter table %I no force row level security',
    'rls',
  ),
  mutant(
    'the policies let all envs of a tenant in',
    'migrations/0003_turns.sql',
    `env = current_setting(''app.env'', true)`,
    'env is not null',
    'rls',
  ),
  mutant(
    'the policies are of the permissive kind that lets everybody in',
    'migrations/0006_calls.sql',
    'create policy tenant on %I using (tenant_id',
    'create policy everybody on %1$I using (true); create policy tenant on %1$I using (tenant_id',
    'rls',
  ),
  mutant(
    'the runtime role may change the audit trail',
    'migrations/0001_foundation.sql',
    'revoke update, delete on audit_events from memoryd_app;',
    '',
    'audit',
  ),
  mutant(
    'a hand-off is acknowledged without naming its env',
    'src/bundles/handoffs.ts',
    `where tenant_id = $1 and env = $2 and id = $11::uuid and lease_token`,
    'where tenant_id = $1 and id = $11::uuid and lease_token',
    'isolation-predicates: answers another env for what exists',
  ),
  mutant(
    'a session is read without naming its user',
    'src/sessions/repository.ts',
    GET_SESSION,
    GET_SESSION.replace('user_id = $3 and ', ''),
    'isolation: answers another user for what exists',
  ),
  mutant(
    "a forward takes another user's bundle",
    'src/bundles/repository.ts',
    'where tenant_id = $1 and env = $2 and user_id = $3 and id = $11::uuid and (expire_time',
    'where tenant_id = $1 and env = $2 and id = $11::uuid and (expire_time',
    'isolation: answers another user for what exists',
  ),
  mutant(
    "a replay gives another user's answer",
    'src/db/change.ts',
    `select fingerprint, result from requests
  where tenant_id = $1 and env = $2 and user_id = $10 and method = $5 and request_id = $6`,
    `select fingerprint, result from requests
  where tenant_id = $1 and env = $2 and $10 <> '-' and method = $5 and request_id = $6`,
    'session-replay',
  ),
  mutant('a page token is not authenticated', 'src/db/keyring.ts', ` + decipher.final('utf8')`, '', 'bad-wire'),
  mutant(
    'a page token is good for every user',
    'src/db/page.ts',
    'scope.tenant, scope.env, scope.user, method, fields]',
    'scope.tenant, scope.env, method, fields]',
    'sessions',
  ),
  mutant(
    'a page token is good with other arguments',
    'src/db/page.ts',
    'scope.user, method, fields]',
    'scope.user, method]',
    'sessions',
  ),
  mutant(
    'whoever is no member is let in',
    'src/rpc/access.ts',
    'if (!isMember(membership, caller) &&',
    'if (membership.known !== true && !isMember(membership, caller) &&',
    'members',
  ),
  mutant(
    'a member is an admin',
    'src/rpc/access.ts',
    'if (access.admin && membership.role !== Member_Role.ADMIN)',
    'if (access.admin && membership.role === 0)',
    'members',
  ),
  mutant(
    'hand-offs are given to whoever asks',
    'src/rpc/access.ts',
    'if (access.scope && !caller.scopes.has(access.scope))',
    'if (access.scope && !caller.tenant)',
    'handoffs',
  ),
  mutant(
    'a service may name any user without the scope',
    'src/rpc/jwt.ts',
    'if (named.user && !actsAs)',
    'if (named.user === sub && !actsAs)',
    'jwt',
  ),
  mutant(
    'tokens for another audience are accepted',
    'src/rpc/jwt.ts',
    '    audience,\n    algorithms,',
    '    algorithms,',
    'jwt',
  ),
];

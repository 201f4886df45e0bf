import { commandStamp } from '../db/change.ts';
import { reader, type Scope, type TenantDb, type TenantTx, transaction } from '../db/transaction.ts';
import { UserError } from '../errors.ts';
import { Member_Role } from '../gen/memory/v1/tenant.ts';
import { ALL_QUOTAS, type Quota } from '../rpc/quotas.ts';
import { AGING, type Aging, MAX_DAYS } from '../tenants/aging.ts';
import {
  createTenant,
  getTenant,
  listMembers,
  listTenants,
  putMember,
  removeMember as removeFrom,
  type TenantRow,
  updateTenant,
} from '../tenants/repository.ts';
import { checked, type Direct } from './direct.ts';

const PAGE = 500;

/** A change by whoever runs the command: the audit trail knows it as `cli`. */
function changeIn<T>(
  { database, limits }: Direct,
  scope: Scope,
  method: string,
  work: (tx: TenantTx) => Promise<T>,
): Promise<T> {
  return transaction(database, scope, commandStamp(method), limits, { repeatable: false }, work);
}

const itself = (tenant: string): Scope => ({ tenant, env: '', user: '' });

export async function existing({ database, limits }: Direct, tenant: string, env?: string): Promise<TenantRow> {
  checked((check) => check.slug('tenant', tenant));
  const found = await getTenant(reader(database, itself(tenant), limits));
  if (!found) throw new UserError(`there is no tenant ${tenant}`);
  if (env !== undefined && !found.envs.includes(env)) {
    throw new UserError(`tenant ${tenant} has no env ${env}, only ${found.envs.join(', ')}`);
  }
  return found;
}

export async function create(context: Direct, tenant: string, envs: string[], displayName: string): Promise<string[]> {
  checked((check) => {
    check.slug('tenant', tenant);
    check.count('envs', envs, 20, 1);
    for (const env of envs) check.slug('env', env);
    check.that(new Set(envs).size === envs.length, 'envs', 'names an env twice');
    check.text('name', displayName, 200);
  });
  const [row] = await changeIn(context, itself(tenant), 'CreateTenant', (tx) =>
    createTenant(tx, { displayName, envs, policies: {}, searchLanguage: undefined }),
  );
  if (!row) throw new UserError(`there is a tenant ${tenant} already`);
  return [`created tenant ${tenant} with ${row.envs.join(', ')}`];
}

export async function addEnv(context: Direct, tenant: string, env: string): Promise<string[]> {
  checked((check) => check.slug('env', env));
  await existing(context, tenant);
  const [row] = await changeIn(context, itself(tenant), 'UpdateTenant', (tx) =>
    updateTenant(tx, { displayName: undefined, envs: [env], policies: {}, searchLanguage: undefined }, undefined),
  );
  if (!row) throw new UserError(`tenant ${tenant} would have more than 20 envs`);
  return [`tenant ${tenant} has ${row.envs.join(', ')}`];
}

/** Sets how long what is kept, and tells it. */
export async function retention(
  context: Direct,
  tenant: string,
  days: Partial<Record<Aging, number>>,
): Promise<string[]> {
  const given = AGING.filter((kind) => days[kind] !== undefined);
  checked((check) => {
    for (const kind of given) check.range(kind, days[kind]!, 0, MAX_DAYS);
  });
  let row = await existing(context, tenant);
  if (given.length > 0) {
    const policies = { retention: Object.fromEntries(given.map((kind) => [`${kind}_days`, days[kind] || null])) };
    const fields = { displayName: undefined, envs: [], policies, searchLanguage: undefined };
    [row = row] = await changeIn(context, itself(tenant), 'UpdateTenant', (tx) => updateTenant(tx, fields, undefined));
  }
  return AGING.map((kind) => `${kind}\t${row.policies.retention?.[`${kind}_days`] ?? 'for ever'}`);
}

/** Sets quotas, and tells them. */
export async function setQuotas(
  context: Direct,
  tenant: string,
  given: Partial<Record<Quota, number>>,
): Promise<string[]> {
  const named = ALL_QUOTAS.filter(([quota]) => given[quota] !== undefined);
  checked((check) => {
    for (const [quota, { name, most }] of named) check.range(name, given[quota]!, 0, most);
  });
  let row = await existing(context, tenant);
  if (named.length > 0) {
    const quotas = Object.fromEntries(named.map(([quota, { name }]) => [name, given[quota] || null]));
    const fields = { displayName: undefined, envs: [], policies: { quotas }, searchLanguage: undefined };
    const work = (tx: TenantTx) => updateTenant(tx, fields, undefined);
    [row] = (await changeIn(context, itself(tenant), 'UpdateTenant', work)) as [TenantRow];
  }
  return ALL_QUOTAS.map(([, { name }]) => `${name}\t${row.policies.quotas?.[name] ?? 'none'}`);
}

export async function addMember(context: Direct, scope: Scope, admin: boolean): Promise<string[]> {
  const { tenant, env, user } = scope;
  checked((check) => check.id('user', user));
  await existing(context, tenant, env);
  const role = admin ? Member_Role.ADMIN : Member_Role.MEMBER;
  const saved = await changeIn(context, { ...scope, user: '' }, 'PutMember', (tx) => putMember(tx, user, role));
  if (saved.length === 0) throw new UserError(`everything of ${user} is being erased: wait for its end`);
  return [`${user} is ${admin ? 'an admin' : 'a member'} of ${tenant}, ${env}`];
}

export async function removeMember(context: Direct, scope: Scope): Promise<string[]> {
  const { tenant, env, user } = scope;
  checked((check) => check.id('user', user));
  await existing(context, tenant, env);
  const gone = await changeIn(context, { ...scope, user: '' }, 'RemoveMember', (tx) => removeFrom(tx, user));
  if (gone.length === 0) throw new UserError(`${user} is no member of ${tenant}, ${env}`);
  return [`${user} is no member of ${tenant}, ${env} any more`];
}

/** All rows of a list by its pages. */
async function all<Row>(read: (after: string) => Promise<Row[]>, key: (row: Row) => string): Promise<Row[]> {
  const rows: Row[] = [];
  for (let after = ''; ; ) {
    const page = await read(after);
    rows.push(...page);
    if (page.length < PAGE) return rows;
    after = key(page.at(-1)!);
  }
}

export async function list(context: Direct, tenant: string | undefined): Promise<string[]> {
  const dbOf = (scope: Scope): TenantDb => reader(context.database, scope, context.limits);
  if (tenant === undefined) {
    const directory = dbOf(itself(''));
    const tenants = await all(
      (after) => listTenants(directory, after, PAGE),
      (row) => row.tenantId,
    );
    return tenants.map(({ tenantId, envs, displayName }) => [tenantId, envs.join(','), displayName].join('\t'));
  }
  const lines: string[] = [];
  for (const env of (await existing(context, tenant)).envs) {
    const db = dbOf({ tenant, env, user: '' });
    const members = await all(
      (after) => listMembers(db, after, PAGE),
      (row) => row.userId,
    );
    lines.push(
      ...members.map(({ userId, role }) => [env, userId, role === Member_Role.ADMIN ? 'admin' : 'member'].join('\t')),
    );
  }
  return lines;
}

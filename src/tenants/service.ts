import { status } from '@grpc/grpc-js';
import type { AdminServiceService } from '../gen/memory/v1/admin_service.ts';
import { Member_Role, type Tenant, TenantPolicies_Membership, TenantPolicies_Pii } from '../gen/memory/v1/tenant.ts';
import type { Access } from '../rpc/access.ts';
import type { Call } from '../rpc/context.ts';
import { etagMismatch, invalid, notFound, RpcError } from '../rpc/errors.ts';
import type { Handlers } from '../rpc/implement.ts';
import type { Memberships } from '../rpc/membership.ts';
import { ALL_QUOTAS } from '../rpc/quotas.ts';
import { Check, etagOf, revisionOf } from '../rpc/validate.ts';
import { AGING, MAX_DAYS } from './aging.ts';
import { expiryStats } from './expiry.ts';
import {
  createTenant,
  DEFAULT_LANGUAGE,
  getTenant,
  knowsLanguage,
  listMembers,
  listTenants,
  memberFromRow,
  type Policies,
  putMember,
  removeMember,
  type TenantFields,
  tenantFromRow,
  updateTenant,
} from './repository.ts';

const MAX_ENVS = 20;
/** Of anything in the database. */
const MAX_NAME = 63;

export const adminAccess: Record<string, Access> = {
  createTenant: { operator: true },
  updateTenant: { operator: true },
  listTenants: { operator: true },
  putMember: { admin: true },
  removeMember: { admin: true },
  listMembers: { admin: true },
  getExpiryStats: { admin: true },
};

const beingErased = () =>
  new RpcError(
    status.FAILED_PRECONDITION,
    'USER_BEING_ERASED',
    'everything of the user is being erased: wait for its end',
    {
      retryAfterMs: 10_000,
    },
  );

/** An operator's call, in the scope of the tenant itself. */
const inTenant = (call: Call, tenant: string) => call.as({ tenant, env: '', user: '' });

type TenantMethods = Exclude<keyof typeof AdminServiceService, 'eraseUser' | 'getErasure' | 'listErasures'>;

export function adminHandlers(members: Memberships): Pick<Handlers<typeof AdminServiceService>, TenantMethods> {
  return {
    async createTenant(request, call) {
      const check = new Check();
      await checkTenant(check, request.tenant, call);
      check.count('tenant.envs', request.tenant?.envs ?? [], MAX_ENVS, 1);
      check.optionalUuid('request_id', request.requestId);
      check.done();

      const tenant = request.tenant!;
      const [row] = await inTenant(call, tenant.tenantId).change(request, async (tx) => {
        const created = await createTenant(tx, fieldsOf(tenant, undefined));
        if (created.length === 0)
          throw new RpcError(status.ALREADY_EXISTS, 'TENANT_EXISTS', 'there is a tenant with this id');
        return created;
      });
      members.forget(tenant.tenantId);
      return { tenant: tenantFromRow(row!) };
    },

    async updateTenant(request, call) {
      const check = new Check();
      await checkTenant(check, request.tenant, call);
      check.count('tenant.envs', request.tenant?.envs ?? [], MAX_ENVS);
      for (const path of request.updateMask ?? []) {
        check.that(MASKABLE.includes(path), 'update_mask', `"${path.slice(0, 64)}" cannot be updated`);
      }
      check.optionalUuid('request_id', request.requestId);
      check.done();

      const tenant = request.tenant!;
      const owner = inTenant(call, tenant.tenantId);
      const [row] = await owner.change(request, async (tx) => {
        const updated = await updateTenant(tx, fieldsOf(tenant, request.updateMask), revisionOf(tenant.etag));
        if (updated.length > 0) return updated;
        const stored = await getTenant(owner.db);
        if (!stored) throw notFound('tenant');
        if (tenant.etag && tenant.etag !== etagOf(stored.revision)) throw etagMismatch(etagOf(stored.revision));
        throw invalid([{ field: 'tenant.envs', description: `more than ${MAX_ENVS}` }]);
      });
      members.forget(tenant.tenantId);
      return { tenant: tenantFromRow(row!) };
    },

    async listTenants(request, call) {
      const check = new Check();
      check.page(request);
      check.done();

      const owner = inTenant(call, '');
      const page = owner.page(request);
      const found = await listTenants(owner.db, page.after?.[0] ?? '', page.limit);
      const { rows, nextPageToken } = page.cut(found, (row) => [row.tenantId]);
      return { tenants: rows.map(tenantFromRow), nextPageToken };
    },

    async putMember(request, call) {
      const check = new Check();
      check.id('member.user_id', request.member?.userId ?? '');
      check.oneOf('member.role', request.member?.role ?? 0, Member_Role);
      check.optionalUuid('request_id', request.requestId);
      check.done();

      const { userId, role } = request.member!;
      const [row] = await call.change(request, async (tx) => {
        const saved = await putMember(tx, userId, role);
        if (saved.length === 0) throw beingErased();
        return saved;
      });
      members.forget(call.identity.tenant);
      return { member: memberFromRow(row!) };
    },

    async removeMember(request, call) {
      const check = new Check();
      check.id('user_id', request.userId);
      check.optionalUuid('request_id', request.requestId);
      check.done();

      await call.change(request, async (tx) => {
        const gone = await removeMember(tx, request.userId);
        if (gone.length === 0) throw notFound('member');
        return gone;
      });
      members.forget(call.identity.tenant);
      return {};
    },

    async listMembers(request, call) {
      const check = new Check();
      check.page(request);
      check.done();

      const page = call.page(request);
      const found = await listMembers(call.db, page.after?.[0] ?? '', page.limit);
      const { rows, nextPageToken } = page.cut(found, (row) => [row.userId]);
      return { members: rows.map(memberFromRow), nextPageToken };
    },

    async getExpiryStats(_request, call) {
      return { stats: await expiryStats(call.db) };
    },
  };
}

const MASKABLE = [
  'display_name',
  'envs',
  'policies',
  'policies.membership',
  'policies.pii',
  'policies.search_language',
  'policies.extract_profile',
  'policies.quotas',
  ...ALL_QUOTAS.map(([, { name }]) => `policies.quotas.${name}`),
  'policies.retention',
  ...AGING.map((kind) => `policies.retention.${kind}_days`),
];
const LANGUAGE = 'tenant.policies.search_language';

async function checkTenant(check: Check, tenant: Tenant | undefined, call: Call): Promise<void> {
  if (!check.that(tenant !== undefined, 'tenant', 'required') || !tenant) return;
  check.slug('tenant.tenant_id', tenant.tenantId);
  check.text('tenant.display_name', tenant.displayName, 200);
  check.etag('tenant.etag', tenant.etag);
  tenant.envs.slice(0, MAX_ENVS).forEach((env, i) => check.slug(`tenant.envs[${i}]`, env));
  check.that(new Set(tenant.envs).size === tenant.envs.length, 'tenant.envs', 'names an env twice');
  const { membership = 0, pii = 0, searchLanguage = '', quotas = {}, retention } = tenant.policies ?? {};
  for (const [quota, { name, most }] of ALL_QUOTAS)
    check.range(`tenant.policies.quotas.${name}`, quotas[quota] ?? 0, 0, most);
  for (const kind of AGING)
    check.range(`tenant.policies.retention.${kind}_days`, retention?.[`${kind}Days`] ?? 0, 0, MAX_DAYS);
  if (membership !== 0) check.oneOf('tenant.policies.membership', membership, TenantPolicies_Membership);
  if (pii !== 0) check.oneOf('tenant.policies.pii', pii, TenantPolicies_Pii);
  if (searchLanguage && check.text(LANGUAGE, searchLanguage, MAX_NAME))
    check.that(await knowsLanguage(inTenant(call, '').db, searchLanguage), LANGUAGE, 'not known to the database');
}

/** What is set: with a mask only what it names, where a policy without a value gets its default. */
function fieldsOf(tenant: Tenant, mask: string[] | undefined): TenantFields {
  const named = (...paths: string[]) => !mask || paths.some((path) => mask.includes(path));
  const {
    membership = 0,
    pii = 0,
    searchLanguage = '',
    extractProfile,
    quotas = {},
    retention,
  } = tenant.policies ?? {};
  const policies: Policies = {};
  if (named('policies', 'policies.membership') && (membership || mask)) {
    policies.membership = membership || TenantPolicies_Membership.EXPLICIT;
  }
  if (named('policies', 'policies.pii') && (pii || mask)) policies.pii = pii || TenantPolicies_Pii.REJECT;
  for (const [quota, { name }] of ALL_QUOTAS) {
    if (!named('policies', 'policies.quotas', `policies.quotas.${name}`)) continue;
    if (quotas[quota] !== undefined || mask) policies.quotas = { ...policies.quotas, [name]: quotas[quota] || null };
  }
  const aging = AGING.filter((kind) =>
    mask
      ? named('policies', 'policies.retention', `policies.retention.${kind}_days`)
      : retention?.[`${kind}Days`] !== undefined,
  );
  if (aging.length > 0)
    policies.retention = Object.fromEntries(aging.map((kind) => [`${kind}_days`, retention?.[`${kind}Days`] || null]));
  const language = searchLanguage || (mask ? DEFAULT_LANGUAGE : undefined);
  const displayName = tenant.displayName ?? (mask ? '' : undefined);
  return {
    displayName: named('display_name') ? displayName : undefined,
    envs: named('envs') ? tenant.envs : [],
    policies,
    searchLanguage: named('policies', 'policies.search_language') ? language : undefined,
    extractProfile: named('policies', 'policies.extract_profile')
      ? (extractProfile ?? (mask ? false : undefined))
      : undefined,
  };
}

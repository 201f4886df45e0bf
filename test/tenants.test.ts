import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import {
  Member_Role,
  TenantPolicies,
  TenantPolicies_Membership,
  TenantPolicies_Pii,
} from '../src/gen/memory/v1/tenant.ts';
import type { RunningServer } from '../src/server.ts';
import {
  allPages,
  type Clients,
  connect,
  failure,
  headersOf,
  metadataOf,
  newTenant,
  ownerUrl,
  runSql,
  startTestServer,
} from './support.ts';

const { MEMBER } = Member_Role;
const { EXPLICIT, TOKEN } = TenantPolicies_Membership;
const { REJECT, REDACT, ALLOW } = TenantPolicies_Pii;

describe('tenants', () => {
  let server: RunningServer;
  let operator: Clients;

  before(async () => {
    server = await startTestServer();
    operator = connect(`127.0.0.1:${server.port}`, { 'x-scopes': 'memory:operator' });
  });
  after(async () => {
    operator.close();
    await server.stop();
  });

  const slug = () => `t-${randomUUID()}`;
  const as = (tenant: string, user: string, env = 'dev') => metadataOf(headersOf(tenant, user, env));
  const create = async (tenant: object = {}) =>
    (await operator.admin.createTenant({ tenant: { tenantId: slug(), envs: ['dev'], ...tenant } })).tenant!;
  const update = async (tenant: object, rest: object = {}) =>
    (await operator.admin.updateTenant({ tenant, ...rest })).tenant!;
  const uses = (tenant: string, user: string, env = 'dev') =>
    operator.memory.listSessions({}, as(tenant, user, env)).then(
      () => true,
      (error) => {
        expect(error.code).to.equal(status.PERMISSION_DENIED);
        return false;
      },
    );

  it('are created with their envs and policies', async () => {
    const tenantId = slug();
    const policies = TenantPolicies.fromPartial({
      membership: TOKEN,
      pii: REDACT,
      searchLanguage: 'german',
      extractProfile: true,
    });
    const tenant = await create({ tenantId, displayName: 'Acmé', envs: ['dev', 'prod'], policies });
    expect(tenant).to.deep.include({ tenantId, displayName: 'Acmé', envs: ['dev', 'prod'], policies });
    expect([tenant.etag.length > 0, tenant.createTime !== undefined]).to.deep.equal([true, true]);
    const again = operator.admin.createTenant({ tenant: { tenantId, envs: ['other'] } });
    expect(await failure(again)).to.include({ code: status.ALREADY_EXISTS, reason: 'TENANT_EXISTS' });
    expect(await update({ tenantId })).to.deep.include({ displayName: 'Acmé', envs: ['dev', 'prod'], policies });
  });

  it('are created once for one request_id, also when it comes at once', async () => {
    const request = { tenant: { tenantId: slug(), envs: ['dev'] }, requestId: randomUUID() };
    const all = await Promise.all(Array.from({ length: 8 }, () => operator.admin.createTenant(request)));
    for (const response of all) expect(response).to.deep.equal(all[0]);
  });

  it('refuse malformed input with every violation', async () => {
    const bad: [object, string[]][] = [
      [{}, ['tenant', 'tenant.envs']],
      [{ tenant: { tenantId: 'No Slug', envs: [] } }, ['tenant.tenant_id', 'tenant.envs']],
      [{ tenant: { tenantId: slug(), envs: ['dev', 'Dev'] } }, ['tenant.envs[1]']],
      [{ tenant: { tenantId: slug(), envs: ['dev', 'dev'] } }, ['tenant.envs']],
      [{ tenant: { tenantId: slug(), envs: Array.from({ length: 21 }, (_, i) => `e${i}`) } }, ['tenant.envs']],
      [{ tenant: { tenantId: slug(), envs: ['dev'], displayName: 'x'.repeat(201) } }, ['tenant.display_name']],
      [{ tenant: { tenantId: slug(), envs: ['dev'], policies: { pii: 9 } } }, ['tenant.policies.pii']],
      [{ tenant: { tenantId: slug(), envs: ['dev'], policies: { membership: 9 } } }, ['tenant.policies.membership']],
    ];
    for (const [request, fields] of bad) {
      const answer = await failure(operator.admin.createTenant(request));
      expect(answer.code).to.equal(status.INVALID_ARGUMENT);
      expect(answer.violations.map((violation) => violation.field)).to.deep.equal(fields);
    }
  });

  it('change where fields are present, and get envs but never lose them', async () => {
    const policies = TenantPolicies.fromPartial({
      membership: TOKEN,
      pii: ALLOW,
      searchLanguage: 'german',
      extractProfile: true,
    });
    const { tenantId, etag } = await create({ displayName: 'a', policies });
    const renamed = await update({ tenantId, displayName: 'b' });
    expect(renamed).to.deep.include({ displayName: 'b', envs: ['dev'], policies });
    expect(renamed.etag).to.not.equal(etag);
    expect(await update({ tenantId, envs: ['prod'] })).to.deep.include({ displayName: 'b', envs: ['dev', 'prod'] });
    expect((await update({ tenantId, policies: { pii: REJECT } })).policies).to.deep.equal({
      ...policies,
      pii: REJECT,
    });
    expect((await update({ tenantId, envs: ['dev'] }, { updateMask: ['envs'] })).envs).to.deep.equal(['dev', 'prod']);
    const many = Array.from({ length: 19 }, (_, i) => `e${i}`);
    expect(await failure(update({ tenantId, envs: many }))).to.include({ code: status.INVALID_ARGUMENT });
    expect((await update({ tenantId, envs: many.slice(1) })).envs).to.have.length(20);
    expect(await failure(update({ tenantId: slug(), displayName: 'x' }))).to.include({
      code: 5,
      reason: 'NOT_FOUND',
    });
  });

  it('change by a mask, where a named field without a value gets its default', async () => {
    const policies = TenantPolicies.fromPartial({
      membership: TOKEN,
      pii: ALLOW,
      searchLanguage: 'german',
      extractProfile: true,
    });
    const { tenantId } = await create({ displayName: 'a', policies });
    const pii = await update(
      { tenantId, displayName: 'no', policies: { membership: EXPLICIT } },
      { updateMask: ['policies.pii'] },
    );
    expect(pii).to.deep.include({ displayName: 'a', policies: { ...policies, pii: REJECT } });
    const both = await update({ tenantId, policies: { pii: REDACT } }, { updateMask: ['policies', 'display_name'] });
    expect(both).to.deep.include({
      displayName: '',
      policies: TenantPolicies.fromPartial({
        membership: EXPLICIT,
        pii: REDACT,
        searchLanguage: 'simple',
        extractProfile: false,
      }),
    });
    for (const path of ['tenant_id', 'create_time', 'policies.nothing', 'etag', '']) {
      const answer = await failure(update({ tenantId, displayName: 'x' }, { updateMask: [path] }));
      expect(
        answer.violations.map((violation) => violation.field),
        path,
      ).to.deep.equal(['update_mask']);
    }
  });

  it('keep each kind for as long as they say, until they say otherwise', async () => {
    const kept = async (change: object, updateMask?: string[]) => {
      const { retention } = (await update({ tenantId, ...change }, { updateMask })).policies!;
      return retention && Object.fromEntries(Object.entries(retention).filter(([, days]) => days !== undefined));
    };
    const policies = (retention: object) => ({ policies: { retention } });
    const { tenantId } = await create(policies({ messagesDays: 30, turnsDays: 0 }));
    expect(await kept({})).to.deep.equal({ messagesDays: 30 });
    expect(await kept(policies({ turnsDays: 1, usageDays: 36_500 }))).to.deep.equal({
      messagesDays: 30,
      turnsDays: 1,
      usageDays: 36_500,
    });
    expect(await kept(policies({ messagesDays: 0 }))).to.deep.equal({ turnsDays: 1, usageDays: 36_500 });
    const masked = await kept(policies({ checkpointsDays: 7, usageDays: 7 }), [
      'policies.retention.usage_days',
      'policies.retention.turns_days',
    ]);
    expect(masked).to.deep.equal({ usageDays: 7 });
    expect(await kept(policies({ checkpointsDays: 7 }), ['policies.retention'])).to.deep.equal({ checkpointsDays: 7 });
    expect(await kept({}, ['policies.pii'])).to.deep.equal({ checkpointsDays: 7 });
    expect(await kept({}, ['policies'])).to.equal(undefined);
    for (const days of [-1, 36_501]) {
      const answer = await failure(update({ tenantId, ...policies({ messagesDays: days, usageDays: days }) }));
      expect(answer.violations.map(({ field }) => field)).to.deep.equal([
        'tenant.policies.retention.messages_days',
        'tenant.policies.retention.usage_days',
      ]);
    }
    const events = await runSql(
      ownerUrl(),
      `select metadata -> 'retention' as retention from audit_events where tenant_id = $1 order by id`,
      [tenantId],
    );
    expect(events.slice(0, 2).map(({ retention }) => retention)).to.deep.equal([
      { messages_days: 30 },
      { messages_days: 30 },
    ]);
    expect(events.at(-1).retention).to.equal(null);
  });

  it('refuse a stale etag, tell the current one and change nothing', async () => {
    const { tenantId, etag } = await create({ displayName: 'a' });
    const current = await update({ tenantId, displayName: 'b', etag });
    const answer = await failure(update({ tenantId, displayName: 'c', envs: ['prod'], etag }));
    expect(answer).to.include({ code: status.ABORTED, reason: 'ETAG_MISMATCH' });
    expect(answer.metadata.etag).to.equal(current.etag);
    expect(await update({ tenantId, etag: current.etag })).to.deep.include({ displayName: 'b', envs: ['dev'] });
  });

  it('are listed by id, page by page', async () => {
    const made = (await Promise.all(Array.from({ length: 5 }, () => create()))).map((tenant) => tenant.tenantId);
    const pages = await allPages((pageToken) => operator.admin.listTenants({ pageSize: 40, pageToken }));
    const ids = pages.flatMap((page) => page.tenants.map((tenant) => tenant.tenantId));
    expect(ids).to.include.members(made);
    expect(ids).to.deep.equal([...new Set(ids)].sort());
    for (const page of pages.slice(0, -1)) expect(page.tenants).to.have.length(40);
  });

  it('are for operators only', async () => {
    const tenant = await newTenant(['user', 'admin']);
    for (const metadata of [
      as(tenant, 'admin'),
      as(tenant, 'user'),
      metadataOf({ 'x-scopes': 'memory:handoff' }),
      metadataOf({}),
    ]) {
      const calls = [
        operator.admin.createTenant({ tenant: { tenantId: slug(), envs: ['dev'] } }, metadata),
        operator.admin.updateTenant({ tenant: { tenantId: tenant, envs: ['x'] } }, metadata),
        operator.admin.listTenants({}, metadata),
      ];
      const codes = (await Promise.all(calls.map(failure))).map((answer) => answer.code);
      for (const code of codes) expect([status.PERMISSION_DENIED, status.UNAUTHENTICATED]).to.include(code);
    }
    const [row] = await runSql(ownerUrl(), 'select envs from tenants where tenant_id = $1', [tenant]);
    expect(row.envs).to.deep.equal(['dev', 'prod']);
  });

  it('have policies and envs that take effect at once', async () => {
    const { tenantId } = await create();
    await operator.admin.putMember(
      { member: { userId: 'user', role: MEMBER } },
      metadataOf({ 'x-tenant-id': tenantId, 'x-env': 'dev', 'x-scopes': 'memory:operator' }),
    );
    const title = 'mail ann@example.com';
    const upsert = () => operator.memory.upsertSession({ session: { surfaceId: 'web', title } }, as(tenantId, 'user'));
    expect(await failure(upsert())).to.include({ code: status.INVALID_ARGUMENT });
    await update({ tenantId, policies: { pii: REDACT } });
    expect((await upsert()).session!.title).to.equal('mail [EMAIL]');
    await update({ tenantId, policies: { pii: ALLOW } });
    expect((await upsert()).session!.title).to.equal(title);
    const prod = metadataOf({ 'x-tenant-id': tenantId, 'x-env': 'prod', 'x-scopes': 'memory:operator' });
    const member = { member: { userId: 'user', role: MEMBER } };
    expect(await failure(operator.admin.putMember(member, prod))).to.include({ code: status.PERMISSION_DENIED });
    await update({ tenantId, envs: ['prod'] });
    await operator.admin.putMember(member, prod);
    expect(await uses(tenantId, 'user', 'prod')).to.equal(true);
  });
});

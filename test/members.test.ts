import { randomUUID } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { exportJWK, generateKeyPair, SignJWT } from 'jose';
import { Member_Role, TenantPolicies_Membership } from '../src/gen/memory/v1/tenant.ts';
import type { RunningServer } from '../src/server.ts';
import {
  allPages,
  type Clients,
  connect,
  failure,
  headersOf,
  metadataOf,
  newTenant,
  startTestServer,
  until,
} from './support.ts';

const { MEMBER, ADMIN } = Member_Role;
const { EXPLICIT, TOKEN } = TenantPolicies_Membership;

describe('members', () => {
  let server: RunningServer;
  let second: RunningServer;
  let operator: Clients;

  before(async () => {
    server = await startTestServer();
    second = await startTestServer();
    operator = connect(`127.0.0.1:${server.port}`, { 'x-scopes': 'memory:operator' });
  });
  after(async () => {
    operator.close();
    await Promise.all([server.stop(), second.stop()]);
  });

  const slug = () => `t-${randomUUID()}`;
  const as = (tenant: string, user: string, env = 'dev') => metadataOf(headersOf(tenant, user, env));
  const uses = (tenant: string, user: string, env = 'dev') =>
    operator.memory.listSessions({}, as(tenant, user, env)).then(
      () => true,
      (error) => {
        expect(error.code).to.equal(status.PERMISSION_DENIED);
        return false;
      },
    );

  it('are put and removed by an admin, with effect at once', async () => {
    const tenant = await newTenant(['admin']);
    const admin = as(tenant, 'admin');
    const put = async (userId: string, role: number) =>
      (await operator.admin.putMember({ member: { userId, role } as object }, admin)).member!;
    expect(await uses(tenant, 'ann')).to.equal(false);
    const member = await put('ann', MEMBER);
    expect(member).to.include({ env: 'dev', userId: 'ann', role: MEMBER, anonymous: false });
    expect([await uses(tenant, 'ann'), await uses(tenant, 'ann', 'prod')]).to.deep.equal([true, false]);
    const list = () => operator.admin.listMembers({}, as(tenant, 'ann'));
    expect(await failure(list())).to.include({ code: status.PERMISSION_DENIED, reason: 'ADMIN_REQUIRED' });
    expect(await put('ann', ADMIN)).to.deep.include({ role: ADMIN, createTime: member.createTime });
    expect((await list()).members.map((m) => [m.userId, m.role])).to.deep.equal([
      ['admin', ADMIN],
      ['ann', ADMIN],
    ]);
    await operator.admin.removeMember({ userId: 'ann' }, admin);
    expect(await uses(tenant, 'ann')).to.equal(false);
    const again = operator.admin.removeMember({ userId: 'ann' }, admin);
    expect(await failure(again)).to.include({ code: status.NOT_FOUND, reason: 'NOT_FOUND' });
  });

  it('keep what they stored when they are removed', async () => {
    const tenant = await newTenant(['admin', 'user']);
    const { session } = await operator.memory.upsertSession({ session: { surfaceId: 'web' } }, as(tenant, 'user'));
    await operator.admin.removeMember({ userId: 'user' }, as(tenant, 'admin'));
    await operator.admin.putMember({ member: { userId: 'user', role: MEMBER } }, as(tenant, 'admin'));
    const got = await operator.memory.getSession({ sessionId: session!.id }, as(tenant, 'user'));
    expect(got.session).to.deep.equal(session);
  });

  it('that were removed are refused by every other server within seconds', async () => {
    const tenant = await newTenant(['admin', 'user']);
    const elsewhere = connect(`127.0.0.1:${second.port}`, headersOf(tenant));
    await elsewhere.memory.listSessions({});
    const requestId = randomUUID();
    const remove = () => operator.admin.removeMember({ userId: 'user', requestId }, as(tenant, 'admin'));
    await remove();
    expect(await remove()).to.deep.equal({});
    const refusal = () =>
      elsewhere.memory.listSessions({}).then(
        () => undefined,
        (error) => error.code,
      );
    expect(await until(refusal)).to.equal(status.PERMISSION_DENIED);
    elsewhere.close();
  });

  it('are managed by operators that name the tenant and env, and by nobody else', async () => {
    const tenant = await newTenant(['user', 'admin']);
    const foreign = await newTenant(['admin']);
    const member = { member: { userId: 'new', role: MEMBER } };
    const refused = [as(tenant, 'user'), as(foreign, 'user'), as(tenant, 'admin', 'prod'), as(slug(), 'admin')];
    for (const metadata of refused) {
      const calls = [
        operator.admin.putMember(member, metadata),
        operator.admin.removeMember({ userId: 'user' }, metadata),
        operator.admin.listMembers({}, metadata),
        operator.admin.getExpiryStats({}, metadata),
      ];
      for (const answer of await Promise.all(calls.map(failure)))
        expect(answer.code).to.equal(status.PERMISSION_DENIED);
    }
    await operator.admin.putMember(member, as(foreign, 'admin'));
    expect(await uses(tenant, 'new')).to.equal(false);
    const named = metadataOf({ 'x-tenant-id': tenant, 'x-env': 'dev', 'x-scopes': 'memory:operator' });
    await operator.admin.putMember(member, named);
    const { members } = await operator.admin.listMembers({}, named);
    expect(members.map((m) => m.userId)).to.deep.equal(['admin', 'new', 'user']);
  });

  it('are listed by user id, page by page', async () => {
    const tenant = await newTenant(['admin', 'e', 'b', 'd', 'a', 'c']);
    const metadata = as(tenant, 'admin');
    const pages = await allPages((pageToken) => operator.admin.listMembers({ pageSize: 4, pageToken }, metadata));
    const users = pages.map((page) => page.members.map((member) => member.userId));
    expect(users).to.deep.equal([
      ['a', 'admin', 'b', 'c'],
      ['d', 'e'],
    ]);
  });

  it('refuse malformed input with the field named', async () => {
    const metadata = as(await newTenant(['admin']), 'admin');
    const bad: [object, string[]][] = [
      [{}, ['member.user_id', 'member.role']],
      [{ member: { userId: 'x'.repeat(129), role: MEMBER } }, ['member.user_id']],
      [{ member: { userId: 'x' } }, ['member.role']],
      [{ member: { userId: 'x', role: 7 } }, ['member.role']],
    ];
    for (const [request, fields] of bad) {
      const answer = await failure(operator.admin.putMember(request, metadata));
      expect(answer.violations.map((violation) => violation.field)).to.deep.equal(fields);
    }
  });

  it('are all whose token names the tenant, where the tenant wants that', async () => {
    const { publicKey, privateKey } = await generateKeyPair('ES256', { extractable: true });
    const folder = await mkdtemp(join(tmpdir(), 'memoryd-tenants-'));
    const jwks = join(folder, 'jwks.json');
    await writeFile(jwks, JSON.stringify({ keys: [{ ...(await exportJWK(publicKey)), kid: 'k', alg: 'ES256' }] }));
    const auth = { auth: 'jwt', jwks, issuer: 'https://issuer.example', audience: 'memoryd' } as const;
    const guarded = await startTestServer(auth);
    const [open, closed] = [await newTenant([], { membership: TOKEN }), await newTenant([], { membership: EXPLICIT })];
    const token = await new SignJWT({ sub: 'ann', tenants: [open, closed] })
      .setProtectedHeader({ alg: 'ES256', kid: 'k' })
      .setIssuer(auth.issuer)
      .setAudience(auth.audience)
      .setExpirationTime('1h')
      .sign(privateKey);
    const client = connect(`127.0.0.1:${guarded.port}`);
    const list = (tenant: string, env = 'dev') =>
      client.memory.listSessions(
        {},
        metadataOf({ authorization: `Bearer ${token}`, 'x-tenant-id': tenant, 'x-env': env }),
      );
    expect((await list(open)).sessions).to.deep.equal([]);
    expect(await failure(list(closed))).to.include({ code: status.PERMISSION_DENIED });
    expect(await failure(list(await newTenant([], { membership: TOKEN })))).to.include({
      code: status.PERMISSION_DENIED,
    });
    expect(await failure(list(open, 'nowhere'))).to.include({ code: status.PERMISSION_DENIED });
    client.close();
    await guarded.stop();
    await rm(folder, { recursive: true });
  });
});

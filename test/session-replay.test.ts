import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { PinnedRef_Kind } from '../src/gen/memory/v1/session.ts';
import { TenantPolicies_Pii } from '../src/gen/memory/v1/tenant.ts';
import type { RunningServer } from '../src/server.ts';
import {
  type Clients,
  connect,
  type Failure,
  failure,
  headersOf,
  metadataOf,
  newTenant,
  startTestServer,
  tenantSql,
} from './support.ts';

describe('session replay and privacy', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;

  before(async () => {
    server = await startTestServer();
  });
  after(async () => {
    client.close();
    await server.stop();
  });
  const enter = async (policies: Record<string, number> = {}) => {
    client?.close();
    tenant = await newTenant(['user', 'other'], policies);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  };
  beforeEach(() => enter());

  const upsert = (session: object, rest: object = {}) =>
    client.memory.upsertSession({ session: { surfaceId: 'web', ...session }, ...rest });
  const stored = async (session: object, rest: object = {}) => (await upsert(session, rest)).session!;
  const current = async () => (await client.memory.listSessions({})).sessions[0]!;
  const many = <T>(count: number, make: (i: number) => T) => Array.from({ length: count }, (_, i) => make(i));

  describe('replay by request_id', () => {
    it('does it once, also when it comes 10 times at once', async () => {
      const requestId = randomUUID();
      const all = await Promise.all(many(10, () => upsert({ title: 'a', state: { b: 1, a: 2 } }, { requestId })));
      for (const response of all) expect(response).to.deep.equal(all[0]);
      expect(await current()).to.deep.equal(all[0]!.session);
      await stored({ title: 'later' });
      expect(await upsert({ title: 'a', state: { a: 2, b: 1 } }, { requestId })).to.deep.equal(all[0]);
      expect(await current()).to.include({ title: 'later', revision: 2 });
    });

    it('keeps nothing of a session that was deleted', async () => {
      const requestId = randomUUID();
      const email = 'someone@somewhere.test';
      const { id } = await stored({ title: 'a', email }, { requestId });
      await client.memory.resumeSession({ target: { $case: 'sessionId', value: id }, requestId });
      await client.memory.deleteSession({ sessionId: id });
      const kept = await tenantSql(tenant, 'select * from requests');
      expect(kept).to.have.length(2);
      expect(JSON.stringify(kept)).not.to.include(email);
      expect(await failure(upsert({ title: 'a', email }, { requestId }))).to.include({ code: 5, reason: 'DELETED' });
    });

    it('is scoped to user and method, and refuses another request', async () => {
      const requestId = randomUUID();
      const { id } = await stored({ title: 'a' }, { requestId });
      expect(await failure(upsert({ title: 'b' }, { requestId }))).to.include({ code: 3, reason: 'REQUEST_ID_REUSED' });
      const other = metadataOf(headersOf(tenant, 'other'));
      const theirs = await client.memory.upsertSession({ session: { surfaceId: 'web', title: 'b' }, requestId }, other);
      expect([theirs.created, theirs.session!.userId]).to.deep.equal([true, 'other']);
      const change = { session: { id, title: 'c' }, requestId: randomUUID() };
      await client.memory.upsertSession(change);
      expect(await failure(client.memory.upsertSession(change, other))).to.include({ code: 5, reason: 'NOT_FOUND' });
      const ended = await client.memory.endSession({ sessionId: id, requestId });
      expect(await client.memory.endSession({ sessionId: id, requestId })).to.deep.equal(ended);
      const gone = await stored({ threadId: 'x' });
      const first = await client.memory.deleteSession({ sessionId: gone.id, requestId });
      expect(await client.memory.deleteSession({ sessionId: gone.id, requestId })).to.deep.equal(first);
    });

    it('forgets a refused call: the same id can be tried again', async () => {
      const requestId = randomUUID();
      const { id, etag } = await stored({ title: 'a' });
      await failure(upsert({ id, etag: 'stale', title: 'b' }, { requestId }));
      expect(await stored({ id, etag, title: 'b' }, { requestId })).to.include({ title: 'b', revision: 2 });
    });

    it('forgets after 24 hours, swept or not', async () => {
      const requestId = randomUUID();
      const first = await stored({ title: 'a' }, { requestId });
      await tenantSql(tenant, `update requests set create_time = now() - interval '24 hours 1 second'`);
      expect(await stored({ title: 'b' }, { requestId })).to.include({ id: first.id, title: 'b', revision: 2 });
      expect(await stored({ title: 'b' }, { requestId })).to.include({ title: 'b', revision: 2 });
    });
  });

  describe('personal data', () => {
    const session = {
      title: 'mail ann@example.com',
      preferences: { deep: [{ phone: 'call +49 30 901820 now' }] },
      state: { card: '4111 1111 1111 1111' },
      metadata: { 'bob@example.com': 1 },
      pinnedRefs: [{ id: 'a', kind: PinnedRef_Kind.FACT, text: 'eve@example.com' }],
      summaryRefs: [{ id: 's', text: 'wrote to joe@example.com' }],
      email: 'user@example.com',
    };
    const traces = ['ann@', '901820', '4111', 'bob@', 'eve@', 'joe@'];
    const rows = async () =>
      JSON.stringify(await tenantSql(tenant, 'select s, r from sessions s left join requests r on true'));
    const named = (answer: Failure) =>
      answer.violations.map((violation) => violation.field.replace(/^session\.(\w+).*/, '$1'));

    it('is refused by default, with every field named, and stored nowhere', async () => {
      for (const policies of [{}, { pii: TenantPolicies_Pii.REJECT }] as Record<string, number>[]) {
        await enter(policies);
        const answer = await failure(upsert(session, { requestId: randomUUID() }));
        expect(answer.code).to.equal(status.INVALID_ARGUMENT);
        const fields = ['title', 'preferences', 'state', 'metadata', 'pinned_refs', 'summary_refs'];
        expect([...new Set(named(answer))]).to.have.members(fields);
        for (const trace of traces) expect(JSON.stringify(answer)).to.not.contain(trace);
        expect((await client.memory.listSessions({})).sessions).to.deep.equal([]);
        expect(await stored({ email: 'user@example.com', title: 'fine' })).to.include({ email: 'user@example.com' });
      }
    });

    it('is redacted where the tenant wants that', async () => {
      await enter({ pii: TenantPolicies_Pii.REDACT });
      const kept = await stored(session, { requestId: randomUUID() });
      expect(kept).to.deep.include({ title: 'mail [EMAIL]', metadata: { '[EMAIL]': 1 }, email: 'user@example.com' });
      expect([kept.pinnedRefs[0]!.text, kept.summaryRefs[0]!.text]).to.deep.equal(['[EMAIL]', 'wrote to [EMAIL]']);
      const held = await rows();
      for (const trace of traces) expect(held).to.not.contain(trace);
    });

    it('is kept where the tenant allows it', async () => {
      await enter({ pii: TenantPolicies_Pii.ALLOW });
      const { title, preferences, state, metadata } = session;
      expect(await stored(session)).to.deep.include({ title, preferences, state, metadata });
    });
  });
});

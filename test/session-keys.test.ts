import { createHash, randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import type { RunningServer } from '../src/server.ts';
import {
  type Clients,
  connect,
  failure,
  headersOf,
  metadataOf,
  newTenant,
  rowCounts,
  startTestServer,
  tenantSql,
  until,
} from './support.ts';

describe('session keys, resume and anonymous users', () => {
  let server: RunningServer;
  let brief: RunningServer;
  let tenant: string;
  let client: Clients;

  before(async () => {
    server = await startTestServer();
    brief = await startTestServer({ sessionKeyTtl: 300 });
  });
  after(() => Promise.all([server.stop(), brief.stop()]));
  beforeEach(async () => {
    tenant = await newTenant(['user', 'other']);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  });
  afterEach(() => client.close());

  const as = (user: string, env = 'dev', of = tenant) => metadataOf(headersOf(of, user, env));
  const nobody = (of = tenant, env = 'dev') => metadataOf({ 'x-tenant-id': of, 'x-env': env });
  const upsert = (session: object = {}, rest: object = {}) =>
    client.memory.upsertSession({ session: { surfaceId: 'web', ...session }, ...rest });
  const byKey = (key: string, rest: object = {}, metadata = nobody()) =>
    client.memory.resumeSession({ target: { $case: 'sessionKey', value: key }, ...rest }, metadata);
  const byId = (id: string, rest: object = {}) =>
    client.memory.resumeSession({ target: { $case: 'sessionId', value: id }, ...rest });
  const append = (threadId: string, contents: string[]) =>
    client.conversation.appendMessages({
      threadId,
      messages: contents.map((content) => ({ role: MessageRole.HUMAN, content })),
    });

  describe('resume', () => {
    it('gives the session and its newest messages in order', async () => {
      const { session } = await upsert({ threadId: 't', title: 'a', state: { x: 1 } });
      await append(
        't',
        Array.from({ length: 60 }, (_, i) => `m${i + 1}`),
      );
      const all = await byId(session!.id);
      expect(all.created).to.equal(false);
      expect(all.session).to.deep.include({
        id: session!.id,
        title: 'a',
        state: { x: 1 },
        revision: 1,
        etag: session!.etag,
      });
      expect(all.messages.map((m) => m.seq)).to.deep.equal(Array.from({ length: 50 }, (_, i) => i + 11));
      expect((await byId(session!.id, { lastN: 2 })).messages.map((m) => m.content)).to.deep.equal(['m59', 'm60']);
      expect((await byId(session!.id, { lastN: 0 })).messages).to.deep.equal([]);
      expect((await byId(session!.id, { lastN: 500 })).messages).to.have.length(60);
      for (const lastN of [-1, 501]) {
        const refused = await failure(byId(session!.id, { lastN }));
        expect(refused.violations.map((v) => v.field)).to.deep.equal(['last_n']);
      }
      for (let i = 0; i < 5; i++) await append('t', ['x'.repeat(250 * 1024)]);
      expect((await byId(session!.id)).messages.map((m) => m.seq)).to.deep.equal([62, 63, 64, 65]);
    });

    it('creates a session only if that is asked for', async () => {
      const absent = randomUUID();
      expect(await failure(byId(absent))).to.include({ code: status.NOT_FOUND, reason: 'NOT_FOUND' });
      expect((await failure(client.memory.resumeSession({}))).violations.map((v) => v.field)).to.deep.equal(['target']);
      const unnamed = await failure(byId(absent, { createIfMissing: true }));
      expect(unnamed.violations.map((v) => v.field)).to.deep.equal(['surface_id']);
      const create = { createIfMissing: true, surfaceId: 'web', projectId: 'p', threadId: 't' };
      const made = await byId(absent, create);
      expect(made.created).to.equal(true);
      expect(made.session).to.deep.include({ userId: 'user', surfaceId: 'web', projectId: 'p', threadId: 't' });
      const found = await byId(made.session!.id, create);
      expect([found.created, found.session!.id]).to.deep.equal([false, made.session!.id]);
      // The key belongs to one live session.
      const again = await client.memory.resumeSession(create);
      expect([again.created, again.session!.id]).to.deep.equal([false, made.session!.id]);
    });

    it('lets a new session take the place of an ended, deleted or expired one', async () => {
      const create = { createIfMissing: true, surfaceId: 'web', threadId: 't' };
      let { id } = (await upsert({ threadId: 't' })).session!;
      const ways = [
        () => client.memory.endSession({ sessionId: id }),
        () => client.memory.deleteSession({ sessionId: id }),
        () => tenantSql(tenant, 'update sessions set expire_time = now() where id = $1', [id]),
      ];
      for (const way of ways) {
        await way();
        const next = await byId(id, create);
        expect([next.created, next.session!.id === id]).to.deep.equal([true, false]);
        id = next.session!.id;
      }
      expect((await append('t', ['goes on'])).messages[0]!.seq).to.equal(1);
    });

    it('gives the first response again to the same request_id', async () => {
      const { session } = await upsert({ threadId: 't' });
      await append('t', ['a']);
      const requestId = randomUUID();
      const first = await byId(session!.id, { requestId });
      await append('t', ['b']);
      await upsert({ threadId: 't', title: 'later' });
      expect(await byId(session!.id, { requestId })).to.deep.equal(first);
      const create = { requestId: randomUUID(), createIfMissing: true, surfaceId: 'ide' };
      const made = await Promise.all(Array.from({ length: 10 }, () => client.memory.resumeSession(create)));
      for (const response of made) expect(response).to.deep.equal(made[0]);
      expect(await rowCounts(tenant, ['sessions'])).to.deep.equal({ sessions: 2 });
    });
  });

  describe('session keys', () => {
    it('find the session and its user', async () => {
      const { session, sessionKey } = await upsert({ threadId: 't' }, { issueSessionKey: true });
      await append('t', ['hello']);
      expect(Buffer.byteLength(sessionKey)).to.be.at.least(43);
      for (const metadata of [nobody(), as('user')]) {
        const resumed = await byKey(sessionKey, {}, metadata);
        expect(resumed.session).to.include({ id: session!.id, userId: 'user' });
        expect(resumed.messages.map((m) => m.content)).to.deep.equal(['hello']);
      }
      const { sessionKey: second } = await upsert({ threadId: 't' }, { issueSessionKey: true });
      expect(second).to.not.equal(sessionKey);
      for (const key of [sessionKey, second]) expect((await byKey(key)).session!.id).to.equal(session!.id);
    });

    it('are worth nothing elsewhere: another user, env or tenant, or another key', async () => {
      const { sessionKey } = await upsert({}, { issueSessionKey: true });
      const foreign = await newTenant(['user']);
      await tenantSql(tenant, `insert into tenant_members values ($1, 'prod', 'user', 1)`, [tenant]);
      const calls = [
        () => byKey(`${sessionKey.slice(0, -1)}${sessionKey.endsWith('A') ? 'B' : 'A'}`),
        () => byKey('x'),
        () => byKey(sessionKey, {}, as('other')),
        () => byKey(sessionKey, {}, nobody(foreign)),
        () => byKey(sessionKey, {}, as('user', 'dev', foreign)),
        () => byKey(sessionKey, {}, nobody(tenant, 'prod')),
        () => byKey(sessionKey, {}, as('user', 'prod')),
      ];
      const answers = [];
      for (const call of calls) answers.push(await failure(call()));
      for (const answer of answers) expect(answer).to.deep.equal(answers[0]);
      expect(answers[0]).to.include({ code: status.NOT_FOUND, reason: 'NOT_FOUND' });
    });

    it('stop working when they are revoked, and when the session ends, is deleted or expires', async () => {
      const issue = async (surfaceId: string, rest: object = {}) =>
        client.memory.upsertSession({ session: { surfaceId }, issueSessionKey: true, ...rest });
      const old = await issue('web');
      const fresh = await issue('web', { revokeSessionKeys: true });
      expect(await failure(byKey(old.sessionKey))).to.include({ code: status.NOT_FOUND });
      expect((await byKey(fresh.sessionKey)).session!.id).to.equal(old.session!.id);
      await upsert({}, { revokeSessionKeys: true });
      const ended = await issue('ended');
      await client.memory.endSession({ sessionId: ended.session!.id });
      const deleted = await issue('deleted');
      await client.memory.deleteSession({ sessionId: deleted.session!.id });
      const expired = await issue('expired');
      await tenantSql(tenant, 'update sessions set expire_time = now() where id = $1', [expired.session!.id]);
      for (const { sessionKey } of [fresh, ended, deleted, expired]) {
        expect(await failure(byKey(sessionKey))).to.include({ code: status.NOT_FOUND, reason: 'NOT_FOUND' });
      }
      const made = await byKey(ended.sessionKey, { createIfMissing: true, surfaceId: 'ended' }, as('user'));
      expect([made.created, made.session!.userId]).to.deep.equal([true, 'user']);
    });

    it('live as long as the service says', async () => {
      const short = connect(`127.0.0.1:${brief.port}`, headersOf(tenant));
      const { sessionKey } = await short.memory.upsertSession({ session: { surfaceId: 'web' }, issueSessionKey: true });
      await until(() =>
        byKey(sessionKey).then(
          () => false,
          (error) => error.code === status.NOT_FOUND,
        ),
      );
      const [{ due }] = await tenantSql(tenant, 'select expire_time <= clock_timestamp() as due from session_keys');
      expect(due).to.equal(true);
      short.close();
    });

    it('come out the same in a replay, and are stored in clear nowhere', async () => {
      const requestId = randomUUID();
      const calls = Array.from({ length: 5 }, () => upsert({}, { issueSessionKey: true, requestId }));
      const keys = new Set((await Promise.all(calls)).map((response) => response.sessionKey));
      keys.add((await upsert({}, { issueSessionKey: true, requestId })).sessionKey);
      expect(keys.size).to.equal(1);
      const [key] = keys as Set<string>;
      expect((await byKey(key!)).created).to.equal(false);
      const tables = ['session_keys', 'requests', 'sessions', 'audit_events'];
      expect((await rowCounts(tenant, tables)).session_keys).to.equal(1);
      const rows = await Promise.all(
        tables.map((table) => tenantSql(tenant, `select t::text as text from ${table} t`)),
      );
      const held = rows
        .flat()
        .map((row) => row.text)
        .join('\n');
      const secret = key!.slice(-43);
      const forms = [secret, Buffer.from(secret).toString('hex'), Buffer.from(secret, 'base64url').toString('hex')];
      for (const form of forms) expect(held).to.not.contain(form);
      expect(held).to.contain(createHash('sha256').update(key!).digest('hex'));
    });
  });

  describe('anonymous users', () => {
    it('are minted, and are members from then on', async () => {
      const anonymous = { session: { surfaceId: 'web', threadId: 't' }, anonymous: true, issueSessionKey: true };
      const { session, sessionKey } = await client.memory.upsertSession(anonymous, nobody());
      expect(session).to.include({ anonymous: true });
      expect(session!.userId).to.match(/^anon-[0-9a-f-]{36}$/);
      const minted = connect(`127.0.0.1:${server.port}`, headersOf(tenant, session!.userId));
      await minted.conversation.appendMessages({
        threadId: 't',
        messages: [{ role: MessageRole.HUMAN, content: 'hi' }],
      });
      expect((await minted.memory.getSession({ sessionId: session!.id })).session!.id).to.equal(session!.id);
      expect((await byKey(sessionKey)).session).to.include({ userId: session!.userId, anonymous: true });
      const known = await minted.memory.upsertSession({ session: { id: session!.id, email: 'ann@example.com' } });
      expect(known.session!.anonymous).to.equal(false);
      minted.close();
      const members = await tenantSql(
        tenant,
        'select env, role, anonymous from tenant_members where user_id = $1 and tenant_id = $2',
        [session!.userId, tenant],
      );
      expect(members).to.deep.equal([{ env: 'dev', role: 1, anonymous: true }]);
      expect(await failure(client.memory.listSessions({}, as(session!.userId, 'prod')))).to.include({ code: 7 });
    });

    it('each get a user of their own, and one request_id mints one', async () => {
      const mint = (requestId = '') =>
        client.memory.upsertSession({ session: { surfaceId: 'web' }, anonymous: true, requestId }, nobody());
      const users = (await Promise.all([mint(), mint(), mint()])).map((response) => response.session!.userId);
      expect(new Set(users).size).to.equal(3);
      const requestId = randomUUID();
      const all = await Promise.all(Array.from({ length: 10 }, () => mint(requestId)));
      for (const response of all) expect(response).to.deep.equal(all[0]);
      const sql = `select count(*)::int as n from tenant_members where tenant_id = $1 and anonymous`;
      expect(await tenantSql(tenant, sql, [tenant])).to.deep.equal([{ n: 4 }]);
      expect(await rowCounts(tenant, ['sessions'])).to.deep.equal({ sessions: 4 });
    });

    it('are minted by a resume that finds nothing', async () => {
      const create = { createIfMissing: true, surfaceId: 'web', anonymous: true };
      const made = await byKey('forgotten', create);
      expect(made).to.include({ created: true });
      expect(made.session).to.include({ anonymous: true });
      const minted = await client.memory.listSessions({}, as(made.session!.userId));
      expect(minted.sessions.map((session) => session.id)).to.deep.equal([made.session!.id]);
    });

    it('are refused where a user is named, and nobody is minted unasked', async () => {
      const named = await failure(upsert({}, { anonymous: true }));
      expect(named.code).to.equal(status.INVALID_ARGUMENT);
      expect(named.violations.map((v) => v.field)).to.deep.equal(['anonymous']);
      const unasked = [
        () => client.memory.upsertSession({ session: { surfaceId: 'web' } }, nobody()),
        () => client.memory.resumeSession({ createIfMissing: true, surfaceId: 'web' }, nobody()),
        () => client.memory.listSessions({}, nobody()),
        () => client.memory.getSession({ sessionId: randomUUID() }, nobody()),
      ];
      for (const call of unasked) expect(await failure(call())).to.include({ code: status.UNAUTHENTICATED });
      const unknown = nobody(`t-${randomUUID()}`);
      const anonymous = { session: { surfaceId: 'web' }, anonymous: true };
      expect(await failure(client.memory.upsertSession(anonymous, unknown))).to.include({
        code: status.PERMISSION_DENIED,
      });
      expect(await rowCounts(tenant, ['sessions'])).to.deep.equal({ sessions: 0 });
    });
  });
});

import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import { PinnedRef_Kind } from '../src/gen/memory/v1/session.ts';
import type { RunningServer } from '../src/server.ts';
import {
  allPages,
  type Clients,
  connect,
  failure,
  headersOf,
  metadataOf,
  nanosOf,
  newTenant,
  startTestServer,
  tenantSql,
} from './support.ts';

describe('sessions', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;

  before(async () => {
    server = await startTestServer();
  });
  after(() => server.stop());
  beforeEach(async () => {
    tenant = await newTenant(['user', 'other']);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  });
  afterEach(() => client.close());

  const other = () => metadataOf(headersOf(tenant, 'other'));
  const upsert = (session: object, rest: object = {}) =>
    client.memory.upsertSession({ session: { surfaceId: 'web', ...session }, ...rest });
  const created = async (session: object = {}) => (await upsert(session)).session!;
  const get = async (sessionId: string) => (await client.memory.getSession({ sessionId })).session!;
  const append = (threadId: string, contents: string[], sessionId = '') =>
    client.conversation.appendMessages({
      threadId,
      sessionId,
      messages: contents.map((content) => ({ role: MessageRole.HUMAN, content })),
    });

  const FULL = {
    surfaceId: 'slack',
    projectId: 'p',
    threadId: 't',
    title: 'Grüße 👋',
    preferences: { theme: 'dark', nested: { list: [1, null, 'x'], ключ: 1.5 } },
    state: { step: 3, done: false },
    metadata: { a: '' },
    metrics: { calls: 12 },
    toolId: 'tool',
    workspacePath: '/w',
    processId: '42',
    email: 'user@example.com',
    pinned: true,
    archived: true,
  };

  it('creates a session and reads it back', async () => {
    const pinnedRefs = [{ id: 'p1', kind: PinnedRef_Kind.FACT, text: 'likes tea', uri: '' }];
    const summaryRefs = [{ id: 's1', uri: 'u', text: 'so far', throughSeq: 7 }];
    const response = await client.memory.upsertSession({ session: { ...FULL, pinnedRefs, summaryRefs } });
    const { session } = response;
    expect(response).to.include({ created: true, sessionKey: '' });
    expect(session).to.deep.include({ ...FULL, userId: 'user', anonymous: false, revision: 1 });
    expect(session!.id).to.match(/^[0-9a-f]{8}-[0-9a-f]{4}-7/);
    expect(session!.pinnedRefs[0]).to.deep.include(pinnedRefs[0]);
    expect(session!.summaryRefs[0]).to.deep.include(summaryRefs[0]);
    for (const time of [session!.pinnedRefs[0]!.pinTime, session!.summaryRefs[0]!.createTime, session!.updateTime]) {
      expect(nanosOf(time)).to.equal(nanosOf(session!.createTime));
    }
    expect(session!.etag).to.not.equal('');
    expect([session!.endTime, session!.expireTime]).to.deep.equal([undefined, undefined]);
    expect(await get(session!.id)).to.deep.equal(session);
  });

  it('finds the live session by user, surface, project and thread', async () => {
    const first = await created({ title: 'a' });
    expect(first.threadId).to.match(/.+/);
    const again = await upsert({ state: { x: 1 } });
    expect(again.created).to.equal(false);
    expect(again.session).to.deep.include({ id: first.id, threadId: first.threadId, title: 'a', revision: 2 });
    const differing = [{ surfaceId: 'ide' }, { projectId: 'p' }, { threadId: 't' }, { projectId: 'p', threadId: 't' }];
    const ids = [first.id];
    for (const key of differing) ids.push((await created(key)).id);
    ids.push((await client.memory.upsertSession({ session: { surfaceId: 'web' } }, other())).session!.id);
    expect(new Set(ids).size).to.equal(6);
  });

  it('creates one session for 10 concurrent calls with the same key', async () => {
    const all = await Promise.all(Array.from({ length: 10 }, (_, i) => upsert({ state: { [`k${i}`]: i } })));
    expect(new Set(all.map((r) => r.session!.id)).size).to.equal(1);
    expect(all.filter((r) => r.created)).to.have.length(1);
    expect(Object.keys((await get(all[0]!.session!.id)).state!)).to.have.length(10);
  });

  it('changes what is present and nothing else', async () => {
    const { id, ...before } = (await client.memory.upsertSession({ session: FULL })).session!;
    const after = (await client.memory.upsertSession({ session: { id, title: '', pinned: false, toolId: 'new' } }))
      .session!;
    const { etag, revision, updateTime, lastActivityTime, ...rest } = after;
    expect(rest).to.deep.include({ ...FULL, title: '', pinned: false, toolId: 'new' });
    expect([etag === before.etag, revision]).to.deep.equal([false, 2]);
    expect(nanosOf(updateTime) > nanosOf(before.updateTime)).to.equal(true);
    expect(nanosOf(lastActivityTime) > nanosOf(before.lastActivityTime)).to.equal(true);
  });

  it('takes a session back as it was read', async () => {
    const read = await get((await created({ title: 'a', preferences: { x: 1 } })).id);
    const { session, created: made } = await client.memory.upsertSession({ session: { ...read, title: 'b' } });
    expect(made).to.equal(false);
    expect(session).to.deep.include({ id: read.id, title: 'b', threadId: read.threadId, preferences: { x: 1 } });
  });

  it('refuses to change key fields, and changes nothing', async () => {
    const session = await created({ projectId: 'p', threadId: 't' });
    const changed = { surfaceId: 'ide', projectId: 'q', threadId: 'u' };
    const refused = await failure(client.memory.upsertSession({ session: { id: session.id, title: 'x', ...changed } }));
    expect(refused.code).to.equal(status.INVALID_ARGUMENT);
    const fields = ['session.surface_id', 'session.project_id', 'session.thread_id'];
    expect(refused.violations.map((v) => v.field)).to.have.members(fields);
    expect(await get(session.id)).to.deep.equal(session);
    expect((await upsert({ id: session.id, projectId: 'p', threadId: 't' })).session!.id).to.equal(session.id);
  });

  it("answers another user's session as if it did not exist", async () => {
    const { id, etag, threadId } = await created();
    const absent = '01900000-0000-7000-8000-000000000000';
    const calls = (sessionId: string) => [
      () => client.memory.getSession({ sessionId }, other()),
      () => client.memory.upsertSession({ session: { id: sessionId, title: 'mine' } }, other()),
      () => client.memory.resumeSession({ target: { $case: 'sessionId', value: sessionId } }, other()),
      () => client.memory.endSession({ sessionId }, other()),
      () => client.memory.deleteSession({ sessionId }, other()),
    ];
    for (const [i, call] of calls(id).entries()) {
      const refused = await failure(call());
      expect(refused).to.include({ code: status.NOT_FOUND, reason: 'NOT_FOUND' });
      expect(refused).to.deep.equal(await failure(calls(absent)[i]!()));
    }
    expect(await get(id)).to.deep.include({ etag, threadId });
    await client.memory.deleteSession({ sessionId: id });
    for (const call of calls(id)) expect(await failure(call())).to.include({ code: 5, reason: 'NOT_FOUND' });
  });

  it('lists newest activity first, page by page, by every filter', async () => {
    const a = await created({ threadId: 'a', projectId: 'p', toolId: 'tool', pinned: true });
    const b = await created({ surfaceId: 'ide', threadId: 'b', workspacePath: '/w', processId: '7', archived: true });
    const c = await created({ threadId: 'c' });
    const d = await created({ threadId: 'd' });
    await client.memory.upsertSession({ session: { surfaceId: 'web' } }, other());
    await client.memory.endSession({ sessionId: c.id });
    await client.memory.deleteSession({ sessionId: d.id });
    await append('a', ['hello']);
    const list = async (filter: object) =>
      (await client.memory.listSessions(filter)).sessions.map((session) => session.threadId).join('');
    expect(await list({})).to.equal('acb');
    const { sessions } = await client.memory.listSessions({});
    expect(sessions[0]).to.deep.equal(await get(a.id));
    const found: [object, string][] = [
      [{ surfaceId: 'ide' }, 'b'],
      [{ projectId: 'p' }, 'a'],
      [{ threadId: 'c' }, 'c'],
      [{ toolId: 'tool' }, 'a'],
      [{ workspacePath: '/w' }, 'b'],
      [{ processId: '7' }, 'b'],
      [{ pinned: true }, 'a'],
      [{ pinned: false }, 'cb'],
      [{ archived: true }, 'b'],
      [{ archived: false }, 'ac'],
      [{ ended: true }, 'c'],
      [{ ended: false }, 'ab'],
      [{ activeSince: sessions[1]!.lastActivityTime }, 'ac'],
      [{ surfaceId: 'web', pinned: false, ended: true }, 'c'],
      [{ surfaceId: 'ide', pinned: true }, ''],
      [{ surfaceId: 'nowhere' }, ''],
    ];
    for (const [filter, threads] of found) expect(await list(filter), JSON.stringify(filter)).to.equal(threads);
    expect(nanosOf(b.lastActivityTime) < nanosOf(sessions[1]!.lastActivityTime)).to.equal(true);
  });

  it('pages without a double, binds its tokens to the call, ends a page at 1 MiB', async () => {
    for (let i = 0; i < 7; i++) await created({ threadId: `t${i}` });
    const pages = await allPages(async (pageToken) => {
      const page = await client.memory.listSessions({ pageSize: 3, surfaceId: 'web', pageToken });
      await created({ threadId: `newer than ${page.sessions[0]!.threadId}` }); // what comes before a page moves nothing on it
      return page;
    });
    const threads = pages.map((page) => page.sessions.map((session) => session.threadId));
    expect(threads).to.deep.equal([['t6', 't5', 't4'], ['t3', 't2', 't1'], ['t0']]);
    const pageToken = pages[0]!.nextPageToken;
    const misused = [
      client.memory.listSessions({ pageSize: 3, surfaceId: 'ide', pageToken }),
      client.memory.listSessions({ pageSize: 3, surfaceId: 'web', pageToken }, other()),
      client.memory.listSessions({ pageSize: 3, surfaceId: 'web', pageToken: `${pageToken.slice(0, -2)}AA` }),
      client.memory.listSessions({ pageSize: -1 }),
    ];
    const codes = (await Promise.all(misused.map(failure))).map((refused) => refused.code);
    expect(codes).to.deep.equal(Array(4).fill(status.INVALID_ARGUMENT));

    const wide = { text: 'x'.repeat(60 * 1024) };
    for (let i = 0; i < 6; i++) {
      await created({
        surfaceId: 'big',
        threadId: `${i}`,
        preferences: wide,
        state: wide,
        metadata: wide,
        metrics: wide,
      });
    }
    const sizes = await allPages((token) => client.memory.listSessions({ surfaceId: 'big', pageToken: token }));
    expect(sizes.map((page) => page.sessions.length)).to.deep.equal([4, 2]);
    expect((await client.memory.listSessions({ pageSize: 100_000 })).sessions.length).to.be.greaterThan(3);
  });

  it('ends a session: it can be read and listed, but not changed or resumed', async () => {
    const { id } = await created({ threadId: 't' });
    const stale = await failure(client.memory.endSession({ sessionId: id, etag: 'stale' }));
    expect(stale).to.include({ code: status.ABORTED, reason: 'ETAG_MISMATCH' });
    const live = await get(id);
    expect(stale.metadata.etag).to.equal(live.etag);
    const ended = (await client.memory.endSession({ sessionId: id, etag: live.etag })).session!;
    expect(ended.endTime).to.not.equal(undefined);
    expect((await client.memory.endSession({ sessionId: id })).session).to.deep.equal(ended);
    expect(await get(id)).to.deep.equal(ended);
    expect((await client.memory.listSessions({})).sessions).to.deep.equal([ended]);
    const late = [
      () => upsert({ id, title: 'late' }),
      () => client.memory.resumeSession({ target: { $case: 'sessionId', value: id } }),
      () => append('', ['late'], id),
    ];
    for (const call of late) {
      expect(await failure(call())).to.include({ code: status.FAILED_PRECONDITION, reason: 'SESSION_ENDED' });
    }
    const next = await upsert({ threadId: 't' });
    expect([next.created, next.session!.id === id]).to.deep.equal([true, false]);
    expect((await append('t', ['goes on'])).messages[0]!.seq).to.equal(1);
    expect(await get(id)).to.deep.equal(ended);
  });

  it('deletes a session with its thread, and refuses late writes', async () => {
    const { id, etag } = await created({ ...FULL, surfaceId: 'web' });
    await append('t', ['secret'], id);
    expect(await failure(client.memory.deleteSession({ sessionId: id, etag: 'stale' }))).to.include({
      code: status.ABORTED,
      reason: 'ETAG_MISMATCH',
    });
    expect(await client.memory.deleteSession({ sessionId: id, etag })).to.include({ threadDeleted: true });
    const late = [
      () => get(id),
      () => upsert({ id, title: 'late' }),
      () => client.memory.resumeSession({ target: { $case: 'sessionId', value: id } }),
      () => client.memory.endSession({ sessionId: id }),
      () => client.memory.deleteSession({ sessionId: id }),
      () => append('', ['late'], id),
      () => append('t', ['late'], id),
      () => append('t', ['late']),
      () => client.conversation.listMessages({ threadId: 't' }),
    ];
    for (const [i, call] of late.entries()) {
      expect(await failure(call()), `${i}`).to.include({ code: status.NOT_FOUND, reason: 'DELETED' });
    }
    const held = (await tenantSql(tenant, 'select to_jsonb(s)::text as held from sessions s')).map((row) => row.held);
    for (const trace of ['dark', 'Grüße', 'example', '/w', 'step', 'calls']) expect(held.join()).to.not.contain(trace);
    const next = await upsert({ projectId: 'p', threadId: 't' });
    expect([next.created, next.session!.id === id]).to.deep.equal([true, false]);
    expect((await append('t', ['new'])).messages[0]!.seq).to.equal(1);
  });

  it('keeps the thread while another live session points to it', async () => {
    const [a, b, c, d] = await Promise.all(
      ['web', 'ide', 'cli', 'bot'].map((surfaceId) => created({ surfaceId, threadId: 't' })),
    );
    await append('t', ['x']);
    expect(await client.memory.deleteSession({ sessionId: a!.id })).to.include({ threadDeleted: false });
    expect((await client.conversation.listMessages({ threadId: 't' })).messages).to.have.length(1);
    // Neither an ended nor an expired session is live.
    await client.memory.endSession({ sessionId: b!.id });
    await tenantSql(tenant, 'update sessions set expire_time = now() where id = $1', [c!.id]);
    expect(await client.memory.deleteSession({ sessionId: d!.id })).to.include({ threadDeleted: true });
    expect(await failure(client.conversation.listMessages({ threadId: 't' }))).to.include({ reason: 'DELETED' });
  });

  it('deletes the thread when all its sessions are deleted at once', async () => {
    const surfaces = Array.from({ length: 6 }, (_, i) => `s${i}`);
    const sessions = await Promise.all(surfaces.map((surfaceId) => created({ surfaceId, threadId: 't' })));
    await append('t', ['x']);
    const all = await Promise.all(sessions.map(({ id }) => client.memory.deleteSession({ sessionId: id })));
    expect(all.filter((response) => response.threadDeleted)).to.have.length(1);
    expect(await failure(client.conversation.listMessages({ threadId: 't' }))).to.include({ reason: 'DELETED' });
  });

  it('keeps the thread of a session that is created while the last one is deleted', async () => {
    const threads = Array.from({ length: 12 }, (_, i) => `t${i}`);
    const kept = await Promise.all(threads.map((threadId) => created({ threadId })));
    await Promise.all(threads.map((threadId) => append(threadId, ['x'])));
    const race = threads.flatMap((threadId, i) => [
      client.memory.deleteSession({ sessionId: kept[i]!.id }),
      created({ surfaceId: 'ide', threadId }),
    ]);
    await Promise.all(race);
    const { sessions } = await client.memory.listSessions({ ended: false });
    expect(sessions).to.have.length(12);
    await Promise.all(sessions.map((session) => append(session.threadId, ['y'], session.id)));
  });
});

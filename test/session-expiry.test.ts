import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import type { RunningServer } from '../src/server.ts';
import { sweep } from '../src/tenants/expiry.ts';
import {
  type Clients,
  connect,
  failure,
  headersOf,
  nanosOf,
  newTenant,
  rowCounts,
  startTestServer,
  tenantSql,
  until,
} from './support.ts';

describe('session expiry', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;

  before(async () => {
    server = await startTestServer();
  });
  after(() => server.stop());
  beforeEach(async () => {
    tenant = await newTenant();
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  });
  afterEach(() => client.close());

  const seconds = (count: number) => ({ $case: 'ttl' as const, value: { seconds: count, nanos: 0 } });
  const millis = (count: number) => ({ $case: 'ttl' as const, value: { seconds: 0, nanos: count * 1e6 } });
  const at = (time: Date) => ({
    $case: 'expireTime' as const,
    value: { seconds: Math.floor(time.getTime() / 1000), nanos: (time.getTime() % 1000) * 1e6 },
  });
  const upsert = (session: object, rest: object = {}) =>
    client.memory.upsertSession({ session: { surfaceId: 'web', ...session }, ...rest });
  const stored = async (session: object, rest: object = {}) => (await upsert(session, rest)).session!;
  const get = async (sessionId: string) => (await client.memory.getSession({ sessionId })).session!;
  const resume = async (id: string) =>
    (await client.memory.resumeSession({ target: { $case: 'sessionId', value: id } })).session!;
  const human = (content: string) => ({ role: MessageRole.HUMAN, content });
  const expire = () => tenantSql(tenant, 'update sessions set expire_time = clock_timestamp()');
  const clock = async () => {
    const [row] = await tenantSql(
      tenant,
      'select (extract(epoch from clock_timestamp()) * 1000000)::bigint::text as us',
    );
    return BigInt(row.us) * 1000n;
  };

  it('is at the given instant, or the given time from now', async () => {
    const instant = at(new Date('2099-12-31T23:59:59.123Z'));
    expect((await stored({}, { expiration: instant })).expireTime).to.deep.equal(instant.value);
    expect((await stored({ title: 'stays' })).expireTime).to.deep.equal(instant.value);
    const before = await clock();
    const { id, expireTime } = await stored({}, { expiration: seconds(3600) });
    const hour = 3600n * 1_000_000_000n;
    expect(nanosOf(expireTime) >= before + hour && nanosOf(expireTime) <= (await clock()) + hour).to.equal(true);
    expect((await get(id)).expireTime).to.deep.equal(expireTime);
    expect((await stored({}, { updateMask: ['expiration'] })).expireTime).to.equal(undefined);
    const other = await stored({ surfaceId: 'ide' }, { expiration: seconds(5), updateMask: ['title', 'expiration'] });
    expect(other.expireTime).to.not.equal(undefined);
  });

  it('is refused in the past, after the year 9999 and past 3,650 days', async () => {
    const refused = [
      [at(new Date(Date.now() - 60_000)), 'expire_time'],
      [{ $case: 'expireTime', value: { seconds: 253402300800, nanos: 0 } }, 'expire_time'],
      [seconds(0), 'ttl'],
      [seconds(-1), 'ttl'],
      [seconds(3650 * 86_400 + 1), 'ttl'],
    ] as const;
    for (const [expiration, field] of refused) {
      const answer = await failure(upsert({}, { expiration }));
      expect(answer.code).to.equal(status.INVALID_ARGUMENT);
      expect(answer.violations.map((violation) => violation.field)).to.deep.equal([field]);
    }
    expect((await client.memory.listSessions({})).sessions).to.deep.equal([]);
    await stored({}, { expiration: seconds(3650 * 86_400) });
  });

  it("makes the session invisible from that instant by the database's clock, swept or not", async () => {
    const { id, expireTime } = await stored({ threadId: 't' }, { expiration: millis(400) });
    const due = nanosOf(expireTime);
    for (let before = 0n; before < due; ) {
      before = await clock();
      const [got, listed] = await Promise.all([
        get(id).then(
          () => true,
          (error) => error.code !== status.NOT_FOUND,
        ),
        client.memory.listSessions({}).then(({ sessions }) => sessions.length === 1),
      ]);
      // Between the two looks at the clock either answer is right.
      if ((await clock()) < due) expect([got, listed]).to.deep.equal([true, true]);
      if (before >= due) expect([got, listed]).to.deep.equal([false, false]);
    }
    for (const swept of [false, true]) {
      if (swept) await sweep(server.kernel.database);
      const calls = [
        () => get(id),
        () => upsert({ id, title: 'late' }),
        () => upsert({ id, title: 'late' }, { expiration: seconds(60) }),
        () => resume(id),
        () => client.memory.endSession({ sessionId: id }),
        () => client.memory.deleteSession({ sessionId: id }),
        () => client.conversation.appendMessages({ sessionId: id, messages: [human('late')] }),
        () => client.conversation.appendMessages({ threadId: 't', sessionId: id, messages: [human('late')] }),
      ];
      for (const call of calls) {
        expect(await failure(call())).to.include({ code: status.NOT_FOUND, reason: 'NOT_FOUND' });
      }
      expect((await client.memory.listSessions({})).sessions).to.deep.equal([]);
    }
    await until(async () => {
      await sweep(server.kernel.database);
      return (await rowCounts(tenant, ['sessions'])).sessions === 0;
    });
  });

  it('makes way for a new session, swept or not, and leaves the thread', async () => {
    let last = await stored({ threadId: 't', title: 'old', state: { x: 1 } });
    await client.conversation.appendMessages({ threadId: 't', messages: [human('a')] });
    for (const swept of [false, true]) {
      await expire();
      if (swept) await sweep(server.kernel.database);
      const all = await Promise.all(Array.from({ length: 8 }, () => upsert({ threadId: 't' })));
      expect(new Set(all.map((response) => response.session!.id)).size).to.equal(1);
      expect(all.filter((response) => response.created)).to.have.length(1);
      const next = all[0]!.session!;
      expect(next.id === last.id).to.equal(false);
      const now = await get(next.id);
      expect(now).to.deep.include({ title: '', state: {}, expireTime: undefined });
      expect((await client.memory.listSessions({})).sessions).to.deep.equal([now]);
      last = next;
    }
    expect((await client.conversation.listMessages({ threadId: 't' })).messages).to.have.length(1);
  });

  it('refuses the etag of an expired session', async () => {
    const { etag } = await stored({});
    await expire();
    expect(await failure(upsert({ etag, title: 'b' }))).to.include({ code: status.ABORTED, reason: 'ETAG_MISMATCH' });
  });

  describe('sliding', () => {
    it('moves with each write to the session or its thread and each resume, not with reads', async () => {
      const { id, expireTime } = await stored(
        { threadId: 't', surfaceId: 'web' },
        { expiration: seconds(600), slidingTtl: true },
      );
      for (const threadId of ['s', 't']) {
        await client.conversation.appendMessages({ threadId, messages: [human('a')] });
      }
      let last = { expireTime, lastActivityTime: undefined as any };
      const inline = { sourceThreadId: 's', selection: { selection: { $case: 'lastN' as const, value: 1 } } };
      const bundle = { source: { $case: 'inline' as const, value: inline }, targetThreadId: 't' };
      const moves: Record<string, () => Promise<unknown>> = {
        'upsert by id': () => upsert({ id, title: 'a' }),
        'upsert by key': () => upsert({ threadId: 't', state: { x: 1 } }),
        'append to the thread': () => client.conversation.appendMessages({ threadId: 't', messages: [human('a')] }),
        'append to the session': () => client.conversation.appendMessages({ sessionId: id, messages: [human('a')] }),
        forward: () => client.memory.forwardBundle(bundle),
        resume: () => resume(id),
      };
      for (const [name, move] of Object.entries(moves)) {
        await move();
        const now = await get(id);
        expect(nanosOf(now.expireTime) > nanosOf(last.expireTime), name).to.equal(true);
        if (last.lastActivityTime)
          expect(nanosOf(now.lastActivityTime) > nanosOf(last.lastActivityTime)).to.equal(true);
        last = now;
        await client.memory.listSessions({});
        await client.conversation.listMessages({ threadId: 't' });
        await client.memory.saveBundle({ sourceThreadId: 't', selection: { selection: { $case: 'lastN', value: 1 } } });
        expect(await get(id), name).to.deep.equal(now);
      }
      const ahead = nanosOf(last.expireTime) - (await clock());
      expect(ahead > 500n * 1_000_000_000n && ahead <= 600n * 1_000_000_000n).to.equal(true);
    });

    it('counts snapshot changes only in revision, etag and update_time', async () => {
      const { id, revision, etag, updateTime } = await stored(
        { threadId: 't' },
        { expiration: seconds(600), slidingTtl: true },
      );
      await client.conversation.appendMessages({ threadId: 't', messages: [human('a')] });
      await resume(id);
      expect(await get(id)).to.deep.include({ revision, etag, updateTime });
    });

    it('leaves a fixed expiry where it is', async () => {
      const { id, expireTime } = await stored({ threadId: 't' }, { expiration: seconds(600) });
      await stored({ threadId: 't', title: 'a' });
      await client.conversation.appendMessages({ threadId: 't', messages: [human('a')] });
      await resume(id);
      expect((await get(id)).expireTime).to.deep.equal(expireTime);
    });

    it('stops when another expiry is set, or none', async () => {
      for (const other of [
        { expiration: seconds(600) },
        { expiration: at(new Date('2099-01-01')) },
        { updateMask: ['expiration'] },
      ]) {
        await stored({ threadId: 't' }, { expiration: seconds(60), slidingTtl: true });
        const { id, expireTime } = await stored({ threadId: 't' }, other);
        await resume(id);
        await client.conversation.appendMessages({ threadId: 't', messages: [human('a')] });
        expect((await stored({ threadId: 't', title: 'x' })).expireTime).to.deep.equal(expireTime);
      }
    });

    it('revives nothing that has expired', async () => {
      const { id } = await stored({ threadId: 't' }, { expiration: seconds(600), slidingTtl: true });
      await expire();
      await client.conversation.appendMessages({ threadId: 't', messages: [human('a')] });
      expect(await failure(resume(id))).to.include({ code: status.NOT_FOUND });
      expect(await failure(get(id))).to.include({ code: status.NOT_FOUND });
    });
  });
});

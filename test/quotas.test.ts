import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import pg from 'pg';
import { StreamMessageRequest } from '../src/gen/memory/v1/conversation_service.ts';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import { CONTENT, measureAll } from '../src/quotas/measure.ts';
import { ADDING } from '../src/rpc/quotas.ts';
import type { RunningServer } from '../src/server.ts';
import { sweep } from '../src/tenants/expiry.ts';
import { age, keep } from './fixtures/aging.ts';
import { RPCS } from './fixtures/rpcs.ts';
import {
  appUrl,
  type Clients,
  connect,
  type Failure,
  failure,
  failureOf,
  headersOf,
  metadataOf,
  newTenant,
  ownerUrl,
  runSql,
  startTestServer,
  tenantSql,
  until,
} from './support.ts';

const HUMAN = MessageRole.HUMAN;
const EXHAUSTED = { code: status.RESOURCE_EXHAUSTED, reason: 'QUOTA_EXCEEDED' };

describe('quotas', () => {
  let servers: RunningServer[];
  let clients: Clients[];
  let client: Clients;
  let tenant: string;

  before(async () => {
    servers = await Promise.all([startTestServer(), startTestServer()]);
  });
  after(() => Promise.all(servers.map((server) => server.stop())));
  afterEach(() => clients.forEach((one) => one.close()));

  /** A tenant with these quotas, and a client of each server. */
  async function bounded(quotas: Record<string, number>): Promise<void> {
    tenant = await newTenant(['user', 'other', 'admin'], { pii: 3, membership: 2, quotas });
    clients = servers.map(({ port }) => connect(`127.0.0.1:${port}`, headersOf(tenant)));
    client = clients[0]!;
  }
  const operator = metadataOf({ 'x-scopes': 'memory:operator' });
  const update = (quotas: object | undefined, rest: object = {}) =>
    client.admin.updateTenant({ tenant: { tenantId: tenant, policies: { quotas } }, ...rest }, operator);
  /** Takes the count of sessions for old, so that a refusal counts anew rather than within a second. */
  const countedLongAgo = () =>
    runSql(ownerUrl(), `update quota_counts set session_count_time = '-infinity' where tenant_id = $1`, [tenant]);
  const sessions = async (env = 'dev') =>
    (
      await tenantSql(
        tenant,
        'select count(*)::int as n from sessions where end_time is null and delete_time is null and (expire_time is null or expire_time > now())',
        [],
        env,
      )
    )[0].n as number;
  const upsert = (rest: object = {}, of = client, user = 'user', env = 'dev') =>
    of.memory.upsertSession(
      { session: { surfaceId: randomUUID() }, ...rest },
      metadataOf(headersOf(tenant, user, env)),
    );
  const say = (content = 'hello', clientId = '') => ({ role: HUMAN, content, clientId });
  const append = (threadId: string, messages: object[] = [say()], rest: object = {}, of = client) =>
    of.conversation.appendMessages({ threadId, messages, ...rest });
  /** What came of calls made at once. */
  async function outcomes(calls: Promise<unknown>[]): Promise<{ done: number; refused: Failure[] }> {
    const all = await Promise.allSettled(calls);
    const refused = all.flatMap((one) => (one.status === 'rejected' ? [failureOf(one.reason)] : []));
    return { done: all.length - refused.length, refused };
  }
  const expectQuota = (told: Failure, quota: string, limit: number, name = '') => {
    expect(told, name).to.include(EXHAUSTED);
    expect(told.metadata, name).to.deep.equal({ quota, limit: String(limit) });
    expect(told.quota!.subject, name).to.equal(`tenants/${tenant}`);
    expect(told.quota!.description, name).to.include(`${quota}: at most ${limit.toLocaleString('en')} `);
    expect(told.retryAfterMs, name).to.be.greaterThan(0);
  };

  describe('as policies', () => {
    const ofTenant = async () =>
      (await client.admin.listTenants({ pageSize: 500 }, operator)).tenants.find((one) => one.tenantId === tenant)!;

    it('are set one by one, by a mask or without, and taken away by 0', async () => {
      await bounded({});
      const set = async (quotas: object | undefined, rest: object = {}) => {
        const { tenant: updated } = await update(quotas, rest);
        return Object.fromEntries(
          Object.entries(updated!.policies!.quotas ?? {}).filter(([, value]) => value !== undefined),
        );
      };
      expect(await set({ maxSessions: 5, maxCallsPerSecond: 7 })).to.deep.equal({
        maxSessions: 5,
        maxCallsPerSecond: 7,
      });
      expect(await set({ maxStoredBytes: 2 ** 53 - 1 })).to.deep.include({
        maxSessions: 5,
        maxStoredBytes: 2 ** 53 - 1,
      });
      expect(await set({ maxSessions: 0 })).to.deep.equal({ maxCallsPerSecond: 7, maxStoredBytes: 2 ** 53 - 1 });
      const updateMask = ['policies.quotas.max_sessions', 'policies.quotas.max_calls_per_second'];
      expect(await set({ maxSessions: 3, maxConcurrentCalls: 9 }, { updateMask })).to.deep.equal({
        maxSessions: 3,
        maxStoredBytes: 2 ** 53 - 1,
      });
      expect(await set({ maxConcurrentCalls: 9 }, { updateMask: ['policies.quotas'] })).to.deep.equal({
        maxConcurrentCalls: 9,
      });
      expect(await set(undefined, { updateMask: ['policies.quotas'] })).to.deep.equal({});
      expect((await ofTenant()).policies).to.deep.include({ pii: 3, quotas: undefined });
    });

    it('are refused where they are no number of what they bound', async () => {
      await bounded({});
      const all = { maxSessions: -1, maxMessagesPerThread: -5, maxStoredBytes: -(2 ** 40) };
      const told = await failure(update({ ...all, maxCallsPerSecond: 1_000_001, maxConcurrentCalls: -1 }));
      expect(told.violations.map(({ field }) => field)).to.deep.equal(
        [
          'max_sessions',
          'max_messages_per_thread',
          'max_stored_bytes',
          'max_calls_per_second',
          'max_concurrent_calls',
        ].map((name) => `tenant.policies.quotas.${name}`),
      );
      expect((await failure(update({}, { updateMask: ['policies.quotas.nothing'] }))).violations[0]!.field).to.equal(
        'update_mask',
      );
    });

    it('leave in the audit trail what was set', async () => {
      await bounded({});
      await update({ maxSessions: 5 });
      await client.admin.updateTenant({ tenant: { tenantId: tenant, displayName: 'x' } }, operator);
      const events = await tenantSql(
        tenant,
        `select metadata from audit_events where action = 'tenants.update' order by id`,
        [],
        '',
      );
      expect(events.map(({ metadata }) => metadata.quotas)).to.deep.equal([{ max_sessions: 5 }, { max_sessions: 5 }]);
    });
  });

  describe('of sessions', () => {
    it('let exactly as many be created at once, over two servers and envs', async () => {
      await bounded({ max_sessions: 10 });
      const calls = Array.from({ length: 50 }, (_, n) =>
        upsert({}, clients[n % 2], n % 3 ? 'user' : 'other', n % 5 ? 'dev' : 'prod'),
      );
      const { done, refused } = await outcomes(calls);
      expect(done).to.equal(10);
      for (const told of refused) expectQuota(told, 'max_sessions', 10);
      expect((await sessions()) + (await sessions('prod'))).to.equal(10);
    });

    it('hold on every path that creates one, and on no other', async () => {
      await bounded({ max_sessions: 2 });
      const session = { surfaceId: 'web', projectId: 'p' };
      const requestId = randomUUID();
      const first = await upsert({ session, requestId });
      await upsert({ session: { surfaceId: 'mail', email: 'a@example.com' } });
      const service = metadataOf({ 'x-tenant-id': tenant, 'x-env': 'dev' });
      const { memory, conversation } = client;
      const paths: Record<string, () => Promise<unknown>> = {
        UpsertSession: () => upsert(),
        'UpsertSession, with a request_id': () => upsert({ requestId: randomUUID() }),
        'UpsertSession, with an address': () => upsert({ session: { surfaceId: 'x', email: 'b@example.com' } }),
        'UpsertSession, anonymous': () =>
          memory.upsertSession({ session: { surfaceId: 'x' }, anonymous: true, issueSessionKey: true }, service),
        'ResumeSession, of nothing': () => memory.resumeSession({ createIfMissing: true, surfaceId: 'new' }),
        'ResumeSession, of a project': () =>
          memory.resumeSession({
            createIfMissing: true,
            surfaceId: 'new',
            target: { $case: 'resumeProjectId', value: 'another' },
          }),
        BeginTurn: () => conversation.beginTurn({ session: { surfaceId: 'y' }, holder: 'h' }),
        'BeginTurn, with an address': () =>
          conversation.beginTurn({
            session: { surfaceId: 'z', email: 'c@example.com' },
            holder: 'h',
            messages: [say()],
          }),
        'BeginTurn, anonymous': () =>
          conversation.beginTurn({ session: { surfaceId: 'x' }, anonymous: true, holder: 'h' }, service),
      };
      for (const [name, path] of Object.entries(paths)) expectQuota(await failure(path()), 'max_sessions', 2, name);
      expect(await sessions()).to.equal(2);
      // What is there is changed and read, and what was acknowledged is told again.
      expect(await upsert({ session, requestId })).to.deep.equal(first);
      expect((await upsert({ session: { ...session, title: 'again' } })).created).to.equal(false);
      await conversation.beginTurn({ session, holder: 'h' });
      const target = { $case: 'resumeProjectId', value: 'p' } as const;
      expect((await memory.resumeSession({ target, createIfMissing: true, surfaceId: 'web' })).created).to.equal(false);
      expect((await memory.listSessions({})).sessions).to.have.length(2);
      // With room, the same paths are open.
      await update({ maxSessions: 100 });
      for (const [name, path] of Object.entries(paths))
        await path().catch((error) => expect.fail(`${name}: ${error.message}`));
    });

    it('have room again at once when one ends, is deleted or has expired', async () => {
      await bounded({ max_sessions: 2 });
      const [a, b] = [(await upsert()).session!, (await upsert()).session!];
      await failure(upsert());
      await client.memory.endSession({ sessionId: a.id });
      await client.memory.endSession({ sessionId: a.id });
      const c = (await upsert()).session!;
      await failure(upsert());
      await client.memory.deleteSession({ sessionId: b.id });
      await upsert();
      await failure(upsert());
      await client.memory.deleteSession({ sessionId: a.id }); // it had ended
      await failure(upsert());
      await tenantSql(tenant, `update sessions set expire_time = now() - interval '1 second' where id = $1`, [c.id]);
      await countedLongAgo();
      await upsert();
      await countedLongAgo();
      await failure(upsert());
      expect(await sessions()).to.equal(2);
    });

    it('count what was there before the quota, and what came past it', async () => {
      await bounded({});
      for (let n = 0; n < 3; n++) await upsert({}, client, 'user', n ? 'dev' : 'prod');
      await update({ maxSessions: 4 });
      await upsert();
      expectQuota(await failure(upsert()), 'max_sessions', 4);
      await update({ maxSessions: 0 });
      await upsert();
      await update({ maxSessions: 5 });
      expectQuota(await failure(upsert()), 'max_sessions', 5);
      // Below what is there: nothing goes, and nothing comes.
      await update({ maxSessions: 1 });
      expectQuota(await failure(upsert()), 'max_sessions', 1);
      expect((await client.memory.listSessions({})).sessions).to.have.length(4);
      await update({ maxSessions: 6 });
      await upsert();
    });

    it('are counted by the job, so that what expired makes room without a refusal', async () => {
      await bounded({ max_sessions: 3 });
      for (let n = 0; n < 3; n++) await upsert();
      await tenantSql(tenant, `update sessions set expire_time = now() - interval '1 second'`);
      await countedLongAgo();
      await measureAll(servers[0]!.kernel.database);
      const [row] = await runSql(ownerUrl(), 'select sessions from quota_counts where tenant_id = $1', [tenant]);
      expect(Number(row.sessions)).to.equal(0);
    });

    it('touch no counter of a tenant that has none', async () => {
      await bounded({});
      const { session } = await upsert();
      await client.memory.endSession({ sessionId: session!.id });
      expect(await runSql(ownerUrl(), 'select from quota_counts where tenant_id = $1', [tenant])).to.have.length(0);
    });
  });

  describe('of messages in a thread', () => {
    it('let exactly as many be appended at once, over two servers', async () => {
      await bounded({ max_messages_per_thread: 10 });
      const calls = Array.from({ length: 50 }, (_, n) => append('t', [say(`${n}`)], {}, clients[n % 2]));
      const { done, refused } = await outcomes([...calls, append('u')]);
      expect(done).to.equal(11);
      for (const told of refused) expectQuota(told, 'max_messages_per_thread', 10);
      const { messages } = await client.conversation.listMessages({ threadId: 't' });
      expect(messages.map(({ seq }) => seq).sort((a, b) => a - b)).to.deep.equal([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    });

    it('hold on every path that appends', async () => {
      await bounded({ max_messages_per_thread: 5 });
      const { conversation, memory } = client;
      const session = { surfaceId: 'web', threadId: 't' };
      const { lease, session: made } = await conversation.beginTurn({ session, holder: 'h' });
      const another = { surfaceId: 'web', threadId: 'source' };
      const requestId = randomUUID();
      const first = await append('t', [say('one', 'c1'), say('two'), say('three')], { requestId });
      await append('source', [say('a'), say('b'), say('c')]);
      const selection = { selection: { $case: 'lastN', value: 3 } } as const;
      const { bundle } = await memory.saveBundle({ sourceThreadId: 'source', selection });
      const three = [say(), say(), say()];
      const turn = { sessionId: made!.id, fencingToken: lease!.fencingToken };
      const inline = { selection: { $case: 'inline', value: { messages: three } } } as const;
      const forward = (rest: object) => memory.forwardBundle({ targetThreadId: 't', ...rest });
      const from = (chosen: object) =>
        forward({ source: { $case: 'inline', value: { sourceThreadId: 'source', selection: chosen } } });
      const paths: Record<string, () => Promise<unknown>> = {
        AppendMessages: () => append('t', three),
        'AppendMessages, to a new thread': () => append('new', [...three, ...three]),
        'AppendMessages, with a known message': () => append('t', [say('one', 'c1'), ...three]),
        BeginTurn: () => conversation.beginTurn({ session: another, holder: 'h', messages: three }),
        CommitTurn: () => conversation.commitTurn({ ...turn, messages: three }),
        'ForwardBundle, a saved one': () => forward({ source: { $case: 'bundleId', value: bundle!.id } }),
        'ForwardBundle, the last': () => from(selection),
        'ForwardBundle, of what is given': () => from(inline),
      };
      for (const [name, path] of Object.entries(paths))
        expectQuota(await failure(path()), 'max_messages_per_thread', 5, name);
      expect((await conversation.listMessages({ threadId: 't' })).messages).to.have.length(3);
      // As many as there is room for; then what is known is told again, and nothing more comes.
      await conversation.commitTurn({ ...turn, messages: [say('four')] });
      await append('t', [say('one', 'c1'), say('five', 'c5')]);
      expectQuota(await streamed('t'), 'max_messages_per_thread', 5, 'StreamMessage');
      expectQuota(await failure(append('t')), 'max_messages_per_thread', 5);
      expect(await append('t', [say('one', 'c1'), say('two'), say('three')], { requestId })).to.deep.equal(first);
      expect((await append('t', [say('five', 'c5'), say('one', 'c1')])).messages.map(({ seq }) => seq)).to.deep.equal([
        5, 1,
      ]);
      await conversation.commitTurn({ ...turn, release: true });
      await conversation.beginTurn({ session, holder: 'h' });
    });

    /** How a stream that opens a new message is refused. */
    async function streamed(threadId: string): Promise<Failure> {
      const stream = client.streams.conversation.streamMessage(metadataOf(headersOf(tenant)));
      const value = { threadId, role: HUMAN, clientId: randomUUID() };
      stream.write(StreamMessageRequest.fromPartial({ frame: { $case: 'open', value } }));
      return new Promise((resolve, reject) => {
        stream.on('error', (error: any) => resolve(failureOf(error)));
        stream.on('data', () => reject(new Error('it should have been refused')));
      });
    }

    it('have room again at once when messages are deleted or cleared', async () => {
      await bounded({ max_messages_per_thread: 3 });
      const { messages } = await append('t', [say('1'), say('2'), say('3')]);
      await failure(append('t'));
      await client.conversation.deleteMessage({ messageId: messages[1]!.id });
      await append('t');
      await failure(append('t'));
      await client.conversation.clearHistory({ threadId: 't' });
      await append('t', [say(), say(), say()]);
      await failure(append('t'));
      await update({ maxMessagesPerThread: 1 });
      await failure(append('t'));
      expect((await client.conversation.listMessages({ threadId: 't' })).messages).to.have.length(3);
      await update({ maxMessagesPerThread: 4 });
      expect((await append('t')).messages[0]!.seq).to.equal(8);
    });

    it('have room for as many as retention removed, whether they were still there or not', async () => {
      await bounded({ max_messages_per_thread: 4 });
      const { messages } = await append('t', [say('1'), say('2'), say('3')]);
      await client.conversation.deleteMessage({ messageId: messages[1]!.id });
      await age(tenant, 31);
      const kept = (await append('t', [say('4'), say('5')])).messages;
      await failure(append('t'));
      await keep(tenant, { messages_days: 30 });
      await sweep(servers[0]!.kernel.database);
      expect((await client.conversation.listMessages({ threadId: 't' })).messages).to.have.length(2);
      expectQuota(await failure(append('t', [say(), say(), say()])), 'max_messages_per_thread', 4);
      await append('t', [say(), say()]);
      await failure(append('t'));
      await client.conversation.deleteMessage({ messageId: kept[0]!.id });
      await append('t');
      await failure(append('t'));
    });
  });

  describe('of stored bytes', () => {
    it('refuse what adds content once it is measured, and nothing else', async () => {
      await bounded({ max_stored_bytes: 20_000 });
      const { conversation } = client;
      const requestId = randomUUID();
      const first = await append('t', [say('x'.repeat(10_000))], { requestId });
      await append('u', [say('x'.repeat(9000))]);
      expectQuota(await failure(append('t', [say('x'.repeat(1000))])), 'max_stored_bytes', 20_000);
      // The other server did not see them, and knows by the measure.
      await measureAll(servers[1]!.kernel.database);
      const other = clients[1]!;
      expectQuota(await failure(append('t', [say('x'.repeat(1000))], {}, other)), 'max_stored_bytes', 20_000);
      expect(await append('t', [say('x'.repeat(10_000))], { requestId })).to.deep.equal(first);
      expect((await other.conversation.listMessages({ threadId: 't' })).messages).to.have.length(1);
      await conversation.deleteMessage({ messageId: first.messages[0]!.id });
      await runSql(ownerUrl(), 'update quota_counts set stored_bytes_time = null where tenant_id = $1', [tenant]);
      await measureAll(servers[0]!.kernel.database);
      for (const server of servers) server.kernel.members.forget(tenant);
      await append('t', [say('x'.repeat(1000))]);
    });

    it('count what is copied, not the request that asks for it', async () => {
      const CONTENT_SIZE = 20_000;
      const LIMIT = 10 * CONTENT_SIZE;
      const content = 'x'.repeat(CONTENT_SIZE);
      const section = { projectId: 'p', sectionId: 's' };
      const key = { projectId: 'p', key: 'k' };
      const target = { targetThreadId: 'u', createTarget: true, allowRepeat: true };
      const selection = { selection: { $case: 'lastN' as const, value: 1 } };
      /** Of each: what there is to copy, and what copies it so many times over. */
      const copying: Record<string, { times: number; prepare(): Promise<() => Promise<unknown>> }> = {
        'SaveBundle, ForwardBundle of it': {
          times: 1,
          async prepare() {
            await append('t', [say(content)]);
            const { bundle } = await client.memory.saveBundle({ sourceThreadId: 't', selection });
            const source = { $case: 'bundleId' as const, value: bundle!.id };
            return () => client.memory.forwardBundle({ source, ...target });
          },
        },
        'ForwardBundle of messages': {
          times: 2,
          async prepare() {
            await append('t', [say(content)]);
            const source = { $case: 'inline' as const, value: { sourceThreadId: 't', selection } };
            return () => client.memory.forwardBundle({ source, ...target });
          },
        },
        RestoreMemory: {
          times: 1,
          async prepare() {
            await client.project.putMemory({ ...key, value: content });
            return () => client.project.restoreMemory({ ...key, version: 1 });
          },
        },
        RestoreDraft: {
          times: 1,
          async prepare() {
            const { lock } = await client.artifact.lockSection({ ...section, holder: 'h' });
            const { fencingToken } = lock!;
            await client.artifact.saveDraft({ ...section, fencingToken, content });
            return () => client.artifact.restoreDraft({ ...section, fencingToken, revision: 1 });
          },
        },
      };
      for (const [name, { times, prepare }] of Object.entries(copying)) {
        await bounded({ max_stored_bytes: LIMIT });
        const copy = await prepare();
        let refused: Failure | undefined;
        for (let copies = 0; !refused && copies < 20; copies++)
          await copy().catch((error) => {
            refused = failureOf(error);
          });
        expectQuota(refused!, 'max_stored_bytes', LIMIT, name);
        const stored = await contentOf();
        expect(stored, name).to.be.within(LIMIT - 200, LIMIT + times * (CONTENT_SIZE + 1000));
        clients.forEach((one) => one.close());
      }
    });

    /** What the tenant's content comes to. */
    async function contentOf(): Promise<number> {
      const sums = Object.entries(CONTENT).map(
        ([table, columns]) =>
          `(select coalesce(sum(${columns.join(' + ')}), 0)::int from ${table} where tenant_id = $1)`,
      );
      const [row] = await tenantSql(tenant, `select ${sums.join(' + ')} as bytes`, [tenant]);
      return row.bytes;
    }

    it('count nothing of what is told again or fails, and each message as large as it is', async () => {
      await bounded({ max_stored_bytes: 20_000 });
      const requestId = randomUUID();
      const large = [say('x'.repeat(6000), 'c')];
      for (let n = 0; n < 5; n++) await append('t', large, { requestId });
      for (let n = 0; n < 5; n++) await append('t', large);
      for (let n = 0; n < 5; n++)
        expect(await failure(append('t', [say('y'.repeat(6000), 'c')]))).to.include({ code: status.ALREADY_EXISTS });
      await append('t', [say('x'.repeat(6000))]);
      await append(
        't',
        Array.from({ length: 35 }, () => say('x')),
      );
      expectQuota(await failure(append('t', [say('x'.repeat(600))])), 'max_stored_bytes', 20_000);
    });

    it('are asked by each method that adds content', () => {
      const others = RPCS.filter(({ name, mutating }) => mutating && !ADDING.has(name)).map(({ name }) => name);
      for (const name of others) {
        expect(name).to.match(
          /\/(Create|Update|Put|Remove|Delete|End|Clear|Acquire|Renew|Release|Lock|Unlock|Ack|Pull|Set|Merge|Undo|Retry|Erase)/,
        );
        expect(name).to.not.match(/\/(UpdateProfile|PutMemory|PutProjectProfile)$/);
      }
      const names = RPCS.map(({ name }) => name);
      expect([...ADDING].filter((name) => !names.includes(name))).to.deep.equal([]);
    });

    it('measure every column that tells the size of content', async () => {
      const columns = await runSql(
        ownerUrl(),
        `select table_name as table, array_agg(column_name::text order by column_name) as columns from information_schema.columns
         where table_schema = 'public' and (is_generated = 'ALWAYS' and column_name ~ 'bytes|byte_size' or column_name = 'byte_size')
         group by table_name order by table_name`,
      );
      expect(Object.fromEntries(columns.map(({ table, columns: of }) => [table, of]))).to.deep.equal(CONTENT);
    });
  });

  describe('of calls', () => {
    it('refuse a call past the rate until its time has come', async () => {
      await bounded({ max_calls_per_second: 5 });
      const list = () => client.memory.listSessions({});
      const told = (await Promise.all(Array.from({ length: 30 }, () => failed(list())))).filter(
        (one) => one !== undefined,
      );
      for (const one of told) expectQuota(one, 'max_calls_per_second', 5);
      for (let refused = told[0]; refused; refused = await failed(list())) {
        expect(refused.metadata.quota).to.equal('max_calls_per_second');
        await new Promise((resolve) => setTimeout(resolve, refused!.retryAfterMs));
      }
      const metrics = await servers[0]!.metrics.registry.metrics();
      expect(metrics).to.match(/memoryd_quota_refusals_total\{quota="max_calls_per_second"\} [1-9]/);
      expect(metrics).to.not.include(tenant);
    });

    it('let through what the rate allows each server, and no more', async () => {
      const rate = 20;
      await bounded({ max_calls_per_second: rate });
      const start = performance.now();
      const all = Array.from({ length: 400 }, (_, n) => clients[n % 2]!.memory.listSessions({}));
      const { done, refused } = await outcomes(all);
      const seconds = (performance.now() - start) / 1000;
      expect(done).to.be.within(2 * rate, 2 * Math.ceil(rate * (1 + seconds)));
      for (const told of refused) expectQuota(told, 'max_calls_per_second', rate);
    });

    const failed = (call: Promise<unknown>): Promise<Failure | undefined> =>
      call.then(
        () => undefined,
        (error) => failureOf(error),
      );

    it('let exactly as many be under way at once in each server, and all of another tenant’s', async () => {
      await bounded({ max_concurrent_calls: 3 });
      await append('t');
      const holder = new pg.Client({ connectionString: appUrl() });
      await holder.connect();
      await holder.query(`begin; set local app.tenant_id = '${tenant}'; set local app.env = 'dev'`);
      await holder.query('select from threads where tenant_id = $1 for update', [tenant]);
      let refused = 0;
      const calls = Array.from({ length: 40 }, (_, n) => {
        const call = append('t', [say()], {}, clients[n % 2]);
        call.catch(() => refused++);
        return call;
      });
      await until(async () => refused === 34);
      expect(servers.map(({ kernel }) => kernel.inFlight.count)).to.deep.equal([3, 3]);
      expectQuota(await failure(client.memory.listSessions({})), 'max_concurrent_calls', 3);
      const another = await newTenant();
      await client.memory.listSessions({}, metadataOf(headersOf(another)));
      await holder.end();
      const { done, refused: told } = await outcomes(calls);
      expect(done).to.equal(6);
      for (const one of told) expectQuota(one, 'max_concurrent_calls', 3);
      await client.memory.listSessions({});
    });
  });
});

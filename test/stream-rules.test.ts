import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import pg from 'pg';
import type { StreamOpen } from '../src/gen/memory/v1/conversation_service.ts';
import { MessageRole, MessageState } from '../src/gen/memory/v1/message.ts';
import type { RunningServer } from '../src/server.ts';
import { type Stream, stream, watch } from './fixtures/live.ts';
import { startProcess } from './fixtures/process.ts';
import {
  type Clients,
  connect,
  type Failure,
  failure,
  headersOf,
  newTenant,
  ownerUrl,
  runSql,
  startTestServer,
  tenantSql,
  until,
} from './support.ts';

const { HUMAN, TOOL } = MessageRole;
const { STREAMING, INTERRUPTED, COMPLETE } = MessageState;
const { ABORTED, FAILED_PRECONDITION, NOT_FOUND, UNAVAILABLE } = status;
const KIB = 1024;

describe('streamed messages among others', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;
  let headers: Record<string, string>;

  before(async () => {
    server = await startTestServer();
  });
  after(() => server.stop());
  beforeEach(async () => {
    tenant = await newTenant(['user']);
    headers = headersOf(tenant);
    client = connect(`127.0.0.1:${server.port}`, headers);
  });
  afterEach(() => client.close());

  type Opened = Stream & { id: string };
  /** A stream with this text, durable but not finished. */
  async function opened(text: string, fields: Partial<StreamOpen> = {}, via = client): Promise<Opened> {
    const target = fields.sessionId ? {} : { threadId: 't' };
    const own = stream(via, headers, { ...target, clientId: 'c', ...fields });
    const { messageId, durableOffset } = await own.opened();
    own.chunk(text);
    await own.acked(durableOffset + Buffer.byteLength(text));
    return Object.assign(own, { id: messageId });
  }
  const refused = async (own: Stream): Promise<Failure> => (await own.ended) ?? expect.fail('it should have failed');
  const list = async (threadId = 't') => (await client.conversation.listMessages({ threadId })).messages;
  const get = async (messageId: string) => (await client.conversation.getMessage({ messageId })).message!;
  /** When the thread's stream broke off, or was finished. */
  async function settled(via = client): Promise<number> {
    const tape = watch(via, headers, 't');
    const { event } = await tape.until((told) => told.event?.$case === 'finished');
    tape.cancel();
    return event?.$case === 'finished' ? event.value.message!.state : 0;
  }
  const newSession = async (threadId = 't') =>
    (await client.memory.upsertSession({ session: { surfaceId: 'web', threadId } })).session!;

  it('keep text that commits only while they are interrupted', async () => {
    const own = await opened('first');
    const late = new pg.Client({ connectionString: ownerUrl() });
    await late.connect();
    try {
      // As the server stores it, whose COMMIT is still on its way when the stream breaks.
      await late.query('begin');
      await late.query('update message_streams set byte_length = 9 where message_id = $1', [own.id]);
      await late.query(
        `with t as (update threads set revision = revision + 1 where tenant_id = $1 and thread_id = 't' returning *)
         insert into thread_events (tenant_id, env, thread_uid, revision, user_id, kind, seq, last_seq, byte_offset, byte_length, text, create_time)
         select tenant_id, env, thread_uid, revision, user_id, 1, last_seq, last_seq, 5, 4, 'late', now() from t`,
        [tenant],
      );
      own.cancel();
      const waits = `select from pg_stat_activity where wait_event_type = 'Lock' and query like '%message_streams%' and $1 = any (pg_blocking_pids(pid))`;
      const { rows } = await late.query('select pg_backend_pid() as pid');
      await until(async () => (await runSql(ownerUrl(), waits, [rows[0].pid])).length > 0);
      await late.query('commit');
    } finally {
      await late.end();
    }
    expect(await settled()).to.equal(INTERRUPTED);
    expect((await get(own.id)).content).to.equal('firstlate');
  });

  it('need the turn while it is held, unless a person speaks', async () => {
    const { lease } = await client.conversation.acquireTurn({ threadId: 't', holder: 'h' });
    const { fencingToken } = lease!;
    const open = (fields: Partial<StreamOpen>) => stream(client, headers, { threadId: 't', clientId: 'c', ...fields });
    const held = await refused(open({}));
    expect(held).to.include({ code: FAILED_PRECONDITION, reason: 'TURN_HELD' });
    expect(held.metadata).to.include({ holder: 'h' });
    expect(await refused(open({ fencingToken: fencingToken + 1 }))).to.include({
      code: ABORTED,
      reason: 'STALE_FENCING_TOKEN',
    });
    expect(await list()).to.deep.equal([]);
    const answer = await opened('an answer', { fencingToken });
    const person = await opened('meanwhile', { clientId: 'p', role: HUMAN });
    for (const own of [answer, person]) {
      own.finish();
      await own.finished();
    }
    expect((await list()).map(({ content }) => content)).to.deep.equal(['meanwhile', 'an answer']);
  });

  it('are broken off when another takes their turn', async () => {
    const { lease } = await client.conversation.acquireTurn({ threadId: 't', holder: 'h' });
    const fenced = await opened('mine', { fencingToken: lease!.fencingToken });
    const bare = await opened('theirs', { clientId: 'person', role: HUMAN });
    await client.conversation.releaseTurn({ threadId: 't', fencingToken: lease!.fencingToken });
    const unfenced = await opened('nobody holds it', { clientId: 'u', role: TOOL });
    const taken = await client.conversation.acquireTurn({ threadId: 't', holder: 'other' });
    for (const own of [fenced, bare, unfenced]) own.chunk(' more');
    expect(await refused(fenced)).to.include({ code: ABORTED, reason: 'STALE_FENCING_TOKEN' });
    expect(await refused(unfenced)).to.include({ code: FAILED_PRECONDITION, reason: 'TURN_HELD' });
    bare.finish();
    await bare.finished();
    await until(
      async () => (await get(unfenced.id)).state === INTERRUPTED && (await get(fenced.id)).state === INTERRUPTED,
    );
    expect((await list()).map(({ content, state }) => [content, state])).to.deep.equal([
      ['nobody holds it', INTERRUPTED],
      ['theirs more', COMPLETE],
      ['mine', INTERRUPTED],
    ]);
    const again = await opened(' by another', { fencingToken: taken.lease!.fencingToken });
    again.finish();
    expect((await again.finished()).id).to.equal(fenced.id);
  });

  it('end when their session has ended or was deleted, with what was acknowledged', async () => {
    const first = await newSession();
    const own = await opened('so far', { sessionId: first.id });
    await client.memory.endSession({ sessionId: first.id });
    own.chunk(' and no further');
    expect(await refused(own)).to.include({ code: FAILED_PRECONDITION, reason: 'SESSION_ENDED' });
    expect(await settled()).to.equal(INTERRUPTED);
    expect((await get(own.id)).content).to.equal('so far');

    const second = await newSession();
    const keeper = await client.memory.upsertSession({ session: { surfaceId: 'ide', threadId: 't' } });
    const resumed = await opened(', again', { sessionId: second.id });
    expect(resumed.id).to.equal(own.id);
    await client.memory.deleteSession({ sessionId: second.id });
    resumed.finish();
    expect(await refused(resumed)).to.include({ code: NOT_FOUND, reason: 'DELETED' });
    const other = { threadId: 'other', sessionId: keeper.session!.id, clientId: 'c' };
    expect((await refused(stream(client, headers, other))).violations[0]!.field).to.equal('thread_id');
    expect(await refused(stream(client, headers, { sessionId: first.id, clientId: 'c' }))).to.include({
      reason: 'SESSION_ENDED',
    });
    const last = await opened('.');
    last.finish();
    await last.finished();
    expect((await get(own.id)).content, 'a thread named by itself needs no session').to.equal('so far, again.');
  });

  it('end when what they write is deleted', async () => {
    const cases: [string, (messageId: string) => Promise<unknown>][] = [
      ['message', (messageId) => client.conversation.deleteMessage({ messageId })],
      ['history', () => client.conversation.clearHistory({ threadId: 't' })],
      ['thread', () => client.conversation.deleteThread({ threadId: 't' })],
    ];
    for (const [what, remove] of cases) {
      const own = await opened('a secret', { clientId: what });
      await remove(own.id);
      own.chunk(' told too late');
      expect(await refused(own), what).to.include({ code: NOT_FOUND, reason: 'DELETED' });
      expect((await failure(client.conversation.getMessage({ messageId: own.id }))).code, what).to.equal(NOT_FOUND);
      const finishing = what === 'thread' ? undefined : await opened('x', { clientId: `${what} finishing` });
      await (finishing && remove(finishing.id));
      finishing?.finish();
      if (finishing) expect(await refused(finishing), what).to.include({ code: NOT_FOUND, reason: 'DELETED' });
    }
  });

  it('can be read meanwhile, but are neither context nor to be taken elsewhere before they end', async () => {
    const session = await newSession();
    await client.conversation.appendMessages({ threadId: 't', messages: [{ role: HUMAN, content: 'question' }] });
    const own = await opened('half an ans', { sessionId: session.id });
    expect((await list()).map(({ content, state }) => [content, state])).to.deep.equal([
      ['half an ans', STREAMING],
      ['question', COMPLETE],
    ]);
    expect(await get(own.id)).to.include({ content: 'half an ans', state: STREAMING, sessionId: session.id });
    const context = async () =>
      (await client.conversation.getContext({ sessionId: session.id })).context!.messages.map(({ content }) => content);
    const bundle = async (selection: any) =>
      (await client.memory.saveBundle({ sourceThreadId: 't', selection: { selection } })).bundle!.messages;
    const byId = { $case: 'messageIds', value: { ids: [own.id] } };
    expect(await context()).to.deep.equal(['question']);
    expect((await bundle({ $case: 'lastN', value: 5 })).map(({ content }) => content)).to.deep.equal(['question']);
    expect(await failure(bundle(byId))).to.include({ code: FAILED_PRECONDITION, reason: 'MESSAGE_STREAMING' });

    own.cancel();
    expect(await settled()).to.equal(INTERRUPTED);
    expect(await context()).to.deep.equal(['question', 'half an ans']);
    expect((await bundle(byId)).map(({ content }) => content)).to.deep.equal(['half an ans']);
    const again = await opened('wer');
    expect(await context()).to.deep.equal(['question']);
    again.finish();
    await again.finished();
    expect(await context()).to.deep.equal(['question', 'half an answer']);
  });

  it('are written without rewriting: 100 kB in 2,000 chunks', async () => {
    const stats = async () => {
      const [row] = await tenantSql(tenant, 'select pg_current_wal_lsn() - $1::pg_lsn as wal', ['0/0']);
      return Number(row.wal);
    };
    const own = stream(client, headers, { threadId: 't', clientId: 'c' });
    await own.opened();
    const before = await stats();
    for (let i = 0; i < 2000; i++) own.chunk('x'.repeat(50));
    await own.acked(100_000);
    own.finish();
    await own.finished();
    // Other test files write meanwhile: far less than a text that is rewritten with each chunk, which is 100 MB.
    expect((await stats()) - before).to.be.lessThan(30e6);
    const rows = await tenantSql(
      tenant,
      'select count(*)::int as n, sum(byte_length)::int as bytes from thread_events where kind = 1',
    );
    expect(rows[0].bytes).to.equal(100_000);
    expect(rows[0].n, 'chunks that come together are stored together').to.be.lessThan(200);
  });

  it('are taken in no faster than they are stored', async () => {
    const all = await Promise.all(
      Array.from({ length: 20 }, async (_, i) => {
        const own = stream(client, headers, { threadId: `t${i}`, clientId: 'c' });
        await own.opened();
        return own;
      }),
    );
    for (const own of all) own.pause(); // nobody reads the acks
    for (const own of all) for (let i = 0; i < 200; i++) own.chunk('x'.repeat(KIB));
    await until(async () => {
      const [row] = await tenantSql(tenant, 'select sum(byte_length)::int as n from message_streams');
      return row.n === 20 * 200 * KIB;
    });
    const [{ largest }] = await tenantSql(tenant, 'select max(byte_length)::int as largest from thread_events');
    expect(largest).to.be.at.most(128 * KIB);
    for (const own of all) {
      own.resume();
      own.finish();
    }
    for (const own of all) expect((await own.finished()).state).to.equal(COMPLETE);
  });

  it('keep what came when their server stops, and go on with another one', async () => {
    const stopping = await startTestServer();
    const first = connect(`127.0.0.1:${stopping.port}`, headers);
    const own = await opened('durable', {}, first);
    own.chunk(', and just received');
    const [told] = await Promise.all([refused(own), stopping.stop()]);
    expect(told).to.include({ code: UNAVAILABLE, reason: 'DRAINING' });
    first.close();
    expect(await settled()).to.equal(INTERRUPTED);
    const again = stream(client, headers, { threadId: 't', clientId: 'c' });
    const { durableOffset } = await again.opened();
    expect(durableOffset).to.be.oneOf(['durable'.length, 'durable, and just received'.length]);
    again.chunk('!');
    again.finish();
    await again.finished();
    expect((await get(own.id)).content).to.match(/^durable(, and just received)?!$/);
  });

  it('are marked by another server when theirs was killed', async () => {
    const doomed = await startProcess();
    const first = connect(`127.0.0.1:${doomed.port}`, headers);
    const own = await opened('last words', {}, first);
    doomed.kill('SIGKILL');
    await doomed.exited;
    await own.ended;
    first.close();
    expect((await get(own.id)).state).to.equal(STREAMING);
    expect(await settled()).to.equal(INTERRUPTED);
    expect((await get(own.id)).content).to.equal('last words');
    expect(await tenantSql(tenant, 'select 1 from message_streams')).to.deep.equal([]);
    const actors = await tenantSql(tenant, `select actor from audit_events where action = 'messages.interrupt'`);
    expect(actors).to.deep.equal([{ actor: 'memoryd' }]);
  }).timeout(60_000);
});

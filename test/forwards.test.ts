import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import type { RunningServer } from '../src/server.ts';
import { sweep } from '../src/tenants/expiry.ts';
import {
  addMember,
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

const WRITTEN = ['threads', 'messages', 'bundles', 'bundle_forwards', 'handoffs', 'requests'];

describe('forwards', () => {
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
    await append('s', ['a', 'b', 'c']);
  });
  afterEach(() => client.close());

  const as = (user: string, env = 'dev', of = tenant) => metadataOf(headersOf(of, user, env));
  const human = (content: string, rest: object = {}) => ({ role: MessageRole.HUMAN, content, ...rest });
  const append = async (threadId: string, contents: string[], metadata = as('user')) =>
    (await client.conversation.appendMessages({ threadId, messages: contents.map((c) => human(c)) }, metadata))
      .messages;
  const lastN = (value: number) => ({ selection: { $case: 'lastN' as const, value } });
  const given = (...messages: object[]) => ({ selection: { $case: 'inline' as const, value: { messages } } });
  const from = (sourceThreadId: string, selection: object = lastN(2)) => ({
    source: { $case: 'inline' as const, value: { sourceThreadId, selection } },
  });
  const saved = (id: string) => ({ source: { $case: 'bundleId' as const, value: id } });
  const save = async (sourceThreadId = 's', selection: object = lastN(2), rest: object = {}) =>
    (await client.memory.saveBundle({ sourceThreadId, selection, ...rest })).bundle!.id;
  const forward = (source: object, targetThreadId: string, rest: object = {}) =>
    client.memory.forwardBundle({ ...source, targetThreadId, ...rest });
  const messages = async (threadId: string, metadata = as('user')) =>
    (await client.conversation.listMessages({ threadId, position: { $case: 'afterSeq', value: 0 } }, metadata))
      .messages;
  const contents = async (threadId: string) => (await messages(threadId)).map((message) => message.content);

  it('appends copies to the target, with their provenance', async () => {
    const full = {
      content: 'd 👋',
      role: MessageRole.TOOL,
      toolCallId: 'x',
      metadata: { n: [1, null] },
      clientId: 'c',
    };
    await client.conversation.appendMessages({ threadId: 's', messages: [full] });
    await client.conversation.appendMessages({ threadId: 't', messages: [human('first', { clientId: 'c' })] });
    const id = await save('s', lastN(2));
    const response = await forward(saved(id), 't', { targetProjectId: 'q' });
    expect(response).to.deep.include({ firstSeq: 2, lastSeq: 3, repeated: false, handoffId: '' });
    expect(response.bundle).to.deep.include({ id, messageCount: 2, messages: [] });
    const [, c, d] = await messages('t');
    expect([c!.content, c!.seq, d!.seq]).to.deep.equal(['c', 2, 3]);
    const { role, content, toolCallId, metadata } = full;
    expect(d).to.deep.include({ role, content, toolCallId, metadata, threadId: 't', clientId: '', sessionId: '' });
    expect(c!.forwardedFrom).to.deep.equal({ bundleId: id, threadId: 's', seq: 3, unverified: false });
    expect(d!.forwardedFrom).to.deep.equal({ bundleId: id, threadId: 's', seq: 4, unverified: false });
    expect((await messages('s')).map((message) => message.id)).to.not.include(d!.id);
    const { forwards } = (await client.memory.getBundle({ bundleId: id })).bundle!;
    expect(forwards).to.have.length(1);
    expect(forwards[0]).to.deep.include({ targetThreadId: 't', targetProjectId: 'q', firstSeq: 2, lastSeq: 3 });
    expect((await append('t', ['next']))[0]!.seq).to.equal(4);
  });

  it('saves an inline bundle on the way, and marks given content as unverified', async () => {
    await append('t', ['first']);
    const stored = await forward(from('s'), 't');
    expect((await client.memory.getBundle({ bundleId: stored.bundle!.id })).bundle!.messages).to.have.length(2);
    const made = await forward(from('s', given(human('made up'))), 't');
    const last = (await messages('t')).at(-1)!;
    expect(last.content).to.equal('made up');
    expect(last.forwardedFrom).to.deep.equal({ bundleId: made.bundle!.id, threadId: 's', seq: 0, unverified: true });
    expect(await contents('t')).to.deep.equal(['first', 'b', 'c', 'made up']);
    expect(await contents('s')).to.deep.equal(['a', 'b', 'c']);
  });

  it('tells of a forwarded copy where it was copied from, and never makes it verified', async () => {
    await forward(from('s', lastN(1)), 't', { createTarget: true });
    await forward(from('s', given(human('made up'))), 't');
    const second = await forward(from('t', lastN(2)), 'u', { createTarget: true });
    const copies = (await messages('u')).map((message) => message.forwardedFrom);
    const bundleId = second.bundle!.id;
    expect(copies).to.deep.equal([
      { bundleId, threadId: 't', seq: 1, unverified: false },
      { bundleId, threadId: 't', seq: 2, unverified: true },
    ]);
  });

  it('creates the target only if that is asked for', async () => {
    expect(await failure(forward(from('s'), 'new'))).to.include({ code: status.NOT_FOUND, reason: 'NOT_FOUND' });
    expect(await forward(from('s'), 'new', { createTarget: true })).to.include({ firstSeq: 1, lastSeq: 2 });
    expect(await forward(from('s'), 'new', { createTarget: true })).to.include({ firstSeq: 3, lastSeq: 4 });
    expect(await forward(from('s', lastN(1)), 's')).to.include({ firstSeq: 4, lastSeq: 4 });
  });

  it('lands once in a target, unless a repeat is allowed', async () => {
    await append('t', ['first']);
    const id = await save();
    const first = await forward(saved(id), 't');
    await append('t', ['between']);
    const again = await forward(saved(id), 't', { targetProjectId: 'other', createTarget: true });
    expect(again).to.deep.include({ firstSeq: first.firstSeq, lastSeq: first.lastSeq, repeated: true });
    expect(await contents('t')).to.deep.equal(['first', 'b', 'c', 'between']);
    const repeat = await forward(saved(id), 't', { allowRepeat: true });
    expect(repeat).to.deep.include({ firstSeq: 5, lastSeq: 6, repeated: false });
    expect(await forward(saved(id), 'u', { createTarget: true })).to.include({ firstSeq: 1, repeated: false });
    expect(await forward(saved(id), 't')).to.deep.include({ firstSeq: 2, lastSeq: 3, repeated: true });
    const { forwards } = (await client.memory.getBundle({ bundleId: id })).bundle!;
    const landings = forwards.map((landing) => [landing.targetThreadId, landing.firstSeq]);
    expect(landings).to.deep.equal([
      ['t', 2],
      ['t', 5],
      ['u', 1],
    ]);
  });

  it('lands again in a thread that was deleted and started anew', async () => {
    const id = await save();
    await forward(saved(id), 't', { createTarget: true });
    await client.conversation.deleteThread({ threadId: 't' });
    for (const source of [saved(id), from('s')]) {
      for (const createTarget of [false, true]) {
        const answer = await failure(forward(source, 't', { createTarget }));
        expect(answer).to.include({ code: status.NOT_FOUND, reason: 'DELETED' });
      }
    }
    await client.memory.upsertSession({ session: { surfaceId: 'web', threadId: 't' } });
    expect(await forward(saved(id), 't')).to.include({ firstSeq: 1, lastSeq: 2, repeated: false });
  });

  it('lands once for 10 concurrent forwards, also where the target is new', async () => {
    const id = await save();
    await append('old', ['first']);
    for (const [target, base] of [
      ['old', 1],
      ['new', 0],
    ] as const) {
      const all = await Promise.all(
        Array.from({ length: 10 }, () => forward(saved(id), target, { createTarget: true })),
      );
      expect(all.filter((response) => !response.repeated)).to.have.length(1);
      for (const { firstSeq, lastSeq } of all) expect([firstSeq, lastSeq]).to.deep.equal([base + 1, base + 2]);
      expect(await messages(target)).to.have.length(base + 2);
    }
    const repeats = Array.from({ length: 5 }, () => forward(saved(id), 'new', { allowRepeat: true }));
    const seqs = (await Promise.all(repeats)).map((response) => response.firstSeq).sort((a, b) => a - b);
    expect(seqs).to.deep.equal([3, 5, 7, 9, 11]);
  });

  it('is done once for one request_id, also when it comes 10 times at once', async () => {
    const requestId = randomUUID();
    const rest = { requestId, createTarget: true, allowRepeat: true, handoff: { destination: 'maybes' } };
    const all = await Promise.all(Array.from({ length: 10 }, () => forward(from('s'), 't', rest)));
    for (const response of all) expect(response).to.deep.equal(all[0]);
    await append('t', ['later']);
    expect(await forward(from('s'), 't', rest)).to.deep.equal(all[0]);
    expect(await contents('t')).to.deep.equal(['b', 'c', 'later']);
    expect(await rowCounts(tenant, ['bundles', 'bundle_forwards', 'handoffs'])).to.deep.equal({
      bundles: 1,
      bundle_forwards: 1,
      handoffs: 1,
    });
    const another = await failure(forward(from('s'), 'u', rest));
    expect(another).to.include({ code: status.INVALID_ARGUMENT, reason: 'REQUEST_ID_REUSED' });
  });

  it('refuses what is not the caller’s own, and writes nothing', async () => {
    const foreign = await newTenant(['user']);
    await addMember(tenant, 'user', 'prod');
    const places = [as('other'), as('user', 'prod'), as('user', 'dev', foreign)];
    await append('s', ['x']);
    const id = await save();
    for (const place of places) await append('theirs', ['x'], place);
    await append('gone', ['x']);
    await client.conversation.deleteThread({ threadId: 'gone' });
    // Lest a sweep of another test file changes the counts.
    await tenantSql(tenant, 'delete from messages where thread_uid in (select thread_uid from dropped_threads)');
    const counts = async () => [
      await rowCounts(tenant, WRITTEN),
      await rowCounts(tenant, WRITTEN, 'prod'),
      await rowCounts(foreign, WRITTEN),
    ];
    const before = await counts();
    const rest = () => ({ requestId: randomUUID(), handoff: { destination: 'maybes' } });
    const absent = await failure(forward(saved(randomUUID()), 's', rest()));
    const attempts: (() => Promise<unknown>)[] = [];
    for (const source of [saved(id), from('s'), from('s', given(human('x')))]) {
      attempts.push(
        () => forward(source, 'theirs', rest()),
        () => forward(source, 'missing', rest()),
      );
      for (const createTarget of [false, true])
        attempts.push(() => forward(source, 'gone', { createTarget, ...rest() }));
    }
    for (const sourceThreadId of ['theirs', 'missing', 'gone']) {
      for (const selection of [lastN(1), given(human('x'))]) {
        attempts.push(() => forward(from(sourceThreadId, selection), 's', rest()));
        attempts.push(() => forward(from(sourceThreadId, selection), 'new', { createTarget: true, ...rest() }));
      }
    }
    for (const place of places) {
      const target = { targetThreadId: 'theirs', createTarget: true, ...rest() };
      attempts.push(async () => {
        const answer = client.memory.forwardBundle({ ...saved(id), ...target }, place);
        expect(await failure(answer)).to.deep.equal(absent);
        return answer;
      });
      attempts.push(() => client.memory.forwardBundle({ ...from('s'), ...target }, place));
    }
    for (const [i, attempt] of attempts.entries()) {
      expect((await failure(attempt())).code, `${i}`).to.equal(status.NOT_FOUND);
      expect(await counts(), `${i}`).to.deep.equal(before);
    }
    expect(
      await tenantSql(tenant, `select 1 from audit_events where action = 'bundles.forward' and outcome = 1`),
    ).to.deep.equal([]);
  });

  it('refuses a malformed request with every violation', async () => {
    const answer = await failure(
      client.memory.forwardBundle({
        targetThreadId: 'x'.repeat(129),
        handoff: { destination: 'No Slug' },
        requestId: 'x',
      }),
    );
    expect(answer.code).to.equal(status.INVALID_ARGUMENT);
    const fields = ['source', 'target_thread_id', 'handoff.destination', 'request_id'];
    expect(answer.violations.map((violation) => violation.field)).to.have.members(fields);
  });

  it('leaves copies that outlive the bundle and the source thread', async () => {
    const id = await save();
    await forward(saved(id), 't', { createTarget: true });
    const before = await messages('t');
    await client.conversation.deleteThread({ threadId: 's' });
    await tenantSql(tenant, 'update bundles set expire_time = clock_timestamp()');
    await until(async () => {
      await sweep(server.kernel.database);
      const { bundles, bundle_forwards: landings } = await rowCounts(tenant, ['bundles', 'bundle_forwards']);
      return bundles === 0 && landings === 0;
    });
    expect(await messages('t')).to.deep.equal(before);
    expect(await failure(client.memory.getBundle({ bundleId: id }))).to.include({ code: status.NOT_FOUND });
  });

  it('keeps seq gap-free among concurrent appends and forwards', async () => {
    const calls = Array.from({ length: 20 }, (_, i) =>
      i % 2 ? append('t', ['x', 'y']) : forward(from('s', lastN(3)), 't', { createTarget: true }),
    );
    await Promise.all(calls);
    expect((await messages('t')).map((m) => m.seq)).to.deep.equal(Array.from({ length: 50 }, (_, i) => i + 1));
  });
});

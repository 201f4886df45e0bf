import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { type Message, MessageRole } from '../src/gen/memory/v1/message.ts';
import type { RunningServer } from '../src/server.ts';
import { sweep } from '../src/tenants/expiry.ts';
import {
  allPages,
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

describe('bundles', () => {
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
  const append = async (threadId: string, messages: object[], metadata = metadataOf(headersOf(tenant))) =>
    (await client.conversation.appendMessages({ threadId, messages }, metadata)).messages;
  const human = (content: string, rest: object = {}) => ({ role: MessageRole.HUMAN, content, ...rest });
  const lastN = (value: number) => ({ selection: { $case: 'lastN' as const, value } });
  const byIds = (ids: string[]) => ({ selection: { $case: 'messageIds' as const, value: { ids } } });
  const inline = (messages: object[]) => ({ selection: { $case: 'inline' as const, value: { messages } } });
  const save = async (sourceThreadId: string, selection: object, rest: object = {}) =>
    (await client.memory.saveBundle({ sourceThreadId, selection, ...rest })).bundle!;
  const get = async (bundleId: string) => (await client.memory.getBundle({ bundleId })).bundle!;
  const contents = (messages: Message[]) => messages.map((message) => message.content);
  const refused = async (selection: object, sourceThreadId = 't') => {
    const answer = await failure(client.memory.saveBundle({ sourceThreadId, selection }));
    expect(await rowCounts(tenant, ['bundles'])).to.deep.equal({ bundles: 0 });
    return answer;
  };

  it('copies the newest messages, as they are', async () => {
    const full = {
      role: MessageRole.TOOL,
      content: 'Grüße 👋 "quoted" \\ \n',
      clientId: 'c',
      toolCallId: 'call_1',
      metadata: { a: 1.5, b: [true, null, { c: 'd' }] },
    };
    await append('t', [human('a'), human('b'), full]);
    const bundle = await save('t', lastN(2), { sourceProjectId: 'p' });
    expect(bundle).to.deep.include({ sourceThreadId: 't', sourceProjectId: 'p', messageCount: 2, forwards: [] });
    expect([bundle.id.length, bundle.expireTime]).to.deep.equal([36, undefined]);
    const { messages: stored } = await client.conversation.listMessages({
      threadId: 't',
      position: { $case: 'afterSeq', value: 1 },
    });
    const told = ({ id, seq, role, content, metadata, toolCallId, createTime, threadId, forwardedFrom }: Message) => ({
      id,
      seq,
      role,
      content,
      metadata,
      toolCallId,
      createTime,
      threadId,
      forwardedFrom,
    });
    expect(bundle.messages.map(told)).to.deep.equal(stored.map(told));
    expect(await get(bundle.id)).to.deep.equal(bundle);
    expect((await save('t', lastN(500))).messageCount).to.equal(3);
  });

  it('copies messages by id, in the order of the thread', async () => {
    const messages = await append(
      't',
      ['a', 'b', 'c', 'd'].map((content) => human(content)),
    );
    const ids = [messages[3]!.id, messages[0]!.id, messages[2]!.id.toUpperCase()];
    expect(contents((await save('t', byIds(ids))).messages)).to.deep.equal(['a', 'c', 'd']);
  });

  it('refuses ids that are not all in the thread, given twice, or not ids', async () => {
    const [a, b] = await append('t', [human('a'), human('b')]);
    const [elsewhere] = await append('u', [human('x')]);
    const [theirs] = await append('t', [human('theirs')], other());
    for (const id of [elsewhere!.id, theirs!.id, randomUUID()]) {
      const answer = await refused(byIds([a!.id, id, b!.id]));
      expect([status.NOT_FOUND, status.INVALID_ARGUMENT]).to.include(answer.code);
    }
    for (const ids of [[a!.id, a!.id], ['x'], []]) {
      expect((await refused(byIds(ids))).violations[0]!.field).to.match(/^selection\.message_ids\.ids/);
    }
  });

  it('keeps inline messages, and says that nothing proves them', async () => {
    await append('t', [human('a')]);
    const given = {
      role: MessageRole.SYSTEM,
      content: 'given',
      metadata: { x: 1 },
      toolCallId: 'c',
      seq: 7,
      id: randomUUID(),
    };
    const bundle = await save('t', inline([given, human('and this')]));
    expect(bundle.messageCount).to.equal(2);
    const { role, content, metadata, toolCallId } = bundle.messages[0]!;
    expect({ role, content, metadata, toolCallId }).to.deep.equal({
      role: MessageRole.SYSTEM,
      content: 'given',
      metadata: { x: 1 },
      toolCallId: 'c',
    });
    for (const message of bundle.messages) expect(message.forwardedFrom).to.include({ unverified: true, seq: 0 });
    expect(await get(bundle.id)).to.deep.equal(bundle);
    expect((await client.conversation.listMessages({ threadId: 't' })).messages).to.have.length(1);
  });

  it('refuses what is not 1 to 500 messages', async () => {
    const [message] = await append('t', [human('a')]);
    const ids = Array.from({ length: 501 }, () => randomUUID());
    const many = Array.from({ length: 501 }, () => human('x'));
    const fields: [object, RegExp][] = [
      [{}, /^selection/],
      [lastN(0), /last_n/],
      [lastN(-1), /last_n/],
      [lastN(501), /last_n/],
      [byIds(ids), /ids/],
      [inline([]), /messages/],
      [inline(many), /messages/],
      [inline([human('')]), /messages\[0\]\.content/],
      [inline([{ content: 'no role' }]), /messages\[0\]\.role/],
      [inline([human('x'.repeat(256 * 1024 + 1))]), /messages\[0\]\.content/],
    ];
    for (const [selection, field] of fields) {
      const answer = await refused(selection);
      expect(answer.code).to.equal(status.INVALID_ARGUMENT);
      expect(answer.violations[0]!.field).to.match(field);
    }
    expect((await save('t', inline(many.slice(1)))).messageCount).to.equal(500);
    expect((await save('t', byIds([message!.id]))).messageCount).to.equal(1);
  });

  it('refuses more than 1 MiB', async () => {
    const wide = 'x'.repeat(250 * 1024);
    const ids = [];
    for (let i = 0; i < 5; i++) ids.push((await append('t', [human(wide)]))[0]!.id);
    const rich = Array.from({ length: 20 }, () => human('x', { metadata: { wide: 'x'.repeat(60 * 1024) } }));
    const over = [lastN(5), byIds(ids), inline(ids.map(() => human(wide))), inline(rich)];
    for (const selection of over) expect(await refused(selection)).to.include({ code: status.INVALID_ARGUMENT });
    const forward = { source: { $case: 'inline' as const, value: { sourceThreadId: 't', selection: lastN(5) } } };
    const answer = await failure(client.memory.forwardBundle({ ...forward, targetThreadId: 'x', createTarget: true }));
    expect(answer.code).to.equal(status.INVALID_ARGUMENT);
    expect(await rowCounts(tenant, ['bundles', 'bundle_forwards'])).to.deep.equal({ bundles: 0, bundle_forwards: 0 });
    expect((await save('t', lastN(4))).messageCount).to.equal(4);
  });

  it('needs a source thread of the caller, for inline content too', async () => {
    await append('theirs', [human('x')], other());
    await append('gone', [human('x')]);
    await client.conversation.deleteThread({ threadId: 'gone' });
    for (const selection of [lastN(1), inline([human('x')])]) {
      expect(await refused(selection, 'missing')).to.include({ code: status.NOT_FOUND, reason: 'NOT_FOUND' });
      expect(await refused(selection, 'theirs')).to.deep.equal(await refused(selection, 'missing'));
      expect(await refused(selection, 'gone')).to.include({ code: status.NOT_FOUND, reason: 'DELETED' });
    }
  });

  it('outlives its source, unchanged by later messages', async () => {
    await append('t', [human('a')]);
    const bundle = await save('t', lastN(10));
    await append('t', [human('b')]);
    await client.conversation.deleteThread({ threadId: 't' });
    await until(async () => {
      await sweep(server.kernel.database);
      return (await rowCounts(tenant, ['messages'])).messages === 0;
    });
    expect(await get(bundle.id)).to.deep.equal(bundle);
  });

  it('expires at its instant, swept or not', async () => {
    await append('t', [human('a')]);
    const instant = { seconds: 4070908800, nanos: 5000 };
    const kept = await save('t', lastN(1), { expiration: { $case: 'expireTime', value: instant } });
    expect(kept.expireTime).to.deep.equal(instant);
    const bundle = await save('t', lastN(1), { expiration: { $case: 'ttl', value: { seconds: 600, nanos: 0 } } });
    expect(await get(bundle.id)).to.deep.equal(bundle);
    for (const bad of [
      { $case: 'ttl', value: { seconds: 0, nanos: 0 } },
      { $case: 'expireTime', value: { seconds: 1, nanos: 0 } },
    ]) {
      const answer = await failure(
        client.memory.saveBundle({ sourceThreadId: 't', selection: lastN(1), expiration: bad as any }),
      );
      expect(answer.violations.map((violation) => violation.field)).to.deep.equal([
        bad.$case === 'ttl' ? 'ttl' : 'expire_time',
      ]);
    }
    await tenantSql(tenant, 'update bundles set expire_time = clock_timestamp() where id = $1', [bundle.id]);
    for (const swept of [false, true]) {
      if (swept) await sweep(server.kernel.database);
      expect(await failure(get(bundle.id))).to.include({ code: status.NOT_FOUND, reason: 'NOT_FOUND' });
      expect((await client.memory.listBundles({})).bundles.map((b) => b.id)).to.deep.equal([kept.id]);
      const source = { $case: 'bundleId' as const, value: bundle.id };
      expect(await failure(client.memory.forwardBundle({ source, targetThreadId: 't' }))).to.include({
        code: 5,
        reason: 'NOT_FOUND',
      });
    }
  });

  it('is saved once for one request_id, and answers with the first response again', async () => {
    await append('t', [human('a')]);
    const requestId = randomUUID();
    const all = await Promise.all(Array.from({ length: 10 }, () => save('t', lastN(5), { requestId })));
    for (const bundle of all) expect(bundle).to.deep.equal(all[0]);
    await append('t', [human('b')]);
    await client.memory.forwardBundle({ source: { $case: 'bundleId', value: all[0]!.id }, targetThreadId: 't' });
    expect(await save('t', lastN(5), { requestId })).to.deep.equal(all[0]);
    expect(await rowCounts(tenant, ['bundles'])).to.deep.equal({ bundles: 1 });
    const another = client.memory.saveBundle({ sourceThreadId: 't', selection: lastN(4), requestId });
    expect(await failure(another)).to.include({ code: status.INVALID_ARGUMENT, reason: 'REQUEST_ID_REUSED' });
  });

  it('lists newest first without messages, page by page, by source thread', async () => {
    await append('t', [human('a')]);
    await append('u', [human('a')]);
    const ids = [];
    for (let i = 0; i < 5; i++) ids.unshift((await save(i === 2 ? 'u' : 't', lastN(1))).id);
    const pages = await allPages((pageToken) => client.memory.listBundles({ pageSize: 2, pageToken }));
    const listed = pages.map((page) => page.bundles.map((bundle) => bundle.id));
    expect(listed).to.deep.equal([[ids[0], ids[1]], [ids[2], ids[3]], [ids[4]]]);
    expect(pages[0]!.bundles[0]).to.deep.include({ messages: [], forwards: [], messageCount: 1, sourceThreadId: 't' });
    const ofU = await client.memory.listBundles({ sourceThreadId: 'u' });
    expect(ofU.bundles.map((bundle) => bundle.id)).to.deep.equal([ids[2]]);
    const misused = client.memory.listBundles({ sourceThreadId: 'u', pageToken: pages[0]!.nextPageToken });
    expect(await failure(misused)).to.include({ code: status.INVALID_ARGUMENT });
  });

  it("answers another user's bundle as if it did not exist", async () => {
    await append('t', [human('a')]);
    const { id } = await save('t', lastN(1));
    await append('t', [human('theirs')], other());
    const theirs = await failure(client.memory.getBundle({ bundleId: id }, other()));
    expect(theirs).to.deep.equal(await failure(client.memory.getBundle({ bundleId: randomUUID() }, other())));
    expect(theirs).to.include({ code: status.NOT_FOUND, reason: 'NOT_FOUND' });
    expect((await client.memory.listBundles({}, other())).bundles).to.deep.equal([]);
  });
});

import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import type { RunningServer } from '../src/server.ts';
import { type Clients, connect, failure, headersOf, metadataOf, newTenant, startTestServer } from './support.ts';

describe('threads', () => {
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

  const human = (content: string, clientId = '') => ({ role: MessageRole.HUMAN, content, clientId });
  const append = (threadId: string, contents: string[], requestId = '') =>
    client.conversation.appendMessages({ threadId, messages: contents.map((c) => human(c)), requestId });

  it('numbers messages from 1 without a gap, in the order given', async () => {
    const first = await append('t', ['a', 'b']);
    const second = await append('t', ['c']);
    expect([...first.messages, ...second.messages].map((m) => m.seq)).to.deep.equal([1, 2, 3]);
    const { messages } = await client.conversation.listMessages({
      threadId: 't',
      position: { $case: 'afterSeq', value: 0 },
    });
    expect(messages.map((m) => m.content)).to.deep.equal(['a', 'b', 'c']);
    expect(messages.map((m) => m.id)).to.deep.equal([...first.messages, ...second.messages].map((m) => m.id));
  });

  it('gives 200 concurrent appends the seqs 1 to 200', async () => {
    const all = await Promise.all(Array.from({ length: 200 }, (_, i) => append('busy', [`m${i}`])));
    const seqs = all.map((r) => r.messages[0]!.seq).sort((a, b) => a - b);
    expect(seqs).to.deep.equal(Array.from({ length: 200 }, (_, i) => i + 1));
    const listed: string[] = [];
    let pageToken = '';
    do {
      const page = await client.conversation.listMessages({ threadId: 'busy', pageSize: 60, pageToken });
      listed.push(...page.messages.map((m) => m.content));
      pageToken = page.nextPageToken;
    } while (pageToken);
    expect(new Set(listed).size).to.equal(200);
  });

  it('answers a client_id that the thread has seen with the stored message', async () => {
    const [first] = (await client.conversation.appendMessages({ threadId: 't', messages: [human('x', 'c1')] }))
      .messages;
    const again = await client.conversation.appendMessages({
      threadId: 't',
      messages: [human('x', 'c1'), human('y', 'c2')],
    });
    expect(again.messages[0]).to.deep.equal(first);
    expect(again.messages[1]!.seq).to.equal(2);
    const refused = await failure(
      client.conversation.appendMessages({ threadId: 't', messages: [human('new'), human('other', 'c1')] }),
    );
    expect(refused).to.include({ code: status.ALREADY_EXISTS, reason: 'CLIENT_ID_REUSED' });
    expect((await client.conversation.listMessages({ threadId: 't' })).messages).to.have.length(2);
  });

  it('stores one message for 20 concurrent appends with one client_id', async () => {
    const all = await Promise.all(
      Array.from({ length: 20 }, () =>
        client.conversation.appendMessages({ threadId: 't', messages: [human('x', 'same')] }),
      ),
    );
    expect(new Set(all.map((r) => r.messages[0]!.id)).size).to.equal(1);
    expect((await client.conversation.listMessages({ threadId: 't' })).messages).to.have.length(1);
  });

  it('appends once for one request_id, also when it comes 10 times at once', async () => {
    const requestId = randomUUID();
    const all = await Promise.all(Array.from({ length: 10 }, () => append('t', ['a', 'b'], requestId)));
    for (const response of all) expect(response).to.deep.equal(all[0]);
    expect((await client.conversation.listMessages({ threadId: 't' })).messages).to.have.length(2);
    expect(await failure(append('t', ['other'], requestId))).to.include({
      code: status.INVALID_ARGUMENT,
      reason: 'REQUEST_ID_REUSED',
    });
  });

  it('lists from both ends, page by page, in a page of at most 1 MiB', async () => {
    await append(
      't',
      Array.from({ length: 12 }, (_, i) => `${i}`),
    );
    const newest = await client.conversation.listMessages({ threadId: 't', pageSize: 5 });
    expect(newest.messages.map((m) => m.seq)).to.deep.equal([12, 11, 10, 9, 8]);
    const before = await client.conversation.listMessages({
      threadId: 't',
      pageSize: 2,
      position: { $case: 'beforeSeq', value: 3 },
    });
    expect(before.messages.map((m) => m.seq)).to.deep.equal([2, 1]);
    expect(before.nextPageToken).to.equal('');
    for (let i = 0; i < 6; i++) await append('big', ['x'.repeat(250 * 1024)]);
    const page = await client.conversation.listMessages({ threadId: 'big', pageSize: 500 });
    expect(page.messages.map((m) => m.seq)).to.deep.equal([6, 5, 4, 3]);
    const rest = await client.conversation.listMessages({
      threadId: 'big',
      pageSize: 500,
      pageToken: page.nextPageToken,
    });
    expect(rest.messages.map((m) => m.seq)).to.deep.equal([2, 1]);
  });

  it('gives a message back as it was sent', async () => {
    const message = {
      role: MessageRole.TOOL,
      content: 'Grüße 👋\n\t"quoted" \\ \u2028',
      clientId: 'c',
      toolCallId: 'call_1',
      metadata: { a: 1.5, b: [true, null, { c: 'd' }], empty: {}, ключ: '' },
    };
    const sent = await client.conversation.appendMessages({ threadId: 't', messages: [message] });
    const got = await client.conversation.getMessage({ messageId: sent.messages[0]!.id });
    expect(got.message).to.deep.include({ ...message, threadId: 't', seq: 1 });
  });

  it('tells the owner that a thread was deleted, and starts it again with a new session', async () => {
    const [message] = (await append('t', ['secret'])).messages;
    await client.conversation.deleteThread({ threadId: 't' });
    for (const late of [
      () => append('t', ['late']),
      () => client.conversation.listMessages({ threadId: 't' }),
      () => client.conversation.deleteThread({ threadId: 't' }),
    ]) {
      expect(await failure(late())).to.include({ code: status.NOT_FOUND, reason: 'DELETED' });
    }
    expect(await failure(client.conversation.getMessage({ messageId: message!.id }))).to.include({
      code: status.NOT_FOUND,
    });
    await client.memory.upsertSession({ session: { surfaceId: 'web', threadId: 't' } });
    expect((await append('t', ['new'])).messages[0]!.seq).to.equal(1);
    expect((await client.conversation.listMessages({ threadId: 't' })).messages.map((m) => m.content)).to.deep.equal([
      'new',
    ]);
  });

  it('has a thread once a live session points to it, and takes back the name that the service gave it', async () => {
    const first = await client.memory.upsertSession({ session: { surfaceId: 'web' } });
    const { threadId } = first.session!;
    expect((await client.conversation.listMessages({ threadId })).messages).to.deep.equal([]);
    const echoed = await client.memory.upsertSession({ session: { surfaceId: 'web', threadId, title: 'same' } });
    expect(echoed).to.deep.include({ created: false });
    expect(echoed.session!.id).to.equal(first.session!.id);
    const selection = { $case: 'inline' as const, value: { messages: [human('from there')] } };
    const inline = { sourceThreadId: threadId, selection: { selection } };
    const forwarded = await client.memory.forwardBundle({
      source: { $case: 'inline', value: inline },
      targetThreadId: threadId,
    });
    expect(forwarded).to.include({ firstSeq: 1, lastSeq: 1 });
    await client.memory.endSession({ sessionId: first.session!.id });
    const ended = await client.memory.upsertSession({ session: { surfaceId: 'web', threadId } });
    expect(ended.created).to.equal(true);
  });

  it('lists the threads of the user, newest first', async () => {
    for (const id of ['a', 'b', 'c']) await append(id, ['x']);
    await client.conversation.deleteThread({ threadId: 'b' });
    const first = await client.conversation.listThreads({ pageSize: 1 });
    expect(first.threads.map((t) => t.threadId)).to.deep.equal(['c']);
    await append('d', ['x']); // what comes before a page moves nothing on it
    const second = await client.conversation.listThreads({ pageSize: 1, pageToken: first.nextPageToken });
    expect(second.threads.map((t) => [t.threadId, t.lastSeq])).to.deep.equal([['a', 1]]);
    expect(second.nextPageToken).to.equal('');
  });

  it("answers another user's thread and message as if they did not exist", async () => {
    const [message] = (await append('t', ['mine'])).messages;
    const other = metadataOf(headersOf(tenant, 'other'));
    expect(await failure(client.conversation.listMessages({ threadId: 't' }, other))).to.include({
      code: status.NOT_FOUND,
      reason: 'NOT_FOUND',
    });
    expect(await failure(client.conversation.getMessage({ messageId: message!.id }, other))).to.include({
      code: status.NOT_FOUND,
    });
    expect(
      (await client.conversation.appendMessages({ threadId: 't', messages: [human('theirs')] }, other)).messages[0]!
        .seq,
    ).to.equal(1);
  });
});

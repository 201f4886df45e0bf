import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import type { StreamOpen } from '../src/gen/memory/v1/conversation_service.ts';
import { MessageRole, MessageState } from '../src/gen/memory/v1/message.ts';
import type { RunningServer } from '../src/server.ts';
import { feed, follower, pieces, type Stream, stream, watch, whole } from './fixtures/live.ts';
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

const { COMPLETE, STREAMING, INTERRUPTED } = MessageState;
const { ABORTED, ALREADY_EXISTS, INVALID_ARGUMENT, NOT_FOUND } = status;
const KIB = 1024;
const TEXT = 'Grüße 👋 und so weiter. ';

describe('streamed messages', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;
  let headers: Record<string, string>;

  before(async () => {
    server = await startTestServer();
  });
  after(() => server.stop());
  beforeEach(async () => {
    tenant = await newTenant(['user', 'other']);
    headers = headersOf(tenant);
    client = connect(`127.0.0.1:${server.port}`, headers);
  });
  afterEach(() => client.close());

  const open = (fields: Partial<StreamOpen> | undefined = { threadId: 't', clientId: 'c' }, options = {}) =>
    stream(client, headers, fields, options);
  const get = async (messageId: string) => (await client.conversation.getMessage({ messageId })).message!;
  const list = async (threadId = 't') => (await client.conversation.listMessages({ threadId })).messages;
  /** A stream with this text, durable but not finished. */
  async function opened(text: string, fields?: Partial<StreamOpen>): Promise<Stream & { id: string }> {
    const own = open(fields);
    const { messageId, durableOffset } = await own.opened();
    if (text) own.chunk(text);
    if (text) await own.acked(durableOffset + Buffer.byteLength(text));
    return Object.assign(own, { id: messageId });
  }
  /** What was told of the thread's message once its stream broke. */
  async function interrupted(threadId = 't'): Promise<string> {
    const tape = watch(client, headers, threadId);
    const follow = follower();
    await tape.until((event) => {
      follow.take(event);
      return event.event?.$case === 'finished';
    });
    tape.cancel();
    expect(follow.messages.get(1)!.state).to.equal(INTERRUPTED);
    return follow.messages.get(1)!.text;
  }
  const refused = async (own: Stream): Promise<Failure> => (await own.ended) ?? expect.fail('it should have failed');

  it('are durable as acknowledged, and whole once finished', async () => {
    const own = open({ threadId: 't', clientId: 'c', role: MessageRole.TOOL, toolCallId: 'call' });
    const { messageId, seq, durableOffset } = await own.opened();
    expect({ seq, durableOffset }).to.deep.equal({ seq: 1, durableOffset: 0 });
    own.chunk(TEXT);
    own.chunk(TEXT);
    await own.acked(2 * Buffer.byteLength(TEXT));
    expect(await get(messageId)).to.deep.include({ content: TEXT + TEXT, state: STREAMING, tokenCount: 0 });
    own.chunk('The end.');
    own.finish({ model: 'm', scores: [1.5, null] });
    const message = await own.finished();
    expect(await own.ended).to.equal(undefined);

    const stored = await get(messageId);
    expect(stored).to.deep.include({ content: `${TEXT}${TEXT}The end.`, state: COMPLETE, toolCallId: 'call', seq: 1 });
    expect(stored.metadata).to.deep.equal({ model: 'm', scores: [1.5, null] });
    const { counts } = await client.conversation.countTokens({ texts: [stored.content] });
    expect(message).to.deep.include({ id: messageId, threadId: 't', seq: 1, clientId: 'c', state: COMPLETE });
    expect([message.content, message.metadata, message.tokenCount]).to.deep.equal(['', undefined, counts[0]]);
    expect(stored.tokenCount).to.equal(counts[0]);
    const acks = own.all.flatMap((frame) => (frame.$case === 'ack' ? frame.value.durableOffset : []));
    expect(acks).to.deep.equal([...new Set(acks)].sort((a, b) => a - b));
    expect(own.all.map((frame) => frame.$case)).to.deep.equal(['opened', ...acks.map(() => 'ack'), 'finished']);
    expect(await tenantSql(tenant, 'select 1 from message_streams')).to.deep.equal([]);
  });

  it('may be empty, and take the next seq like any other', async () => {
    await client.conversation.appendMessages({ threadId: 't', messages: [{ role: MessageRole.HUMAN, content: 'q' }] });
    const own = open();
    expect((await own.opened()).seq).to.equal(2);
    own.finish();
    expect(await own.finished()).to.deep.include({ seq: 2, tokenCount: 0 });
    expect((await list()).map((message) => message.content)).to.deep.equal(['', 'q']);
  });

  it('go on from the durable offset after their client cancelled', async () => {
    const first = await opened(TEXT);
    first.cancel();
    expect(await interrupted()).to.equal(TEXT);
    expect(await get(first.id)).to.deep.include({ content: TEXT, state: INTERRUPTED });

    const second = open();
    const { messageId, durableOffset } = await second.opened();
    expect({ messageId, durableOffset }).to.deep.equal({ messageId: first.id, durableOffset: Buffer.byteLength(TEXT) });
    second.chunk('and on');
    second.finish();
    expect(await second.finished()).to.include({ id: first.id, seq: 1, state: COMPLETE });
    const follow = follower();
    for (const event of await feed(client, headers, 't')) follow.take(event);
    expect([...follow.messages.values()]).to.deep.equal([whole(`${TEXT}and on`)]);
  });

  it('keep what came before their deadline', async () => {
    const own = open(undefined, { deadline: Date.now() + 1000 });
    await own.opened();
    own.chunk(TEXT);
    expect(await own.ended).to.include({ code: status.DEADLINE_EXCEEDED });
    expect(await interrupted()).to.equal(TEXT);
  });

  it('keep what came before the end of a stream without finish', async () => {
    const own = open();
    await own.opened();
    own.chunk(TEXT);
    own.halfClose();
    expect(await own.ended).to.deep.include({ code: INVALID_ARGUMENT });
    expect((await own.ended)!.violations.map(({ field }) => field)).to.deep.equal(['finish']);
    expect(await interrupted()).to.equal(TEXT);
  });

  it('are taken from a stream that is still open by the next one', async () => {
    const first = await opened(TEXT);
    const second = await opened('mine', { threadId: 't', clientId: 'c' });
    expect(second.id).to.equal(first.id);
    first.chunk('too late');
    expect(await first.ended).to.include({ code: ABORTED, reason: 'STREAM_TAKEN' });
    expect((await get(first.id)).state, 'who lost it does not break it off').to.equal(STREAMING);
    second.finish();
    await second.finished();
    expect(await get(first.id)).to.include({ content: `${TEXT}mine`, state: COMPLETE });
  });

  it('are written by one of ten streams that open the same one at once', async () => {
    const all = Array.from({ length: 10 }, () => open());
    for (const own of all) own.chunk('x', 0);
    for (const own of all) own.finish();
    await Promise.all(all.map((own) => own.ended));
    const [message, ...more] = await list();
    expect(more).to.deep.equal([]);
    expect(message!.content).to.be.oneOf(['x', '']);
    const again = open();
    again.finish();
    expect((await again.finished()).state).to.equal(COMPLETE);
    expect(await list()).to.have.length(1);
  });

  it('answer a stream that opens one that is complete with its end', async () => {
    const first = await opened(TEXT);
    first.finish();
    const finished = await first.finished();
    const again = open();
    expect((await again.opened()).durableOffset).to.equal(Buffer.byteLength(TEXT));
    expect(await again.finished()).to.deep.equal(finished);
    expect(await again.ended).to.equal(undefined);
  });

  it('cannot be mistaken for others by their client_id', async () => {
    const messages = [{ role: MessageRole.ASSISTANT, content: 'x', clientId: 'appended' }];
    await client.conversation.appendMessages({ threadId: 't', messages });
    (await opened('x')).cancel();
    for (const other of [
      { threadId: 't', clientId: 'c', role: MessageRole.TOOL },
      { threadId: 't', clientId: 'c', toolCallId: 'call' },
      { threadId: 't', clientId: 'appended' },
    ]) {
      expect(await refused(open(other))).to.include({ code: ALREADY_EXISTS, reason: 'CLIENT_ID_REUSED' });
    }
    const appended = { threadId: 't', messages: [{ role: MessageRole.ASSISTANT, content: 'x', clientId: 'c' }] };
    const own = await opened('y');
    expect(await failure(client.conversation.appendMessages(appended))).to.include({ code: ALREADY_EXISTS });
    own.finish();
    await own.finished();
    const same = { ...appended, messages: [{ ...appended.messages[0]!, content: 'xy' }] };
    expect((await client.conversation.appendMessages(same)).messages[0]!.id).to.equal(own.id);
  });

  it('refuse chunks that do not fit, and keep what fits', async () => {
    const cases: [string, (own: Stream) => void, Partial<Failure>][] = [
      ['a gap', (own) => own.chunk('x', 8), { reason: 'OFFSET_MISMATCH', metadata: { expected_offset: '7' } }],
      ['an overlap', (own) => own.chunk('x', 6), { reason: 'OFFSET_MISMATCH', metadata: { expected_offset: '7' } }],
      ['before the start', (own) => own.chunk('x', -1), {}],
      ['too large', (own) => own.chunk('ü'.repeat(32 * KIB + 1)), {}],
      ['empty', (own) => own.chunk(''), {}],
      ['with NUL', (own) => own.chunk('a\0b'), {}],
      [
        'opened again',
        (own) => own.send({ $case: 'open', value: { threadId: 't', clientId: 'c', role: MessageRole.TOOL } }),
        {},
      ],
      ['no frame', (own) => own.send(undefined), {}],
      ['a huge finish', (own) => own.finish({ x: 'x'.repeat(64 * KIB) }), {}],
    ];
    for (const [threadId, act, expected] of cases) {
      const own = await opened('Grüße', { threadId, clientId: 'c' });
      act(own);
      const told = await refused(own);
      expect(told, threadId).to.deep.include({ code: INVALID_ARGUMENT, ...expected });
      expect(told.violations, threadId).to.have.length(1);
      expect(await interrupted(threadId), threadId).to.equal('Grüße');
    }
  });

  it('refuse a stream that does not begin with open', async () => {
    const bare = open({}, {});
    const chunkFirst = stream(client, headers, undefined);
    chunkFirst.chunk('x');
    const nothing = stream(client, headers, undefined);
    nothing.halfClose();
    expect((await refused(bare)).violations.map(({ field }) => field)).to.have.members([
      'open.thread_id',
      'open.client_id',
    ]);
    expect((await refused(chunkFirst)).violations.map(({ field }) => field)).to.deep.equal(['open']);
    expect((await refused(nothing)).code).to.equal(INVALID_ARGUMENT);
    expect(await failure(client.conversation.listMessages({ threadId: 't' }))).to.include({ code: NOT_FOUND });
  });

  it('take 256 KiB and not a byte more, also over several streams', async () => {
    const all = 'ü'.repeat(128 * KIB);
    const own = open();
    await own.opened();
    for (const piece of pieces(all, 32 * KIB)) own.chunk(piece);
    await own.acked(256 * KIB);
    own.chunk('x');
    expect((await refused(own)).violations.map(({ field }) => field)).to.deep.equal(['chunk.text']);
    expect(await interrupted()).to.equal(all);
    const again = open();
    expect((await again.opened()).durableOffset).to.equal(256 * KIB);
    again.finish();
    await again.finished();
    expect((await list())[0]!.content).to.equal(all);
  });

  it('refuse text that is not UTF-8, and keep what came before', async () => {
    // open, then a chunk at 0 with one letter, then one with a byte that no text has
    const frames = [
      Buffer.concat([
        Buffer.from([0x0a, 0x08, 0x0a, 0x01]),
        Buffer.from('t'),
        Buffer.from([0x18, 0x02, 0x22, 0x01, 0x63]),
      ]),
      Buffer.from([0x12, 0x03, 0x12, 0x01, 0x61]),
      Buffer.from([0x12, 0x05, 0x08, 0x01, 0x12, 0x01, 0xff]),
    ];
    const same = (bytes: Buffer) => bytes;
    const call = client.streams.conversation.makeBidiStreamRequest(
      '/memory.v1.ConversationService/StreamMessage',
      same,
      same,
      metadataOf(headers),
      {},
    );
    const ended = new Promise<any>((resolve) => call.on('error', resolve));
    call.on('data', () => {});
    for (const frame of frames) call.write(frame);
    expect((await ended).code).to.equal(INVALID_ARGUMENT);
    expect(await interrupted()).to.equal('a');
  });
});

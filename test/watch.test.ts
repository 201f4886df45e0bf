import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { MessageRole, MessageState } from '../src/gen/memory/v1/message.ts';
import type { ThreadEvent } from '../src/gen/memory/v1/thread_event.ts';
import type { RunningServer } from '../src/server.ts';
import {
  broken,
  feed,
  follower,
  isBookmark,
  kindOf,
  pieces,
  stream,
  type Tape,
  watch,
  whole,
} from './fixtures/live.ts';
import { allPages, type Clients, connect, type Failure, headersOf, newTenant, startTestServer } from './support.ts';

const { HUMAN, ASSISTANT } = MessageRole;
const { INVALID_ARGUMENT, NOT_FOUND } = status;
const KIB = 1024;

describe('watches of threads', () => {
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

  const append = async (contents: string[], threadId = 't') => {
    const messages = contents.map((content) => ({ role: HUMAN, content }));
    return (await client.conversation.appendMessages({ threadId, messages })).messages;
  };
  const watched = (after = 0, threadId = 't') => watch(client, headers, threadId, after);
  const read = (after = 0, threadId = 't') => feed(client, headers, threadId, after);
  const refused = async (tape: Tape<unknown>): Promise<Failure> =>
    (await tape.ended) ?? expect.fail('it should have failed');
  const followed = (events: ThreadEvent[]) => {
    const follow = follower();
    for (const event of events) follow.take(event);
    return follow;
  };
  /** Streams a message in these pieces, each stored by itself, and finishes it or breaks it off. */
  async function streamed(clientId: string, texts: string[], how: 'finish' | 'cancel'): Promise<string> {
    const own = stream(client, headers, { threadId: 't', clientId });
    const { messageId, durableOffset } = await own.opened();
    let end = durableOffset;
    for (const text of texts) {
      own.chunk(text);
      end += Buffer.byteLength(text);
      await own.acked(end);
    }
    if (how === 'finish') {
      own.finish({ clientId });
      await own.finished();
      return messageId;
    }
    const { revision } = (await client.conversation.listMessages({ threadId: 't' })) ?? {};
    own.cancel();
    const tape = watched(revision);
    await tape.until((event) => kindOf(event) === 'finished');
    tape.cancel();
    return messageId;
  }
  /** Some of everything that can happen to a thread, but its end. */
  async function eventful(): Promise<void> {
    const [, second] = await append(['one', 'two', 'three']);
    await streamed('whole', ['Grüße ', '👋', ' und so weiter'], 'finish');
    await append(['between']);
    await streamed('broken', ['so f', 'är'], 'cancel');
    await append(['and']);
    await client.conversation.deleteMessage({ messageId: second!.id });
    await streamed('broken', [' and 👋', ' on'], 'finish');
    const gone = await streamed('gone', ['a secret', ' text'], 'finish');
    await streamed('left', ['never ', 'finished'], 'cancel');
    await client.conversation.deleteMessage({ messageId: gone });
    const source = { sourceThreadId: 't', selection: { selection: { $case: 'lastN' as const, value: 3 } } };
    await client.memory.forwardBundle({ source: { $case: 'inline', value: source }, targetThreadId: 't' });
    const { session, lease } = await client.conversation.beginTurn({
      session: { surfaceId: 'web', threadId: 't' },
      holder: 'h',
      messages: [{ role: HUMAN, content: 'question' }],
    });
    await client.conversation.commitTurn({
      sessionId: session!.id,
      fencingToken: lease!.fencingToken,
      messages: [{ role: ASSISTANT, content: 'answer' }],
      turn: { query: 'question' },
      release: true,
    });
  }

  it('tell after every revision what they tell after it from the beginning', async () => {
    await eventful();
    const all = await read();
    const { lastSeq, messages, revision } = followed(all);
    expect(new Set(all.map(kindOf))).to.deep.equal(new Set(['appended', 'textDelta', 'finished', 'deleted']));
    for (let after = 0; after <= revision; after++) {
      expect(await read(after), `after ${after}`).to.deep.equal(all.slice(after));
    }
    const position = { $case: 'afterSeq' as const, value: 0 };
    const page = await client.conversation.listMessages({ threadId: 't', position, pageSize: 500 });
    expect(page).to.deep.include({ revision, deletedSeqs: [2, 8] });
    expect(page.messages.at(-1)!.seq).to.equal(lastSeq);
    const listed = page.messages.map(({ seq, content, state }) => [seq, { text: content, state, deleted: false }]);
    expect([...messages].filter(([, { deleted }]) => !deleted)).to.deep.equal(listed);
    const { threads } = await client.conversation.listThreads({});
    expect(threads.map((thread) => thread.revision)).to.deep.equal([revision]);
  });

  it('tell as it happens what they tell later, but for what was deleted since', async () => {
    await client.memory.upsertSession({ session: { surfaceId: 'web', threadId: 't' } });
    const live = watched();
    await live.until(isBookmark);
    expect(live.all).to.deep.equal([{ revision: 0, event: { $case: 'bookmark', value: {} } }]);
    await eventful();
    const later = await read();
    await live.until(({ revision }) => revision === later.at(-1)!.revision);
    live.cancel();
    followed(live.all);
    const [, ...told] = live.all;
    expect(told.map(kindOf)).to.deep.equal(later.map(kindOf));
    const deltas = (events: ThreadEvent[]) =>
      events.map((told) => (told.event?.$case === 'textDelta' ? told.event.value.offset : 0));
    expect(deltas(told)).to.deep.equal(deltas(later));
    const differing = told.filter((event, i) => JSON.stringify(event) !== JSON.stringify(later[i]));
    const seqs = differing.map(({ event }) =>
      event?.$case === 'textDelta' ? event.value.seq : (event as any).value.message.seq,
    );
    expect(new Set(seqs)).to.deep.equal(new Set([2, 8]));
    expect(JSON.stringify(later)).not.to.match(/two|secret/);
  });

  it('tell what a message was when it was appended, and when it ended', async () => {
    await streamed('c', ['text'], 'cancel');
    await streamed('c', [' more'], 'finish');
    const [appended, , interrupted, , finished] = (await read()).map(({ event }) => (event as any).value.message);
    const bare = { seq: 1, clientId: 'c', content: '', role: ASSISTANT, threadId: 't' };
    expect(appended).to.deep.include({ ...bare, state: MessageState.STREAMING, metadata: undefined, tokenCount: 0 });
    expect(interrupted).to.deep.include({ ...bare, state: MessageState.INTERRUPTED, metadata: undefined });
    expect(finished).to.deep.include({ ...bare, state: MessageState.COMPLETE, metadata: { clientId: 'c' } });
    expect(finished.tokenCount).to.be.greaterThan(0);
  });

  it('bookmark when all that is stored was told, once', async () => {
    await append(['a', 'b']);
    for (const after of [0, 1, 2]) {
      const tape = watched(after);
      await tape.until(isBookmark);
      await append(['later'], 'other');
      expect(tape.all.at(-1)).to.deep.equal({ revision: 2, event: { $case: 'bookmark', value: {} } });
      expect(tape.all).to.have.length(3 - after);
      tape.cancel();
    }
  });

  it('refuse what is not there, not theirs, or not yet', async () => {
    await append(['a', 'b']);
    const ahead = await refused(watched(3));
    expect(ahead).to.include({ code: INVALID_ARGUMENT });
    expect(ahead.violations.map(({ field }) => field)).to.deep.equal(['after_revision']);
    expect((await refused(watched(-1))).code).to.equal(INVALID_ARGUMENT);
    expect((await refused(watched(0, ''))).code).to.equal(INVALID_ARGUMENT);
    for (const after of [0, 2]) {
      const missing = await refused(watched(after, 'missing'));
      expect(await refused(watch(client, headersOf(tenant, 'other'), 't', after))).to.deep.equal(missing);
      expect(missing).to.include({ code: NOT_FOUND, reason: 'NOT_FOUND' });
    }
    const none = await refused(watch(client, headersOf(tenant, 'stranger'), 't'));
    expect(none.code).to.equal(status.PERMISSION_DENIED);
  });

  it('tell of many large messages, page by page', async () => {
    for (let i = 0; i < 5; i++) {
      await append(Array.from({ length: 39 }, (_, k) => `${i} ${k} `.padEnd(70 * KIB, 'Grüße und 👋 ')));
      await append(['small', 'ones']);
    }
    await streamed('large', pieces('👋'.repeat(60 * KIB), 16 * KIB), 'finish');
    const all = await read();
    const { messages } = followed(all);
    const pages = await allPages((pageToken) =>
      client.conversation.listMessages({
        threadId: 't',
        pageSize: 500,
        pageToken,
        position: { $case: 'afterSeq', value: 0 },
      }),
    );
    const listed = pages.flatMap((page) => page.messages.map(({ content }) => whole(content)));
    expect(listed).to.have.length(206);
    for (const [i, message] of listed.entries())
      expect(messages.get(i + 1)!.text === message.text, `${i}`).to.equal(true);
    for (const after of [1, 100, 205, 207]) expect((await read(after)).length).to.equal(all.length - after);
  });

  it('go on where the ends of messages are larger than a page', async () => {
    const all = Array.from({ length: 8 }, (_, i) => stream(client, headers, { threadId: 't', clientId: `${i}` }));
    await Promise.all(all.map((own) => own.opened()));
    const { revision } = await client.conversation.listMessages({ threadId: 't' });
    await append(['behind them', 'and another']);
    // Nothing that compresses well.
    const noise = () => Array.from({ length: 5000 }, () => Math.random().toString(36).slice(2));
    for (const own of all) {
      own.finish({ noise: noise().join('').slice(0, 60_000) });
      await own.finished();
    }
    expect((await read(revision)).map(kindOf)).to.deep.equal(['appended', 'appended', ...all.map(() => 'finished')]);
  });

  it('begin with `cleared` where a thread was cleared since, and go on from there', async () => {
    await eventful();
    const before = watched();
    await before.until(isBookmark);
    const position = followed(before.all);
    const { clearedThroughSeq } = await client.conversation.clearHistory({ threadId: 't' });
    expect(clearedThroughSeq).to.equal(position.lastSeq);
    const [next] = await append(['after']);
    await streamed('c', ['new', 'er'], 'finish');
    expect(next!.seq).to.equal(clearedThroughSeq + 1);
    const cleared = {
      revision: position.revision + 1,
      event: { $case: 'cleared', value: { throughSeq: clearedThroughSeq } },
    };
    const all = await read();
    expect(all[0]).to.deep.equal(cleared);
    followed(all);
    for (let after = 1; after <= position.revision; after += 3) expect(await read(after)).to.deep.equal(all);
    for (let i = 1; i <= all.length; i++) expect(await read(position.revision + i)).to.deep.equal(all.slice(i));
    await before.until(({ revision }) => revision === all.at(-1)!.revision);
    expect(before.all.filter((event) => !isBookmark(event)).slice(position.events.length)).to.deep.equal(all);
    before.cancel();

    await client.conversation.clearHistory({ threadId: 't' });
    expect((await read(2)).map(kindOf), 'only the last one is told').to.deep.equal(['cleared']);
  });

  it('end with `ended` where the thread was deleted, and begin again with `cleared`', async () => {
    await append(['a', 'b']);
    const tapes = [watched(), watched(2)];
    for (const tape of tapes) await tape.until(isBookmark);
    await client.conversation.deleteThread({ threadId: 't' });
    for (const tape of [...tapes, watched(1)]) {
      expect(await tape.ended).to.equal(undefined);
      expect(tape.all.at(-1)).to.deep.equal({ revision: 3, event: { $case: 'ended', value: {} } });
    }
    for (const after of [0, 3])
      expect(await refused(watched(after))).to.include({ code: NOT_FOUND, reason: 'DELETED' });
    expect((await refused(watched(4))).code).to.equal(INVALID_ARGUMENT);

    await client.memory.upsertSession({ session: { surfaceId: 'web', threadId: 't' } });
    await append(['again']);
    for (const after of [0, 2, 3]) {
      const all = await read(after);
      expect(followed(all).messages).to.deep.equal(new Map([[1, whole('again')]]));
      expect(all[0]).to.deep.equal({ revision: 4, event: { $case: 'cleared', value: { throughSeq: 0 } } });
    }
    expect((await read(4)).map(kindOf)).to.deep.equal(['appended']);
  });

  it('end when the only session that points to the thread is deleted', async () => {
    const { session } = await client.memory.upsertSession({ session: { surfaceId: 'web' } });
    const { id, threadId } = session!;
    const early = watched(0, threadId);
    await early.until(isBookmark);
    await append(['first'], threadId);
    await early.until((event) => kindOf(event) === 'appended');
    await client.memory.deleteSession({ sessionId: id });
    expect(await early.ended).to.equal(undefined);
    expect(early.all.map(kindOf)).to.deep.equal(['bookmark', 'appended', 'ended']);
  });

  it('tell fifty watchers the same, wherever they began', async () => {
    await eventful();
    const start = await read();
    const tapes = Array.from({ length: 50 }, (_, i) => watched(i % (start.length + 1)));
    await streamed('more', ['a', 'b', 'c'], 'finish');
    await streamed('most', ['d'], 'cancel');
    const all = await read();
    const { messages } = followed(all);
    expect([...messages.values()].slice(-2)).to.deep.equal([whole('abc'), broken('d')]);
    for (const [i, tape] of tapes.entries()) {
      await tape.until(({ revision }) => revision === all.at(-1)!.revision);
      const told = tape.all.filter((event) => !isBookmark(event));
      expect(told.map(({ revision }) => revision)).to.deep.equal(
        all.slice(i % (start.length + 1)).map(({ revision }) => revision),
      );
      tape.cancel();
    }
  });
});

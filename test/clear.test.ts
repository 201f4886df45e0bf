import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import { PinnedRef_Kind } from '../src/gen/memory/v1/session.ts';
import type { RunningServer } from '../src/server.ts';
import { sweep } from '../src/tenants/expiry.ts';
import { holding, stream } from './fixtures/live.ts';
import { type Clients, connect, failure, headersOf, newTenant, rowCounts, startTestServer, until } from './support.ts';

const { HUMAN, TOOL } = MessageRole;
const { ABORTED, FAILED_PRECONDITION, INVALID_ARGUMENT, NOT_FOUND } = status;

describe('cleared and deleted threads', () => {
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

  const append = async (contents: string[], threadId = 't', requestId = '') => {
    const messages = contents.map((content) => ({
      role: HUMAN,
      content,
      metadata: { of: content },
      clientId: content.split(' ')[0],
    }));
    return (await client.conversation.appendMessages({ threadId, messages, requestId })).messages;
  };
  const contents = async (threadId = 't') =>
    (await client.conversation.listMessages({ threadId })).messages.map(({ content }) => content);
  async function streamed(threadId: string, clientId: string, text: string): Promise<string> {
    const own = stream(client, headers, { threadId, clientId });
    const { messageId } = await own.opened();
    own.chunk(text);
    await own.acked(text.length);
    own.chunk(text);
    own.finish({ text });
    await own.finished();
    return messageId;
  }
  const sweepAll = () =>
    until(async () => {
      await sweep(server.kernel.database);
      return (await rowCounts(tenant, ['dropped_threads'])).dropped_threads === 0;
    });

  /** A session with everything that a history holds, and what stays. */
  async function lived(word: string) {
    const summaryRefs = [{ id: 's', text: `${word} told before`, throughSeq: 1 }];
    const pinnedRefs = [{ id: 'p', kind: PinnedRef_Kind.FACT, text: 'stays pinned' }];
    const session = {
      surfaceId: 'web',
      threadId: 't',
      title: 'stays',
      state: { stays: 1 },
      preferences: { stays: 2 },
      pinnedRefs,
      summaryRefs,
    };
    await client.memory.upsertSession({ session, requestId: randomUUID() });
    const begun = await client.conversation.beginTurn({
      session: { surfaceId: 'web', threadId: 't' },
      holder: 'h',
      messages: [{ role: HUMAN, content: `${word} asked`, metadata: { word } }],
      requestId: randomUUID(),
    });
    const { id: sessionId } = begun.session!;
    const { fencingToken } = begun.lease!;
    const own = stream(client, headers, { sessionId, clientId: 'c', fencingToken });
    const { messageId } = await own.opened();
    own.chunk(`${word} answered`);
    own.finish({ word });
    await own.finished();
    await client.conversation.commitTurn({
      sessionId,
      fencingToken,
      messageIds: [messageId],
      messages: [{ role: TOOL, content: `${word} by a tool` }],
      turn: {
        query: `${word}?`,
        response: `${word}!`,
        reflection: word,
        tasks: [{ id: 'a', type: word }],
        results: [{ taskId: 'a', payloadJson: Buffer.from(JSON.stringify([{ [word]: word }])) }],
        report: { reportPath: '/r', summary: word },
      },
      summaries: [{ id: 'later', text: `${word} told`, throughSeq: 2 }],
      contextEntries: [{ entry: { $case: 'decision', value: { text: `${word} decided` } } }],
      toolCalls: [{ toolName: 'tool', input: { word }, output: { word } }],
      prompts: [{ name: 'p', text: `${word} prompted` }],
      llmRequests: [{ provider: 'p', model: 'm', promptTokens: 5, cost: '0.5' }],
      requestId: randomUUID(),
    });
    return { sessionId, fencingToken, messageId };
  }

  it('leave nothing of what was said, in any table, once the sweep has passed', async () => {
    const { sessionId, fencingToken } = await lived('whisper');
    const told = await client.conversation.clearHistory({ sessionId, fencingToken });
    expect(told).to.deep.equal({ clearedThroughSeq: 3, sessionIds: [sessionId] });
    expect(await contents()).to.deep.equal([]);
    expect((await client.conversation.listTurns({ sessionId })).turns).to.deep.equal([]);
    const data = await client.conversation.getSessionData({ sessionId });
    expect(data).to.deep.equal({ latest: undefined, turns: [], structuredData: [], reports: [] });
    const { context } = await client.memory.getSessionContext({ sessionId });
    expect(context!.decisions).to.deep.equal([]);
    expect((await client.memory.listStateCheckpoints({ sessionId })).checkpoints).to.deep.equal([]);
    const { session } = await client.memory.getSession({ sessionId });
    expect(session).to.deep.include({
      title: 'stays',
      state: { stays: 1 },
      preferences: { stays: 2 },
      summaryRefs: [],
    });
    expect(session!.pinnedRefs.map(({ text }) => text)).to.deep.equal(['stays pinned']);
    await sweepAll();
    expect(await holding(tenant, 'whisper')).to.deep.equal([]);
    const left = await rowCounts(tenant, ['messages', 'thread_events', 'llm_requests']);
    expect(left).to.deep.equal({ messages: 0, thread_events: 0, llm_requests: 1 });
    expect((await append(['next']))[0]!.seq).to.equal(4);
  });

  it('are cleared only with the turn while another holds it', async () => {
    await append(['a']);
    const { lease } = await client.conversation.acquireTurn({ threadId: 't', holder: 'h' });
    const clear = (fencingToken: number) => client.conversation.clearHistory({ threadId: 't', fencingToken });
    const held = await failure(clear(0));
    expect(held).to.include({ code: FAILED_PRECONDITION, reason: 'TURN_HELD' });
    expect(held.metadata).to.include({ holder: 'h' });
    const stale = { code: ABORTED, reason: 'STALE_FENCING_TOKEN' };
    expect(await failure(clear(lease!.fencingToken + 1))).to.include(stale);
    expect(await contents()).to.deep.equal(['a']);
    expect((await clear(lease!.fencingToken)).clearedThroughSeq).to.equal(1);
    await client.conversation.releaseTurn({ threadId: 't', fencingToken: lease!.fencingToken });
    expect(await failure(clear(lease!.fencingToken))).to.include(stale);
  });

  it('are cleared once for one request_id, if they are there', async () => {
    await append(['a', 'b']);
    const { session } = await client.memory.upsertSession({ session: { surfaceId: 'web', threadId: 'mine' } });
    const { clearHistory } = client.conversation;
    const request = { threadId: 't', requestId: randomUUID() };
    const answers = await Promise.all(Array.from({ length: 5 }, () => clearHistory(request)));
    await append(['c']);
    for (const answer of [...answers, await clearHistory(request)]) {
      expect(answer).to.deep.equal({ clearedThroughSeq: 2, sessionIds: [] });
    }
    expect(await contents()).to.deep.equal(['c']);
    expect((await failure(clearHistory({ threadId: 'missing' }))).code).to.equal(NOT_FOUND);
    const both = await failure(clearHistory({ threadId: 't', sessionId: session!.id }));
    expect(both.violations.map(({ field }) => field)).to.deep.equal(['thread_id']);
    expect(await clearHistory({ sessionId: session!.id })).to.deep.equal({
      clearedThroughSeq: 0,
      sessionIds: [session!.id],
    });
    await client.conversation.deleteThread({ threadId: 't' });
    expect(await failure(clearHistory({ threadId: 't' }))).to.include({ code: NOT_FOUND, reason: 'DELETED' });
    expect((await failure(clearHistory({}))).code).to.equal(INVALID_ARGUMENT);
  });

  it('leave bundles and copies, and free the client_ids', async () => {
    await append(['a', 'b']);
    const inline = { sourceThreadId: 't', selection: { selection: { $case: 'lastN' as const, value: 2 } } };
    const { bundle } = await client.memory.forwardBundle({
      source: { $case: 'inline', value: inline },
      targetThreadId: 'copy',
      createTarget: true,
    });
    await client.conversation.clearHistory({ threadId: 't' });
    await sweepAll();
    expect((await client.memory.getBundle({ bundleId: bundle!.id })).bundle!.messageCount).to.equal(2);
    expect(await contents('copy')).to.deep.equal(['b', 'a']);
    expect((await append(['a']))[0]!.seq).to.equal(3);
  });

  it('leave their sessions without summaries, and nothing of what was said, when deleted', async () => {
    await streamed('t', 'c', 'whisper');
    await append(['too whisper']);
    const summaryRefs = [{ id: 's', text: 'whispers', throughSeq: 2 }];
    const session = { surfaceId: 'web', threadId: 't', summaryRefs, title: 'stays' };
    const { session: made } = await client.memory.upsertSession({ session, requestId: randomUUID() });
    const requestId = randomUUID();
    await client.conversation.deleteThread({ threadId: 't', requestId });
    await client.conversation.deleteThread({ threadId: 't', requestId });
    expect((await client.memory.getSession({ sessionId: made!.id })).session).to.deep.include({
      summaryRefs: [],
      title: 'stays',
    });
    await sweepAll();
    expect(await holding(tenant, 'whisper')).to.deep.equal([]);
  });
});

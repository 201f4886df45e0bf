import { randomUUID } from 'node:crypto';
import { type ServiceError, status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { ContextSection } from '../src/gen/memory/v1/conversation_service.ts';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import type { RunningServer } from '../src/server.ts';
import { feed, follower, holding, kindOf, random, stream, watch } from './fixtures/live.ts';
import {
  allPages,
  type Clients,
  connect,
  failure,
  headersOf,
  newTenant,
  startTestServer,
  tenantSql,
  until,
} from './support.ts';

const { HUMAN, TOOL } = MessageRole;
const { INVALID_ARGUMENT, NOT_FOUND } = status;

describe('deleted messages', () => {
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
  const remove = (messageId: string, requestId = '') => client.conversation.deleteMessage({ messageId, requestId });
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

  it('leave nothing of what they said, in any table', async () => {
    const [, second] = await append(['keep', 'm mark-one', 'too'], 't', randomUUID());
    const whole = await streamed('t', 'a', 'mark-two');
    const own = stream(client, headers, { threadId: 't', clientId: 'b' });
    const { messageId: half } = await own.opened();
    own.chunk('mark-three');
    await own.acked(10);
    expect(await holding(tenant, 'mark-')).to.deep.equal(['messages', 'thread_events']);
    for (const id of [second!.id, whole, half]) await remove(id);
    expect(await holding(tenant, 'mark-')).to.deep.equal([]);
    expect(await own.ended.then(() => contents())).to.deep.equal(['too', 'keep']);
  });

  it('leave holes that are told, and never give their seq or client_id away', async () => {
    const all = await append(['a', 'b', 'c']);
    await remove(all[1]!.id);
    await remove(all[2]!.id);
    expect((await append(['d']))[0]!.seq).to.equal(4);
    const ascending = { $case: 'afterSeq' as const, value: 0 };
    const listed = await client.conversation.listMessages({ threadId: 't', position: ascending });
    expect(listed.messages.map(({ seq }) => seq)).to.deep.equal([1, 4]);
    expect(listed.deletedSeqs).to.deep.equal([2, 3]);
    expect((await client.conversation.listMessages({ threadId: 't' })).deletedSeqs).to.deep.equal([3, 2]);
    const pages = await allPages((pageToken) =>
      client.conversation.listMessages({ threadId: 't', pageSize: 1, pageToken }),
    );
    expect(pages.flatMap(({ messages }) => messages.map(({ seq }) => seq))).to.deep.equal([4, 1]);
    expect(pages.flatMap(({ deletedSeqs }) => deletedSeqs)).to.deep.equal([3, 2]);
    const gone = { code: NOT_FOUND, reason: 'DELETED' };
    expect(await failure(client.conversation.getMessage({ messageId: all[1]!.id }))).to.include(gone);
    expect(await failure(append(['b']))).to.include(gone);
    const other = [{ role: TOOL, content: 'other', clientId: 'b' }];
    expect(await failure(client.conversation.appendMessages({ threadId: 't', messages: other }))).to.include(gone);
    expect(await stream(client, headers, { threadId: 't', clientId: 'b', role: HUMAN }).ended).to.include(gone);
    expect(await contents()).to.deep.equal(['d', 'a']);
  });

  it('are deleted once for one request_id, also when it comes ten times at once', async () => {
    const [message] = await append(['a', 'b']);
    const requestId = randomUUID();
    const answers = await Promise.all(Array.from({ length: 10 }, () => remove(message!.id, requestId)));
    for (const answer of answers) expect(answer).to.deep.equal(answers[0]);
    expect((await feed(client, headers, 't')).map(kindOf)).to.deep.equal(['appended', 'appended', 'deleted']);
    expect(await failure(remove(message!.id))).to.include({ code: NOT_FOUND, reason: 'DELETED' });
    expect(await failure(remove(randomUUID(), requestId))).to.include({
      code: INVALID_ARGUMENT,
      reason: 'REQUEST_ID_REUSED',
    });
  });

  it('are not found by others, nor in threads that are gone', async () => {
    const [message] = await append(['a']);
    const stranger = connect(`127.0.0.1:${server.port}`, headersOf(tenant, 'other'));
    const refused = await failure(stranger.conversation.deleteMessage({ messageId: message!.id }));
    expect(refused).to.deep.equal(await failure(remove(randomUUID())));
    expect(refused).to.include({ code: NOT_FOUND, reason: 'NOT_FOUND' });
    stranger.close();
    await client.conversation.clearHistory({ threadId: 't' });
    expect(await failure(remove(message!.id))).to.include({ code: NOT_FOUND });
  });

  it('name the summaries that cover them, and leave those, bundles and copies', async () => {
    const all = await append(['a', 'b', 'c']);
    const summaryRefs = [
      { id: 'until-1', text: 'a', throughSeq: 1 },
      { id: 'until-2', text: 'a, b', throughSeq: 2 },
      { id: 'until-3', text: 'a, b, c', throughSeq: 3 },
    ];
    const upsert = async (surfaceId: string, threadId: string) =>
      (await client.memory.upsertSession({ session: { surfaceId, threadId, summaryRefs } })).session!;
    const session = await upsert('web', 't');
    const ended = await upsert('ide', 't');
    await client.memory.endSession({ sessionId: ended.id });
    await upsert('web', 'another');
    const selection = { selection: { $case: 'lastN' as const, value: 3 } };
    const { bundle } = await client.memory.saveBundle({ sourceThreadId: 't', selection });
    const forward = {
      source: { $case: 'bundleId' as const, value: bundle!.id },
      targetThreadId: 'copy',
      createTarget: true,
    };
    await client.memory.forwardBundle(forward);
    const { coveringSummaries } = await remove(all[1]!.id);
    expect(coveringSummaries.map(({ sessionId, summaryId }) => [sessionId, summaryId])).to.have.deep.members([
      [session.id, 'until-2'],
      [session.id, 'until-3'],
    ]);
    expect((await client.memory.getSession({ sessionId: session.id })).session!.summaryRefs).to.have.length(3);
    expect(
      (await client.memory.getBundle({ bundleId: bundle!.id })).bundle!.messages.map(({ content }) => content),
    ).to.deep.equal(['a', 'b', 'c']);
    expect(await contents('copy')).to.deep.equal(['c', 'b', 'a']);
  });

  it('are out of contexts, bundles and turns that come later', async () => {
    const { session, lease, messages } = await client.conversation.beginTurn({
      session: { surfaceId: 'web', threadId: 't' },
      holder: 'h',
      messages: ['a', 'b'].map((content) => ({ role: HUMAN, content })),
    });
    const { id: sessionId } = session!;
    await remove(messages[0]!.id);
    const include = [ContextSection.MESSAGES];
    const { context } = await client.conversation.getContext({ sessionId, options: { include } });
    expect(context!.messages.map(({ content }) => content)).to.deep.equal(['b']);
    const bundled = async (ids: string[]) =>
      client.memory.saveBundle({
        sourceThreadId: 't',
        selection: { selection: { $case: 'messageIds', value: { ids } } },
      });
    expect(await failure(bundled(messages.map(({ id }) => id)))).to.include({ code: NOT_FOUND, reason: 'DELETED' });
    const commit = { sessionId, fencingToken: lease!.fencingToken, messageIds: messages.map(({ id }) => id) };
    expect((await failure(client.conversation.commitTurn(commit))).code).to.equal(NOT_FOUND);
    const still = { ...commit, messageIds: [messages[1]!.id], turn: { query: 'b' } };
    expect((await client.conversation.commitTurn(still)).turn).to.include({ firstSeq: 2, lastSeq: 2 });
  });

  it('keep the feed and the seqs without a gap among appends, streams and commits', async function () {
    this.timeout(60_000);
    await append(['start']);
    const tape = watch(client, headers, 't');
    const worker = async (n: number) => {
      const next = random(n);
      for (let i = 0; i < 25; i++) {
        const kind = next();
        const done =
          kind < 0.35
            ? append([`${n}-${i}`, `${n}-${i}b`])
            : kind < 0.6
              ? streamed('t', `${n}-${i}`, 'ab')
              : kind < 0.95
                ? client.conversation.listMessages({ threadId: 't', pageSize: 5 }).then(({ messages }) => {
                    const chosen = messages[Math.floor(next() * messages.length)];
                    return chosen && remove(chosen.id);
                  })
                : client.conversation.clearHistory({ threadId: 't' });
        // What another took away first is gone; anything else is a fault.
        await (done as Promise<unknown>).catch((error: ServiceError) =>
          expect(error.code, error.message).to.equal(NOT_FOUND),
        );
      }
    };
    await Promise.all(Array.from({ length: 8 }, (_, n) => worker(n)));
    await until(
      async () =>
        (await tenantSql(tenant, `select 1 from message_streams s join threads using (tenant_id, env, thread_uid)`))
          .length === 0,
    );
    const position = { $case: 'afterSeq' as const, value: 0 };
    const pages = await allPages((pageToken) =>
      client.conversation.listMessages({ threadId: 't', position, pageToken }),
    );
    const { revision } = pages.at(-1)!;
    await tape.until((event) => event.revision === revision);
    tape.cancel();
    const [live, later] = [follower(), follower()];
    for (const event of tape.all) live.take(event);
    for (const event of await feed(client, headers, 't')) later.take(event);
    for (const { messages } of [live, later]) {
      const there = [...messages].filter(([, { deleted }]) => !deleted);
      expect(there.map(([seq, { text }]) => [seq, text])).to.deep.equal(
        pages.flatMap((page) => page.messages.map(({ seq, content }) => [seq, content])),
      );
      const holes = [...messages].filter(([, { deleted }]) => deleted).map(([seq]) => seq);
      expect(holes).to.deep.equal(pages.flatMap(({ deletedSeqs }) => deletedSeqs));
    }
    expect(
      tape.all.some((event) => kindOf(event) === 'cleared') && tape.all.some((event) => kindOf(event) === 'deleted'),
    ).to.equal(true);
  });
});

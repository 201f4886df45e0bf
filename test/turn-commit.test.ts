import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import type { RunningServer } from '../src/server.ts';
import {
  type Clients,
  connect,
  failure,
  headersOf,
  newTenant,
  rowCounts,
  startTestServer,
  tenantSql,
} from './support.ts';

const TABLES = [
  'sessions',
  'threads',
  'messages',
  'context_entries',
  'llm_requests',
  'tool_calls',
  'prompts',
  'requests',
];

describe('turn begin and commit', () => {
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

  const human = (content: string) => ({ role: MessageRole.HUMAN, content });
  const assistant = (content: string) => ({ role: MessageRole.ASSISTANT, content });
  const begin = (fields: object = {}) =>
    client.conversation.beginTurn({ session: { surfaceId: 'web' }, holder: 'a', messages: [human('why?')], ...fields });
  const contents = async (threadId: string) => {
    const position = { $case: 'afterSeq' as const, value: 0 };
    return (await client.conversation.listMessages({ threadId, position })).messages.map((m) => m.content);
  };
  const whole = (sessionId: string, fencingToken: number) => ({
    sessionId,
    fencingToken,
    messages: [assistant('because')],
    statePatch: { step: 1 },
    summaries: [{ id: 's', text: 'why and because', throughSeq: 2 }],
    contextEntries: [{ entry: { $case: 'decision' as const, value: { text: 'answer' } } }],
    llmRequests: [{ provider: 'p', model: 'm', promptTokens: 10, completionTokens: 5, cost: '0.00125' }],
    toolCalls: [{ toolName: 'grep', input: { q: 'x' }, output: { n: 1 } }],
    prompts: [{ name: 'system', text: 'be kind' }],
    release: true,
  });

  it('is a whole turn in two calls', async () => {
    const begun = await begin({ context: {} });
    expect(begun).to.include({ sessionCreated: true });
    expect(begun.context!.messages.map((m) => m.content)).to.deep.equal(['why?']);
    expect(begun.lease).to.include({ holder: 'a', fencingToken: 1, threadId: begun.session!.threadId });
    expect(begun.messages.map((m) => m.seq)).to.deep.equal([1]);
    const { id, threadId } = begun.session!;
    const turn = {
      query: 'why?',
      response: 'because',
      intent: { value: 'explain', confidence: 0.9 },
      tasks: [{ id: 't1', type: 'think', status: 'done' }],
      results: [{ taskId: 't1', payloadJson: Buffer.from('[{"a": 1}, {"a": 2}]') }],
      report: { reportPath: 'r.md', summary: 'short' },
    };
    const messageIds = [begun.messages[0]!.id];
    const committed = await client.conversation.commitTurn({ ...whole(id, 1), turn, messageIds });
    expect(committed.turn).to.deep.include({ sessionId: id, firstSeq: 1, lastSeq: 2 });
    const data = await client.conversation.getSessionData({ sessionId: id });
    expect(data.latest).to.deep.include({ query: 'why?', response: 'because' });
    expect(data.structuredData.map((task) => task.taskId)).to.deep.equal(['t1']);
    expect(data.reports.map((report) => report.reportPath)).to.deep.equal(['r.md']);
    const { checkpoints } = await client.memory.listStateCheckpoints({ sessionId: id });
    expect(checkpoints.map((checkpoint) => checkpoint.state)).to.deep.equal([{ step: 1 }]);
    const got = await client.conversation.getContext({ sessionId: id });
    expect(got.context!.messages.map((m) => m.content)).to.deep.equal(['why?', 'because']);
    expect(got.context!.tokenCount).to.be.greaterThan(0);
    expect(committed.messages.map((m) => m.seq)).to.deep.equal([2]);
    expect(await contents(threadId)).to.deep.equal(['why?', 'because']);
    const { session } = await client.memory.getSession({ sessionId: id });
    expect(session!.state).to.deep.equal({ step: 1 });
    expect(session!.etag).to.equal(committed.sessionEtag);
    expect(session!.summaryRefs.map((s) => s.text)).to.deep.equal(['why and because']);
    const { context } = await client.memory.getSessionContext({ sessionId: id });
    expect(context!.decisions.map((d) => d.text)).to.deep.equal(['answer']);
    const [llm] = await tenantSql(tenant, 'select total_tokens::int, cost::text from llm_requests');
    expect(llm).to.deep.equal({ total_tokens: 15, cost: '0.001250000000' });
    expect((await tenantSql(tenant, 'select tool_name, attempt from tool_calls'))[0]).to.deep.equal({
      tool_name: 'grep',
      attempt: 1,
    });
    expect((await begin({ messages: [] })).lease!.fencingToken).to.be.greaterThan(1);
  });

  it('begins nothing while another holds the turn', async () => {
    const { session } = await begin();
    const before = await rowCounts(tenant, TABLES);
    const refused = await failure(begin({ holder: 'b', session: { surfaceId: 'web', title: 'changed' } }));
    expect(refused).to.include({ code: status.FAILED_PRECONDITION, reason: 'TURN_HELD' });
    expect(refused.metadata.holder).to.equal('a');
    const after = await rowCounts(tenant, TABLES);
    expect(after).to.deep.equal(before);
    expect((await client.memory.getSession({ sessionId: session!.id })).session!.title).to.equal('');
  });

  it('begins with what a model or a tool says as well, and refuses it like an append', async () => {
    const said = { ...assistant('as I said'), clientId: 'c' };
    const { session, lease, messages } = await begin({ messages: [said] });
    expect(messages.map((message) => message.seq)).to.deep.equal([1]);
    const { id, threadId } = session!;
    await client.conversation.releaseTurn({ threadId, fencingToken: lease!.fencingToken });
    const again = await begin({ session: { id }, messages: [said, human('and?')] });
    expect(again.messages.map((message) => message.seq)).to.deep.equal([1, 2]);
    await client.conversation.releaseTurn({ threadId, fencingToken: again.lease!.fencingToken });

    const before = await rowCounts(tenant, TABLES);
    const other = { ...assistant('something else'), clientId: 'c' };
    const refused = await failure(begin({ session: { id, title: 'changed' }, messages: [other] }));
    expect(refused).to.include({ code: status.ALREADY_EXISTS, reason: 'CLIENT_ID_REUSED' });
    expect(await rowCounts(tenant, TABLES)).to.deep.equal(before);
    expect((await begin({ session: { id } })).lease!.fencingToken).to.equal(again.lease!.fencingToken + 2);
  });

  it('refuses for what a step alone would have been refused first', async () => {
    const { session, lease } = await begin();
    const { id, threadId } = session!;
    await client.conversation.appendMessages({ threadId, messages: [{ ...human('x'), clientId: 'c' }] });
    const commit = (fields: object) => failure(client.conversation.commitTurn({ sessionId: id, ...fields }));
    const bad = {
      messages: [{ ...assistant('other'), clientId: 'c' }],
      fencingToken: lease!.fencingToken + 1,
      expectedEtag: '"zz"',
      messageIds: [randomUUID()],
    };
    const { expectedEtag: _, ...matching } = bad;
    expect((await commit(bad)).reason).to.equal('ETAG_MISMATCH');
    expect((await commit(matching)).reason).to.equal('STALE_FENCING_TOKEN');
    expect((await commit({ ...matching, messages: [] })).reason).to.equal('STALE_FENCING_TOKEN');
    const current = { ...matching, fencingToken: lease!.fencingToken };
    expect((await commit(current)).reason).to.equal('CLIENT_ID_REUSED');
    expect((await commit({ ...current, messages: [] })).reason).to.equal('NOT_FOUND');
  });

  it('commits nothing if any of it is refused', async () => {
    const { session, lease } = await begin();
    const good = whole(session!.id, lease!.fencingToken);
    await client.conversation.appendMessages({
      threadId: session!.threadId,
      messages: [{ ...human('x'), clientId: 'c' }],
    });
    const before = await rowCounts(tenant, TABLES);
    const bad: [object, object][] = [
      [{ fencingToken: 99 }, { code: status.ABORTED, reason: 'STALE_FENCING_TOKEN' }],
      [
        { fencingToken: 99, messages: [] },
        { code: status.ABORTED, reason: 'STALE_FENCING_TOKEN' },
      ],
      [
        { fencingToken: 99, messages: [], release: false },
        { code: status.ABORTED, reason: 'STALE_FENCING_TOKEN' },
      ],
      [{ expectedEtag: '"zz"' }, { code: status.ABORTED, reason: 'ETAG_MISMATCH' }],
      [
        { messages: [{ ...assistant('other'), clientId: 'c' }] },
        { code: status.ALREADY_EXISTS, reason: 'CLIENT_ID_REUSED' },
      ],
      [{ messages: [assistant('')] }, { code: status.INVALID_ARGUMENT }],
      [{ statePatch: { mail: 'someone@example.com' } }, { code: status.INVALID_ARGUMENT }],
      [{ llmRequests: [{ provider: 'p', model: 'm', cost: 'much' }] }, { code: status.INVALID_ARGUMENT }],
      [{ sessionId: randomUUID() }, { code: status.NOT_FOUND }],
      [{ messageIds: [randomUUID()] }, { code: status.NOT_FOUND }],
      [{ turn: { tasks: [{ id: 'a', dependsOn: ['a'] }] } }, { code: status.INVALID_ARGUMENT }],
    ];
    for (const [change, expected] of bad) {
      expect(await failure(client.conversation.commitTurn({ ...good, ...change })), JSON.stringify(change)).to.include(
        expected,
      );
    }
    const after = await rowCounts(tenant, TABLES);
    expect(after).to.deep.equal(before);
    const { session: same } = await client.memory.getSession({ sessionId: session!.id });
    expect(same!.state).to.deep.equal({});
    expect(await contents(session!.threadId)).to.deep.equal(['why?', 'x']);
  });

  it('happens once for one request_id, also when it comes 8 times at once, with the same answer', async () => {
    const beginId = randomUUID();
    const all = await Promise.all(Array.from({ length: 8 }, () => begin({ requestId: beginId })));
    for (const each of all) expect(each).to.deep.equal(all[0]);
    const { session, lease } = all[0]!;
    const commit = { ...whole(session!.id, lease!.fencingToken), requestId: randomUUID() };
    const commits = await Promise.all(Array.from({ length: 8 }, () => client.conversation.commitTurn(commit)));
    for (const each of commits) expect(each).to.deep.equal(commits[0]);
    expect(await contents(session!.threadId)).to.deep.equal(['why?', 'because']);
    expect(await tenantSql(tenant, 'select count(*)::int as n from llm_requests')).to.deep.equal([{ n: 1 }]);
  });

  it('lets people type and others forward while the model answers, and never deadlocks', async () => {
    const { session } = await begin({ session: { surfaceId: 'web', threadId: 'busy' } });
    const sessionId = session!.id;
    await Promise.all(
      Array.from({ length: 60 }, async (_, i) => {
        if (i % 3 === 0) return client.conversation.appendMessages({ threadId: 'busy', messages: [human(`h${i}`)] });
        if (i % 3 === 1) return client.memory.upsertSession({ session: { id: sessionId, state: { [`k${i}`]: i } } });
        return failure(begin({ session: { id: sessionId }, holder: `b${i}` }));
      }),
    );
    expect(await contents('busy')).to.have.length(21);
  });

  it('begins for an anonymous user, who goes on by id', async () => {
    const nobody = connect(`127.0.0.1:${server.port}`, { 'x-tenant-id': tenant, 'x-env': 'dev' });
    const request = { session: { surfaceId: 'web' }, holder: 'a', anonymous: true, messages: [human('hi')] };
    const { session } = await nobody.conversation.beginTurn(request);
    expect(session!.userId).to.match(/^anon-/);
    nobody.close();
    const them = connect(`127.0.0.1:${server.port}`, headersOf(tenant, session!.userId));
    expect((await them.conversation.listMessages({ threadId: session!.threadId })).messages).to.have.length(1);
    them.close();
  });
});

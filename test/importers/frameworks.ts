import { randomUUID } from 'node:crypto';
import { expect } from 'chai';
import { timestampText } from '../../src/db/statement.ts';
import type { Message } from '../../src/gen/memory/v1/message.ts';
import { MessageRole } from '../../src/gen/memory/v1/message.ts';
import type { Session } from '../../src/gen/memory/v1/session.ts';
import type { RunningServer } from '../../src/server.ts';
import { killAll, memoryd, type Run } from '../fixtures/command.ts';
import {
  allPages,
  appUrl,
  type Clients,
  connect,
  headersOf,
  newTenant,
  ownerUrl,
  rowCounts,
  runSql,
  startTestServer,
  until,
} from '../support.ts';
import { adkEvent, adkService, langchain, langgraph, langgraphSaver, mastraStore } from './peers.ts';
import { python, runScript } from './python.ts';

const { HUMAN, ASSISTANT, SYSTEM, TOOL } = MessageRole;

describe('memoryd import --from', () => {
  let server: RunningServer;
  let tenant: string;
  let source: string;
  let client: Clients;

  before(async () => {
    server = await startTestServer();
  });
  after(() => server.stop());
  beforeEach(async () => {
    tenant = await newTenant(['alice']);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant, 'alice'));
    const url = new URL(ownerUrl());
    url.pathname = `/source_${randomUUID().replaceAll('-', '')}`;
    await runSql(ownerUrl(), `create database ${url.pathname.slice(1)}`);
    source = url.href;
  });
  afterEach(() => {
    client.close();
    killAll();
  });

  const start = (framework: string, ...flags: string[]): Run =>
    memoryd(['import', '--from', framework, '--tenant', tenant, '--env', 'dev', ...flags], {
      DATABASE_URL: appUrl(),
      MEMORYD_SOURCE_URL: source,
    });
  /** What the command reports, line by line. */
  async function imported(framework: string, ...flags: string[]): Promise<string[]> {
    const run = start(framework, ...flags);
    expect(await run.ended, run.err()).to.equal(0);
    return run
      .out()
      .trimEnd()
      .split('\n')
      .slice(1)
      .map((line) => line.trim());
  }
  const sessionsOf = async (surfaceId: string): Promise<Session[]> =>
    (await client.memory.listSessions({ surfaceId })).sessions;
  async function messagesOf(threadId: string): Promise<Message[]> {
    const position = { $case: 'afterSeq' as const, value: 0 };
    const pages = await allPages((pageToken) => client.conversation.listMessages({ threadId, position, pageToken }));
    return pages.flatMap(({ messages }) => messages);
  }
  const said = (messages: Message[]) => messages.map(({ role, content }) => [role, content]);
  const timesOf = (messages: Message[]) => messages.map(({ createTime }) => timestampText(createTime!));

  describe('mastra', () => {
    const at = (second: number) => new Date(Date.UTC(2024, 0, 1, 0, 0, second));
    const text = (...texts: string[]) => ({ format: 2, parts: texts.map((of) => ({ type: 'text', text: of })) });
    const thread = (id: string, more = {}) => ({
      id,
      resourceId: 'alice',
      title: '',
      createdAt: at(0),
      updatedAt: at(9),
      metadata: {},
      ...more,
    });
    let threadIds: number;
    async function write(threads: { thread: any; messages: any[] }[]) {
      const { memory, close } = await mastraStore(source);
      for (const { thread, messages } of threads) {
        await memory.saveThread({ thread });
        const full = messages.map((message, i) => ({
          id: `m${++threadIds}`,
          threadId: thread.id,
          resourceId: thread.resourceId,
          createdAt: at(i + 1),
          ...message,
        }));
        if (full.length > 0) await memory.saveMessages({ messages: full });
      }
      await close();
    }
    beforeEach(() => {
      threadIds = 0;
    });

    it('makes sessions and threads of its threads, with roles, times and what was called', async () => {
      const call = { toolCallId: 'c1', toolName: 'search', args: { q: 1 } };
      await write([
        {
          thread: thread('talk', { title: 'A talk', metadata: { mood: 'good' } }),
          messages: [
            { role: 'system', content: text('Be kind') },
            { role: 'user', content: text('Hello', 'there') },
            {
              role: 'assistant',
              content: {
                format: 2,
                parts: [
                  { type: 'text', text: 'Hi' },
                  { type: 'reasoning', reasoning: 'hm' },
                ],
              },
            },
            {
              role: 'assistant',
              content: { format: 2, parts: [{ type: 'tool-invocation', toolInvocation: { ...call, state: 'call' } }] },
            },
            {
              role: 'user',
              content: { format: 2, parts: [{ type: 'file', mimeType: 'image/png', data: 'https://x/y.png' }] },
            },
          ],
        },
      ]);
      expect(await imported('mastra')).to.deep.equal(['sessions: 1', 'messages: 5']);
      const [session, ...others] = await sessionsOf('mastra');
      expect(others).to.deep.equal([]);
      expect(session).to.include({ threadId: 'talk', title: 'A talk', userId: 'alice' });
      expect(session!.metadata).to.deep.equal({ mood: 'good' });
      expect(timestampText(session!.createTime!)).to.equal('2024-01-01T00:00:00.000000Z');
      expect(timestampText(session!.lastActivityTime!)).to.equal('2024-01-01T00:00:05.000000Z');
      const messages = await messagesOf('talk');
      expect(said(messages)).to.deep.equal([
        [SYSTEM, 'Be kind'],
        [HUMAN, 'Hello\nthere'],
        [ASSISTANT, 'Hi'],
        [ASSISTANT, '[calls search {"q":1}]'],
        [HUMAN, '[image/png]'],
      ]);
      expect(timesOf(messages)).to.deep.equal([1, 2, 3, 4, 5].map((second) => `2024-01-01T00:00:0${second}.000000Z`));
      expect(messages.map(({ clientId, sessionId, seq }) => [clientId, sessionId, seq])).to.deep.equal(
        [1, 2, 3, 4, 5].map((n) => [`m${n}`, session!.id, n]),
      );
      expect(messages[1]!.metadata).to.deep.equal({ imported_from: 'mastra' });
      expect(messages[4]!.metadata!.parts[0].data).to.equal('https://x/y.png');
      expect(messages.every(({ tokenCount }) => tokenCount > 0)).to.equal(true);
      const { results } = await client.conversation.searchMessages({ query: 'kind' });
      expect(results.map(({ message }) => message!.content)).to.deep.equal(['Be kind']);
    });

    it('doubles nothing when it is run again, takes what has come since, and leaves what went on here', async () => {
      const talk = { thread: thread('talk'), messages: [{ id: 'm1', role: 'user', content: text('One') }] };
      await write([talk]);
      await imported('mastra');
      const [session] = await sessionsOf('mastra');
      const threadId = 'talk';
      await client.memory.upsertSession({ session: { id: session!.id, title: 'Mine now' } });
      await client.conversation.appendMessages({ threadId, messages: [{ role: HUMAN, content: 'Here' }] });
      const before = await rowCounts(tenant, ['sessions', 'messages', 'threads', 'audit_events']);
      expect(await imported('mastra')).to.deep.equal([
        'sessions that were here already: 1',
        'messages that were here already: 1',
      ]);
      expect(await rowCounts(tenant, ['sessions', 'messages', 'threads', 'audit_events'])).to.deep.equal(before);

      await write([
        {
          ...talk,
          messages: [
            { id: 'm1', role: 'user', content: text('One') },
            { id: 'm2', role: 'assistant', content: text('Two') },
          ],
        },
      ]);
      expect(await imported('mastra', '--dry-run')).to.deep.equal([
        'sessions that were here already: 1',
        'messages: 1',
        'messages that were here already: 1',
      ]);
      expect(await imported('mastra')).to.include('messages: 1');
      const messages = await messagesOf(threadId);
      expect(messages.map(({ content }) => content)).to.deep.equal(['One', 'Here', 'Two']);
      expect(timesOf(messages)).to.deep.equal(timesOf(messages).sort());
      expect((await sessionsOf('mastra')).map(({ title }) => title)).to.deep.equal(['Mine now']);
    });

    it('says what it leaves out, and why', async () => {
      const long = 'ü'.repeat(200_000);
      await write([
        {
          thread: thread('talk', {
            title: 'Call 4111 1111 1111 1111',
            metadata: { mail: 'a@example.com', mood: 'good' },
          }),
          messages: [
            { role: 'signal', content: text('?') },
            { role: 'user', content: text('') },
            { role: 'user', content: text(long) },
            { role: 'user', content: { ...text('big'), metadata: { blob: 'x'.repeat(70_000) } } },
          ],
        },
        { thread: thread('x'.repeat(200)), messages: [] },
        { thread: thread('of-bob', { resourceId: 'bob' }), messages: [{ role: 'user', content: text('Bob') }] },
        { thread: thread('gone'), messages: [{ role: 'user', content: text('Gone') }] },
      ]);
      await client.conversation.appendMessages({ threadId: 'gone', messages: [{ role: HUMAN, content: 'x' }] });
      await client.conversation.deleteThread({ threadId: 'gone' });
      const expected = [
        'sessions: 2',
        'messages: 4',
        'sessions left out: it was deleted here: 1 (gone)',
        'sessions of users who are no members, see --add-members: they are stored: 1 (of-bob)',
        "session fields left out: metadata: holds an e-mail address, which the tenant's policy rejects: 1 (talk)",
        "session fields left out: title: holds a payment card, which the tenant's policy rejects: 1 (talk)",
        'messages left out: its role is "signal": 1 (m1)',
        'messages left out: it says nothing: 1 (m2)',
        'messages of more than 256 KiB, in several: nothing of them is lost: 1 (m3)',
        'message fields left out: metadata: over 64 KiB: 1 (m4)',
        `sessions left out: its thread is longer than 128 characters: 1 (${'x'.repeat(64)})`,
      ];
      expect(await imported('mastra', '--dry-run')).to.have.members(expected);
      expect(await rowCounts(tenant, ['sessions'])).to.deep.equal({ sessions: 0 });
      expect(await imported('mastra')).to.have.members(expected);
      const messages = await messagesOf('talk');
      expect(messages.map(({ clientId }) => clientId)).to.deep.equal(['m3', 'm3#2', 'm4']);
      expect(`${messages[0]!.content}${messages[1]!.content}` === long).to.equal(true);
      const [session] = await sessionsOf('mastra');
      expect([session!.title, session!.metadata]).to.deep.equal(['', { mood: 'good' }]);

      expect(await imported('mastra', '--add-members')).to.not.include.members([expected[3]!]);
      const bob = connect(`127.0.0.1:${server.port}`, headersOf(tenant, 'bob'));
      expect((await bob.memory.listSessions({})).sessions).to.have.length(1);
      bob.close();
    });

    it('goes on where it was killed', async () => {
      const messages = Array.from({ length: 3000 }, (_, n) => ({
        role: 'user',
        content: text(`message ${n}`),
        createdAt: new Date(Date.UTC(2024, 0, 1) + n),
      }));
      await write(
        [0, 1, 2].map((n) => ({ thread: thread(`talk-${n}`), messages: messages.slice(n * 1000, n * 1000 + 1000) })),
      );
      const stored = async () => (await rowCounts(tenant, ['messages'])).messages!;
      for (let kills = 0; kills < 3; kills++) {
        const more = (await stored()) + 1 + Math.floor(Math.random() * 600);
        const run = start('mastra');
        await until(async () => (await stored()) >= more || run.child.exitCode !== null);
        run.child.kill('SIGKILL');
        await run.ended;
      }
      await imported('mastra');
      for (let n = 0; n < 3; n++) {
        const found = await messagesOf(`talk-${n}`);
        expect(found.map(({ content }) => content)).to.deep.equal(
          messages.slice(n * 1000, n * 1000 + 1000).map((_, i) => `message ${n * 1000 + i}`),
        );
        expect(found.map(({ seq }) => seq)).to.deep.equal(found.map((_, i) => i + 1));
        expect(timesOf(found)).to.deep.equal(timesOf(found).sort());
      }
      expect(await sessionsOf('mastra')).to.have.length(3);
    });
  });

  describe('langgraph', () => {
    async function put(threadId: string, values: Record<string, unknown>, metadata: object, parent?: any) {
      const saver = await langgraphSaver(source);
      const { emptyCheckpoint, uuid6 } = langgraph();
      const versions = Object.fromEntries(
        Object.keys(values).map((channel) => [channel, (parent?.channel_versions[channel] ?? 0) + 1]),
      );
      const from = parent ?? emptyCheckpoint();
      const checkpoint = {
        ...from,
        id: uuid6(parent ? 1 : 0),
        ts: parent ? '2024-01-02T00:00:00.000Z' : '2024-01-01T00:00:00.000Z',
        channel_values: { ...from.channel_values, ...values },
        channel_versions: { ...from.channel_versions, ...versions },
      };
      const config = {
        configurable: { thread_id: threadId, checkpoint_ns: '', ...(parent && { checkpoint_id: parent.id }) },
      };
      await saver.put(config, checkpoint, { source: 'loop', step: 1, parents: {}, ...metadata }, versions);
      await saver.end();
      return checkpoint;
    }

    it('makes a session of the newest checkpoint of each thread, its messages of its channel, its state of the others', async () => {
      const { HumanMessage, AIMessage, SystemMessage, ToolMessage, RemoveMessage } = langchain();
      const first = [
        new SystemMessage({ content: 'Be kind', id: 's' }),
        new HumanMessage({ content: 'Hello', id: 'h' }),
      ];
      const one = await put('graph', { messages: first, topic: 'tea', 'branch:to:agent': null }, { user_id: 'alice' });
      const messages = [
        ...first,
        new AIMessage({ content: '', id: 'a', tool_calls: [{ id: 'c1', name: 'search', args: { q: 'x' } }] }),
        new ToolMessage({ content: 'found', tool_call_id: 'c1' }),
        new AIMessage({
          content: [
            { type: 'text', text: 'Done' },
            { type: 'image_url', image_url: 'https://x' },
          ],
          id: 'b',
        }),
        new RemoveMessage({ id: 'h' }),
      ];
      await put('graph', { messages, seen: new Set([1, 2]), note: new Map([['k', 'v']]) }, { user_id: 'alice' }, one);
      await put('nobody', { messages: first }, {});
      await put(
        'deltas',
        { messages: first },
        { user_id: 'alice', counters_since_delta_snapshot: { messages: [1, 1] } },
      );

      expect(await imported('langgraph')).to.deep.equal([
        'sessions: 2',
        'messages: 5',
        'messages left out: they are kept as deltas: 1 (deltas)',
        'messages left out: its role is "RemoveMessage": 1 (h)',
        'sessions left out: its metadata names no user_id: give --user: 1 (nobody)',
      ]);
      const session = (await sessionsOf('langgraph')).find(({ threadId }) => threadId === 'graph');
      expect(session!.state).to.deep.equal({ topic: 'tea', seen: [1, 2], note: [['k', 'v']] });
      expect(timestampText(session!.createTime!)).to.equal('2024-01-01T00:00:00.000000Z');
      const found = await messagesOf('graph');
      expect(said(found)).to.deep.equal([
        [SYSTEM, 'Be kind'],
        [HUMAN, 'Hello'],
        [ASSISTANT, '[calls search {"q":"x"}]'],
        [TOOL, 'found'],
        [ASSISTANT, 'Done'],
      ]);
      expect(found.map(({ clientId }) => clientId)).to.deep.equal(['s', 'h', 'a', '#4', 'b']);
      expect(found[3]!.toolCallId).to.equal('c1');
      expect(found[2]!.metadata!.tool_calls[0].name).to.equal('search');
      expect(found[4]!.metadata!.parts[1].image_url).to.equal('https://x');
      expect(timesOf(found)[0]).to.equal('2024-01-02T00:00:00.000000Z');

      expect(await imported('langgraph', '--user', 'alice')).to.deep.equal([
        'sessions that were here already: 2',
        'messages that were here already: 5',
        'sessions: 1',
        'messages: 2',
        'messages left out: they are kept as deltas: 1 (deltas)',
        'messages left out: its role is "RemoveMessage": 1 (h)',
      ]);
      expect(said(await messagesOf('nobody'))).to.deep.equal(said(found).slice(0, 2));
    });
  });

  describe('langgraph for Python', () => {
    let program: string | undefined;
    before(function () {
      this.timeout(400_000);
      program = python();
      if (!program) this.skip();
    });

    it('makes a session of a thread just the same', async () => {
      runScript(program!, 'langgraph_thread.py', source);
      expect(await imported('langgraph')).to.deep.equal(['sessions: 1', 'messages: 5']);
      const [session] = await sessionsOf('langgraph');
      expect(session!.state).to.deep.equal({
        topic: 'tea',
        seen: [1, 2],
        when: '2024-01-01T00:00:00+00:00',
        ticket: '00000000000000000000000000000001',
      });
      const found = await messagesOf('python');
      expect(said(found)).to.deep.equal([
        [SYSTEM, 'Be kind'],
        [HUMAN, 'Hello'],
        [ASSISTANT, '[calls search {"q":"x"}]'],
        [TOOL, 'found'],
        [ASSISTANT, 'Done'],
      ]);
      expect(found.map(({ clientId }) => clientId)).to.deep.equal(['s', 'h', 'a', '#4', 'b']);
      expect(found[2]!.metadata!.tool_calls[0].name).to.equal('search');
      expect(found[4]!.metadata!.parts[1].image_url.url).to.equal('https://x');
      expect(timesOf(found)[0]).to.equal('2024-01-02T00:00:00.000000Z');
      expect(await imported('langgraph')).to.include('messages that were here already: 5');
    });
  });

  describe('adk', () => {
    it('makes sessions of its sessions, and messages of its events', async () => {
      const service = adkService(source);
      const of = { appName: 'planner', userId: 'alice' };
      const state = { step: 1, 'user:name': 'Al', 'app:mode': 'x', 'temp:gone': 1 };
      const session = await service.createSession({ ...of, sessionId: 'one', state });
      const say = (event: object) => service.appendEvent({ session, event: adkEvent(event) });
      await say({ author: 'user', content: { role: 'user', parts: [{ text: 'Hello' }] } });
      const call = { id: 'f1', name: 'search', args: { q: 1 } };
      await say({
        author: 'agent',
        content: { role: 'model', parts: [{ text: 'Looking' }, { functionCall: call }] },
        actions: { stateDelta: { step: 2 } },
      });
      await say({
        author: 'agent',
        content: { role: 'user', parts: [{ functionResponse: { id: 'f1', name: 'search', response: { r: 1 } } }] },
      });
      await say({ author: 'agent', actions: { stateDelta: { deep: { er: true } } } });
      await say({
        author: 'agent',
        content: { role: 'model', parts: [{ text: 'hm', thought: true }, { text: 'Found' }] },
      });
      await service.createSession({ ...of, appName: 'other', sessionId: 'one' });
      const stored = await service.getSession({ ...of, sessionId: 'one' });

      const run = await imported('adk');
      expect(run.slice(0, 2)).to.have.members(['sessions: 2', 'messages: 4']);
      expect(run[2]).to.match(/^messages left out: an event without content: 1 \(/);
      const [found] = (await sessionsOf('adk')).filter(({ projectId }) => projectId === 'planner');
      expect(found).to.include({ threadId: 'planner/one', userId: 'alice' });
      expect(found!.state).to.deep.equal(stored.state);
      const messages = await messagesOf('planner/one');
      expect(said(messages)).to.deep.equal([
        [HUMAN, 'Hello'],
        [ASSISTANT, 'Looking'],
        [TOOL, '[search gave {"r":1}]'],
        [ASSISTANT, 'Found'],
      ]);
      expect(messages[1]!.metadata!.parts[1].function_call).to.deep.equal(call);
      expect(messages[1]!.metadata!.actions.state_delta).to.deep.equal({ step: 2 });
      expect(messages[2]!.toolCallId).to.equal('f1');
      const times = stored.events
        .filter((event: any) => event.content)
        .map((event: any) => new Date(event.timestamp).toISOString());
      expect(timesOf(messages).map((time) => `${time!.slice(0, 23)}Z`)).to.deep.equal(times);

      expect(await imported('adk')).to.include.members([
        'sessions that were here already: 2',
        'messages that were here already: 4',
      ]);
    });
  });

  it('refuses what cannot be, in a line', async () => {
    const refusals: [string[], RegExp][] = [
      [['import'], /import needs a file, or --from/],
      [['import', '--from', 'excel'], /Allowed choices are mastra, langgraph, adk/],
      [['import', '--from', 'adk', '--tenant', tenant], /--from needs --source-url, --tenant and --env/],
      [['import', 'x.jsonl', '--from', 'adk'], /--from reads no file/],
    ];
    for (const [args, message] of refusals) {
      const run = memoryd(args, { DATABASE_URL: appUrl() });
      expect(await run.ended).to.equal(1);
      expect(run.err()).to.match(message);
    }
    const empty = start('mastra');
    expect(await empty.ended).to.equal(1);
    expect(empty.err()).to.match(
      /^memoryd: these are not the tables of mastra: relation "mastra_threads" does not exist\n$/,
    );
  });
});

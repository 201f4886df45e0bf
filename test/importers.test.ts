import { ExtData, encode } from '@msgpack/msgpack';
import { expect } from 'chai';
import { type Database, openDatabase } from '../src/db/pool.ts';
import { timestampText } from '../src/db/statement.ts';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import { messageOf as adkMessage } from '../src/importers/adk.ts';
import { importConversations } from '../src/importers/importer.ts';
import { messageOf as langgraphMessage, plain } from '../src/importers/langgraph.ts';
import { messageOf as mastraMessage } from '../src/importers/mastra.ts';
import { unpack } from '../src/importers/msgpack.ts';
import { createReport } from '../src/importers/report.ts';
import type { Skipped, SourceMessage, SourceSession } from '../src/importers/source.ts';
import type { RunningServer } from '../src/server.ts';
import {
  type Clients,
  connect,
  headersOf,
  newTenant,
  rowCounts,
  serviceDatabase,
  startTestServer,
  tenantSql,
} from './support.ts';

const { HUMAN, ASSISTANT, SYSTEM, TOOL } = MessageRole;

// Without the frameworks' packages: those write the tables of `npm run test:importers`.
describe('the importers', () => {
  let server: RunningServer;
  let database: Database;
  let tenant: string;
  let client: Clients;

  before(async () => {
    server = await startTestServer();
    const { url, preparedStatements } = serviceDatabase();
    database = openDatabase({
      connectionString: url,
      poolSize: 2,
      poolWaitMs: 10_000,
      sharedConnections: 0,
      preparedStatements,
    });
  });
  after(async () => {
    await database.close();
    await server.stop();
  });
  beforeEach(async () => {
    tenant = await newTenant(['user']);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  });
  afterEach(() => client.close());

  const message = (id: string, time?: string, more: Partial<SourceMessage> = {}): SourceMessage => ({
    id,
    role: HUMAN,
    content: `says ${id}`,
    toolCallId: '',
    details: {},
    time,
    ...more,
  });
  const session = (pages: (SourceMessage | Skipped)[][], more: Partial<SourceSession> = {}): SourceSession => ({
    id: 'one',
    user: 'user',
    projectId: '',
    threadId: 'one',
    title: '',
    state: {},
    metadata: {},
    createTime: '2024-01-01T00:00:00Z',
    updateTime: '2024-01-01T00:00:09Z',
    async *messages() {
      yield* pages;
    },
    ...more,
  });
  async function run(sessions: SourceSession[], { pii = 1, dryRun = false } = {}): Promise<string[]> {
    const report = createReport();
    const place = { database, tenant, env: 'dev', pii, surfaceId: 'else', addMembers: false, dryRun };
    const source = async function* () {
      yield* sessions;
    };
    await importConversations(place, source(), report, () => {});
    return report.lines();
  }
  const stored = async (threadId = 'one') =>
    (await client.conversation.listMessages({ threadId, position: { $case: 'afterSeq', value: 0 } })).messages;
  const timesOf = async () => (await stored()).map(({ createTime }) => timestampText(createTime!)!.slice(0, 19));

  it('keep the times of before, which never go back along seq, nor into the future', async () => {
    await run([
      session([
        [
          message('a', '2024-01-01T00:00:01Z'),
          message('b', '2024-01-01T00:00:03Z'),
          message('c', '2024-01-01T00:00:02Z'),
        ],
        [message('d'), message('e', '2024-01-01T00:00:01Z'), message('f', '2999-01-01T00:00:00Z')],
      ]),
    ]);
    const times = await timesOf();
    expect(times.slice(0, 3)).to.deep.equal(['2024-01-01T00:00:01', '2024-01-01T00:00:03', '2024-01-01T00:00:03']);
    expect(times).to.deep.equal([...times].sort());
    expect(new Date(`${times[5]}Z`).getTime()).to.be.at.most(Date.now());
    const [thread] = (await client.conversation.listThreads({})).threads;
    expect(timestampText(thread!.createTime!)!.slice(0, 19)).to.equal(times[0]);
    expect(timestampText(thread!.updateTime!)!.slice(0, 19)).to.equal(times[5]);
  });

  it('double nothing when they are run again, also from the middle', async () => {
    const all = ['a', 'b', 'c', 'd'].map((id, i) => message(id, `2024-01-01T00:00:0${i}Z`));
    await run([session([all.slice(0, 2)])]);
    expect(await run([session([all])])).to.deep.equal([
      'sessions that were here already: 1',
      'messages: 2',
      'messages that were here already: 2',
    ]);
    const before = await rowCounts(tenant, ['sessions', 'messages', 'audit_events']);
    const { sessions } = await client.memory.listSessions({});
    expect(timestampText(sessions[0]!.lastActivityTime!)).to.equal('2024-01-01T00:00:03.000000Z');
    expect(await run([session([all])], { dryRun: true })).to.include('messages that were here already: 4');
    expect(await run([session([all])])).to.include('messages that were here already: 4');
    expect(await rowCounts(tenant, ['sessions', 'messages', 'audit_events'])).to.deep.equal(before);
    expect((await client.memory.listSessions({})).sessions).to.deep.equal(sessions);
    expect((await stored()).map(({ seq, clientId }) => [seq, clientId])).to.deep.equal([
      [1, 'a'],
      [2, 'b'],
      [3, 'c'],
      [4, 'd'],
    ]);
    const events = await tenantSql(tenant, `select distinct actor, action from audit_events order by 2`);
    expect(events).to.deep.equal([
      { actor: 'cli', action: 'messages.append' },
      { actor: 'cli', action: 'sessions.upsert' },
    ]);
  });

  it('take the others where one message is here with other content, or was deleted here', async () => {
    await run([session([[message('a'), message('b')]])]);
    await client.conversation.deleteMessage({ messageId: (await stored())[1]!.id });
    const lines = await run([session([[message('a', undefined, { content: 'else' }), message('b'), message('c')]])]);
    expect(lines).to.have.members([
      'sessions that were here already: 1',
      'messages: 1',
      'messages left out: a client_id was used for a message with other content: 1 (a)',
      'messages left out: message was deleted: 1 (b)',
    ]);
    expect((await stored()).map(({ content }) => content)).to.deep.equal(['says a', 'says c']);
  });

  it('bring back neither a session nor a thread that was deleted here', async () => {
    await run([session([[message('a')]])]);
    const { sessions } = await client.memory.listSessions({});
    await client.memory.deleteSession({ sessionId: sessions[0]!.id });
    expect(await run([session([[message('a')]])])).to.deep.equal(['sessions left out: it was deleted here: 1 (one)']);
    expect((await client.memory.listSessions({})).sessions).to.deep.equal([]);
  });

  it('keep what the policy for personal data lets them, field by field', async () => {
    const state = { mail: 'a@example.com', mood: 'good' };
    const personal = (threadId: string) => session([], { threadId, title: 'a@example.com', state });
    const lines = await run([personal('rejected')]);
    expect(lines.filter((line) => line.startsWith('session fields left out'))).to.have.length(2);
    await run([personal('redacted')], { pii: 2 });
    await run([personal('allowed')], { pii: 3 });
    const { sessions } = await client.memory.listSessions({});
    const found = Object.fromEntries(sessions.map((found) => [found.threadId, [found.title, found.state]]));
    expect(found).to.deep.equal({
      rejected: ['', { mood: 'good' }],
      redacted: ['[EMAIL]', { mail: '[EMAIL]', mood: 'good' }],
      allowed: ['a@example.com', state],
    });
  });

  it('store in several messages what is too long for one, and a hash in place of a long id', async () => {
    const content = `${'x'.repeat(262_143)}ü${'y'.repeat(262_144)}`;
    await run([session([[message('a'.repeat(200), undefined, { content: `${content}\0` })]])]);
    const messages = await stored();
    expect(messages.map(({ content: piece }) => Buffer.byteLength(piece))).to.deep.equal([262_143, 262_144, 5]);
    expect(messages.map((piece) => piece.content).join('') === `${content}\ufffd`).to.equal(true);
    expect(messages[0]!.clientId).to.match(/^sha256:[0-9a-f]{64}$/);
    expect(new Set(messages.map(({ clientId }) => clientId)).size).to.equal(3);
    expect(await run([session([[message('a'.repeat(200), undefined, { content: `${content}\0` })]])])).to.include(
      'messages that were here already: 3',
    );
  });

  describe('read a message', () => {
    const told = (found: SourceMessage | Skipped) =>
      'skipped' in found ? found.why : [found.role, found.content, found.toolCallId];

    it('of Mastra, in each of its formats', () => {
      const of = (content: unknown, role = 'assistant') =>
        told(
          mastraMessage({
            id: 'm',
            role,
            content: typeof content === 'string' ? content : JSON.stringify(content),
            place: '',
            time: '',
          }),
        );
      expect(of('plain')).to.deep.equal([ASSISTANT, 'plain', '']);
      expect(
        of([
          { type: 'text', text: 'a' },
          { type: 'tool-call', toolName: 't', args: {} },
        ]),
      ).to.deep.equal([ASSISTANT, 'a', '']);
      expect(of([{ type: 'tool-result', toolCallId: 'c', toolName: 't', result: 'r' }], 'tool')).to.deep.equal([
        TOOL,
        '[t gave r]',
        'c',
      ]);
      const invocation = { state: 'result', toolName: 't', args: { q: 1 }, result: { r: 1 } };
      expect(of({ format: 2, parts: [{ type: 'tool-invocation', toolInvocation: invocation }] })).to.deep.equal([
        ASSISTANT,
        '[t gave {"r":1}]',
        '',
      ]);
      expect(of({ format: 2, parts: [{ type: 'reasoning', reasoning: 'hm' }] })).to.deep.equal([
        ASSISTANT,
        '[reasons]',
        '',
      ]);
      expect(of({ format: 9 })).to.equal('its content is of no format that is known');
      expect(of('x', 'data')).to.equal('its role is "data"');
    });

    it('of LangGraph, as a class of LangChain or a plain object', () => {
      const of = (value: object) => told(langgraphMessage(value, 4, ''));
      const lc = (name: string, kwargs: object) => ({
        lc: 1,
        type: 'constructor',
        id: ['langchain_core', 'messages', name],
        kwargs,
      });
      expect(of(lc('HumanMessageChunk', { content: 'a' }))).to.deep.equal([HUMAN, 'a', '']);
      expect(of(lc('ChatMessage', { content: 'a', role: 'developer' }))).to.deep.equal([SYSTEM, 'a', '']);
      expect(of(lc('ToolMessage', { content: 'a', tool_call_id: 'c' }))).to.deep.equal([TOOL, 'a', 'c']);
      expect(of(lc('AIMessage', { content: [{ type: 'tool_use', name: 't', input: { q: 1 } }] }))).to.deep.equal([
        ASSISTANT,
        '[calls t {"q":1}]',
        '',
      ]);
      expect(of({ type: 'ai', content: ['a', { type: 'text', text: 'b' }] })).to.deep.equal([ASSISTANT, 'a\nb', '']);
      expect(of({ role: 'user', content: 'a' })).to.deep.equal([HUMAN, 'a', '']);
      expect(of({ what: 1 })).to.equal('its role is ""');
      expect(langgraphMessage({ role: 'user', content: 'a' }, 4, '').id).to.equal('#5');
      expect(
        plain([
          { lc: 2, type: 'undefined' },
          { lc: 2, type: 'constructor', id: ['Error'], args: ['bad'] },
        ]),
      ).to.deep.equal([null, 'bad']);
    });

    it('of LangGraph, as its serializer for Python wrote it', () => {
      const object = (type: number, ...of: unknown[]) => new ExtData(type, encode(of));
      const dump = { content: 'a', type: 'ai', id: 'm', tool_calls: [], name: null };
      const blob = encode({
        messages: [object(5, 'langchain_core.messages.ai', 'AIMessage', dump, 'model_validate_json')],
        seen: object(0, 'builtins', 'set', [1, 2]),
        when: object(3, 'datetime', 'datetime', '2024-01-01', 'fromisoformat'),
        whole: new ExtData(7, encode(['x'])),
        array: new ExtData(6, encode([1])),
        bytes: new Uint8Array([1, 2]),
        nested: object(2, 'm', 'Data', { inner: object(0, 'uuid', 'UUID', '00') }),
      });
      const value = unpack(blob) as Record<string, any>;
      const { messages, ...state } = value;
      expect(state).to.deep.equal({
        seen: [1, 2],
        when: '2024-01-01',
        whole: ['x'],
        array: null,
        bytes: 'AQI=',
        nested: { inner: '00' },
      });
      expect(langgraphMessage(messages[0], 0, '')).to.include({ id: 'm', role: ASSISTANT, content: 'a' });
    });

    it('of ADK, also as its first schema had events', () => {
      const of = (event: object) => told(adkMessage({ id: 'e', time: '', event }));
      expect(of({ author: 'user', content: { role: 'user', parts: [{ text: 'a' }, { text: 'b' }] } })).to.deep.equal([
        HUMAN,
        'a\nb',
        '',
      ]);
      expect(of({ author: 'agent', content: { parts: [{ inline_data: { mime_type: 'image/png' } }] } })).to.deep.equal([
        ASSISTANT,
        '[image/png]',
        '',
      ]);
      expect(of({ author: 'agent', content: { parts: [{ function_call: { name: 't', args: {} } }] } })).to.deep.equal([
        ASSISTANT,
        '[calls t {}]',
        '',
      ]);
      expect(of({ author: 'agent', content: null })).to.equal('an event without content');
    });
  });
});

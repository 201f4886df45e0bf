import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import pg from 'pg';
import { pino } from 'pino';
import type { RunningServer } from '../src/server.ts';
import { redactJson, redactText } from '../src/usage/redact.ts';
import {
  allPages,
  type Clients,
  connect,
  failure,
  headersOf,
  metadataOf,
  newDatabase,
  newTenant,
  rowCounts,
  runSql,
  startTestServer,
  tenantSql,
  until,
} from './support.ts';

const KEY = 'sk-proj-4f9a8b7c6d5e4f3a2b1c';

describe('prompts and calls of tools', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;
  let sessionId: string;

  before(async () => {
    server = await startTestServer();
  });
  after(() => server.stop());
  beforeEach(async () => {
    tenant = await newTenant(['user', 'admin']);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
    sessionId = (await client.memory.upsertSession({ session: { surfaceId: 'web' } })).session!.id;
  });
  afterEach(() => client.close());

  const tool = async (toolCall: object, rest: object = {}) =>
    (await client.audit.recordToolCall({ sessionId, toolCall: { toolName: 'grep', ...toolCall }, ...rest })).toolCall!;
  const prompt = async (fields: object, rest: object = {}) =>
    (await client.audit.recordPrompt({ sessionId, prompt: { name: 'system', text: 'be kind', ...fields }, ...rest }))
      .prompt!;
  const tools = async (filter: object = {}) => {
    const page = (pageToken: string) => client.audit.listToolCalls({ pageSize: 3, ...filter, pageToken });
    return (await allPages(page)).flatMap(({ toolCalls }) => toolCalls);
  };

  it('are recorded, and listed newest first', async () => {
    const requestId = randomUUID();
    const call = { input: { q: ['x', 1] }, status: 'error', error: 'no such file', latencyMs: 12, toolCallId: 'c1' };
    const first = await tool(call, { requestId });
    expect(await tool(call, { requestId })).to.deep.equal(first);
    expect(first).to.deep.include({ sessionId, turnId: '' });
    expect(first.record).to.deep.include({ ...call, toolName: 'grep', attempt: 1, output: undefined });
    const second = await tool({ attempt: 2, retryOf: first.id, status: 'ok', output: { n: 3 } });
    expect(await tools()).to.deep.equal([second, first]);
    expect(await tools({ status: 'ok' })).to.deep.equal([second]);
    expect(await tools({ toolName: 'read' })).to.deep.equal([]);
    expect(await tools({ sessionId })).to.have.length(2);
    expect(await tools({ sessionId: randomUUID() })).to.deep.equal([]);

    const said = await prompt({ version: '3' });
    expect(said.record).to.deep.equal({ name: 'system', version: '3', text: 'be kind' });
    const { prompts } = await client.audit.listPrompts({ sessionId, name: 'system' });
    expect(prompts).to.deep.equal([said]);
    const admin = metadataOf(headersOf(tenant, 'admin'));
    expect((await client.audit.listPrompts({}, admin)).prompts, 'not even to admins').to.deep.equal([]);
  });

  it('page by number and by 1 MiB', async () => {
    for (let i = 0; i < 25; i++) await tool({ toolCallId: String(i), output: { text: 'x'.repeat(60_000) } });
    const pages = await allPages((pageToken) => client.audit.listToolCalls({ pageSize: 20, pageToken }));
    expect(pages.map(({ toolCalls }) => toolCalls.length)).to.deep.equal([17, 8]);
    const ids = pages.flatMap(({ toolCalls }) => toolCalls.map(({ record }) => Number(record!.toolCallId)));
    expect(ids).to.deep.equal(Array.from({ length: 25 }, (_, i) => 24 - i));
  });

  it('need a live session, and a turn of it', async () => {
    const refused = async (rest: object) => {
      const { code, reason } = await failure(tool({}, rest));
      expect(await failure(prompt({}, rest))).to.include({ code, reason });
      return [code, reason];
    };
    expect(await refused({ turnId: randomUUID() })).to.deep.equal([status.NOT_FOUND, 'NOT_FOUND']);
    expect(await refused({ sessionId: randomUUID() })).to.deep.equal([status.NOT_FOUND, 'NOT_FOUND']);
    const { lease, session } = await client.conversation.beginTurn({ session: { id: sessionId }, holder: 'h' });
    const { turn } = await client.conversation.commitTurn({
      sessionId: session!.id,
      fencingToken: lease!.fencingToken,
      turn: { query: 'q' },
      toolCalls: [{ toolName: 'read' }],
      prompts: [{ name: 'p', text: 't' }],
    });
    await tool({}, { turnId: turn!.id });
    expect(await tools({ turnId: turn!.id })).to.have.length(2);
    await client.memory.endSession({ sessionId });
    expect(await refused({})).to.deep.equal([status.FAILED_PRECONDITION, 'SESSION_ENDED']);
    await client.memory.deleteSession({ sessionId });
    expect(await refused({})).to.deep.equal([status.NOT_FOUND, 'DELETED']);
    expect(await rowCounts(tenant, ['tool_calls', 'prompts'])).to.deep.equal({ tool_calls: 0, prompts: 0 });
  });

  it('leave nothing when they are recorded while their session is deleted', async () => {
    for (let round = 0; round < 5; round++) {
      const { session } = await client.memory.upsertSession({ session: { surfaceId: `s${round}` } });
      const writes = Array.from({ length: 6 }, (_, i) =>
        (i % 2 ? tool({}, { sessionId: session!.id }) : prompt({}, { sessionId: session!.id })).catch(() => undefined),
      );
      await Promise.all([...writes, client.memory.deleteSession({ sessionId: session!.id })]);
    }
    expect(await rowCounts(tenant, ['tool_calls', 'prompts'])).to.deep.equal({ tool_calls: 0, prompts: 0 });
  });

  it('are stored without the secrets in them, by either way', async () => {
    const input = {
      url: `https://me:hunter2@example.com/?q=1`,
      headers: { Authorization: 'x1' },
      note: `use ${KEY} now`,
    };
    const output = { list: [{ api_key: 'x2', tokens: 7 }, `Bearer ${KEY}`], ok: true };
    const call = { toolName: 'http', input, output, error: `password=hunter2 refused`, status: 'error' };
    const stored = await tool(call);
    expect(stored.record).to.deep.include({
      input: {
        url: 'https://me:[redacted]@example.com/?q=1',
        headers: { Authorization: '[redacted]' },
        note: 'use [redacted] now',
      },
      output: { list: [{ api_key: '[redacted]', tokens: 7 }, 'Bearer [redacted]'], ok: true },
      error: 'password=[redacted] refused',
    });
    const said = { name: 'system', text: `Call it with ${KEY}.` };
    expect((await prompt(said)).record!.text).to.equal('Call it with [redacted].');
    const { lease } = await client.conversation.beginTurn({ session: { id: sessionId }, holder: 'h' });
    await client.conversation.commitTurn({
      sessionId,
      fencingToken: lease!.fencingToken,
      toolCalls: [call],
      prompts: [said],
    });
    const [committed] = await tools({});
    expect(committed!.record).to.deep.equal(stored.record);
    for (const table of ['tool_calls', 'prompts', 'requests', 'audit_events']) {
      const rows = JSON.stringify(await tenantSql(tenant, `select to_jsonb(t)::text as row from ${table} t`));
      for (const secret of [KEY, 'hunter2', 'x1', 'x2'])
        expect(rows.includes(secret), `${secret} in ${table}`).to.equal(false);
    }
  });

  it('are looked through however long they are and whatever they hold', () => {
    // In quadratic time one of them would take ten minutes.
    for (const unit of [
      'eyJ-',
      'eyJ',
      'sk-',
      'Bearer ',
      '://a:',
      'password: ',
      '-----BEGIN PRIVATE KEY-----',
      'SG.aaaaaaaaaaaaaaaaa.',
    ]) {
      const hostile = unit.repeat((4 * 1024 * 1024) / unit.length);
      expect(redactText(`${hostile} ${KEY} `), unit).to.not.contain(KEY);
    }
  });

  it('hold up no point reads while lists look for what is rare', async () => {
    const { owner, app } = await newDatabase();
    const there = await startTestServer({ sharedConnections: 1 }, undefined, app);
    const place = await newTenant(['user'], {}, owner);
    const at = connect(`127.0.0.1:${there.port}`, headersOf(place));
    const holder = new pg.Client({ connectionString: owner });
    await holder.connect();
    try {
      const { session } = await at.memory.upsertSession({ session: { surfaceId: 'web' } });
      // As long as a list takes: it waits for a table, where it else would read all of a user's rows.
      await holder.query('begin; lock table tool_calls, prompts in access exclusive mode');
      const lists = [at.audit.listToolCalls({ toolName: 'rare' }), at.audit.listPrompts({ name: 'rare' })];
      const waits = `select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`;
      await until(async () => (await runSql(owner, waits)).length === lists.length);
      const read = await at.memory.getSession({ sessionId: session!.id });
      expect(read.session!.id).to.equal(session!.id);
      await holder.query('rollback');
      await Promise.all(lists);
    } finally {
      await holder.end();
      at.close();
      await there.stop();
    }
  });

  it('have, in the log, a line for each start and end of a session, and none for a replay', async () => {
    const lines: any[] = [];
    const log = pino({ level: 'info' }, { write: (line: string) => void lines.push(JSON.parse(line)) });
    const logged = await startTestServer({}, log);
    const other = connect(`127.0.0.1:${logged.port}`, headersOf(tenant));
    try {
      const request = { session: { surfaceId: 'log', title: KEY }, requestId: randomUUID() };
      const { session } = await other.memory.upsertSession(request);
      await other.memory.upsertSession(request);
      await other.memory.upsertSession({ session: { surfaceId: 'log', title: 'again' } });
      const begun = await other.conversation.beginTurn({ session: { surfaceId: 'turn' }, holder: 'h' });
      await failure(other.memory.endSession({ sessionId: session!.id, etag: '"zz"' }));
      await other.memory.endSession({ sessionId: session!.id });
      await other.memory.deleteSession({ sessionId: begun.session!.id });
      const place = { tenant, env: 'dev', user: 'user' };
      const told = lines
        .filter(({ msg }) => msg.startsWith('session '))
        .map(({ level, time, pid, hostname, ...rest }) => rest);
      expect(told).to.deep.equal([
        { ...place, sessionId: session!.id, method: 'MemoryService/UpsertSession', msg: 'session started' },
        { ...place, sessionId: begun.session!.id, method: 'ConversationService/BeginTurn', msg: 'session started' },
        { ...place, sessionId: session!.id, method: 'MemoryService/EndSession', msg: 'session ended' },
        { ...place, sessionId: begun.session!.id, method: 'MemoryService/DeleteSession', msg: 'session deleted' },
      ]);
      expect(JSON.stringify(lines)).to.not.contain(KEY);
    } finally {
      other.close();
      await logged.stop();
    }
  });

  it('are redacted by keys and by what secrets look like, and left alone otherwise', () => {
    const secrets = [
      'Bearer abcDEF123456',
      'Basic dXNlcjpwYXNzd29yZA==',
      'eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl',
      'ghp_0123456789abcdefghij',
      'github_pat_11ABCDEFG0abcdefghij',
      'glpat-abcdefghij0123456789',
      'xoxb-1234567890-abcdef',
      'AKIAIOSFODNN7EXAMPLE',
      `AIza${'a1'.repeat(18)}`,
      'sk_live_0123456789abcdefghij',
      'sk-ant-api03-abcdefghijklmnop',
      'hf_abcdefghij0123456789',
      `msk_${'a1'.repeat(22)}`,
      '-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----',
      '-----BEGIN PRIVATE KEY-----\ncut',
      'postgres://app:pa55@db/x',
      '"password": "correct horse"',
      'API_KEY=abcd1234',
    ];
    for (const secret of secrets) {
      const left = redactText(`before ${secret} after`);
      expect(left, secret)
        .to.match(/^before .*\[redacted\]/s)
        .and.not.contain(secret);
    }
    for (const [text, left] of [
      ['DB_PASSWORD=hunter2hunter2', 'DB_PASSWORD=[redacted]'],
      ['export AWS_SECRET_ACCESS_KEY=abcd/1234', 'export AWS_SECRET_ACCESS_KEY=[redacted]'],
      ['GITHUB_TOKEN: abcd1234\nPGPASSWORD=abcd', 'GITHUB_TOKEN: [redacted]\nPGPASSWORD=[redacted]'],
      [
        'STRIPE_API_KEY: abcd1234, client_secret=abcd1234&x=1',
        'STRIPE_API_KEY: [redacted], client_secret=[redacted]&x=1',
      ],
      ['password: "correct horse battery" x', 'password: "[redacted]" x'],
      ['{\\"password\\": \\"hunter2\\"}', '{\\"password\\": \\"[redacted]\\"}'],
      ['Cookie: sid=1234; b=2\nHost: x', 'Cookie: [redacted]\nHost: x'],
      ["-H 'Authorization: Token abcd1234' http://x", "-H 'Authorization: [redacted]' http://x"],
      ['postgres://u:p@ss@h/db', 'postgres://u:[redacted]@h/db'],
    ]) {
      expect(redactText(text!)).to.equal(left);
    }
    for (const plain of [
      'next_page_token: abcd1234',
      'The password is not known.',
      'https://example.com:8080/a@b?token',
      'npm_config_cache_directory',
      'a task-oriented-dialogue-system',
      'max_tokens: 100',
      'the secret of the sea',
    ]) {
      expect(redactText(plain)).to.equal(plain);
    }
    const value = {
      Password: 'x',
      'x-api-key': 'y',
      refreshToken: { a: 1 },
      cookie: ['z'],
      tokens: 3,
      secret: null,
      secretary: 'Ada',
      next_page_token: 'abcd1234',
      session_key: 'abcd1234',
      headers: [
        { name: 'Authorization', value: 'abc' },
        { name: 'Accept', value: 'abc' },
      ],
    };
    expect(redactJson(value)).to.deep.equal({
      Password: '[redacted]',
      'x-api-key': '[redacted]',
      refreshToken: '[redacted]',
      cookie: '[redacted]',
      tokens: 3,
      secret: null,
      secretary: 'Ada',
      next_page_token: 'abcd1234',
      session_key: '[redacted]',
      headers: [
        { name: 'Authorization', value: '[redacted]' },
        { name: 'Accept', value: 'abc' },
      ],
    });
  });
});

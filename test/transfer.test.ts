import { randomUUID } from 'node:crypto';
import { gzipSync } from 'node:zlib';
import { expect } from 'chai';
import fc from 'fast-check';
import { UserError } from '../src/errors.ts';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import { rederive } from '../src/search/rederive.ts';
import type { RunningServer } from '../src/server.ts';
import { readTables, type Table } from '../src/transfer/catalog.ts';
import { written } from '../src/transfer/file.ts';
import { LEFT_OUT, OF_NO_PROJECT, ofProject } from '../src/transfer/rules.ts';
import { addMembers } from './fixtures/answers.ts';
import { type Place, type Planted, plant, requestIdsOf } from './fixtures/places.ts';
import { contentOf, importFile, linesOf, timeless, transferFolder } from './fixtures/transfer.ts';
import {
  addMember,
  appUrl,
  type Clients,
  connect,
  headersOf,
  metadataOf,
  newDatabase,
  newTenant,
  ownerUrl,
  runSql,
  startTestServer,
  tenantSql,
} from './support.ts';

// Tests run side by side: what is planted is exported once, and goes into a database that nobody else uses.
describe('export and import', function () {
  this.timeout(60_000);
  let server: RunningServer;
  let client: Clients;
  let other: { owner: string; app: string };
  let tables: Table[];
  let place: Place;
  let planted: Planted;
  let text: string;
  let withVector: boolean;

  const { path, fileOf, exported, remove } = transferFolder();
  const take = (file: string, options = {}) => importFile(file, other.app, options);
  const refused = (file: string, options = {}, url = other.app): Promise<string> =>
    importFile(file, url, options).then(
      () => expect.fail('it should have been refused'),
      (error) => {
        expect(error).to.be.instanceOf(UserError);
        return error.message;
      },
    );
  /** How many rows the other database holds of a tenant. */
  async function rowsOf(tenant: string): Promise<number> {
    const counts = tables.map(({ name }) => `(select count(*)::int from ${name} where tenant_id = '${tenant}')`);
    const [row] = await runSql(other.owner, `select ${counts.join(' + ')} as n`);
    return row.n;
  }

  before(async () => {
    server = await startTestServer();
    client = connect(`127.0.0.1:${server.port}`);
    other = await newDatabase();
    tables = await readTables(async (sql) => ({ rows: await runSql(ownerUrl(), sql) }));
    place = {
      tenant: await newTenant([], { pii: 3 }),
      env: 'dev',
      user: 'user',
      admin: 'admin',
      destination: 'maybes',
    };
    for (const here of [{ ...place, env: 'prod' }, place]) {
      await addMembers([here, { ...here, user: 'admin', role: 2 }]);
      planted = await plant(client, here, { content: `content-${here.env}`, id: `id-${here.env}` }, requestIdsOf());
    }
    // A stream is there only while it is open.
    await runSql(
      ownerUrl(),
      `insert into message_streams select tenant_id, env, gen_random_uuid(), thread_uid, 1, user_id, null, gen_random_uuid(), 0, now() + interval '1 hour'
       from threads where tenant_id = $1 and env = 'dev' and thread_id = 'plan'`,
      [place.tenant],
    );
    const [{ installed }] = await runSql(
      ownerUrl(),
      `select count(*)::int as installed from pg_attribute where attrelid = 'memory_embeddings'::regclass and attname = 'embedding'`,
    );
    withVector = installed > 0;
    if (withVector) {
      const member = metadataOf(headersOf(place.tenant));
      await client.project.putMemory({ projectId: 'p', key: 'k', value: 'v', embedding: [1 / 3, 1e-20, -7] }, member);
    }
    // What the service never stores, but Postgres can.
    await runSql(
      ownerUrl(),
      `update tool_calls set input = 'null', output = '{"b": 1.10, "a": [1e2, null]}' where tenant_id = $1 and env = 'dev'`,
      [place.tenant],
    );
    text = await exported(place.tenant, appUrl());
  });
  after(async () => {
    client.close();
    await server.stop();
    await remove();
  });
  it('takes every table of tenants, but for those that it has a reason to leave where they are', async () => {
    const named = await runSql(
      ownerUrl(),
      `select distinct table_name as name from information_schema.columns where table_schema = 'public' and column_name = 'tenant_id'`,
    );
    expect(tables.map(({ name }) => name)).to.have.members(named.map(({ name }) => name));
    expect(tables.map(({ name }) => name)).to.include.members(Object.keys(LEFT_OUT));
    const taken = Object.keys(linesOf(text)[0].tables);
    const left = tables.filter(({ name }) => !taken.includes(name));
    expect(left.map(({ name }) => name)).to.have.members(Object.keys(LEFT_OUT));
    // Of each there are rows where one of everything is planted, which the tests of row-level security see to.
  });

  it('knows how the rows of every table belong to a project', () => {
    for (const table of tables) {
      const known = table.name in OF_NO_PROJECT || table.name in LEFT_OUT || ofProject(table, tables) !== undefined;
      expect(known, `say in src/transfer/rules.ts how ${table.name} belongs to a project`).to.equal(true);
    }
    expect(tables.map(({ name }) => name)).to.include.members(Object.keys(OF_NO_PROJECT));
  });

  it('moves a tenant into another database and back without changing a byte', async () => {
    const file = await fileOf(text);
    expect(await take(file)).to.include({ there: false, stored: linesOf(text).length - 2 });
    expect(timeless(await exported(place.tenant, other.app))).to.equal(timeless(text));
    const call = await runSql(
      other.owner,
      `select input::text, output::text from tool_calls where tenant_id = $1 and env = 'dev' limit 1`,
      [place.tenant],
    );
    expect(call).to.deep.equal([{ input: 'null', output: '{"a": [100, null], "b": 1.10}' }]);
    const rows = await rowsOf(place.tenant);
    expect(await take(file)).to.include({ there: true, stored: 0 });
    expect(await rowsOf(place.tenant), 'nothing, nor an event, from a second import').to.equal(rows);
    expect(timeless(await exported(place.tenant, other.app))).to.equal(timeless(text));
  });

  it('carries embeddings, but not where there can be none', async function () {
    if (!withVector) this.skip(); // `npm run test:pgvector` has it
    expect(linesOf(text).find(({ table }) => table === 'memory_embeddings').row.embedding).to.equal(
      '[0.33333334,1e-20,-7]',
    );
    const without = await newDatabase();
    await runSql(without.owner, 'alter table memory_embeddings drop column embedding');
    expect(await refused(await fileOf(text), {}, without.app)).to.include(
      'has rows of memory_embeddings with embedding, which is not known here',
    );
  });

  it('moves one env, also into one with another name', async () => {
    const part = await exported(place.tenant, appUrl(), { env: 'prod' });
    expect(part).to.not.include('content-dev');
    const into = `t-${randomUUID()}`;
    await take(await fileOf(part), { tenant: into, env: 'staging' });
    const again = await exported(into, other.app, { env: 'staging' });
    expect(contentOf(again).replaceAll('"staging"', '"prod"')).to.equal(contentOf(part));
    expect(await refused(await fileOf(text), { env: 'staging' })).to.include('--env is for an export of one env');
  });

  it('refuses a file that is not as it was written, before it stores anything', async () => {
    const lines = text.trimEnd().split('\n');
    const at = Math.floor(lines.length / 2);
    const broken: [string, string | Buffer, RegExp][] = [
      ['empty', '', /is empty/],
      ['something else', 'a,b\n1,2\n', /no export of memoryd/],
      ['without its end', `${lines.slice(0, -1).join('\n')}\n`, /is cut off: its last line is missing/],
      ['cut in a row', text.slice(0, text.indexOf(lines[at]!) + 40), /is cut off in a line/],
      ['without a row', `${lines.toSpliced(at, 1).join('\n')}\n`, /was altered: its checksum is another/],
      ['with a row twice', `${lines.toSpliced(at, 0, lines[at]!).join('\n')}\n`, /was altered: its checksum/],
      ['with another word', text.replace('content-dev', 'content-deV'), /was altered: its checksum/],
      ['with a line that is no row', text.replace('\n', '\n{}\n'), /was altered: it has a line that is no row/],
      ['with more after its end', `${text}{}\n`, /goes on after its end/],
      [
        'of a later format',
        text.replace('"memoryd_export":1', '"memoryd_export":2'),
        /has format 2, of which this version knows only 1/,
      ],
      ['of a later schema', text.replace(/"schema":\d+/, '"schema":999'), /exported at schema 999, which is newer/],
      [
        'of a schema too old',
        text.replace(/"schema":\d+/, '"schema":3'),
        /exported at schema 3; this database takes what was exported from \d+ on/,
      ],
      [
        'with a column of another one',
        text.replace('"sessions":["id"', '"sessions":["id","mood"'),
        /has rows of sessions with mood, which is not known here/,
      ],
      ['with a table of another one', text.replace('"bundles":[', '"moods":['), /which its first line does not name/],
      ['in a language that is not here', text.replace('["simple"]', '["klingon"]'), /searched in klingon, which/],
    ];
    for (const [what, content, message] of broken) {
      const into = `t-${randomUUID()}`;
      expect(await refused(await fileOf(content), { tenant: into }), what).to.match(message);
      expect(await rowsOf(into), what).to.equal(0);
    }
    const packed = gzipSync(text);
    const cut = await fileOf(packed.subarray(0, packed.length - 100), 'cut.jsonl.gz');
    expect(await refused(cut)).to.match(/is cut off/);
    expect(await refused(await fileOf(text, 'plain.gz'))).to.match(/is no gzip file/);
    expect(await refused(path('nothing'))).to.match(/cannot be read: ENOENT/);
  });

  it('refuses to store over something else, says over what, and stores nothing', async () => {
    const into = `t-${randomUUID()}`;
    const file = await fileOf(text);
    await take(file, { tenant: into });
    await runSql(other.owner, `delete from messages where tenant_id = '${into}' and seq = 2`);
    const [{ id }] = await runSql(
      other.owner,
      `update memories set updated_by = 'else' where tenant_id = '${into}' and env = 'dev' and version > 1 returning id`,
    );
    const before = await rowsOf(into);
    const told = await refused(file, { tenant: into });
    expect(told).to.match(/differs from what tenant t-\S+ holds already, so nothing was stored:\n/);
    expect(told.split('\n')[1]).to.equal(`  memories ["${id}"]`);
    expect(await rowsOf(into)).to.equal(before);
    expect(await refused(file, { tenant: into, dryRun: true })).to.equal(told);
    await runSql(other.owner, `update memories set updated_by = 'user' where id = '${id}'`);
    expect(await take(file, { tenant: into, dryRun: true })).to.include({ stored: 0 });
    expect(await rowsOf(into)).to.equal(before);
    expect((await take(file, { tenant: into })).stored).to.be.greaterThan(0);
    expect(contentOf(await exported(into, other.app))).to.equal(contentOf(text));
  });

  it('keeps the name and the policies of a tenant that is there, and refuses one without the env', async () => {
    const into = await newTenant(['user'], {}, other.owner);
    await runSql(other.owner, `update tenants set display_name = 'Kept', envs = '{dev}' where tenant_id = $1`, [into]);
    await runSql(other.owner, 'update tenant_members set role = 2 where tenant_id = $1', [into]);
    const file = await fileOf(text);
    expect(await refused(file, { tenant: into })).to.include('has no env prod: add it first');
    await runSql(other.owner, `update tenants set envs = '{dev,prod}' where tenant_id = $1`, [into]);
    expect(await take(file, { tenant: into })).to.include({ there: true });
    const [row] = await runSql(other.owner, 'select display_name, policies from tenants where tenant_id = $1', [into]);
    expect(row).to.deep.equal({ display_name: 'Kept', policies: {} });
    const members = `select user_id, role from tenant_members where tenant_id = $1 and env = 'dev' and user_id in ('user', 'admin') order by 1`;
    expect(await runSql(other.owner, members, [into])).to.deep.equal([
      { user_id: 'admin', role: 2 },
      { user_id: 'user', role: 2 },
    ]);
  });

  it('finds what arrives in another language than that of the tenant, until it is derived anew', async () => {
    const tenant = await newTenant(['user']);
    await runSql(ownerUrl(), `update tenants set search_language = 'english' where tenant_id = $1`, [tenant]);
    const from = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
    await from.conversation.appendMessages({
      threadId: 't',
      messages: [{ role: 1, content: 'Sessions were running' }],
    });
    from.close();
    const into = await newTenant(['user']);
    await importFile(await fileOf(await exported(tenant, appUrl())), appUrl(), { tenant: into });
    const there = connect(`127.0.0.1:${server.port}`, headersOf(into));
    const found = async (query: string) => (await there.conversation.searchMessages({ query })).results.length;
    expect([await found('run'), await found('runs')]).to.deep.equal([1, 1]);
    await rederive(server.kernel.database, 0);
    expect([await found('run'), await found('running')]).to.deep.equal([0, 1]);
    there.close();
  });

  it('of one project hold nothing of another one, nor what belongs to none', async () => {
    const tenant = await newTenant(['user']);
    await addMember(tenant, 'other');
    const at = (user: string) => connect(`127.0.0.1:${server.port}`, headersOf(tenant, user));
    const [user, another] = [at('user'), at('other')];
    async function live(who: Clients, projectId: string, mark: string, threadId: string) {
      const { session } = await who.memory.upsertSession({
        session: { surfaceId: mark, projectId, threadId, title: mark },
      });
      const sessionId = session!.id;
      const messages = [{ role: MessageRole.HUMAN, content: mark, clientId: mark }];
      await who.conversation.appendMessages({ threadId, sessionId, messages });
      const entries = [{ entry: { $case: 'decision' as const, value: { text: mark } } }];
      await who.memory.appendSessionContext({ sessionId, entries });
      const selection = { selection: { $case: 'lastN' as const, value: 1 } };
      await who.memory.saveBundle({ sourceThreadId: threadId, sourceProjectId: projectId, selection });
      if (projectId) await who.project.putMemory({ projectId, key: `of ${mark}`, value: mark });
      return sessionId;
    }
    const mine = await live(user, 'apollo', 'mark-of-apollo', 'apollo-1');
    await live(another, 'apollo', 'mark-of-apollo-too', 'apollo-1');
    await live(user, 'gemini', 'mark-of-gemini', 'gemini-1');
    await live(user, 'apollo', 'mark-of-both', 'shared');
    await live(user, 'gemini', 'mark-of-gemini-again', 'shared');
    await live(user, '', 'mark-of-none', 'private');
    await user.conversation.appendMessages({ threadId: 'loose', messages: [{ role: 1, content: 'mark-of-loose' }] });
    const deleted = [{ role: 1, content: 'mark-of-deleted' }] as const;
    for (const threadId of ['deleted', 'apollo-1']) {
      await user.conversation.appendMessages({ threadId, messages: [...deleted] });
    }
    await user.conversation.deleteThread({ threadId: 'deleted' });
    const { messages: both } = await user.conversation.listMessages({ threadId: 'apollo-1' });
    await user.conversation.deleteMessage({ messageId: both[0]!.id });
    expect(await exported(tenant, appUrl())).to.not.include('mark-of-deleted');
    for (const projectId of ['apollo', 'gemini']) {
      await tenantSql(
        tenant,
        `insert into llm_requests (tenant_id, env, id, user_id, project_id, provider, model, prompt_tokens, completion_tokens, total_tokens, cost, latency_ms, status, create_time, folded)
         values ('${tenant}', 'dev', gen_random_uuid(), 'user', $1, 'p', 'm', 1, 1, 2, 0.10, 1, 'ok', now(), true)`,
        [projectId],
      );
    }

    const part = await exported(tenant, appUrl(), { env: 'dev', project: 'apollo' });
    for (const mark of ['gemini', 'mark-of-none', 'mark-of-loose', 'private']) expect(part).to.not.include(mark);
    const { counts } = linesOf(part).at(-1).end;
    expect(Object.keys(counts)).to.deep.equal(['dev']);
    expect(counts.dev).to.include({
      sessions: 3,
      threads: 2,
      messages: 3,
      thread_events: 1,
      session_contexts: 3,
      context_entries: 3,
      bundles: 3,
      memories: 3,
      memory_versions: 3,
      memory_uses: 3,
      llm_requests: 1,
    });
    expect(counts.dev.audit_events).to.be.greaterThan(9);

    const into = await newTenant(['user']);
    const file = await fileOf(part);
    await importFile(file, appUrl(), { tenant: into });
    const there = connect(`127.0.0.1:${server.port}`, headersOf(into));
    const told = await there.memory.resumeSession({ target: { $case: 'sessionId', value: mine } });
    expect(told.messages.map(({ content }) => content)).to.deep.equal(['mark-of-apollo', '']);
    const again = await exported(into, appUrl(), { env: 'dev', project: 'apollo' });
    const calls = await tenantSql(into, 'select cost::text, folded from llm_requests');
    expect(calls).to.deep.equal([{ cost: '0.100000000000', folded: true }]);
    const sums = await tenantSql(into, 'select distinct requests, cost::text from usage_rollups');
    expect(sums, 'added up where it arrives').to.deep.equal([{ requests: '1', cost: '0.100000000000' }]);
    // Resuming moves the session's activity, and leaves an event.
    const moved = (content: string) =>
      timeless(content)
        .split('\n')
        .filter((line) => !line.includes(`"id":"${mine}"`) && !/"table":"audit_events"|"end"/.test(line));
    expect(moved(again).join('\n').replaceAll(into, tenant)).to.equal(moved(part).join('\n'));
    expect(await refused(file, { tenant: 'nobody' }, appUrl())).to.include(
      'there is no tenant nobody to take project apollo',
    );
    for (const open of [user, another, there]) open.close();
  });

  it('of one project hold no events of another whose id goes on as resources do', async () => {
    const tenant = await newTenant(['user']);
    const at = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
    for (const projectId of ['a', 'a/memories', 'a/drafts', 'a/drafts/b', 'a/profile', 'a_']) {
      await at.project.putMemory({ projectId, key: `of ${projectId}`, value: 'v' });
      for (const sectionId of ['s', 'drafts/s']) await at.artifact.lockSection({ projectId, sectionId, holder: 'h' });
      await at.artifact.putProjectProfile({ projectId, yaml: 'a: 1' });
    }
    at.close();
    const uuid = /[0-9a-f-]{36}$/;
    const eventsOf = async (project: string) =>
      linesOf(await exported(tenant, appUrl(), { env: 'dev', project }))
        .filter(({ table }) => table === 'audit_events')
        .map(({ row }) => `${row.action} ${row.resource.replace(uuid, 'ID')}`);
    expect(await eventsOf('a')).to.have.members([
      'memories.put projects/a/memories/ID',
      'sections.lock projects/a/drafts/s',
      'profiles.put projects/a/profile',
    ]);
    // Which project a lock of `projects/a/drafts/drafts/s` is of, nothing tells.
    expect(await eventsOf('a/drafts')).to.have.members([
      'memories.put projects/a/drafts/memories/ID',
      'profiles.put projects/a/drafts/profile',
    ]);
    expect(await eventsOf('a/memories')).to.have.members([
      'memories.put projects/a/memories/memories/ID',
      'sections.lock projects/a/memories/drafts/s',
      'profiles.put projects/a/memories/profile',
    ]);
  });

  it('leaves the words of deleted memories behind, and finds misspelt ones where it arrives', async () => {
    const tenant = await newTenant(['user']);
    const at = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
    await at.project.putMemory({ projectId: 'p', key: 'kept', value: 'the quarterly report' });
    await at.project.putMemory({ projectId: 'p', key: 'kept', value: 'the quarterly numbers' });
    await at.project.putMemory({ projectId: 'p', key: 'gone', value: 'Zephyrcorp' });
    await at.project.deleteMemory({ projectId: 'p', key: 'gone' });
    at.close();
    const content = await exported(tenant, appUrl());
    expect(content).to.not.match(/zephyrcorp/i);

    const [header] = linesOf(content);
    header.tables.memory_words = ['project_id', 'word'];
    const word = '{"env":"dev","table":"memory_words","row":{"project_id":"p","word":"zephyrcorp"}}';
    async function* batches() {
      for (const line of [word, ...content.trimEnd().split('\n').slice(1, -1)]) {
        const { env, table } = JSON.parse(line);
        yield { env, table, lines: [line] };
      }
    }
    let formerly = '';
    for await (const text of written(header, batches(), () => {})) formerly += text;

    for (const [what, file] of Object.entries({ today: content, formerly })) {
      const into = await newTenant(['user']);
      await importFile(await fileOf(file), appUrl(), { tenant: into });
      const words = await tenantSql(into, 'select word from memory_words order by word');
      expect(
        words.map(({ word }) => word),
        what,
      ).to.deep.equal(['kept', 'numbers', 'quarterly']);
      const there = connect(`127.0.0.1:${server.port}`, headersOf(into));
      const found = await there.project.searchMemories({ projectId: 'p', query: 'quaterly' });
      expect(
        found.results.map(({ memory }) => memory!.value),
        what,
      ).to.deep.equal(['the quarterly numbers']);
      there.close();
    }
  });

  // The last one: it changes what the others export.
  it('makes a copy under another name, which the service serves as it serves the original', async () => {
    const into = `t-${randomUUID()}`;
    await importFile(await fileOf(text), appUrl(), { tenant: into });
    const of = (tenant: string) => connect(`127.0.0.1:${server.port}`, headersOf(tenant));
    const [original, copy] = [of(place.tenant), of(into)];
    try {
      const told = async (at: Clients) => ({
        sessions: await at.memory.listSessions({}).then(({ sessions }) => sessions),
        messages: await at.conversation.listMessages({ threadId: 'plan' }).then(({ messages }) => messages),
        found: (await at.conversation.searchMessages({ query: '"content-dev"' })).results.map(
          ({ message }) => message!.id,
        ),
        memory: await at.project
          .getMemory({ projectId: planted.projectId, key: planted.memoryKey })
          .then(({ memory }) => ({
            ...memory,
            accessCount: 0,
            lastAccessTime: undefined,
          })),
        bundle: await at.memory.getBundle({ bundleId: planted.bundleId }),
        byKey: await at.memory
          .resumeSession({ target: { $case: 'sessionKey', value: planted.sessionKey } })
          .then(({ messages }) => messages),
        turns: (await at.conversation.listTurns({ sessionId: planted.turningSessionId })).turns,
      });
      const [first, second] = [await told(original), await told(copy)];
      expect(second).to.deep.equal(first);
      expect(first.found).to.not.be.empty;
      // Numbers, revisions and fences go on where they were.
      const next = {
        threadId: 'plan',
        fencingToken: planted.fencingToken,
        messages: [{ role: MessageRole.ASSISTANT, content: 'on' }],
      };
      const [ours, theirs] = await Promise.all([original, copy].map((at) => at.conversation.appendMessages(next)));
      expect(theirs!.messages[0]!.seq).to.equal(ours!.messages[0]!.seq);
    } finally {
      original.close();
      copy.close();
    }
  });

  it('carries whatever can have happened', async () => {
    const value = fc.jsonValue({ maxDepth: 3, stringUnit: 'binary' });
    const word = fc.string({ unit: 'binary', minLength: 1, maxLength: 50 }).filter((text) => !text.includes('\0'));
    const id = fc.constantFrom('a', 'b', '\u2028', '\u{1f600} "\\');
    const step = fc.oneof(
      fc.record({ does: fc.constant('append'), id, content: word, more: value }),
      fc.record({
        does: fc.constantFrom('deleteMessage', 'clear', 'deleteThread', 'end', 'deleteSession', 'forget'),
        id,
      }),
      fc.record({ does: fc.constantFrom('put', 'upsert'), id, content: word, more: value }),
    ) as fc.Arbitrary<{ does: string; id: string; content: string; more: unknown }>;
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 30, maxLength: 60 }), async (steps) => {
        const tenant = await newTenant(['user'], { pii: 3 });
        const at = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
        const sessionOf = async (surfaceId: string) =>
          (await at.memory.listSessions({ surfaceId })).sessions.find((session) => !session.endTime)!.id;
        const doing: Record<string, (of: (typeof steps)[number]) => Promise<unknown>> = {
          append: ({ id: threadId, content, more }) =>
            at.conversation.appendMessages({ threadId, messages: [{ role: 1, content, metadata: { more } }] }),
          deleteMessage: async ({ id: threadId }) => {
            const { messages } = await at.conversation.listMessages({ threadId });
            await at.conversation.deleteMessage({ messageId: messages[0]!.id });
          },
          clear: ({ id: threadId }) => at.conversation.clearHistory({ threadId }),
          deleteThread: ({ id: threadId }) => at.conversation.deleteThread({ threadId }),
          upsert: ({ id: surfaceId, content: title, more }) =>
            at.memory.upsertSession({ session: { surfaceId, threadId: surfaceId, title, state: { more } } }),
          end: async ({ id: surfaceId }) => at.memory.endSession({ sessionId: await sessionOf(surfaceId) }),
          deleteSession: async ({ id: surfaceId }) =>
            at.memory.deleteSession({ sessionId: await sessionOf(surfaceId) }),
          put: ({ id: key, content, more }) =>
            at.project.putMemory({ projectId: 'p', key, value: content, metadata: { [content]: more } }),
          forget: ({ id: key }) => at.project.deleteMemory({ projectId: 'p', key }),
        };
        // What is refused, as there is nothing of the kind, changes nothing.
        for (const of of steps) await doing[of.does]!(of).catch(() => {});
        at.close();
        const before = await exported(tenant, appUrl());
        await take(await fileOf(before));
        expect(timeless(await exported(tenant, other.app))).to.equal(timeless(before));
      }),
      { numRuns: 3 },
    );
  });
});

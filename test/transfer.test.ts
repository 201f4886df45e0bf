import { randomUUID } from 'node:crypto';
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gunzipSync, gzipSync } from 'node:zlib';
import { expect } from 'chai';
import fc from 'fast-check';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import type { RunningServer } from '../src/server.ts';
import { readTables, type Table } from '../src/transfer/catalog.ts';
import { LEFT_OUT, OF_NO_PROJECT, ofProject } from '../src/transfer/rules.ts';
import { addMembers } from './fixtures/answers.ts';
import { killAll, memoryd, type Run } from './fixtures/command.ts';
import { type Place, type Planted, plant, requestIdsOf } from './fixtures/places.ts';
import {
  addMember,
  appUrl,
  type Clients,
  connect,
  headersOf,
  newDatabase,
  newTenant,
  ownerUrl,
  runSql,
  startTestServer,
  until,
} from './support.ts';

// Tests run side by side: what is planted is exported once, and goes into a database that nobody else uses.
describe('export and import', function () {
  this.timeout(60_000);
  let folder: string;
  let server: RunningServer;
  let client: Clients;
  let other: { owner: string; app: string };
  let tables: Table[];
  let place: Place;
  let planted: Planted;
  let text: string;

  const path = (name: string) => join(folder, name);
  const start = (args: string[], url = other.app, env = {}): Run => memoryd(args, { DATABASE_URL: url, ...env });
  async function done(args: string[], url = other.app, env = {}): Promise<string> {
    const run = start(args, url, env);
    expect(await run.ended, run.err()).to.equal(0);
    return run.err();
  }
  async function refused(args: string[], url = other.app): Promise<string> {
    const run = start(args, url);
    expect(await run.ended, run.err()).to.equal(1);
    expect(run.err()).to.match(/^memoryd: /);
    return run.err();
  }
  async function exported(tenant: string, flags: string[] = [], url = other.app): Promise<string> {
    const file = path(`${randomUUID()}.jsonl`);
    await done(['export', file, '--tenant', tenant, ...flags], url);
    return readFile(file, 'utf8');
  }
  /** A file that holds this. */
  async function fileOf(content: string | Buffer, name = `${randomUUID()}.jsonl`): Promise<string> {
    await writeFile(path(name), content);
    return path(name);
  }
  const linesOf = (content: string): any[] =>
    content
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line));
  /** The rows of an export, and its first line without the name of the tenant. */
  const contentOf = (content: string): string => content.replace(/"tenant":"[^"]+"/, '').replace(/\n\{"end":.*\n$/, '');
  /** How many rows the other database holds of a tenant. */
  async function rowsOf(tenant: string): Promise<number> {
    const counts = tables.map(({ name }) => `(select count(*)::int from ${name} where tenant_id = '${tenant}')`);
    const [row] = await runSql(other.owner, `select ${counts.join(' + ')} as n`);
    return row.n;
  }

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'memoryd-transfer-'));
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
    text = await exported(place.tenant, [], appUrl());
  });
  after(async () => {
    client.close();
    await server.stop();
    await rm(folder, { recursive: true });
  });
  afterEach(killAll);

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
    expect(await done(['import', file])).to.match(/stored [\d,]+ rows; 0 were there already/);
    const rows = await rowsOf(place.tenant);
    expect(await exported(place.tenant)).to.equal(text);
    const events = await rowsOf(place.tenant);
    expect(events - rows, 'the event of an export in each env').to.equal(2);
    expect(await done(['import', file])).to.match(/stored 0 rows; [\d,]+ were there already/);
    expect(await rowsOf(place.tenant), 'nothing, nor an event, from a second import').to.equal(events);
    expect(await exported(place.tenant)).to.equal(text);
  });

  it('leaves an event in the audit trail of each env, of which an export knows nothing', async () => {
    const events = `select env, action, actor from audit_events where tenant_id = $1 and action like 'transfer.%' order by 1, 2`;
    expect(await runSql(ownerUrl(), events, [place.tenant])).to.deep.equal([
      { env: 'dev', action: 'transfer.export', actor: 'cli' },
      { env: 'prod', action: 'transfer.export', actor: 'cli' },
    ]);
    const into = `t-${randomUUID()}`;
    await done(['import', await fileOf(text), '--tenant', into]);
    expect(await runSql(other.owner, events, [into])).to.deep.equal([
      { env: 'dev', action: 'transfer.import', actor: 'cli' },
      { env: 'prod', action: 'transfer.import', actor: 'cli' },
    ]);
    expect(text).to.include('"action":"sessions.upsert"');
    expect(text).to.not.include('transfer.');
  });

  it('writes a file that only its owner may read, compressed or to a pipe just the same', async () => {
    const file = path('packed.jsonl.gz');
    await done(['export', file, '--tenant', place.tenant], appUrl());
    expect((await stat(file)).mode & 0o777).to.equal(0o600);
    expect(gunzipSync(await readFile(file)).toString()).to.equal(text);
    const piped = start(['export', '-', '--tenant', place.tenant], appUrl());
    expect(await piped.ended, piped.err()).to.equal(0);
    expect(piped.out()).to.equal(text);
    const into = `t-${randomUUID()}`;
    await done(['import', file, '--tenant', into]);
    expect(contentOf(await exported(into))).to.equal(contentOf(text));
  });

  it('moves one env, also into one with another name', async () => {
    const part = await exported(place.tenant, ['--env', 'prod'], appUrl());
    expect(part).to.not.include('content-dev');
    const into = `t-${randomUUID()}`;
    await done(['import', await fileOf(part), '--tenant', into, '--env', 'staging']);
    const again = await exported(into, ['--env', 'staging']);
    expect(contentOf(again).replaceAll('"staging"', '"prod"')).to.equal(contentOf(part));
    expect(await refused(['import', await fileOf(text), '--env', 'staging'])).to.include(
      '--env is for an export of one env',
    );
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
        'with a column of a later one',
        text.replace('"sessions":["id"', '"sessions":["id","mood"'),
        /it has sessions \(mood\), which is not known here/,
      ],
    ];
    for (const [what, content, message] of broken) {
      const into = `t-${randomUUID()}`;
      expect(await refused(['import', await fileOf(content), '--tenant', into]), what).to.match(message);
      expect(await rowsOf(into), what).to.equal(0);
    }
    const packed = gzipSync(text);
    const cut = await fileOf(packed.subarray(0, packed.length - 100), 'cut.jsonl.gz');
    expect(await refused(['import', cut])).to.match(/is cut off/);
    expect(await refused(['import', await fileOf(text, 'plain.gz')])).to.match(/is no gzip file/);
    expect(await refused(['import', path('nothing')])).to.match(/cannot be read: ENOENT/);
  });

  it('refuses to store over something else, says over what, and stores nothing', async () => {
    const into = `t-${randomUUID()}`;
    const file = await fileOf(text);
    await done(['import', file, '--tenant', into]);
    await runSql(other.owner, `delete from messages where tenant_id = '${into}' and seq = 2`);
    const [{ id }] = await runSql(
      other.owner,
      `update memories set updated_by = 'else' where tenant_id = '${into}' and env = 'dev' and version > 1 returning id`,
    );
    const before = await rowsOf(into);
    const told = await refused(['import', file, '--tenant', into]);
    expect(told).to.match(/differs from what tenant t-\S+ holds already, so nothing was stored:\n/);
    expect(told.split('\n')[1]).to.equal(`  memories ["${id}"]`);
    expect(await rowsOf(into)).to.equal(before);
    expect(await refused(['import', file, '--tenant', into, '--dry-run'])).to.equal(told);
    await runSql(other.owner, `update memories set updated_by = 'user' where id = '${id}'`);
    expect(await done(['import', file, '--tenant', into, '--dry-run'])).to.match(
      /\d rows are whole, and nothing else is there/,
    );
    expect(await rowsOf(into)).to.equal(before);
    expect(await done(['import', file, '--tenant', into])).to.match(/stored [1-9]\d* rows/);
    expect(contentOf(await exported(into))).to.equal(contentOf(text));
  });

  it('keeps the name and the policies of a tenant that is there, and refuses one without the env', async () => {
    const into = `t-${randomUUID()}`;
    await done(['tenant', 'create', into, 'dev', '--name', 'Kept']);
    const file = await fileOf(text);
    expect(await refused(['import', file, '--tenant', into])).to.include('has no env prod: add it first');
    await done(['tenant', 'env', 'add', into, 'prod']);
    expect(await done(['import', file, '--tenant', into])).to.include('keeps its name, policies and members');
    const [row] = await runSql(other.owner, 'select display_name, policies from tenants where tenant_id = $1', [into]);
    expect(row).to.deep.equal({ display_name: 'Kept', policies: {} });
  });

  it('makes what arrives in another language be found in that of the tenant', async () => {
    const tenant = await newTenant(['user']);
    await runSql(ownerUrl(), `update tenants set search_language = 'english' where tenant_id = $1`, [tenant]);
    const from = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
    await from.conversation.appendMessages({
      threadId: 't',
      messages: [{ role: 1, content: 'Sessions were running' }],
    });
    from.close();
    const into = await newTenant(['user']);
    await done(['import', await fileOf(await exported(tenant, [], appUrl())), '--tenant', into], appUrl());
    const there = connect(`127.0.0.1:${server.port}`, headersOf(into));
    const found = async (query: string) => (await there.conversation.searchMessages({ query })).results.length;
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
    expect(await exported(tenant, [], appUrl())).to.not.include('mark-of-deleted');

    const part = await exported(tenant, ['--env', 'dev', '--project', 'apollo'], appUrl());
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
    });
    expect(counts.dev.audit_events).to.be.greaterThan(9);

    const into = await newTenant(['user']);
    const file = await fileOf(part);
    await done(['import', file, '--tenant', into], appUrl());
    const there = connect(`127.0.0.1:${server.port}`, headersOf(into));
    const told = await there.memory.resumeSession({ target: { $case: 'sessionId', value: mine } });
    expect(told.messages.map(({ content }) => content)).to.deep.equal(['mark-of-apollo', '']);
    const again = await exported(into, ['--env', 'dev', '--project', 'apollo'], appUrl());
    // Resuming moves the session's activity, and leaves an event.
    const moved = (content: string) =>
      content
        .split('\n')
        .filter((line) => !line.includes(`"id":"${mine}"`) && !/"table":"audit_events"|"end"/.test(line));
    expect(moved(again).join('\n').replaceAll(into, tenant)).to.equal(moved(part).join('\n'));
    expect(await refused(['import', file, '--tenant', 'nobody'], appUrl())).to.include(
      'there is no tenant nobody to take project apollo',
    );
    for (const open of [user, another, there]) open.close();
  });

  // The last one: it changes what the others export.
  it('makes a copy under another name, which the service serves as it serves the original', async () => {
    const into = `t-${randomUUID()}`;
    await done(['import', await fileOf(text), '--tenant', into], appUrl());
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
        const before = await exported(tenant, [], appUrl());
        await done(['import', await fileOf(before)]);
        expect(await exported(tenant)).to.equal(before);
      }),
      { numRuns: 3 },
    );
  });

  describe('of much', () => {
    let tenant: string;
    let file: string;
    // The heap that a command starts with is more than half of it, and what it moves is several times as much.
    const small = { NODE_OPTIONS: '--max-old-space-size=40' };

    before(async () => {
      tenant = await newTenant(['user']);
      await runSql(
        ownerUrl(),
        `insert into threads (tenant_id, env, user_id, thread_id, thread_uid, last_seq, revision, create_time, update_time)
         values ('${tenant}', 'dev', 'user', 'long', '0192a000-0000-7000-8000-000000000000', 15000, 15000, now(), now());
         insert into messages (tenant_id, env, thread_uid, seq, id, user_id, role, content, metadata, create_time, search_language)
         select '${tenant}', 'dev', '0192a000-0000-7000-8000-000000000000', n, gen_random_uuid(), 'user', 1 + n % 2, repeat(md5(n::text) || ' ', 50),
           jsonb_build_object('n', n, 'x', random(), 'deep', jsonb_build_array(1.10, 1e300, 12345678901234567890)), now(), 'simple' from generate_series(1, 15000) n;
         insert into bundles (tenant_id, env, id, user_id, source_thread_id, messages, message_count, byte_size, create_time)
         select '${tenant}', 'dev', gen_random_uuid(), 'user', 'long', jsonb_build_array(repeat('0123456789', 100000)), 1, 1000000, now()
         from generate_series(1, 30)`,
      );
      file = path('much.jsonl');
    });

    it('needs no more memory than of little', async () => {
      await done(['export', file, '--tenant', tenant], appUrl(), small);
      expect((await stat(file)).size).to.be.greaterThan(50e6);
      const into = `t-${randomUUID()}`;
      expect(await done(['import', file, '--tenant', into], other.app, small)).to.match(/stored 15,\d\d\d rows/);
      expect(contentOf(await exported(into))).to.equal(contentOf(await readFile(file, 'utf8')));
    });

    it('goes on where it was killed, and shows no tenant before it is whole', async () => {
      const into = `t-${randomUUID()}`;
      const there = () => rowsOf(into);
      for (let kills = 0; kills < 3; kills++) {
        const before = await there();
        const run = start(['import', file, '--tenant', into]);
        const more = before + 1 + Math.floor(Math.random() * 3000);
        await until(async () => (await there()) >= more || run.child.exitCode !== null);
        run.child.kill('SIGKILL');
        await run.ended;
        expect(await there(), 'rows that were stored').to.be.at.least(more);
        const found = await runSql(other.owner, 'select from tenants where tenant_id = $1', [into]);
        expect(found, 'a tenant of which a part is there').to.be.empty;
      }
      const told = await done(['import', file, '--tenant', into]);
      expect(told).to.match(/stored [\d,]+ rows; [\d,]+ were there already/);
      expect(contentOf(await exported(into))).to.equal(contentOf(await readFile(file, 'utf8')));
    });

    it('leaves a half-written export under another name, and begins anew', async () => {
      const again = path('again.jsonl');
      for (let kills = 0; kills < 2; kills++) {
        const run = start(['export', again, '--tenant', tenant], appUrl());
        await until(async () => (await stat(`${again}.partial`).catch(() => ({ size: 0 }))).size > 1e6);
        run.child.kill('SIGKILL');
        await run.ended;
        expect(await stat(again).catch((error) => error.code)).to.equal('ENOENT');
      }
      await done(['export', again, '--tenant', tenant], appUrl());
      expect(await stat(`${again}.partial`).catch((error) => error.code)).to.equal('ENOENT');
      expect(await readFile(again, 'utf8')).to.equal(await readFile(file, 'utf8'));
    });
  });
});

import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import fc from 'fast-check';
import { countTokens } from 'gpt-tokenizer/encoding/o200k_base';
import {
  Context,
  type ContextOptions,
  ContextSection,
  type DeepPartial,
} from '../src/gen/memory/v1/conversation_service.ts';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import type { RunningServer } from '../src/server.ts';
import {
  type Clients,
  connect,
  failure,
  headersOf,
  metadataOf,
  newTenant,
  startTestServer,
  tenantSql,
  until,
} from './support.ts';

const { PREFERENCES, PROFILE, PINNED, SUMMARIES, SESSION_CONTEXT, LATEST_TURN, MESSAGES, MEMORIES } = ContextSection;
const { PROJECT_PROFILE, DRAFTS } = ContextSection;
const OF_SESSION = [PREFERENCES, PINNED, SUMMARIES, SESSION_CONTEXT, LATEST_TURN, MESSAGES, MEMORIES];
const ALL = [...OF_SESSION, PROFILE, PROJECT_PROFILE, DRAFTS];

/** The tokens of texts, each counted for itself. */
const tokens = (...texts: (string | undefined)[]) =>
  texts.reduce((sum, text) => sum + countTokens(text ?? '', { disallowedSpecial: new Set() }), 0);

/** What the sections of a context hold, by the rule of docs/decisions.md. */
function countOf(context: Context): Map<ContextSection, number> {
  const { preferences, pinnedRefs, summaries, sessionContext: touched, latestTurn: turn, messages, profile } = context;
  const tasks = turn?.tasks.flatMap((task) => [task.id, task.type, task.status, ...task.dependsOn]) ?? [];
  const results = turn?.results.flatMap((result) => [result.taskId, result.payloadJson.toString()]) ?? [];
  return new Map([
    [PREFERENCES, preferences ? tokens(JSON.stringify(preferences)) : 0],
    [
      PROFILE,
      tokens(profile?.name, profile?.email, profile?.phone, ...Object.values(profile?.address ?? {})) +
        tokens(...(profile?.products ?? []), ...(profile?.services ?? [])) +
        tokens(...Object.entries(profile?.preferences ?? {}).map(([key, value]) => JSON.stringify({ [key]: value }))),
    ],
    [PINNED, tokens(...pinnedRefs.flatMap((ref) => [ref.text, ref.uri]))],
    [SUMMARIES, tokens(...summaries.flatMap((ref) => [ref.text, ref.uri]))],
    [
      SESSION_CONTEXT,
      tokens(
        ...(touched?.decisions.map((decision) => decision.text) ?? []),
        ...(touched?.filesAccessed ?? []),
        ...(touched?.savedMemories.map((memory) => memory.key) ?? []),
        ...(touched?.recentSearches ?? []),
      ),
    ],
    [
      LATEST_TURN,
      tokens(turn?.query, turn?.response, turn?.intent?.value, turn?.intent?.reasoning, ...tasks, ...results) +
        tokens(turn?.report?.reportPath, turn?.report?.summary, ...(turn?.report?.previews ?? [])) +
        tokens(turn?.plannerReasoning, turn?.reflection),
    ],
    [MESSAGES, tokens(...messages.map((message) => message.content))],
    [MEMORIES, tokens(...context.memories.flatMap((memory) => [memory.key, memory.value]))],
    [PROJECT_PROFILE, tokens(context.projectProfile?.yaml)],
    [DRAFTS, tokens(...context.drafts.flatMap((draft) => [draft.sectionId, draft.content]))],
  ]);
}

/** What must be true of any context, whatever was asked for. */
function expectSound(context: Context, options: DeepPartial<ContextOptions>): void {
  const counted = countOf(context);
  for (const { section, tokenCount } of context.sections)
    expect(tokenCount, `${section}`).to.equal(counted.get(section));
  const all = [...counted.values()].reduce((sum, count) => sum + count, 0);
  expect(context.tokenCount).to.equal(all);
  if (options.limit?.$case === 'maxTokens') expect(all).to.be.at.most(options.limit.value!);
  if (options.limit?.$case === 'lastN') expect(context.messages.length).to.be.at.most(options.limit.value!);
  for (const { section, maxTokens } of options.budgets ?? []) {
    expect(counted.get(section!)).to.be.at.most(maxTokens!);
  }
  const wanted = options.include?.length ? options.include : ALL;
  expect(context.sections.map(({ section }) => section)).to.have.members([...new Set(wanted)]);
  for (const { section } of context.truncated) expect(wanted).to.include(section);
  for (const message of context.messages) expect(message.tokenCount).to.equal(tokens(message.content));
  expect(Context.encode(context).finish().length).to.be.below(4 * 1024 * 1024);
}

const told = (context: Context, section: ContextSection) =>
  Object.fromEntries(context.truncated.filter((t) => t.section === section).map((t) => [t.reason, t.leftOut]));

describe('context', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;

  before(async () => {
    server = await startTestServer();
    tenant = await newTenant(['user', 'nobody', 'jana'], { pii: 3 });
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  });
  after(async () => {
    client.close();
    await server.stop();
  });

  const sessionWith = async (fields: object = {}): Promise<{ id: string; threadId: string }> => {
    const { session } = await client.memory.upsertSession({
      session: { surfaceId: 'web', threadId: randomUUID(), ...fields },
    });
    return session!;
  };
  const say = async (threadId: string, contents: string[]) => {
    for (let i = 0; i < contents.length; i += 100) {
      const messages = contents.slice(i, i + 100).map((content) => ({ role: MessageRole.HUMAN, content }));
      await client.conversation.appendMessages({ threadId, messages });
    }
  };
  const contextOf = async (sessionId: string, options: DeepPartial<ContextOptions> = {}): Promise<Context> => {
    const { context } = await client.conversation.getContext({ sessionId, options });
    expectSound(context!, options);
    return context!;
  };
  const atMost = (value: number) => ({ $case: 'maxTokens' as const, value });
  const newest = (value: number) => ({ $case: 'lastN' as const, value });
  const seqs = (context: Context) => context.messages.map((message) => message.seq);

  const touch = async (sessionId: string, ...entries: [string, object][]) =>
    client.memory.appendSessionContext({
      sessionId,
      entries: entries.map(([$case, value]) => ({ entry: { $case, value } as any })),
    });

  /** A turn, as CommitTurn would record it. */
  const recordTurn = (sessionId: string, fields: Record<string, unknown>) => {
    const turn: Record<string, unknown> = { id: randomUUID(), session_id: sessionId, user_id: 'user', ...fields };
    const defaults = { query: '', response: '', planner_reasoning: '', reflection: '', first_seq: 1, last_seq: 2 };
    const row = {
      tenant_id: tenant,
      env: 'dev',
      create_time: new Date(),
      ...defaults,
      tasks: [],
      results: [],
      truncated: [],
      ...turn,
    };
    const names = Object.keys(row);
    const values = Object.values(row).map((value) =>
      typeof value === 'object' && !(value instanceof Date) ? JSON.stringify(value) : value,
    );
    const places = names.map((_, i) => `$${i + 1}`);
    return tenantSql(tenant, `insert into turns (${names.join(', ')}) values (${places.join(', ')})`, values);
  };

  const pinned = ['first', 'second', 'third'].map((text) => ({
    id: text,
    kind: 1 as const,
    text: `the ${text} fact`,
    uri: `memory://${text}`,
  }));
  const summary = (id: string, throughSeq: number, text = `what was said up to ${throughSeq}`) => ({
    id,
    text,
    throughSeq,
  });

  /** A session with something in each section, and 30 messages of 4 tokens. */
  const fullSession = async (count = 30) => {
    const projectId = randomUUID();
    for (const key of ['style.guide', 'build', 'fiscal year'])
      await client.project.putMemory({ projectId, key, value: `what is known of the ${key}`, metadata: { key } });
    const session = await sessionWith({
      projectId,
      preferences: { tone: 'dry', languages: ['cs', 'en'] },
      pinnedRefs: pinned,
      summaryRefs: [summary('old', 5), summary('new', 20), summary('middle', 10)],
    });
    await say(
      session.threadId,
      Array.from({ length: count }, (_, i) => `message number ${i + 1}`),
    );
    await touch(
      session.id,
      ['fileAccess', { path: 'src/a.ts', importance: 0.5 }],
      ['fileAccess', { path: 'src/b.ts', importance: 1 }],
      ['search', { query: 'where are the keys' }],
      ['decision', { text: 'we use Postgres' }],
      ['memoryReference', { key: 'style.guide' }],
    );
    await recordTurn(session.id, {
      query: 'What is planned for tomorrow?',
      response: 'A walk in the woods, if it does not rain.',
      intent: { value: 'plan', reasoning: 'they ask for a plan', confidence: 0.9 },
      planner_reasoning: 'look into the calendar first',
      reflection: 'short and right',
      tasks: [{ id: 'look', type: 'calendar', status: 'done', depends_on: [] }],
      results: [{ task_id: 'look', data: { row_count: 1, columns: ['day', 'what'] } }],
      report: { report_path: 'reports/plan.md', summary: 'the plan', previews: ['tomorrow: a walk'] },
    });
    return session;
  };

  it('returns everything with the newest 50 messages if nothing is asked for', async () => {
    const session = await fullSession(60);
    const context = await contextOf(session.id);
    expect(context.preferences).to.deep.equal({ tone: 'dry', languages: ['cs', 'en'] });
    expect(context.pinnedRefs.map((ref) => ref.id)).to.deep.equal(['third', 'second', 'first']);
    expect(context.summaries.map((ref) => ref.id)).to.deep.equal(['new', 'middle', 'old']);
    expect(context.sessionContext!.filesAccessed).to.deep.equal(['src/b.ts', 'src/a.ts']);
    expect(context.sessionContext!.fileImportanceScores.get('src/a.ts')).to.equal(0.5);
    expect(context.sessionContext!.decisions).to.deep.equal([{ text: 'we use Postgres' }]);
    expect(context.memories.map(({ key }) => key)).to.deep.equal(['style.guide', 'fiscal year', 'build']);
    expect(context.latestTurn).to.deep.include({
      query: 'What is planned for tomorrow?',
      reflection: 'short and right',
    });
    expect(context.latestTurn!.tasks[0]).to.include({ id: 'look', status: 'done' });
    expect(JSON.parse(context.latestTurn!.results[0]!.payloadJson.toString())).to.include({ row_count: 1 });
    expect(seqs(context)).to.deep.equal(Array.from({ length: 50 }, (_, i) => i + 11));
    expect(context.truncated).to.deep.equal([{ section: MESSAGES, leftOut: 10, reason: 'LAST_N' }]);
    expect(await contextOf(session.id)).to.deep.equal(context);
  });

  it('returns an empty context of an empty session', async () => {
    const own = metadataOf(headersOf(tenant, 'nobody'));
    const { session } = await client.memory.upsertSession({ session: { surfaceId: 'web' } }, own);
    const { context } = await client.conversation.getContext({ sessionId: session!.id }, own);
    const empty = ALL.map((section) => ({ section, tokenCount: 0 }));
    expect(context).to.deep.equal({ ...Context.fromPartial({}), sections: empty });
  });

  it('takes the newest messages that fit into max_tokens, when no summary stands for others', async () => {
    const session = await sessionWith();
    await say(
      session.threadId,
      Array.from({ length: 30 }, (_, i) => `message number ${i + 1}`),
    ); // of 4 tokens each
    const context = await contextOf(session.id, { limit: atMost(43) });
    expect(seqs(context)).to.deep.equal(Array.from({ length: 10 }, (_, i) => i + 21));
    expect(told(context, MESSAGES)).to.deep.equal({ MAX_TOKENS: 20 });
    const all = await contextOf(session.id, { limit: atMost(120) });
    expect(all.messages).to.have.length(30);
    expect(all.truncated).to.deep.equal([]);
    const none = await contextOf(session.id, { limit: atMost(3) });
    expect(none.messages).to.deep.equal([]);
    expect(told(none, MESSAGES)).to.deep.equal({ MAX_TOKENS: 30 });
  });

  it('leaves out first what a summary covers, when the budget is short', async () => {
    const session = await fullSession();
    const whole = await contextOf(session.id, { limit: atMost(100_000) });
    expect(whole.messages).to.have.length(30);
    expect(whole.truncated).to.deep.equal([]);

    const short = await contextOf(session.id, { limit: atMost(whole.tokenCount - 1) });
    expect(seqs(short)).to.deep.equal(Array.from({ length: 10 }, (_, i) => i + 21));
    expect(short.truncated).to.deep.equal([{ section: MESSAGES, leftOut: 20, reason: 'SUMMARY' }]);

    const shorter = await contextOf(session.id, {
      limit: atMost(40),
      include: [SUMMARIES, MESSAGES],
      budgets: [{ section: MESSAGES, maxTokens: 24 }],
    });
    expect(shorter.summaries.map((ref) => ref.id)).to.deep.equal(['new', 'middle']);
    expect(seqs(shorter)).to.deep.equal([25, 26, 27, 28, 29, 30]);
    expect(told(shorter, MESSAGES)).to.deep.equal({ SUMMARY: 20, SECTION_BUDGET: 4 });
    expect(told(shorter, SUMMARIES)).to.deep.equal({ MAX_TOKENS: 1 });

    // Without the summary nothing stands for the messages.
    const alone = await contextOf(session.id, { limit: atMost(60), include: [MESSAGES] });
    expect(alone.messages).to.have.length(15);
    expect(told(alone, MESSAGES)).to.deep.equal({ MAX_TOKENS: 15 });
    const budgets = [
      { section: SUMMARIES, maxTokens: 0 },
      { section: MESSAGES, maxTokens: 40 },
    ];
    const unsaid = await contextOf(session.id, { limit: newest(20), budgets });
    expect(seqs(unsaid)).to.deep.equal(Array.from({ length: 10 }, (_, i) => i + 21));
    expect(told(unsaid, MESSAGES)).to.deep.equal({ SECTION_BUDGET: 10, LAST_N: 10 });
    expect(told(unsaid, SUMMARIES)).to.deep.equal({ SECTION_BUDGET: 3 });
  });

  it('keeps half of everything for messages, if they need it', async () => {
    const session = await sessionWith({
      pinnedRefs: Array.from({ length: 50 }, (_, i) => ({ kind: 1, text: `fact ${i}` })),
    });
    await say(
      session.threadId,
      Array.from({ length: 30 }, (_, i) => `message number ${i + 1}`),
    );
    const context = await contextOf(session.id, { limit: atMost(80) });
    expect(context.messages).to.have.length(10); // of 4 tokens, where a fact has 3
    expect(context.pinnedRefs).to.have.length(13);
    expect(told(context, PINNED)).to.deep.equal({ MAX_TOKENS: 37 });
  });

  it('keeps of each section what its budget holds, and only the sections asked for', async () => {
    const session = await fullSession();
    const include = [PINNED, LATEST_TURN, SESSION_CONTEXT];
    const budgets = include.map((section) => ({ section, maxTokens: 11 }));
    const context = await contextOf(session.id, { include, budgets });
    expect(context.preferences).to.equal(undefined);
    expect(context.summaries).to.deep.equal([]);
    expect(context.messages).to.deep.equal([]);
    expect(context.pinnedRefs.map((ref) => ref.id)).to.deep.equal(['third']);
    expect(context.latestTurn).to.include({
      query: 'What is planned for tomorrow?',
      response: '',
      plannerReasoning: '',
    });
    expect(context.latestTurn!.tasks).to.have.length(1);
    expect(context.sessionContext).to.deep.include({ filesAccessed: ['src/b.ts', 'src/a.ts'], savedMemories: [] });
    expect(context.truncated.map(({ reason }) => reason)).to.deep.equal(include.map(() => 'SECTION_BUDGET'));

    const nothing = ALL.map((section) => ({ section, maxTokens: 0 }));
    const none = await contextOf(session.id, { budgets: nothing });
    expect(none.tokenCount).to.equal(0);
    expect(none.truncated.map(({ section }) => section)).to.include.members(OF_SESSION);
  });

  it('tells what is known of the person, without where it came from, as far as the budget goes', async () => {
    const person = {
      name: 'Jana Nováková',
      email: 'Jana@example.com',
      address: { street: 'Dlouhá 5', city: 'Praha', country: 'CZ' },
      products: ['Solar roof', 'Heat pump'],
      preferences: { contact: 'by mail', hours: [9, 17] },
    };
    const own = metadataOf(headersOf(tenant, 'jana'));
    const { session } = await client.memory.upsertSession({ session: { surfaceId: 'web' } }, own);
    await client.profile.updateProfile({ profile: person }, own);
    const contextWith = async (options: DeepPartial<ContextOptions>) => {
      const { context } = await client.conversation.getContext({ sessionId: session!.id, options }, own);
      expectSound(context!, options);
      return context!;
    };
    const { address, ...rest } = person;
    const whole = (await contextWith({})).profile!;
    expect(whole).to.deep.include({ ...rest, phone: undefined, services: [], sources: [], revision: 0, etag: '' });
    expect(whole.address).to.include(address);
    const include = [PROFILE];
    const short = await contextWith({ include, budgets: [{ section: PROFILE, maxTokens: 12 }] });
    expect(short.profile).to.include({ name: person.name, email: person.email, address: undefined });
    expect(short.truncated).to.have.length(1);
    expect(short.truncated[0]).to.include({ section: PROFILE, reason: 'SECTION_BUDGET' });
    await client.profile.updateProfile({ profile: {}, updateMask: ['name', 'email'] }, own);
    expect((await contextWith({ include })).profile).to.deep.include({ name: undefined, email: undefined });
    expect((await contextWith({ include: [PINNED] })).profile).to.equal(undefined);
  });

  it('is sound whatever is asked for', async () => {
    const session = await fullSession(45);
    await say(session.threadId, ['界'.repeat(300), 'a'.repeat(5000), '😀 '.repeat(100), 'x']);
    await client.memory.upsertSession({
      session: { id: session.id, summaryRefs: [summary('newest', 46, 'z'.repeat(900))] },
    });
    const options = fc.record({
      limit: fc.option(
        fc.oneof(fc.integer({ min: 1, max: 60 }).map(newest), fc.integer({ min: 1, max: 2500 }).map(atMost)),
        { nil: undefined },
      ),
      include: fc.oneof(
        { weight: 2, arbitrary: fc.constant([]) },
        fc.uniqueArray(fc.constantFrom(...ALL), { minLength: 1 }),
      ),
      budgets: fc.uniqueArray(fc.record({ section: fc.constantFrom(...ALL), maxTokens: fc.nat(400) }), {
        selector: ({ section }): number => section,
      }),
    });
    await fc.assert(
      fc.asyncProperty(options, async (wanted) => {
        const context = await contextOf(session.id, wanted as DeepPartial<ContextOptions>);
        const first = context.messages[0]?.seq ?? 50;
        expect(seqs(context)).to.deep.equal(Array.from({ length: 50 - first }, (_, i) => first + i));
        const asked = wanted.include.length === 0 || new Set<number>(wanted.include).has(MESSAGES);
        const out = Object.values(told(context, MESSAGES)).reduce((sum, leftOut) => sum + leftOut, 0);
        if (asked) expect(out).to.equal(first - 1);
        expect(await contextOf(session.id, wanted as DeepPartial<ContextOptions>)).to.deep.equal(context);
      }),
      { numRuns: 150 },
    );
  });

  it("takes memories of the session's project: those referenced last first, then those used last", async () => {
    const projectId = randomUUID();
    const put = (key: string, value = 'known', rest: object = {}) =>
      client.project.putMemory({ projectId, key, value, ...rest });
    for (let i = 0; i < 25; i++) await put(`fact ${i}`);
    await client.project.putMemory({ projectId: 'elsewhere', key: 'fact 3', value: 'of another project' });
    await put('gone');
    await put('late');
    const session = await sessionWith({ projectId });
    for (const key of ['fact 3', 'gone', 'never was', 'late', 'fact 7', 'fact 3'])
      await touch(session.id, ['memoryReference', { key }]);
    await client.project.deleteMemory({ projectId, key: 'gone' });
    await tenantSql(tenant, `update memories set expire_time = clock_timestamp() where key = 'late'`);
    const keys = async (options: DeepPartial<ContextOptions> = {}, id = session.id) =>
      (await contextOf(id, { include: [MEMORIES], ...options })).memories.map((memory) => memory.key);

    const used = Array.from({ length: 17 }, (_, i) => `fact ${24 - i}`);
    expect(await keys()).to.deep.equal(['fact 3', 'fact 7', ...used, 'fact 6']);
    const budgets = [{ section: MEMORIES, maxTokens: tokens('fact 3', 'known', 'fact 7', 'known') }];
    expect(await keys({ budgets })).to.deep.equal(['fact 3', 'fact 7']);
    const first = { key: 'fact 1', projectId };
    await client.project.getMemory(first);
    await until(async () => (await client.project.getMemory(first)).memory!.accessCount >= 1);
    expect((await keys())[2]).to.equal('fact 1');
    expect((await client.project.getMemory({ projectId, key: 'fact 7' })).memory!.accessCount, 'by context').to.equal(
      0,
    );

    await put('fact 24', 'about marmalade');
    for (let i = 0; i < 20; i++) await put(`newer ${i}`);
    await client.project.putMemory({ projectId: 'elsewhere', key: 'theirs', value: 'marmalade' });
    expect((await keys())[2]).to.equal('newer 19');
    const sought = { memoryQuery: 'marm* OR "fact 3" OR \'' };
    expect((await keys(sought)).slice(0, 4)).to.deep.equal(['fact 3', 'fact 7', 'fact 24', 'newer 19']);
    expect((await keys({ memoryQuery: 'marmelade OR -' }))[2]).to.equal('newer 19');

    await put('large', 'x'.repeat(64 * 1024));
    await put('small', 'y');
    expect((await keys()).slice(0, 4)).to.deep.equal(['fact 3', 'fact 7', 'small', 'large']);
    for (let i = 0; i < 4; i++) await put(`larger ${i}`, 'x'.repeat(64 * 1024));
    expect(await keys(), 'at most 256 KiB').to.deep.equal(['fact 3', 'fact 7', 'larger 3', 'larger 2', 'larger 1']);
    expect(await keys({}, (await sessionWith()).id)).to.deep.equal([]);
  });

  it("takes the project's profile once it is written, and the drafts that are being written, the last saved first", async () => {
    const projectId = randomUUID();
    const session = await sessionWith({ projectId });
    const documents = async (options: DeepPartial<ContextOptions> = {}, id = session.id) => {
      const context = await contextOf(id, { include: [PROJECT_PROFILE, DRAFTS], ...options });
      return [context.projectProfile?.yaml, ...context.drafts.map(({ content }) => content)];
    };
    expect(await documents(), 'there is the stub').to.deep.equal([undefined]);
    await client.artifact.putProjectProfile({ projectId, yaml: 'title: Plan\n' });
    const write = async (sectionId: string, ...contents: string[]) => {
      const { lock } = await client.artifact.lockSection({ projectId, sectionId, holder: 'me' });
      for (const content of contents)
        await client.artifact.saveDraft({ projectId, sectionId, fencingToken: lock!.fencingToken, content });
    };
    await write('empty');
    await write('intro', 'intro 1', 'intro 2');
    await write('done', 'done');
    await write('sales', 'sales 1');
    await tenantSql(
      tenant,
      `update draft_revisions set lock_time = now() where project_id = $1 and section_id = 'done'`,
      [projectId],
    );
    expect(await documents()).to.deep.equal(['title: Plan\n', 'sales 1', 'intro 2']);
    const whole = await contextOf(session.id, {});
    expect(whole.projectProfile).to.include({ projectId, version: 2, createdBy: 'user', sizeBytes: 12 });
    const { revision } = await client.artifact.getDraft({ projectId, sectionId: 'sales' });
    expect(whole.drafts[0]).to.deep.equal({ ...revision, metadata: undefined });
    const budgets = [{ section: DRAFTS, maxTokens: tokens('intro', 'intro 2') }];
    expect(await documents({ budgets })).to.have.length(2);

    const large = 'word '.repeat(52_427); // 9 bytes less than 256 KiB
    await write('large', large);
    expect(await documents(), 'at most 256 KiB').to.deep.equal(['title: Plan\n', large, 'sales 1']);
    for (let i = 0; i < 20; i++) await write(`s${i}`, `${i}`);
    expect(await documents()).to.deep.equal(['title: Plan\n', ...Array.from({ length: 20 }, (_, i) => `${19 - i}`)]);
    expect(await documents({}, (await sessionWith()).id)).to.deep.equal([undefined]);
  });

  it('counts messages that were stored without a count, and stores nothing', async () => {
    const session = await sessionWith();
    await say(
      session.threadId,
      Array.from({ length: 200 }, (_, i) => `message number ${i + 1}`),
    );
    await tenantSql(
      tenant,
      `update messages set token_count = null where seq <= 195 and thread_uid = (select thread_uid from threads where thread_id = $1)`,
      [session.threadId],
    );
    const context = await contextOf(session.id, { limit: atMost(44) });
    expect(seqs(context)).to.deep.equal(Array.from({ length: 11 }, (_, i) => i + 190));
    expect(told(context, MESSAGES)).to.deep.equal({ MAX_TOKENS: 189 });
    const [{ n }] = await tenantSql(tenant, 'select count(*)::int as n from messages where token_count is null');
    expect(n).to.equal(195);
  });

  it('ends below 4 MiB, and says so', async () => {
    const session = await sessionWith();
    // Numbers take six times the bytes of their JSON in a response.
    const metadata = { zeros: new Array(30_000).fill(0) };
    const big = { role: MessageRole.HUMAN, content: 'word '.repeat(40_000) };
    for (let i = 0; i < 12; i++) {
      await client.conversation.appendMessages({ threadId: session.threadId, messages: [big, { ...big, metadata }] });
    }
    for (const limit of [newest(24), atMost(1_000_000)]) {
      const context = await contextOf(session.id, { limit });
      expect(context.messages.length).to.be.above(5);
      expect(told(context, MESSAGES)).to.deep.equal({ SIZE: 24 - context.messages.length });
    }
  });

  it('refuses options out of bounds', async () => {
    const { id } = await sessionWith();
    const bad: [string, object][] = [
      ['last_n', { limit: newest(0) }],
      ['last_n', { limit: newest(501) }],
      ['max_tokens', { limit: atMost(0) }],
      ['max_tokens', { limit: atMost(1_000_001) }],
      ['include[0]', { include: [0] }],
      ['include[1]', { include: [1, 99] }],
      ['budgets[0].section', { budgets: [{ section: 0, maxTokens: 1 }] }],
      ['budgets[0].max_tokens', { budgets: [{ section: 1, maxTokens: -1 }] }],
      ['budgets[1].section', { budgets: [1, 1].map((section) => ({ section, maxTokens: 1 })) }],
    ];
    for (const [field, options] of bad) {
      const refused = await failure(client.conversation.getContext({ sessionId: id, options }));
      expect(refused.code, field).to.equal(status.INVALID_ARGUMENT);
      expect(refused.violations.map((violation) => violation.field)).to.deep.equal([`options.${field}`]);
    }
  });

  it('is of a session that is there', async () => {
    const ended = await sessionWith();
    await client.memory.endSession({ sessionId: ended.id });
    await contextOf(ended.id);
    const gone = await sessionWith();
    await client.memory.deleteSession({ sessionId: gone.id });
    const get = (sessionId: string) => failure(client.conversation.getContext({ sessionId }));
    expect(await get(gone.id)).to.include({ code: status.NOT_FOUND, reason: 'DELETED' });
    expect(await get(randomUUID())).to.include({ code: status.NOT_FOUND, reason: 'NOT_FOUND' });
  });
});

import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import type { DeepPartial } from '../src/gen/memory/v1/memory_service.ts';
import type { MemoryResult, SearchMemoriesRequest } from '../src/gen/memory/v1/project_memory_service.ts';
import { forgetWords } from '../src/memories/texts.ts';
import { rederive } from '../src/search/rederive.ts';
import type { RunningServer } from '../src/server.ts';
import { CORPUS, JUDGED } from './fixtures/memory-corpus.ts';
import { as as asRole, REFUSED, refusal } from './fixtures/roles.ts';
import { searching } from './fixtures/search.ts';
import {
  addMember,
  allPages,
  appUrl,
  type Clients,
  connect,
  failure,
  headersOf,
  metadataOf,
  newTenant,
  rowCounts,
  startTestServer,
  tenantSql,
  until,
} from './support.ts';

const projectId = 'atlas';

describe('search in memories', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;

  before(async () => {
    server = await startTestServer();
  });
  after(() => server.stop());
  beforeEach(async () => {
    tenant = await newTenant(['user', 'other']);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  });
  afterEach(() => client.close());

  const put = (key: string, value: string, rest: object = {}, headers = headersOf(tenant)) =>
    client.project.putMemory({ projectId, key, value, ...rest }, metadataOf(headers));
  const search = async (query: string, rest: DeepPartial<SearchMemoriesRequest> = {}): Promise<MemoryResult[]> =>
    (await client.project.searchMemories({ projectId, query, ...rest })).results;
  const keys = async (query: string, rest: DeepPartial<SearchMemoriesRequest> = {}) =>
    (await search(query, rest)).map(({ memory }) => memory!.key);
  const plant = () => Promise.all(Object.entries(CORPUS).map(([key, value]) => put(key, value)));

  it('ranks a corpus so that what was judged relevant comes first', async function () {
    await plant();
    const precisions: number[] = [];
    for (const [query, relevant] of Object.entries(JUDGED)) {
      const found = await keys(query);
      const first = found.slice(0, relevant.length);
      precisions.push(first.filter((key) => relevant.includes(key)).length / relevant.length);
      expect(relevant, query).to.include(found[0]);
      expect(found, query).to.include.members(relevant);
    }
    // Of as many as are relevant: R-precision, on the average of the queries.
    const mean = precisions.reduce((sum, precision) => sum + precision, 0) / precisions.length;
    this.test!.title += ` (R-precision ${(100 * mean).toFixed(0)} % of ${precisions.length} queries)`;
    expect(mean).to.be.at.least(0.95);
  });

  it('finds by words of the key, however it is written, and ranks them above those of the value', async () => {
    await put('release notes', 'written by the team');
    await put('team', 'release notes');
    await put('ci/build_command', 'make all');
    await put('ciTestCommand', 'make test');
    await put('editor.tabWidth', 'two');
    expect(await keys('release notes')).to.deep.equal(['release notes', 'team']);
    expect(await keys('build command')).to.deep.equal(['ci/build_command']);
    expect((await keys('command')).sort()).to.deep.equal(['ci/build_command', 'ciTestCommand']);
    for (const query of ['ci/build_command', 'build_command', '"build command"', 'BUILD', 'buil*'])
      expect(await keys(query), query).to.deep.equal(['ci/build_command']);
    expect(await keys('tab width')).to.deep.equal(['editor.tabWidth']);
    expect(await keys('tabWidth')).to.deep.equal(['editor.tabWidth']);
  });

  it('understands phrases, prefixes, exclusions and alternatives, and takes nothing else for syntax', async () => {
    await plant();
    expect(await keys('"fiscal year"')).to.deep.equal(['fiscal year']);
    expect(await keys('"year fiscal"')).to.deep.equal([]);
    expect(await keys('quarter* -board'))
      .to.include('close calendar')
      .and.not.include('board deck');
    expect((await keys('espresso OR parking')).sort()).to.deep.equal(['office coffee', 'parking']);
    const odd = [
      `'; drop table memories; --`,
      `') or true`,
      `fiscal' | 'office`,
      `'`,
      `\\'`,
      `fiscal:A`,
      `fiscal & (x`,
    ];
    odd.push(`!fiscal`, `fiscal:*`, `%`, `_`, `$1 :name ?`, '\u0001', '👋', `-`, `"`, '*', `x`.repeat(1000));
    odd.push(`${'語'.repeat(999)}*`, `"a" `.repeat(250), `quaterly `.repeat(111), `'\\`.repeat(500));
    for (const query of odd) expect(await search(query), query.slice(0, 40)).to.be.an('array');
    for (const query of ['...', '"', '-', '*', "'", '👋', '( & | ! )'])
      expect(await keys(query), query).to.deep.equal([]);
    expect(await keys('fiscal:A')).to.deep.equal([]);
    expect(await keys('-fiscal')).to.have.length(Object.keys(CORPUS).length - 2);
  });

  it('finds by misspelt words, after whatever holds them as they were typed', async () => {
    await plant();
    const misspelt = {
      'quaterly report': 'board deck',
      kubernets: 'deploy target',
      'fiscl year': 'fiscal year',
      expresso: 'office coffee',
      'retntion logz': 'log retention',
      'POSTGERS version': 'database',
      recieve: 'support mailbox',
    };
    for (const [query, key] of Object.entries(misspelt)) expect((await keys(query))[0], query).to.equal(key);
    for (const query of ['"quaterly"', 'quaterl*', '-absent quaterlyy*'])
      expect(await keys(query), query).to.deep.equal([]);
    expect(await keys('kubernets -quaterly')).to.deep.equal(['deploy target']);

    await put('a typo', 'the quaterly numbers');
    const results = await search('quaterly');
    expect(results[0]!.memory!.key).to.equal('a typo');
    expect(results[0]!.score).to.be.at.least(1);
    expect(results.length).to.be.above(1);
    for (const { score } of results.slice(1)) expect(score).to.be.within(0, 1);
    const pieces = results[1]!.snippets.flatMap((snippet) => snippet.pieces).filter((piece) => piece.match);
    expect(pieces.map(({ text }) => text.toLowerCase())).to.include('quarterly');
  });

  it('looks for what may have been meant only where few hold what was typed', async () => {
    for (let i = 0; i < 9; i++) await put(`exact ${i}`, 'revenue');
    await put('alike', 'revenues');
    expect((await keys('revenue')).at(-1)).to.equal('alike');
    await put('exact 9', 'revenue');
    expect(await keys('revenue'))
      .to.have.length(10)
      .and.not.include('alike');
    await put('unlike', 'avenue');
    for (let i = 0; i < 10; i++) await client.project.deleteMemory({ projectId, key: `exact ${i}` });
    await put('exact', 'revenue');
    expect(await keys('revenue'), 'a word that is there is not taken for any other').to.deep.equal(['exact', 'alike']);
  });

  it('finds the newest version of live memories only', async () => {
    const { memory } = await put('k', 'the first marmalade', { metadata: { n: 1 } });
    await put('k', 'the second jam');
    expect(await keys('marmalade')).to.deep.equal([]);
    expect(await keys('jam')).to.deep.equal(['k']);
    await client.project.restoreMemory({ projectId, key: 'k', version: memory!.version });
    expect(await keys('jam')).to.deep.equal([]);
    const [result] = await search('marmalade', { metadataFilter: { n: 1 } });
    expect(result!.memory).to.deep.include({ version: 3, value: 'the first marmalade', metadata: { n: 1 } });

    await tenantSql(tenant, 'update memories set expire_time = clock_timestamp()');
    expect(await keys('marmalade')).to.deep.equal([]);
    await put('k', 'marmalade again');
    expect(await keys('marmalade')).to.deep.equal(['k']);
    await client.project.deleteMemory({ projectId, key: 'k' });
    for (const query of ['marmalade', 'marmelade', 'mar*', '-absent'])
      expect(await keys(query), query).to.deep.equal([]);
    expect(await rowCounts(tenant, ['memory_texts'])).to.deep.equal({ memory_texts: 0 });
  });

  it('filters by what the metadata contain', async () => {
    await put('one', 'a fact', { metadata: { source: 'wiki', tags: ['a', 'b'], deep: { x: 1, y: 2 } } });
    await put('two', 'a fact', { metadata: { source: 'mail', tags: ['b'] } });
    const filtered = async (metadataFilter: object) => (await keys('fact', { metadataFilter })).sort();
    expect(await filtered({ source: 'wiki' })).to.deep.equal(['one']);
    expect(await filtered({ tags: ['b'] })).to.deep.equal(['one', 'two']);
    expect(await filtered({ deep: { x: 1 } })).to.deep.equal(['one']);
    expect(await filtered({ source: 'wiki', tags: ['c'] })).to.deep.equal([]);
    await put('one', 'a fact');
    expect(await filtered({ source: 'wiki' }), 'of a former version').to.deep.equal([]);
  });

  it('shows where the value matches, and its beginning where only the key does', async () => {
    await put('coffee', `${'before '.repeat(60)}the espresso machine${' after'.repeat(60)}`);
    const marked = async (query: string) =>
      (await search(query))[0]!.snippets.map(({ pieces }) =>
        pieces.map((p) => (p.match ? `[${p.text}]` : p.text)).join(''),
      );
    expect((await marked('espresso'))[0]).to.match(/before the \[espresso\] machine after/);
    expect((await marked('coffee'))[0]).to.match(/^before before/);
  });

  it('counts an access of what it returns', async () => {
    await put('k', 'counted');
    await put('other', 'not found');
    await search('counted');
    await search('countde');
    const { memory } = await until(async () => {
      const read = await client.project.getMemory({ projectId, key: 'k' });
      return read.memory!.accessCount >= 2 && read;
    });
    expect(memory!.lastAccessTime).to.not.equal(undefined);
    expect((await client.project.getMemory({ projectId, key: 'other' })).memory!.accessCount).to.equal(0);
  });

  it('gives every match once, page by page, with those that may have been meant at the end', async () => {
    for (let i = 0; i < 7; i++) await put(`typed ${i}`, `marmalade ${'and more '.repeat(i)}`);
    for (let i = 0; i < 40; i++) await put(`meant ${i}`, `marmelade ${i}`);
    const whole = await keys('marmalade', { pageSize: 500 });
    expect(whole).to.have.length(47);
    expect(whole.slice(0, 7).every((key) => key.startsWith('typed'))).to.equal(true);
    for (const pageSize of [1, 5, 20]) {
      const page = (pageToken: string) =>
        client.project.searchMemories({ projectId, query: 'marmalade', pageSize, pageToken });
      const found = (await allPages(page)).flatMap(({ results }) => results.map(({ memory }) => memory!.key));
      expect(found, `by ${pageSize}`).to.deep.equal(whole);
    }
    const large = 'x '.repeat(32_000);
    for (let i = 0; i < 20; i++) await put(`large ${i}`, `needle ${large}`);
    const pages = await allPages((pageToken) =>
      client.project.searchMemories({ projectId, query: 'needle', pageToken }),
    );
    expect(pages.map(({ results }) => results.length)).to.deep.equal([16, 4]);
  });

  it("looks in the tenant's language, and in the former one until words are derived anew", async () => {
    const { setLanguage } = searching(client, tenant);
    await setLanguage('english');
    await put('old', 'the cat sleeps');
    expect(await keys('sleeping cats')).to.deep.equal(['old']);
    await setLanguage('german');
    await put('new', 'in den Häusern');
    expect(await keys('haus')).to.deep.equal(['new']);
    expect(await keys('sleeping')).to.deep.equal(['old']);
    await Promise.all([1, 2].map(() => rederive(server.kernel.database, 0)));
    const languages = await tenantSql(tenant, 'select distinct search_language as l from memory_texts');
    expect(languages).to.deep.equal([{ l: 'german' }]);
    expect(await keys('"sleeping"')).to.deep.equal([]);
    expect(await keys('sleeps')).to.deep.equal(['old']);
  });

  it('finds what is older than search, or was written by an older server, once its words are derived', async () => {
    await put('before', 'an old word');
    await put('rewritten', 'a former word');
    await client.project.deleteMemory({ projectId, key: 'rewritten' });
    await put('rewritten', 'a former word');
    await tenantSql(
      tenant,
      `delete from memory_texts t using memories m where m.id = t.memory_id and m.key = 'before'`,
    );
    await tenantSql(tenant, 'delete from memory_words');
    await tenantSql(
      tenant,
      `with m as (update memories set version = 2 where key = 'rewritten' and delete_time is null returning *)
       insert into memory_versions (tenant_id, env, memory_id, version, value, create_time, created_by)
       select tenant_id, env, id, 2, 'a newer word', now(), created_by from m`,
    );
    expect(await keys('word')).to.deep.equal([]);
    await tenantSql(tenant, 'update tenants set language_time = now() where tenant_id = $1', [tenant]);
    await rederive(server.kernel.database, 0);
    expect((await keys('word')).sort()).to.deep.equal(['before', 'rewritten']);
    expect(await keys('newer')).to.deep.equal(['rewritten']);
    expect(await keys('former')).to.deep.equal([]);
    expect(await keys('newwer')).to.deep.equal(['rewritten']);
  });

  it('forgets words that no memory uses any more, a week after it saw them last', async () => {
    await put('kept', 'marmalade and honey');
    await put('gone', 'vinegar and honey');
    await client.project.deleteMemory({ projectId, key: 'gone' });
    const words = async () =>
      (await tenantSql(tenant, 'select word from memory_words order by word')).map(({ word }) => word);
    await forgetWords(server.kernel.database);
    expect(await words()).to.deep.equal(['gone', 'honey', 'kept', 'marmalade', 'vinegar']);
    await tenantSql(tenant, `update memory_words set check_time = now() - interval '7 days'`);
    await put('again', 'honey');
    await Promise.all([1, 2].map(() => forgetWords(server.kernel.database)));
    expect(await words()).to.deep.equal(['again', 'honey', 'kept', 'marmalade']);
    const stale = await tenantSql(tenant, `select word from memory_words where check_time < now() - interval '1 day'`);
    expect(stale).to.deep.equal([]);
  });

  it('stores any value, and every put of many at once', async () => {
    const letters = Array.from({ length: 64 }, (_, i) => String.fromCodePoint(0xe0 + i));
    const dense = letters.flatMap((a) => letters.map((b) => `${a}${b}-${b}${a}`)).join(' ');
    const hosts = Array.from({ length: 9000 }, (_, i) => `a@${i.toString(36)}.co/${i}`).join(' ');
    for (const value of [dense, hosts, 'x'.repeat(65_536), '語'.repeat(21_845)]) {
      const cut = Buffer.from(value)
        .subarray(0, 65_536)
        .toString()
        .replace(/\ufffd+$/, '');
      await put('dense', cut);
    }
    const words = Array.from({ length: 50 }, (_, i) => `word${'abcdefghij'[i % 10]}${'klmno'[i % 5]}`);
    await Promise.all(words.map((_, i) => put(`k${i % 7}`, [...words.slice(i), ...words.slice(0, i)].join(' '))));
    expect(await keys(words[3]!)).to.have.length(7);
  });

  it('keeps projects, envs and tenants with the same words apart, and shares them between users', async () => {
    await addMember(tenant, 'user', 'prod');
    const elsewhere = await newTenant();
    const places = [headersOf(tenant), headersOf(tenant, 'user', 'prod'), headersOf(elsewhere)];
    for (const [i, headers] of places.entries()) await put(`shared ${i}`, 'marmalade', {}, headers);
    await put('other project', 'marmalade', { projectId: 'other' });
    const seen = [...places, headersOf(tenant, 'other')];
    for (const [i, headers] of seen.entries()) {
      for (const query of ['marmalade', 'mar*', '-absent', '"marmalade"', 'marmelade']) {
        const { results } = await client.project.searchMemories({ projectId, query }, metadataOf(headers));
        expect(
          results.map(({ memory }) => memory!.key),
          query,
        ).to.deep.equal([`shared ${i % 3}`]);
      }
    }
  });

  it("looks only where the transaction's own settings let it, whoever asks the functions", async () => {
    await plant();
    const functions: [string, unknown[], unknown[]][] = [
      [
        `select * from search_memories($1, $2, $3, '''fiscal''', null, null, null, null, 50)`,
        ['atlas'],
        ['atla_', null],
      ],
      [`select * from similar_memory_words($1, $2, $3, '{fiscl}')`, ['atlas'], ['atla_', null]],
      [`select 1 where memory_word_is_used($1, $2, $3, 'fiscal')`, ['atlas'], ['atla_', null]],
    ];
    const own = { tenant, env: 'dev' };
    for (const [sql, projects, none] of functions) {
      const call = (args: unknown[], settings: object) => asRole(appUrl(), settings, [sql, args]);
      for (const project of projects)
        expect((await call([tenant, 'dev', project], own)).rowCount, sql).to.be.greaterThan(0);
      for (const project of none) expect((await call([tenant, 'dev', project], own)).rowCount, sql).to.equal(0);
      for (const settings of [
        {},
        { tenant },
        { env: 'dev' },
        { tenant, env: 'prod' },
        { tenant: await newTenant(), env: 'dev' },
      ])
        expect(await refusal(call([tenant, 'dev', 'atlas'], settings)), JSON.stringify(settings)).to.equal(REFUSED);
      for (const args of [
        [null, 'dev', 'atlas'],
        [tenant, null, 'atlas'],
      ])
        expect(await refusal(call(args, own)), JSON.stringify(args)).to.equal(REFUSED);
    }
  });

  it('needs something to look for', async () => {
    for (const [field, request] of Object.entries({
      query: { query: '' },
      project_id: { query: 'x', projectId: '' },
      embedding: { query: 'x', embedding: new Array(2001).fill(1) },
    })) {
      const refused = await failure(client.project.searchMemories({ projectId, ...request }));
      expect([refused.code, ...refused.violations.map((v) => v.field)]).to.deep.equal([status.INVALID_ARGUMENT, field]);
    }
  });
});

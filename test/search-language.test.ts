import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { rederive } from '../src/search/rederive.ts';
import type { RunningServer } from '../src/server.ts';
import { type Searching, searching } from './fixtures/search.ts';
import {
  allPages,
  type Clients,
  connect,
  failure,
  headersOf,
  newTenant,
  startTestServer,
  tenantSql,
} from './support.ts';

describe('the language of search', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;
  let { append, search, contents, marked, setLanguage } = {} as Searching;

  before(async () => {
    server = await startTestServer();
  });
  after(() => server.stop());
  beforeEach(async () => {
    tenant = await newTenant();
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
    ({ append, search, contents, marked, setLanguage } = searching(client, tenant));
  });
  afterEach(() => client.close());

  it('searches in the former and in the new language until the messages are derived anew', async () => {
    const { etag } = await setLanguage('english');
    await append(['old sleeps', 'old Häusern']);
    expect((await setLanguage('english')).etag).to.not.equal(etag);
    await setLanguage('german');
    await append(['new Häusern']);
    const waits = async () =>
      (
        await tenantSql(
          tenant,
          `select former_languages, language_time is not null as waits from tenants where tenant_id = $1`,
          [tenant],
        )
      )[0];
    const languages = async () =>
      (await tenantSql(tenant, 'select search_language, count(*)::int as n from messages group by 1 order by 1')).map(
        Object.values,
      );
    expect(await waits()).to.deep.equal({ former_languages: ['simple', 'english'], waits: true });
    expect(await contents('sleeping')).to.deep.equal(['old sleeps']);
    expect(await contents('haus')).to.deep.equal(['new Häusern']);
    expect((await search('sleeping')).map(marked)).to.deep.equal([['old [sleeps]']]);
    expect(await contents('old OR new')).to.have.length(3);

    const { database } = server.kernel;
    await rederive(database, 3_600_000);
    expect(await languages(), 'somebody may still write in the former one').to.deep.equal([
      ['english', 2],
      ['german', 1],
    ]);
    await Promise.all([rederive(database, 0), rederive(database, 0)]);
    expect(await languages()).to.deep.equal([['german', 3]]);
    expect(await waits()).to.deep.equal({ former_languages: [], waits: false });
    expect(await contents('haus')).to.have.members(['old Häusern', 'new Häusern']);
    expect(await contents('sleeping')).to.deep.equal([]);
    await setLanguage('simple');
    await setLanguage('german');
    expect(await waits()).to.deep.equal({ former_languages: ['simple'], waits: true });
  });

  it('derives messages that are older than search, in steps, and leaves what has no content', async () => {
    await append(
      Array.from({ length: 100 }, (_, i) => `elder ${i}`),
      'a',
    );
    for (let i = 0; i < 4; i++)
      await append(
        Array.from({ length: 100 }, (_, n) => `elder ${n}`),
        'b',
      );
    await append(['gone']);
    await tenantSql(tenant, `update messages set search_language = null, tsv = null`);
    await tenantSql(tenant, `update messages set content = '' where content = 'gone'`);
    await tenantSql(tenant, `update tenants set language_time = now() where tenant_id = $1`, [tenant]);
    expect(await search('elder')).to.deep.equal([]);
    await rederive(server.kernel.database, 0);
    const pages = await allPages((pageToken) => client.conversation.searchMessages({ query: 'elder', pageToken }));
    expect(pages.flatMap((page) => page.results)).to.have.length(500);
    expect(await tenantSql(tenant, 'select content from messages where tsv is null')).to.deep.equal([{ content: '' }]);
  });

  it('goes on where a cut derivation stopped', async () => {
    for (let i = 0; i < 5; i++) await append(Array.from({ length: 100 }, (_, n) => `word ${n}`));
    await setLanguage('english');
    const [{ n }] = await tenantSql(
      tenant,
      `with half as (update messages set search_language = 'english' where seq <= 250 returning 1) select count(*)::int as n from half`,
    );
    expect(n).to.equal(250);
    const versions = () => tenantSql(tenant, `select seq::int, xmin::text from messages where seq <= 250 order by seq`);
    const done = await versions();
    const ended = AbortSignal.abort(new Error('stopped'));
    const cut = await rederive(server.kernel.database, 0, ended).then(
      () => '',
      (error) => error.message,
    );
    expect(cut).to.equal('stopped');
    await rederive(server.kernel.database, 0);
    expect(await versions(), 'what was done is not done again').to.deep.equal(done);
    expect(await tenantSql(tenant, `select distinct search_language from messages`)).to.deep.equal([
      { search_language: 'english' },
    ]);
  });

  it('refuses a language that the database does not know', async () => {
    for (const language of ['klingon', 'English', 'english; drop table x', 'pg_catalog.english', '', 'x'.repeat(64)]) {
      if (language) {
        const refused = await failure(setLanguage(language));
        expect(refused, language).to.include({ code: status.INVALID_ARGUMENT });
        expect(refused.violations.map(({ field }) => field)).to.deep.equal(['tenant.policies.search_language']);
      } else expect((await setLanguage(language)).policies!.searchLanguage).to.equal('simple');
    }
    expect((await setLanguage('french')).policies!.searchLanguage).to.equal('french');
    expect((await setLanguage('')).policies!.searchLanguage, 'kept where it is not set').to.equal('french');
  });
});

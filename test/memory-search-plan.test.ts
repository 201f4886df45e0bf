import { expect } from 'chai';
import type { RunningServer } from '../src/server.ts';
import { blocksOf, ownDatabase, planWithin } from './fixtures/plans.ts';
import { connect, headersOf, runSql, startTestServer, until } from './support.ts';

const MEMORIES = 1_000_000;
const [TENANT, ENV] = ['big', 'dev'];

// One project has a tenth of all memories, 512 others share the rest. Every memory has `common`, one of 10 has `tenth` and
// one of 10,000 `rare`, of each project about as many; the words of the large project are 60,000.
const SEED = `
  set session_replication_role = replica;
  insert into tenants (tenant_id, envs) values ('${TENANT}', '{${ENV}}');
  insert into tenant_members (tenant_id, env, user_id, role) values ('${TENANT}', '${ENV}', 'user', 1);
  create temporary table facts as
    select uuid_v7(at) as id, 'p' || case when n % 10 = 0 then 0 else 1 + (hashint4(n) & 511) end as project_id, 'key' || n as key, at, n,
      concat_ws(' ', 'common', case when n / 10 % 10 = 0 then 'tenth' end, case when n / 10 % 10000 = 0 then 'rare' end,
        'a' || hashint4(n) % 997, 'b' || hashint4(n) % 9973, 'c' || n) as value
    from (select n, '2026-01-01'::timestamptz + n * interval '1 second' as at from generate_series(1, ${MEMORIES}) n) s;
  insert into memories (tenant_id, env, id, project_id, key, version, create_time, update_time, created_by, updated_by)
    select '${TENANT}', '${ENV}', id, project_id, key, 1, at, at, 'user', 'user' from facts;
  insert into memory_versions (tenant_id, env, memory_id, version, value, metadata, create_time, created_by)
    select '${TENANT}', '${ENV}', id, 1, value, jsonb_build_object('part', n / 10 % 100), at, 'user' from facts;
  insert into memory_uses (tenant_id, env, memory_id, project_id, use_time) select '${TENANT}', '${ENV}', id, project_id, at from facts;
  insert into memory_texts (tenant_id, env, memory_id, project_id, version, search_language, tsv)
    select '${TENANT}', '${ENV}', id, project_id, 1, 'simple', memory_tsv('simple', key, value) from facts;
  insert into memory_words (tenant_id, env, project_id, word, check_time)
    select '${TENANT}', '${ENV}', 'p0', translate(md5(n::text), '0123456789', 'ghijklmnop'), now() from generate_series(1, 60000) n
    union all select '${TENANT}', '${ENV}', 'p' || p, word, now() from generate_series(0, 512) p, unnest('{common,tenth,rare}'::text[]) word;`;

const INDEXES = `select indexrelid::regclass::text as name, pg_get_indexdef(indexrelid) as definition from pg_index i
  where indrelid::regclass::text in ('memories', 'memory_uses', 'memory_texts', 'memory_words') and not indisprimary`;

describe('search in a million memories', () => {
  let database: Awaited<ReturnType<typeof ownDatabase>>;
  let owner: string;
  let server: RunningServer;

  before(async function () {
    this.timeout(600_000);
    database = await ownDatabase('memories');
    owner = database.owner;
    const indexes = await runSql(owner, INDEXES);
    for (const { name } of indexes) await runSql(owner, `drop index ${name}`);
    await runSql(owner, SEED);
    for (const { definition } of indexes) await runSql(owner, definition);
    await runSql(owner, 'analyze');
    server = await startTestServer({}, undefined, database.app);
  });
  after(async () => {
    await server?.stop();
    await database?.drop();
  });

  const scope = { tenant: TENANT, env: ENV };
  const search = 'select * from search_memories($1, $2, $3, $4, null, $5, null, null, 51)';

  it('finds by the index of words, project, env and tenant, and reads what matches only', async () => {
    for (const project of ['p0', 'p5']) {
      for (const words of ["'rare'", "'common' & 'rare'", "'ra':*", "'tenth' & !'common' | 'rare'", "'absent'"]) {
        for (const metadata of [null, '{}', '{"part": 3}']) {
          const what = `${project} ${words} ${metadata}`;
          const nodes = await planWithin(owner, scope, 'memory_texts', search, [TENANT, ENV, project, words, metadata]);
          const [index] = nodes.filter((node) => node['Index Name'] === 'memory_texts_search');
          expect(index, what).to.not.equal(undefined);
          for (const part of [/tenant_id = /, /env = /, /project_id = /, /tsv @@ /])
            expect(index!['Index Cond'], what).to.match(part);
          const scans = nodes.filter((node) => node['Node Type'] === 'Seq Scan');
          expect(scans, what).to.deep.equal([]);
          const [{ n }] = await runSql(
            owner,
            'select count(*)::int as n from memory_texts where tenant_id = $1 and project_id = $2 and tsv @@ $3::tsquery',
            [TENANT, project, words],
          );
          // A few for each match, beside the index, where what excludes a word is met on the way: of the memories there are a
          // hundred times as many.
          expect(blocksOf(nodes) - blocksOf([index!]), what).to.be.lessThan(50 + 20 * n);
          expect(blocksOf([index!]), what).to.be.lessThan(1500);
        }
      }
    }
  });

  it('ranks the newest 10,000 of more matches, and meets these on the way from the newest on', async () => {
    const nodes = await planWithin(owner, scope, 'memory_texts', search, [TENANT, ENV, 'p0', "'common'", null]);
    const ranked = nodes.filter((node) => node['Node Type'] === 'Limit').map((node) => node['Actual Rows']);
    expect(ranked).to.include.members([51, 10_000]);
    expect(nodes.filter((node) => node['Node Type'] === 'Seq Scan')).to.deep.equal([]);
    expect(Math.max(...nodes.map((node) => node['Actual Rows']))).to.equal(10_000);
  });

  it('finds the words that may be meant by their index, too', async () => {
    const nodes = await planWithin(owner, scope, 'memory_words', 'select * from similar_memory_words($1, $2, $3, $4)', [
      TENANT,
      ENV,
      'p0',
      ['commn', 'tennth'],
    ]);
    const [index] = nodes.filter((node) => node['Index Name'] === 'memory_words_alike');
    expect(index!['Index Cond']).to.match(/project_id = .* AND .*word % /);
    expect(nodes.filter((node) => node['Node Type'] === 'Seq Scan')).to.deep.equal([]);
    const client = connect(`127.0.0.1:${server.port}`, headersOf(TENANT, 'user', ENV));
    try {
      const { results } = await client.project.searchMemories({ projectId: 'p0', query: 'raree', pageSize: 500 });
      expect(results).to.have.length(10);
    } finally {
      client.close();
    }
  });

  it('never reads all memories for a call', async () => {
    const scans = `select sum(seq_scan)::int as whole, sum(idx_scan)::int as by_index from pg_stat_user_tables where relname like 'memor%'`;
    const counts = async () => (await runSql(owner, scans))[0];
    const before = await counts();
    const client = connect(`127.0.0.1:${server.port}`, headersOf(TENANT, 'user', ENV));
    const queries = ['rare', 'tenth -common', 'common OR rare', '"common tenth"', 'c1*', '-absent', 'commmon'];
    for (const query of queries) await client.project.searchMemories({ projectId: 'p5', query });
    client.close();
    await server.stop(); // its connections tell what they counted when they end
    const { whole } = await until(async () => {
      const now = await counts();
      return now.by_index >= before.by_index + queries.length && now;
    });
    expect(whole).to.equal(before.whole);
  });
});

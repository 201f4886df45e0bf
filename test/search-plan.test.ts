import { expect } from 'chai';
import type { RunningServer } from '../src/server.ts';
import { blocksOf, ownDatabase, planWithin } from './fixtures/plans.ts';
import { connect, headersOf, runSql, startTestServer, until } from './support.ts';

const MESSAGES = 1_000_000;
const [TENANT, ENV] = ['big', 'dev'];

// One user has a tenth of all messages, 512 others share the rest. Every message has `common`, one of 10 has `tenth` and
// one of 10,000 `rare`, of each user about as many.
const SEED = `
  drop index messages_search;
  insert into tenants (tenant_id, envs) values ('${TENANT}', '{${ENV}}');
  insert into tenant_members (tenant_id, env, user_id, role) select '${TENANT}', '${ENV}', 'u' || u, 1 from generate_series(0, 512) u;
  insert into threads (tenant_id, env, user_id, thread_id, thread_uid, create_time, update_time)
    select '${TENANT}', '${ENV}', 'u' || u, 't' || t, gen_random_uuid(), now(), now() from generate_series(0, 512) u, generate_series(0, 4) t;
  insert into messages (tenant_id, env, thread_uid, seq, id, user_id, role, content, create_time, search_language, tsv)
    select '${TENANT}', '${ENV}', t.thread_uid, n, uuid_v7(at), t.user_id, 1, content, at, 'simple', message_tsv('simple', content)
    from generate_series(1, ${MESSAGES}) n
    join threads t on t.user_id = 'u' || case when n % 10 = 0 then 0 else 1 + (hashint4(n) & 511) end and t.thread_id = 't' || n / 7 % 5
    cross join lateral (select '2026-01-01'::timestamptz + n * interval '1 second' as at,
      concat_ws(' ', 'common', case when n / 10 % 10 = 0 then 'tenth' end, case when n / 10 % 10000 = 0 then 'rare' end,
        'a' || hashint4(n) % 997, 'b' || hashint4(n) % 9973, 'c' || n) as content) c;`;

describe('search in a large tenant', () => {
  let database: Awaited<ReturnType<typeof ownDatabase>>;
  let owner: string;
  let server: RunningServer;

  before(async function () {
    this.timeout(600_000);
    database = await ownDatabase('search');
    owner = database.owner;
    const [{ index }] = await runSql(owner, `select pg_get_indexdef('messages_search'::regclass) as index`);
    await runSql(owner, SEED);
    await runSql(owner, index);
    await runSql(owner, 'analyze');
    server = await startTestServer({}, undefined, database.app);
  });
  after(async () => {
    await server?.stop();
    await database?.drop();
  });

  const planOf = (user: string, words: string) =>
    planWithin(
      owner,
      { tenant: TENANT, env: ENV },
      'messages',
      'select * from search_messages($1, $2, $3, $4, null, null, null, null, null, null, null, null, 51)',
      [TENANT, ENV, user, words],
    );

  it('finds by the index of words, user, env and tenant, and reads what matches only', async () => {
    for (const user of ['u0', 'u5']) {
      for (const words of ["'rare'", "'common' & 'rare'", "'ra':*", "'tenth' & !'common' | 'rare'", "'absent'"]) {
        const what = `${user} ${words}`;
        const nodes = await planOf(user, words);
        const [index] = nodes.filter((node) => node['Index Name'] === 'messages_search');
        expect(index, what).to.not.equal(undefined);
        for (const part of [/tenant_id = /, /env = /, /user_id = /, /tsv @@ /])
          expect(index!['Index Cond'], what).to.match(part);
        expect(
          nodes.filter((node) => node['Node Type'] === 'Seq Scan'),
          what,
        ).to.deep.equal([]);
        const [{ n }] = await runSql(
          owner,
          'select count(*)::int as n from messages where tenant_id = $1 and user_id = $2 and tsv @@ $3::tsquery',
          [TENANT, user, words],
        );
        expect(nodes.find((node) => node['Node Type'] === 'Bitmap Heap Scan')!['Actual Rows'], what).to.equal(n);
        // Some for the index and the threads, and a few for each match: of the messages there are a hundred times as many.
        expect(blocksOf(nodes), what).to.be.lessThan(150 + 12 * n);
      }
    }
  });

  it('ranks the newest 10,000 of more matches', async () => {
    const nodes = await planOf('u0', "'common'");
    const ranked = nodes.filter((node) => node['Node Type'] === 'Limit').map((node) => node['Actual Rows']);
    expect(ranked).to.include.members([51, 10_000]);
    const client = connect(`127.0.0.1:${server.port}`, headersOf(TENANT, 'u0', ENV));
    try {
      const { results } = await client.conversation.searchMessages({ query: 'common', pageSize: 500 });
      expect(results).to.have.length(500);
      const oldest = (MESSAGES / 10 - 10_000) * 10;
      for (const { message } of results) expect(message!.seq).to.be.greaterThan(oldest);
    } finally {
      client.close();
    }
  });

  it('never reads all messages for a call', async () => {
    const scans = `select seq_scan::int as whole, idx_scan::int as by_index from pg_stat_user_tables where relname = 'messages'`;
    const counts = async () => (await runSql(owner, scans))[0];
    const before = await counts();
    const client = connect(`127.0.0.1:${server.port}`, headersOf(TENANT, 'u5', ENV));
    const queries = ['common', 'tenth -common', 'common OR rare', '"common tenth"', 'c1*', '-absent'];
    for (const query of queries) await client.conversation.searchMessages({ query });
    client.close();
    await server.stop(); // its connections tell what they counted when they end
    const { whole } = await until(async () => {
      const now = await counts();
      return now.by_index >= before.by_index + queries.length && now;
    });
    expect(whole).to.equal(before.whole);
  });
});

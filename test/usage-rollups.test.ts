import { expect } from 'chai';
import pg from 'pg';
import type { Statement, Value } from '../src/db/statement.ts';
import { Budget_Period, Budget_Scope, UsageDimension } from '../src/gen/memory/v1/usage.ts';
import type { RunningServer } from '../src/server.ts';
import { inTurns } from '../src/tenants/places.ts';
import { OF_CALL } from '../src/usage/budgets.ts';
import { fold } from '../src/usage/fold.ts';
import { type UsageFilter, usageQuery } from '../src/usage/report.ts';
import {
  appUrl,
  type Clients,
  connect,
  headersOf,
  metadataOf,
  newTenant,
  ownerUrl,
  runSql,
  startTestServer,
  tenantSql,
  useOwnDatabase,
} from './support.ts';

const SUMS = `sum(requests)::int as requests, sum(total_tokens)::int as tokens, trim_scale(sum(cost))::text as cost`;
const COUNT = `count(*)::int as requests, sum(total_tokens)::int as tokens, trim_scale(sum(cost))::text as cost`;
/** What the sums of each grain are by, as the calls themselves have it. */
const GRAINS: [grain: number, subject: string, user: string, project: string][] = [
  [1, `''`, `''`, `''`],
  [2, 'project_id', `''`, `''`],
  [3, 'user_id', `''`, 'project_id'],
  [4, `coalesce(session_id::text, '')`, 'user_id', 'project_id'],
];

const { SESSION, USER, PROJECT, DAY, MODEL } = UsageDimension;
const EVERYTHING = { userId: '', sessionId: '', projectId: '', provider: '', model: '', startDay: '', endDay: '' };

describe('sums of usage', () => {
  let leave: () => void;
  let server: RunningServer;
  let tenant: string;
  let clients: Clients[];

  before(async () => {
    leave = await useOwnDatabase(); // where only these backends are killed
    server = await startTestServer();
  });
  after(async () => {
    await server.stop();
    leave();
  });
  beforeEach(async () => {
    tenant = await newTenant(['user', 'other', 'admin']);
    clients = ['user', 'other'].map((user) => connect(`127.0.0.1:${server.port}`, headersOf(tenant, user)));
  });
  afterEach(() => clients.forEach((client) => client.close()));

  const addUp = () => fold(server.kernel.database, { tenant, env: 'dev', user: '' });
  const total = async () => (await clients[0]!.usage.getUsage({}, metadataOf(headersOf(tenant, 'admin')))).usage[0]!;

  async function expectRecount(): Promise<void> {
    for (const [grain, subject, user, project] of GRAINS) {
      const told = await tenantSql(
        tenant,
        `select subject, user_id, project_id, day::text, provider, model, ${SUMS} from usage_rollups where grain = $1 group by 1, 2, 3, 4, 5, 6 order by 1, 2, 3, 4, 5, 6`,
        [grain],
      );
      const counted = await tenantSql(
        tenant,
        `select ${subject} as subject, ${user} as user_id, ${project} as project_id, (create_time at time zone 'UTC')::date::text as day, provider, model, ${COUNT}
         from llm_requests group by 1, 2, 3, 4, 5, 6 order by 1, 2, 3, 4, 5, 6`,
      );
      expect(told, `grain ${grain}`).to.deep.equal(counted);
    }
  }

  it('equal a recount after concurrent writers, several that add up at once, and killed backends', async function () {
    this.timeout(120_000);
    const killer = new pg.Client({ connectionString: ownerUrl() });
    await killer.connect();
    const name = new URL(appUrl()).pathname.slice(1);
    let [acknowledged, unknown, seen, working] = [0, 0, 0, true];
    const write = async (n: number) => {
      const client = clients[n % 2]!;
      for (let i = 0; i < 60; i++) {
        const llmRequest = { provider: `p${i % 2}`, model: `m${i % 3}`, cost: '0.000000000001', totalTokens: 1 };
        const call = client.usage.recordLlmRequest({
          llmRequest,
          projectId: `x${i % 2}`,
          requestId: crypto.randomUUID(),
        });
        await call.then(
          () => acknowledged++,
          () => unknown++,
        );
      }
    };
    const addsUp = async () => {
      while (working) await addUp().catch(() => {});
    };
    const reads = async () => {
      while (working) {
        const least = acknowledged;
        const { requests } = await total().catch(() => ({ requests: Number.NaN }));
        if (Number.isNaN(requests)) continue;
        expect(requests).to.be.within(Math.max(least, seen), acknowledged + unknown + 8);
        seen = requests;
      }
    };
    const kills = async () => {
      while (working) {
        await killer.query(
          `select pg_terminate_backend(pid) from pg_stat_activity
           where datname = $1 and usename = 'memoryd_app' and state <> 'idle' order by random() limit 1`,
          [name],
        );
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    };
    const others = [addsUp(), addsUp(), addsUp(), reads(), kills()];
    await Promise.all(Array.from({ length: 8 }, (_, n) => write(n)));
    working = false;
    await Promise.all(others);
    await killer.end();
    const [{ n }] = await tenantSql(tenant, 'select count(*)::int as n from llm_requests');
    expect(n).to.be.within(acknowledged, acknowledged + unknown);
    expect((await total()).requests).to.equal(n);
    await addUp();
    expect((await total()).requests).to.equal(n);
    expect((await tenantSql(tenant, 'select count(*)::int as n from llm_requests where not folded'))[0].n).to.equal(0);
    await expectRecount();
  });

  it('are not waited for by whoever records, nor by turns', async () => {
    const holder = new pg.Client({ connectionString: ownerUrl() });
    await holder.connect();
    await clients[0]!.usage.recordLlmRequest({ llmRequest: { provider: 'p', model: 'm' } });
    await addUp();
    await holder.query('begin; lock table usage_rollups in share row exclusive mode');
    const { session, lease } = await clients[0]!.conversation.beginTurn({ session: { surfaceId: 'w' }, holder: 'h' });
    const llmRequests = [{ provider: 'p', model: 'm' }];
    await clients[0]!.conversation.commitTurn({
      sessionId: session!.id,
      fencingToken: lease!.fencingToken,
      llmRequests,
    });
    await clients[1]!.usage.recordLlmRequest({ llmRequest: { provider: 'p', model: 'm' } });
    expect((await total()).requests).to.equal(3);
    await holder.query('rollback');
    await holder.end();
    await addUp();
    await expectRecount();
  });

  it('take the calls that older versions record, too', async () => {
    await tenantSql(
      tenant,
      `insert into llm_requests (tenant_id, env, id, user_id, provider, model, prompt_tokens, completion_tokens, total_tokens, cost,
         latency_ms, status, create_time) values ($1, 'dev', gen_random_uuid(), 'user', 'p', 'm', 1, 2, 3, 0.5, 1, '', now())`,
      [tenant],
    );
    expect(await total()).to.include({ requests: 1, cost: '0.5' });
    expect(await addUp()).to.equal(1);
    expect(await total()).to.include({ requests: 1, cost: '0.5' });
    await expectRecount();
  });

  it('tell a month of 200,000 calls without reading them', async function () {
    this.timeout(120_000);
    const from = '2026-01-01';
    await tenantSql(
      tenant,
      `with calls as (
         insert into llm_requests (tenant_id, env, id, user_id, project_id, provider, model, prompt_tokens, completion_tokens,
           total_tokens, cost, latency_ms, status, create_time, folded)
         select $1, 'dev', gen_random_uuid(), 'u' || n % 2000, 'p' || n % 10, 'p', 'm' || n % 5, 1, 1, 2, 0.001, 1, '',
           $2::timestamptz + make_interval(secs => n * 13), true
         from generate_series(0, 199999) n
         returning *
       )
       insert into usage_rollups (tenant_id, env, grain, subject, day, user_id, project_id, provider, model, requests, prompt_tokens,
         cached_tokens, completion_tokens, total_tokens, cost, latency_ms)
       select $1, 'dev', grain, subject, (create_time at time zone 'UTC')::date, g.user_id, g.project_id, provider, model, count(*), sum(prompt_tokens),
         0, sum(completion_tokens), sum(total_tokens), sum(cost), sum(latency_ms)
       from calls c cross join lateral (values (1, '', '', ''), (2, project_id, '', ''), (3, user_id, '', c.project_id),
         (4, user_id || create_time::date, c.user_id, c.project_id)) g (grain, subject, user_id, project_id)
       group by grain, subject, 5, g.user_id, g.project_id, provider, model`,
      [tenant, from],
    );
    await runSql(ownerUrl(), 'vacuum analyze usage_rollups, llm_requests');
    const month = { ...EVERYTHING, startDay: from, endDay: '2026-01-31' };
    const perDay = await rowsRead([DAY, MODEL], month, 501);
    expect(perDay, 'a row for each day and model').to.deep.equal({ told: 155, read: 155 });
    const perProject = await rowsRead([PROJECT], month, 501);
    expect(perProject.told).to.equal(10);
    expect(perProject.read, 'no more than a row for each day, project and model').to.be.at.most(31 * 10 * 5);
    const ofUser = await rowsRead([MODEL], { ...month, userId: 'u7' }, 501);
    expect(ofUser.read, 'those of the user').to.be.at.most(31 * 10 * 5);
    const sessions = await rowsRead([SESSION], { ...month, userId: 'u7' }, 51);
    expect(sessions.read, 'those of the sessions of the user').to.be.within(sessions.told, 4 * sessions.told);
    expect((await rowsRead([SESSION], month, 6)).read, 'those of the page').to.be.lessThan(100);
    const [page, all] = [await rowsRead([USER], month, 6), await rowsRead([USER], month, 501)];
    expect([page.told, all.told]).to.deep.equal([6, 501]);
    expect(page.read, 'those of the page').to.be.lessThan(all.read / 8);
  });

  it('are told beside 20,000 calls that wait for them without reading those of other times and users', async () => {
    await tenantSql(
      tenant,
      `insert into llm_requests (tenant_id, env, id, user_id, project_id, provider, model, prompt_tokens, completion_tokens,
         total_tokens, cost, latency_ms, status, create_time)
       select $1, 'dev', uuid_v7(at), 'u' || n % 2000, 'p', 'p', 'm', 1, 1, 2, 0.001, 1, '', at
       from generate_series(1, 20000) n, lateral (select now() - make_interval(days => 40, secs => n) as at) t`,
      [tenant],
    );
    const [admin, month] = [metadataOf(headersOf(tenant, 'admin')), Budget_Period.MONTH];
    for (const [scope, subject] of [
      [Budget_Scope.TENANT, ''],
      [Budget_Scope.USER, 'user'],
    ] as const)
      await clients[0]!.usage.setBudget({ budget: { scope, subject, period: month, costLimit: '1' } }, admin);
    await runSql(ownerUrl(), 'vacuum analyze llm_requests, budgets');
    const budgets = await rowsReadBy({ statement: OF_CALL, values: ['', null] }, 'user');
    expect(budgets.told).to.equal(2);
    expect(budgets.read, 'the budgets, however often, and no calls').to.be.lessThan(20);
    const today = new Date().toISOString().slice(0, 10);
    expect((await rowsRead([DAY], { ...EVERYTHING, startDay: today }, 51)).read).to.be.lessThan(20);
    const ofUser = await rowsRead([DAY], { ...EVERYTHING, userId: 'u7' }, 51);
    expect(ofUser.told).to.be.within(1, 2);
    expect(ofUser.read).to.be.within(10, 40);
  });

  it('are made of what waits in turns, so that a tenant with much to add up holds up no other', async () => {
    const left = new Map(Object.entries({ a: 3, b: 1, c: 2 }));
    const taken: string[] = [];
    await inTurns(left.keys(), async (place) => {
      taken.push(place);
      left.set(place, left.get(place)! - 1);
      return left.get(place)! > 0;
    });
    expect(taken.join('')).to.equal('abcaca');
  });

  interface Node {
    'Relation Name'?: string;
    'Actual Rows': number;
    'Actual Loops': number;
    'Rows Removed by Filter'?: number;
    Plans?: Node[];
  }
  const nodesOf = (node: Node): Node[] => [node, ...(node.Plans ?? []).flatMap(nodesOf)];

  /** How many rows are told, and how many the tables gave for it. */
  const rowsRead = (by: UsageDimension[], filter: UsageFilter, limit: number) =>
    rowsReadBy(usageQuery(by, filter, undefined, limit));

  async function rowsReadBy({ statement, values }: { statement: Statement<unknown>; values: Value[] }, user = 'admin') {
    const literals = [tenant, 'dev', user, ...values].map((value) => (value === null ? 'null' : `'${value}'`));
    const client = new pg.Client({ connectionString: appUrl() });
    await client.connect();
    await client.query(
      `set app.tenant_id = '${tenant}'; set app.env = 'dev'; prepare told (text, text, text) as ${statement.text}`,
    );
    const { rows } = await client.query(`explain (analyze, format json) execute told (${literals.join(', ')})`);
    await client.end();
    const { Plan: plan } = rows[0]['QUERY PLAN'][0];
    const scans = nodesOf(plan).filter((node) => node['Relation Name'] !== undefined);
    const read = scans.reduce(
      (sum, node) => sum + (node['Actual Rows'] + (node['Rows Removed by Filter'] ?? 0)) * node['Actual Loops'],
      0,
    );
    return { told: plan['Actual Rows'], read };
  }
});

import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { type Budget, Budget_Period, Budget_Scope } from '../src/gen/memory/v1/usage.ts';
import type { RunningServer } from '../src/server.ts';
import { fold } from '../src/usage/fold.ts';
import {
  allPages,
  type Clients,
  connect,
  failure,
  headersOf,
  metadataOf,
  newTenant,
  rowCounts,
  startTestServer,
  tenantSql,
} from './support.ts';

const { TENANT, PROJECT, USER, SESSION } = Budget_Scope;
const { DAY, MONTH } = Budget_Period;

describe('budgets', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;

  before(async () => {
    server = await startTestServer();
  });
  after(() => server.stop());
  beforeEach(async () => {
    tenant = await newTenant(['user', 'other', 'admin']);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  });
  afterEach(() => client.close());

  const as = (user: string) => metadataOf(headersOf(tenant, user));
  const set = async (budget: Partial<Budget>, user = 'admin') =>
    (await client.usage.setBudget({ budget: { period: MONTH, costLimit: '1', ...budget } }, as(user))).budget!;
  const spend = (cost: string, rest: object = {}, user = 'user') =>
    client.usage.recordLlmRequest(
      { llmRequest: { provider: 'p', model: 'm', cost, promptTokens: 10 }, ...rest },
      as(user),
    );
  const begin = (session: object = { surfaceId: randomUUID() }, user = 'user') =>
    client.conversation.beginTurn({ session, holder: 'h' }, as(user));
  const commit = async (begun: Awaited<ReturnType<typeof begin>>, cost: string) =>
    client.conversation.commitTurn({
      sessionId: begun.session!.id,
      fencingToken: begun.lease!.fencingToken,
      llmRequests: [{ provider: 'p', model: 'm', cost }],
      release: true,
    });
  const addUp = () => fold(server.kernel.database, { tenant, env: 'dev', user: '' });

  it('are set, replaced, read and deleted by scope, subject and period', async () => {
    const budget = await set({ scope: USER, subject: 'user', costLimit: '10.50', tokenLimit: 1000 }, 'user');
    expect(budget).to.include({ costLimit: '10.5', tokenLimit: 1000, enforce: false, updatedBy: 'user' });
    const stale = await failure(set({ scope: USER, subject: 'user', etag: '"zz"' }, 'user'));
    expect(stale).to.include({ code: status.ABORTED, reason: 'ETAG_MISMATCH' });
    expect(stale.metadata.etag).to.equal(budget.etag);
    const next = await set({ scope: USER, subject: 'user', costLimit: '', tokenLimit: 7, etag: budget.etag }, 'user');
    expect(next).to.deep.include({ costLimit: '', tokenLimit: 7, createTime: budget.createTime });
    expect(next.etag).to.not.equal(budget.etag);
    const key = { scope: USER, subject: 'user', period: MONTH };
    expect((await client.usage.getBudget(key)).status!.budget).to.deep.equal(next);
    expect((await failure(client.usage.getBudget({ ...key, period: DAY }))).code).to.equal(status.NOT_FOUND);
    expect((await failure(client.usage.deleteBudget({ ...key, etag: budget.etag }))).reason).to.equal('ETAG_MISMATCH');
    await client.usage.deleteBudget({ ...key, etag: next.etag });
    expect((await failure(client.usage.deleteBudget(key))).code).to.equal(status.NOT_FOUND);
    await set({ scope: USER, subject: 'user' }, 'user');
    for (const { etag } of [budget, next])
      expect((await failure(client.usage.deleteBudget({ ...key, etag }))).reason).to.equal('ETAG_MISMATCH');
    const none = await failure(set({ scope: USER, subject: 'user', costLimit: '' }, 'user'));
    expect(none.violations.map(({ field }) => field)).to.deep.equal(['budget.cost_limit']);
    const bad = await failure(set({ scope: SESSION, subject: 'x', costLimit: '-1' }));
    expect(bad.violations.map(({ field }) => field)).to.deep.equal(['budget.subject', 'budget.cost_limit']);
    expect((await failure(set({ scope: TENANT, subject: 'x' }))).violations[0]!.field).to.equal('budget.subject');
  });

  it('of others are for admins, and what an admin has set only admins change', async () => {
    const { session } = await begin();
    const denied = { code: status.PERMISSION_DENIED, reason: 'ADMIN_REQUIRED' };
    for (const [scope, subject] of [
      [TENANT, ''],
      [PROJECT, 'atlas'],
      [USER, 'other'],
    ] as const) {
      expect(await failure(set({ scope, subject }, 'user'))).to.include(denied);
      await set({ scope, subject });
      expect(await failure(client.usage.deleteBudget({ scope, subject, period: MONTH }))).to.include(denied);
    }
    const own = { scope: SESSION, subject: session!.id.toUpperCase() };
    expect((await set(own, 'user')).subject).to.equal(session!.id);
    expect((await failure(set(own, 'other'))).code).to.equal(status.NOT_FOUND);
    await set(own);
    expect(await failure(set({ ...own, costLimit: '2' }, 'user'))).to.include(denied);
    expect(await failure(client.usage.deleteBudget({ ...own, period: MONTH }))).to.include(denied);
    const list = async (user: string) => {
      const page = (pageToken: string) => client.usage.listBudgets({ pageSize: 2, pageToken }, as(user));
      return (await allPages(page)).flatMap(({ budgets }) => budgets.map(({ budget }) => budget!.scope));
    };
    expect(await list('admin')).to.deep.equal([TENANT, PROJECT, USER, SESSION]);
    expect(await list('user')).to.deep.equal([TENANT, PROJECT, SESSION]);
    expect(await list('other')).to.deep.equal([TENANT, PROJECT, USER]);
  });

  it('tell what is left, the tightest first, whatever was added up', async () => {
    const begun = await begin({ surfaceId: 'web', projectId: 'atlas' });
    const { id } = begun.session!;
    await set({ scope: TENANT, costLimit: '100' });
    await set({ scope: PROJECT, subject: 'atlas', costLimit: '2' });
    await set({ scope: PROJECT, subject: 'borges', costLimit: '2' });
    await set({ scope: USER, subject: 'user', costLimit: '10', tokenLimit: 25, period: DAY });
    await set({ scope: SESSION, subject: id, costLimit: '0.3' });
    await spend('1.2', { projectId: 'atlas' }, 'other');
    await addUp();
    const { budgets } = await spend('0.1', { sessionId: id });
    const told = budgets.map((budget) => [budget.budget!.scope, budget.costSpent, budget.costLeft, budget.exceeded]);
    expect(told).to.deep.equal([
      [PROJECT, '1.3', '0.7', false],
      [USER, '0.1', '9.9', false],
      [SESSION, '0.1', '0.2', false],
      [TENANT, '1.3', '98.7', false],
    ]);
    expect(budgets[1]).to.include({ tokensSpent: 10, tokensLeft: 15 });
    const { periodStartTime, periodEndTime } = budgets[1]!;
    expect(periodStartTime!.seconds % 86_400).to.equal(0);
    expect(periodEndTime!.seconds - periodStartTime!.seconds).to.equal(86_400);
    const committed = await commit(begun, '0.2');
    const session = committed.budgets.find(({ budget }) => budget!.scope === SESSION)!;
    expect(session).to.include({ costLeft: '0', exceeded: true });
    expect(committed.budgets[0]).to.deep.equal(session);
    expect((await client.usage.getBudget({ scope: SESSION, subject: id, period: MONTH })).status).to.deep.equal(
      session,
    );
    expect((await spend('0.05', { sessionId: id })).budgets[0]).to.include({ costLeft: '-0.05', exceeded: true });
  });

  it('refuse the next turn once they are spent, where they are enforced', async () => {
    await set({ scope: USER, subject: 'user', costLimit: '1' });
    await commit(await begin(), '1');
    const begun = await begin();
    await set({ scope: USER, subject: 'user', costLimit: '1', enforce: true });
    const before = await rowCounts(tenant, ['sessions', 'threads', 'requests']);
    const refused = await failure(begin());
    expect(refused).to.include({ code: status.RESOURCE_EXHAUSTED, reason: 'BUDGET_EXCEEDED' });
    expect(refused.metadata.budget).to.equal('users/user/month');
    const now = new Date();
    const left = Date.UTC(now.getUTCFullYear(), now.getUTCMonth() + 1) - now.getTime();
    expect(refused.retryAfterMs).to.be.within(left - 60_000, left + 60_000);
    expect(await rowCounts(tenant, ['sessions', 'threads', 'requests'])).to.deep.equal(before);
    await begin(undefined, 'other');
    expect((await commit(begun, '5')).budgets[0], 'what has begun goes on').to.include({ costLeft: '-5' });
    await set({ scope: USER, subject: 'user', costLimit: '10', enforce: true });
    await begin();
  });

  it('begin anew with each period', async () => {
    await set({ scope: TENANT, costLimit: '1', enforce: true, period: DAY });
    await set({ scope: TENANT, costLimit: '1', period: MONTH });
    await spend('1');
    await addUp();
    await spend('1');
    expect(await failure(begin())).to.include({ reason: 'BUDGET_EXCEEDED' });
    // As if it had all been spent in the last microsecond of the day before, which may be of the month before.
    await tenantSql(tenant, `update usage_rollups set day = day - 1`);
    await tenantSql(
      tenant,
      `update llm_requests set create_time = date_trunc('day', now(), 'UTC') - interval '1 microsecond' where not folded`,
    );
    const { budgets } = await spend('0.5');
    const first = new Date().getUTCDate() === 1;
    const spent = Object.fromEntries(budgets.map(({ budget, costSpent }) => [budget!.period, costSpent]));
    expect(spent).to.deep.equal({ [DAY]: '0.5', [MONTH]: first ? '0.5' : '2.5' });
    await begin();
    await addUp();
    const { status: after } = await client.usage.getBudget({ scope: TENANT, period: DAY });
    expect(after).to.include({ costSpent: '0.5', exceeded: false });
  });

  it('are overshot by no more than the turns under way', async () => {
    const [limit, each, width] = [20, 1, 8];
    await set({ scope: TENANT, costLimit: String(limit), enforce: true });
    let [began, most] = [0, 0];
    const worker = async () => {
      for (;;) {
        try {
          const begun = await begin();
          began++;
          most = Math.max(most, Number((await commit(begun, String(each))).budgets[0]!.costSpent));
        } catch (error) {
          expect((await failure(Promise.reject(error))).reason).to.equal('BUDGET_EXCEEDED');
          return;
        }
      }
    };
    await Promise.all(Array.from({ length: width }, worker));
    expect(began).to.be.within(limit, limit + width - 1);
    const { status: spent } = await client.usage.getBudget({ scope: TENANT, period: MONTH });
    expect(spent).to.include({ costSpent: String(began * each), exceeded: true });
  });

  it('go with their session', async () => {
    const { session } = await begin();
    await set({ scope: SESSION, subject: session!.id });
    await tenantSql(tenant, 'delete from sessions');
    expect(await rowCounts(tenant, ['budgets'])).to.deep.equal({ budgets: 0 });
  });
});

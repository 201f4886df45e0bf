import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { query } from '../src/db/statement.ts';
import { type TenantTx, transaction } from '../src/db/transaction.ts';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import { Budget_Period, Budget_Scope } from '../src/gen/memory/v1/usage.ts';
import type { RunningServer } from '../src/server.ts';
import { sweep } from '../src/tenants/expiry.ts';
import { removeAged } from '../src/tenants/retention.ts';
import { fold } from '../src/usage/fold.ts';
import { AGED, age, keep } from './fixtures/aging.ts';
import { recordTurns, result } from './fixtures/turns.ts';
import {
  addMember,
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
  useOwnDatabase,
} from './support.ts';

const DAYS = { messages_days: 30, turns_days: 30, checkpoints_days: 30, usage_days: 30 };
const TABLES = Object.keys(AGED).filter((table) => table !== 'threads' && table !== 'messages');

describe('retention', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;

  let restore = () => {};

  before(async () => {
    restore = await useOwnDatabase();
    server = await startTestServer();
  });
  after(async () => {
    await server?.stop();
    restore();
  });
  beforeEach(async () => {
    tenant = await newTenant(['user', 'admin']);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  });
  afterEach(() => client.close());

  const sql = (text: string, values?: unknown[]) => tenantSql(tenant, text, values);
  const counts = (of = tenant, env = 'dev') => rowCounts(of, [...TABLES, 'messages', 'usage_rollups'], env);
  /** Plants and removes in one transaction, and so at one instant: whether a row is due does not depend on the time. */
  async function removeAt<T>(plant: string, work: (tx: TenantTx) => Promise<T>): Promise<T> {
    const scope = { tenant, env: 'dev', user: 'user' };
    const limits = { deadline: Date.now() + 20_000 };
    return transaction(server.kernel.database, scope, undefined, limits, { repeatable: false }, async (tx) => {
      await tx.query(query(plant));
      return work(tx);
    });
  }
  const removed = async (plant: string) =>
    Object.fromEntries((await removeAt(plant, removeAged)).map(({ kind, n }) => [kind, n]));
  const stats = async () => {
    const found = await client.admin.getExpiryStats({}, metadataOf(headersOf(tenant, 'admin')));
    const retained = found.stats.filter(({ kind }) => kind.startsWith('retention_'));
    return Object.fromEntries(retained.map(({ kind, ...stat }) => [kind.slice('retention_'.length), stat]));
  };
  const sweptOf = async () =>
    Object.fromEntries(Object.entries(await stats()).map(([kind, { sweptCount }]) => [kind, sweptCount]));
  const pendingOf = async () =>
    Object.fromEntries(Object.entries(await stats()).map(([kind, { pendingCount }]) => [kind, pendingCount]));

  /** One of everything that a policy can remove, of a user. */
  async function plant({ of = tenant, env = 'dev', clients = client } = {}): Promise<string> {
    const as = metadataOf(headersOf(of, 'user', env));
    const { session, lease } = await clients.conversation.beginTurn(
      {
        session: { surfaceId: 'web', projectId: 'p', threadId: 't' },
        holder: 'h',
        messages: [{ role: MessageRole.HUMAN, content: 'asked' }],
      },
      as,
    );
    const committed = await clients.conversation.commitTurn(
      {
        sessionId: session!.id,
        fencingToken: lease!.fencingToken,
        release: true,
        turn: { query: 'q', results: [result('a', [1])] },
        statePatch: { at: 1 },
        toolCalls: [{ toolName: 'grep' }],
        prompts: [{ name: 'system', text: 'be kind' }],
        llmRequests: [{ provider: 'o', model: 'm', promptTokens: 7 }],
      },
      as,
    );
    expect(committed.turn).to.not.equal(undefined);
    await fold(server.kernel.database, { tenant: of, env, user: '' });
    return session!.id;
  }

  it('removes each kind at its age to the microsecond, by the clock of the database', async () => {
    await keep(tenant, DAYS);
    const sessionId = await plant();
    await plant();
    await recordTurns(server, tenant, sessionId, [{ query: 'q', results: [result('b', [1])] }]);
    const before = await counts();
    const planted = TABLES.map(
      (table) => `${table}_aged as (
        update ${table} r set ${AGED[table]} = now() - interval '720 hours' + (n - 1) * interval '1 microsecond'
        from (select ctid as place, row_number() over (order by ${AGED[table]}) as n from ${table}) o
        where r.ctid = o.place and n <= 2)`,
    );
    expect(await removed(`with ${planted.join(', ')} select 1`)).to.deep.equal({
      retention_checkpoints: 1,
      retention_turns: 4,
      retention_usage: 1,
    });
    const { messages, usage_rollups, ...rest } = before;
    const left = Object.fromEntries(Object.entries(rest).map(([table, n]) => [table, n - 1]));
    expect(await counts()).to.deep.equal({ ...left, messages, usage_rollups });
  });

  it('removes sums of days that have passed whole, and no call before it is in one', async () => {
    await keep(tenant, { usage_days: 30 });
    await plant();
    const boundary = `((now() - interval '720 hours') at time zone 'UTC')::date`;
    const days = `update usage_rollups set day = ${boundary} - (grain <= 2)::int`;
    const calls = `update llm_requests set create_time = now() - interval '800 hours', folded = false`;
    expect(await removed(`with aged as (${days}), waiting as (${calls}) select 1`)).to.deep.equal({
      retention_usage: 2,
    });
    expect(await counts()).to.include({ llm_requests: 1, usage_rollups: 2 });
    // What it comes to stands in the sums for a moment, though of a day that is gone: it is never lost before.
    await fold(server.kernel.database, { tenant, env: 'dev', user: '' });
    expect(await counts()).to.include({ llm_requests: 1, usage_rollups: 6 });
    expect(await removed('select 1')).to.deep.equal({ retention_usage: 5 });
    expect(await counts()).to.include({ llm_requests: 0, usage_rollups: 2 });
  });

  it('keeps the sums of a month for budgets that count them', async () => {
    await keep(tenant, { usage_days: 1 });
    await plant();
    const budget = { scope: Budget_Scope.USER, subject: 'user', period: Budget_Period.MONTH, costLimit: '1' };
    await client.usage.setBudget({ budget }, metadataOf(headersOf(tenant, 'admin')));
    const month = `date_trunc('month', now() at time zone 'UTC')::date`;
    expect(
      await removed(`update usage_rollups set day = ${month} - case grain when 1 then 5 else 0 end`),
    ).to.deep.equal({ retention_usage: 1 });
    await sql('delete from budgets');
    const [{ due }] = await sql(`select ${month} < ((now() - interval '24 hours') at time zone 'UTC')::date as due`);
    expect(await removed('select 1')).to.deep.equal(due ? { retention_usage: 3 } : {});
  });

  it('removes nothing that is younger, of another tenant, without a policy, or after the policy was taken away', async () => {
    const others = [await newTenant(), await newTenant()];
    await keep(others[0]!, { messages_days: 41, turns_days: 41, checkpoints_days: 41, usage_days: 41 });
    await addMember(tenant, 'user', 'prod');
    for (const of of [tenant, ...others]) {
      await plant({ of });
      await age(of, 40);
    }
    const before = await counts();
    const all = { messages: 0, turns: 0, checkpoints: 0, audit: 0, usage: 0 };
    for (const days of [null, { messages_days: 41 }, null]) {
      await keep(tenant, days);
      await sweep(server.kernel.database);
      for (const of of [tenant, ...others]) expect(await counts(of)).to.deep.equal(before);
      expect([await sweptOf(), await pendingOf()]).to.deep.equal([all, all]);
    }
    await plant({ env: 'prod' });
    await keep(tenant, DAYS);
    const inProd = await counts(tenant, 'prod');
    const [pending] = [await pendingOf()];
    await until(async () => {
      await sweep(server.kernel.database);
      return (await counts()).turns === 0;
    });
    expect(pending).to.deep.equal({ ...all, messages: 1, turns: 4, checkpoints: 1, usage: 5 });
    expect(await sweptOf()).to.deep.equal(pending);
    expect(await pendingOf()).to.deep.equal(all);
    expect(await counts(tenant, 'prod')).to.deep.equal(inProd);
    for (const of of others) expect(await counts(of)).to.deep.equal(before);
  });

  it('leaves a session that works, without the state of before where it is resumed by its project', async () => {
    await keep(tenant, { turns_days: 30, checkpoints_days: 30 });
    const sessionId = await plant();
    const [checkpoint] = (await client.memory.listStateCheckpoints({ sessionId })).checkpoints;
    await age(tenant, 40);
    await sweep(server.kernel.database);
    const empty = { latest: undefined, turns: [], structuredData: [], reports: [] };
    expect(await client.conversation.getSessionData({ sessionId })).to.deep.equal(empty);
    expect((await client.memory.getSession({ sessionId })).session!.state).to.deep.equal({ at: 1 });
    expect((await client.memory.listStateCheckpoints({ sessionId })).checkpoints).to.deep.equal([]);
    const restored = client.memory.restoreSessionState({ sessionId, checkpointId: checkpoint!.id });
    expect((await failure(restored)).code).to.equal(status.NOT_FOUND);
    await client.memory.endSession({ sessionId });
    const target = { $case: 'resumeProjectId' as const, value: 'p' };
    const resumed = await client.memory.resumeSession({ target, surfaceId: 'web', createIfMissing: true });
    expect([resumed.created, resumed.recoveredFrom, resumed.session!.state]).to.deep.equal([true, '', {}]);
  });

  it('removes a backlog in batches, and counts it once, while several sweep at once', async () => {
    await keep(tenant, DAYS);
    await plant();
    await sql(`insert into turns (tenant_id, env, session_id, id, user_id, query, response, planner_reasoning, reflection, tasks, results,
        truncated, first_seq, last_seq, create_time)
      select tenant_id, env, session_id, gen_random_uuid(), user_id, query, response, planner_reasoning, reflection, tasks, results,
        truncated, first_seq, last_seq, create_time from turns, generate_series(1, 2500)`);
    await age(tenant, 40);
    const { database } = server.kernel;
    await Promise.all([sweep(database), sweep(database), sweep(database)]);
    await until(async () => {
      await sweep(database);
      return Object.values(await pendingOf()).every((n) => n === 0);
    });
    expect(await sweptOf()).to.deep.equal({ messages: 1, turns: 2504, checkpoints: 1, audit: 0, usage: 5 });
  });
});

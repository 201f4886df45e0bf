import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { Decimal } from 'decimal.js';
import fc from 'fast-check';
import type { LlmRequestRecord } from '../src/gen/memory/v1/call.ts';
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
  startTestServer,
  tenantSql,
} from './support.ts';

const Exact = Decimal.clone({ precision: 60, toExpNeg: -40, toExpPos: 40 });

describe('usage', () => {
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
  const llm = (fields: object = {}) => ({
    provider: 'p',
    model: 'm',
    promptTokens: 10,
    completionTokens: 5,
    ...fields,
  });
  const record = (fields: object = {}, rest: object = {}, metadata = as('user')) =>
    client.usage.recordLlmRequest({ llmRequest: llm(fields), ...rest }, metadata);
  const newSession = async (projectId = 'atlas') =>
    (await client.memory.upsertSession({ session: { surfaceId: `s-${randomUUID()}`, projectId } })).session!;
  const usage = async (request: object, metadata = as('user')) => {
    const page = (pageToken: string) => client.usage.getUsage({ pageSize: 2, ...request, pageToken }, metadata);
    return (await allPages(page)).flatMap((each) => each.usage);
  };
  const addUp = () => fold(server.kernel.database, { tenant, env: 'dev', user: '' });

  it('records a call of a model with what it cost, once', async () => {
    const session = await newSession();
    const costs = { promptUnitCost: '0.0000030', cachedUnitCost: '0.0000003', completionUnitCost: '0.000015' };
    const tokens = { promptTokens: 1000, cachedTokens: 400, completionTokens: 200 };
    const made = { ...tokens, ...costs, latencyMs: 1234, status: 'ok', externalId: 'req-1' };
    const requestId = randomUUID();
    const first = await record(made, { sessionId: session.id, requestId });
    expect(first).to.include({ created: true });
    expect(first.llmRequest).to.include({ userId: 'user', sessionId: session.id, projectId: 'atlas', turnId: '' });
    expect(first.llmRequest!.record).to.include({ ...tokens, latencyMs: 1234, status: 'ok', totalTokens: 1200 });
    // 600 × 0.000003 + 400 × 0.0000003 + 200 × 0.000015
    expect(first.llmRequest!.record).to.include({ cost: '0.00492', promptUnitCost: '0.000003', externalId: 'req-1' });
    expect(await record(made, { sessionId: session.id, requestId })).to.deep.equal(first);

    const again = await record({ ...made, latencyMs: 1 });
    expect(again).to.deep.equal({ ...first, created: false });
    const other = await failure(record({ ...made, completionTokens: 201 }));
    expect(other).to.include({ code: status.ALREADY_EXISTS, reason: 'EXTERNAL_ID_REUSED' });
    const same = { promptUnitCost: '0.000003', totalTokens: 1200, cost: '0.004920' };
    expect((await record({ ...made, ...same })).created, 'the same in other words').to.equal(false);
    for (const changed of [
      { cost: '0.5' },
      { cost: '0' },
      { promptUnitCost: '0.000004' },
      { cachedUnitCost: '' },
      { completionUnitCost: '0.00015' },
      { cachedTokens: 399 },
      { totalTokens: 1201 },
      { model: 'other' },
    ]) {
      const { code, reason } = await failure(record({ ...made, ...changed }));
      expect([code, reason], JSON.stringify(changed)).to.deep.equal([status.ALREADY_EXISTS, 'EXTERNAL_ID_REUSED']);
    }
    expect((await record({ ...made, cost: '0.5' }, {}, as('other'))).created, 'of another user').to.equal(true);
    expect((await record({ ...made, provider: 'q' })).llmRequest!.record!.cost).to.equal('0.00492');
    const { llmRequests } = await client.usage.listLlmRequests({ sessionId: session.id });
    expect(llmRequests).to.deep.equal([first.llmRequest]);
  });

  it('records once what comes many times at once by its external_id', async () => {
    const made = await Promise.all(
      Array.from({ length: 20 }, (_, i) => record({ externalId: 'same', latencyMs: i, cost: '1.5' })),
    );
    expect(made.filter(({ created }) => created)).to.have.length(1);
    expect(new Set(made.map(({ llmRequest }) => llmRequest!.id)).size).to.equal(1);
    expect((await usage({}))[0]).to.include({ requests: 1, cost: '1.5' });
  });

  it('counts once what a turn brings along as well', async () => {
    const known = { externalId: 'known', cost: '1' };
    await record(known);
    const { session, lease } = await client.conversation.beginTurn({ session: { surfaceId: 'web' }, holder: 'h' });
    const commit = (...llmRequests: object[]) =>
      client.conversation.commitTurn({
        sessionId: session!.id,
        fencingToken: lease!.fencingToken,
        messages: [{ role: 2, content: 'because' }],
        llmRequests,
      });
    await commit(
      llm(known),
      llm({ externalId: 'new', cost: '2' }),
      llm({ externalId: 'new', cost: '2' }),
      llm({ cost: '4' }),
    );
    expect((await usage({}))[0]).to.include({ requests: 3, cost: '7' });
    const refused = await failure(commit(llm({ ...known, model: 'other' }), llm({ cost: '8' })));
    expect(refused).to.include({ code: status.ALREADY_EXISTS, reason: 'EXTERNAL_ID_REUSED' });
    expect((await usage({}))[0]).to.include({ requests: 3, cost: '7' });
    const { messages } = await client.conversation.listMessages({ threadId: session!.threadId });
    expect(messages, 'all or nothing').to.have.length(1);
  });

  it('refuses fewer tokens in all than in the parts, and takes more', async () => {
    const parts = { promptTokens: 100, completionTokens: 50 };
    const refused = await failure(record({ ...parts, totalTokens: 149 }));
    expect(refused.violations.map(({ field }) => field)).to.deep.equal(['llm_request.total_tokens']);
    for (const totalTokens of [150, 170])
      expect((await record({ ...parts, totalTokens })).llmRequest!.record!.totalTokens).to.equal(totalTokens);
  });

  it('takes a given cost for what it is', async () => {
    const { llmRequest } = await record({ cost: '0.10', promptUnitCost: '7', completionUnitCost: '7' });
    expect(llmRequest!.record!.cost).to.equal('0.1');
    expect((await record({})).llmRequest!.record!.cost).to.equal('0');
  });

  it('names no session, turn or project that the user has not', async () => {
    const session = await newSession();
    const theirs = await failure(record({}, { sessionId: session.id }, as('other')));
    const nobodys = await failure(record({}, { sessionId: randomUUID() }, as('other')));
    expect(theirs).to.deep.equal(nobodys);
    expect(theirs.code).to.equal(status.NOT_FOUND);
    const turn = await failure(record({}, { sessionId: session.id, turnId: randomUUID() }));
    expect([turn.code, turn.message]).to.deep.equal([status.NOT_FOUND, 'turn not found']);
    await client.memory.endSession({ sessionId: session.id });
    expect((await record({}, { sessionId: session.id })).created, 'it has ended').to.equal(true);
    await client.memory.deleteSession({ sessionId: session.id });
    expect((await failure(record({}, { sessionId: session.id }))).code).to.equal(status.NOT_FOUND);
    expect((await usage({ sessionId: session.id }))[0]!.requests, 'what it cost stays').to.equal(1);
  });

  it('keeps the parameters of bodies, and no content or secret whatever it is called', async () => {
    const secret = 'geheim';
    const key = 'sk-abcdefghij0123456789abcdef';
    const request = {
      model: 'm-1',
      temperature: 0.5,
      maxTokens: 100,
      stream: true,
      messages: [{ role: 'user', content: secret }, { content: [{ type: 'text', text: secret }] }],
      system: secret,
      prompt: secret,
      input: secret,
      stop: [secret],
      user: secret,
      metadata: { temperature: secret },
      headers: { authorization: `Bearer ${key}`, 'x-api-key': key },
      api_key: key,
      service_tier: key,
      top_p: secret,
      tools: [
        { name: 'grep', description: secret, input_schema: { secret } },
        { type: 'function', function: { name: 'read', parameters: { secret } } },
        { name: `two ${secret}` },
      ],
      thinking: { type: 'enabled', budget_tokens: 10, text: secret },
      generationConfig: { topK: 3, stopSequences: [secret] },
      constructor: secret,
      unheard: { of: secret },
    };
    const response = {
      id: 'resp_1',
      model: key,
      stop_reason: 'end_turn',
      content: [{ text: secret }],
      choices: [{ index: 0, finish_reason: 'stop', message: { content: secret } }],
      usage: { input_tokens: 3, note: secret, [`${secret} ${secret}`]: 1, cache: { read: 1, text: secret } },
    };
    const { llmRequest } = await record({ request, response, status: `Bearer ${key}` });
    expect(llmRequest!.record!.request).to.deep.equal({
      model: 'm-1',
      temperature: 0.5,
      max_tokens: 100,
      stream: true,
      messages: 2,
      tools: ['grep', 'read'],
      thinking: { type: 'enabled', budget_tokens: 10 },
      generation_config: { top_k: 3 },
    });
    expect(llmRequest!.record!.response).to.deep.equal({
      id: 'resp_1',
      stop_reason: 'end_turn',
      choices: [{ index: 0, finish_reason: 'stop' }],
      usage: { input_tokens: 3, cache: { read: 1 } },
    });
    const { llmRequests } = await client.usage.listLlmRequests({});
    expect(llmRequests).to.deep.equal([llmRequest]);
    for (const table of ['llm_requests', 'requests', 'audit_events']) {
      const rows = JSON.stringify(await tenantSql(tenant, `select to_jsonb(t)::text as row from ${table} t`));
      expect(rows.includes(secret) || rows.includes(key), table).to.equal(false);
    }
  });

  it('has costs exact to the last digit over 10,000 calls, as a decimal library has them', async function () {
    this.timeout(120_000);
    const unit = fc.tuple(fc.nat(999_999), fc.integer({ min: 0, max: 10 ** 12 - 1 })).map(decimal);
    const tokens = fc.oneof(fc.nat(5000), fc.nat(1_000_000_000));
    const calls = fc.sample(
      fc.record({
        prompt: tokens,
        share: fc.nat(100),
        completion: tokens,
        units: fc.tuple(unit, unit, unit),
        left: fc.nat(9),
      }),
      { numRuns: 10_000, seed: 8 },
    );
    let sum = new Exact(0);
    const records = calls.map(({ prompt, share, completion, units, left }, i) => {
      const [promptUnitCost, cachedUnitCost, completionUnitCost] = units.map((cost, n) => (left === n ? '' : cost));
      const cached = Math.floor((prompt * share) / 100);
      const of = (cost: string | undefined) => new Exact(cost || 0);
      const cost =
        left === 9
          ? of(decimal([i, i]))
          : of(promptUnitCost)
              .times(prompt - cached)
              .plus(of(cachedUnitCost || promptUnitCost).times(cached))
              .plus(of(completionUnitCost).times(completion));
      sum = sum.plus(cost);
      const given = left === 9 ? { cost: decimal([i, i]) } : {};
      const fields = {
        promptTokens: prompt,
        cachedTokens: cached,
        completionTokens: completion,
        externalId: String(i),
      };
      return {
        ...llm({ ...fields, promptUnitCost, cachedUnitCost, completionUnitCost, ...given }),
        expected: cost.toString(),
      };
    });
    const { session, lease } = await client.conversation.beginTurn({ session: { surfaceId: 'web' }, holder: 'h' });
    for (let at = 0; at < records.length; at += 100) {
      const llmRequests: Partial<LlmRequestRecord>[] = records.slice(at, at + 100);
      await client.conversation.commitTurn({ sessionId: session!.id, fencingToken: lease!.fencingToken, llmRequests });
      if (at === 5000) await addUp();
    }
    const list = (pageToken: string) => client.usage.listLlmRequests({ pageSize: 500, pageToken });
    const stored = (await allPages(list)).flatMap((page) => page.llmRequests);
    expect(stored).to.have.length(records.length);
    for (const { record: is } of stored) expect(is!.cost).to.equal(records[Number(is!.externalId)]!.expected);
    for (let turn = 0; turn < 2; turn++) {
      const [total] = await usage({});
      expect(total).to.include({ requests: records.length, cost: sum.toString() });
      await addUp();
    }
  });
});

/** With 12 digits after the point, as many as there may be. */
function decimal([whole, rest]: [number, number]): string {
  return `${whole}.${String(rest).padStart(12, '0')}`;
}

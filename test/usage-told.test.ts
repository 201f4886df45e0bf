import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { Decimal } from 'decimal.js';
import { table } from '../src/cli/usage-table.ts';
import { UsageDimension } from '../src/gen/memory/v1/usage.ts';
import type { RunningServer } from '../src/server.ts';
import { fold } from '../src/usage/fold.ts';
import { memoryd } from './fixtures/command.ts';
import {
  allPages,
  appUrl,
  type Clients,
  connect,
  failure,
  headersOf,
  metadataOf,
  newTenant,
  startTestServer,
  tenantSql,
} from './support.ts';

const { SESSION, USER, PROJECT, DAY, PROVIDER, MODEL } = UsageDimension;
const Exact = Decimal.clone({ precision: 60, toExpNeg: -40, toExpPos: 40 });

describe('usage, told', () => {
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

  it('is told by any of its dimensions, before it is added up and after, and by both', async () => {
    const sessions = [await newSession('atlas'), await newSession('borges')];
    const made: Record<string, string>[] = [];
    const spend = async (user: string, session: number, provider: string, model: string) => {
      const ids = user === 'user' ? { sessionId: sessions[session]!.id } : { projectId: 'atlas' };
      const { llmRequest } = await record({ provider, model, cost: '0.1' }, ids, as(user));
      const { sessionId, userId, projectId } = llmRequest!;
      made.push({
        sessionId,
        userId,
        projectId,
        provider,
        model,
        day: new Date(llmRequest!.createTime!.seconds * 1000).toISOString().slice(0, 10),
      });
    };
    const check = async () => {
      const keys = { sessionId: SESSION, userId: USER, projectId: PROJECT, day: DAY, provider: PROVIDER, model: MODEL };
      const names = Object.keys(keys) as (keyof typeof keys)[];
      for (let subset = 0; subset < 64; subset++) {
        const by = names.filter((_, i) => subset & (1 << i));
        const groups = Map.groupBy(made, (one) => JSON.stringify(by.map((name) => one[name])));
        const expected = [...groups].map(([key, all]) => [
          ...JSON.parse(key),
          all.length,
          new Exact('0.1').times(all.length).toString(),
        ]);
        // In any order, as the order of the dimensions asked for does not matter.
        const told = await usage({ groupBy: by.map((name) => keys[name]).reverse() }, as('admin'));
        const got = told.map((one) => [...by.map((name) => one[name]), one.requests, one.cost]);
        expect(got, by.join()).to.have.deep.members(expected);
      }
      const own = await usage({ groupBy: [USER] });
      expect(own.map((one) => one.userId)).to.deep.equal(['user']);
      const [some] = await usage({ projectId: 'atlas', provider: 'p', groupBy: [PROJECT] });
      expect(some!.requests).to.equal(
        made.filter((one) => one.userId === 'user' && one.projectId === 'atlas' && one.provider === 'p').length,
      );
    };
    await spend('user', 0, 'p', 'm1');
    await spend('user', 0, 'p', 'm2');
    await spend('user', 1, 'q', 'm1');
    await spend('other', 0, 'q', 'm1');
    await check();
    await addUp();
    await check();
    const today = made[0]!.day!;
    const yesterday = new Date(Date.parse(today) - 86_400_000).toISOString().slice(0, 10);
    await tenantSql(tenant, `update usage_rollups set day = day - 1`);
    for (const one of made) one.day = yesterday;
    await spend('user', 1, 'p', 'm1');
    await spend('other', 0, 'q', 'm3');
    await check();
    const within = async (days: object) => (await usage(days, as('admin')))[0]!.requests;
    expect(await within({ startDay: yesterday, endDay: yesterday })).to.equal(4);
    expect(await within({ startDay: today })).to.equal(2);
    expect(await within({ endDay: today })).to.equal(6);
  });

  it("tells members their own, and admins the tenant's", async () => {
    await record();
    await record({}, {}, as('other'));
    expect((await usage({}, as('admin')))[0]!.requests).to.equal(2);
    expect((await usage({}))[0]!.requests).to.equal(1);
    const ids = async (request: object, metadata = as('user')) =>
      (await client.usage.listLlmRequests(request, metadata)).llmRequests.map(({ userId }) => userId);
    expect(await ids({})).to.deep.equal(['user']);
    expect(await ids({}, as('admin'))).to.deep.equal(['other', 'user']);
    expect(await ids({ userId: 'other' }, as('admin'))).to.deep.equal(['other']);
    for (const call of [
      client.usage.listLlmRequests({ userId: 'other' }),
      client.usage.getUsage({ userId: 'other' }),
    ]) {
      expect(await failure(call)).to.include({ code: status.PERMISSION_DENIED, reason: 'ADMIN_REQUIRED' });
    }
  });

  it('is told by a command: a table to people, lines of JSON to programs', async () => {
    const session = await newSession('日本');
    await record({ cost: '1234.5', model: 'm1' }, { sessionId: session.id });
    await record({ cost: '0.25', model: 'm2' }, { projectId: 'atlas' }, as('other'));
    const command = async (...args: string[]) => {
      const { ended, out, err } = memoryd(['usage', '--tenant', tenant, '--env', 'dev', ...args], {
        DATABASE_URL: appUrl(),
      });
      return { code: await ended, lines: out().trimEnd().split('\n'), error: err() };
    };
    const { code, lines } = await command('--by', 'project,model', '--from', '2026-01-01');
    expect(code).to.equal(0);
    const figures = {
      requests: 1,
      promptTokens: 10,
      cachedTokens: 0,
      completionTokens: 5,
      totalTokens: 15,
      latencyMs: 0,
    };
    expect(lines.map((line) => JSON.parse(line))).to.have.deep.members([
      { project: 'atlas', model: 'm2', ...figures, cost: '0.25' },
      { project: '日本', model: 'm1', ...figures, cost: '1234.5' },
    ]);
    const [total] = (await command()).lines;
    expect(JSON.parse(total!)).to.include({ requests: 2, cost: '1234.75' });
    for (const bad of [
      ['--by', 'weather'],
      ['--from', 'tuesday'],
      ['--env', 'none'],
      ['--tenant', 'nobody'],
    ]) {
      const refused = await command(...bad);
      expect(refused.code, bad.join(' ')).to.equal(1);
      expect(refused.error.trim().split('\n'), refused.error).to.have.length(1);
    }
    const { usage: rows } = await client.usage.getUsage({ groupBy: [PROJECT, MODEL] }, as('admin'));
    expect(table(['project', 'model'], rows)).to.equal(
      [
        'project  model  requests  prompt tokens  cached  completion tokens     cost',
        '───────  ─────  ────────  ─────────────  ──────  ─────────────────  ───────',
        'atlas    m2            1             10       0                  5     0.25',
        '日本     m1            1             10       0                  5  1,234.5',
        '',
      ].join('\n'),
    );
  });

  it('is listed and exported by time', async () => {
    const ids: string[] = [];
    for (let i = 0; i < 4; i++) ids.push((await record()).llmRequest!.id);
    // A minute apart, each.
    await tenantSql(
      tenant,
      `update llm_requests set create_time = '2026-05-05 12:00Z'::timestamptz + make_interval(mins => array_position($1::uuid[], id))`,
      [ids],
    );
    const at = (minute: number) => ({ seconds: Date.UTC(2026, 4, 5, 12, minute) / 1000, nanos: 0 });
    const listed = async (times: object) =>
      (await client.usage.listLlmRequests(times)).llmRequests.map(({ id }) => ids.indexOf(id));
    const exported = async (times: object) => {
      const request = { userId: '', startTime: undefined, endTime: undefined, cursor: '', ...times };
      const pieces = await client.streams.usage.exportUsage(request, as('user')).toArray();
      return pieces.flatMap(({ lines }) =>
        lines
          .trimEnd()
          .split('\n')
          .map((line: string) => ids.indexOf(JSON.parse(line).id)),
      );
    };
    // The ids are of now: only who asks for times near them can rely on them.
    for (const id of ids) {
      const then = `019df7d8-${id.slice(9)}`;
      await tenantSql(tenant, 'update llm_requests set id = $2 where id = $1', [id, then]);
      ids[ids.indexOf(id)] = then;
    }
    expect(await listed({})).to.deep.equal([3, 2, 1, 0]);
    expect(await listed({ startTime: at(2) })).to.deep.equal([3, 2, 1]);
    expect(await listed({ startTime: at(2), endTime: at(4) })).to.deep.equal([2, 1]);
    expect(await listed({ endTime: at(1) })).to.deep.equal([]);
    expect(await exported({ startTime: at(2), endTime: at(4) })).to.deep.equal([1, 2]);
    expect(await exported({ endTime: { seconds: 253_402_300_799, nanos: 0 } })).to.deep.equal([0, 1, 2, 3]);
    expect(await exported({ startTime: { seconds: -62_135_596_800, nanos: 0 } })).to.deep.equal([0, 1, 2, 3]);
  });

  it('exports all of it as lines, and goes on after a cursor', async () => {
    await tenantSql(
      tenant,
      `insert into llm_requests (tenant_id, env, id, user_id, provider, model, prompt_tokens, completion_tokens, total_tokens, cost,
         latency_ms, status, create_time)
       select $1, 'dev', gen_random_uuid(), 'user', 'p', 'm', n, 0, n, n * 0.001, 1, '', now() from generate_series(1, 1234) n`,
      [tenant],
    );
    const read = async (cursor: string, pieces: number) => {
      const stream = client.streams.usage.exportUsage(
        { userId: '', startTime: undefined, endTime: undefined, cursor },
        as('user'),
      );
      const lines: any[] = [];
      let last = cursor;
      for await (const { lines: text, cursor: next } of stream) {
        expect(text.endsWith('\n')).to.equal(true);
        lines.push(
          ...text
            .trimEnd()
            .split('\n')
            .map((line: string) => JSON.parse(line)),
        );
        last = next;
        if (--pieces === 0) break;
      }
      return { lines, last };
    };
    const whole = await read('', Number.POSITIVE_INFINITY);
    expect(whole.last).to.equal('');
    expect(whole.lines.map((line) => line.prompt_tokens).sort((a, b) => a - b)).to.deep.equal(
      Array.from({ length: 1234 }, (_, i) => i + 1),
    );
    for (const { prompt_tokens: n, cost } of whole.lines) expect(cost).to.equal(new Exact(n).times('0.001').toString());
    const first = await read('', 1);
    const rest = await read(first.last, Number.POSITIVE_INFINITY);
    expect([...first.lines, ...rest.lines]).to.deep.equal(whole.lines);
    const stream = client.streams.usage.exportUsage(
      { userId: '', startTime: undefined, endTime: undefined, cursor: 'x' },
      as('user'),
    );
    const refused = await failure(stream.toArray());
    expect(refused.violations.map(({ field }) => field)).to.deep.equal(['cursor']);
  });

  it('exports at constant memory, however slowly it is read', async function () {
    this.timeout(60_000);
    const [rows, filler] = [60_000, 'x'.repeat(120)];
    await tenantSql(
      tenant,
      `insert into llm_requests (tenant_id, env, id, user_id, project_id, provider, model, prompt_tokens, completion_tokens, total_tokens,
         cost, latency_ms, status, create_time, folded)
       select $1, 'dev', gen_random_uuid(), 'user', $2, $2, $2, n, 0, n, 0, 1, '', now(), true from generate_series(1, $3::int) n`,
      [tenant, filler, rows],
    );
    const everything = { userId: '', startTime: undefined, endTime: undefined, cursor: '' };
    const stream = client.streams.usage.exportUsage(everything, as('user'));
    const database = server.kernel.database;
    const { acquire } = database;
    let pages = 0;
    database.acquire = (...asked) => {
      pages++;
      return acquire.apply(database, asked);
    };
    try {
      const reader = stream[Symbol.asyncIterator]();
      let lines = (await reader.next()).value!.lines.split('\n').length - 1;
      // While nobody reads, the server stops asking for more: what is under way fits into a few buffers.
      let [before, asked] = [-1, 0];
      while (asked !== before) {
        before = asked;
        await new Promise((resolve) => setTimeout(resolve, 300));
        asked = pages;
      }
      expect(asked).to.be.lessThan(rows / 500 / 2);
      for (let piece = await reader.next(); !piece.done; piece = await reader.next()) {
        lines += piece.value.lines.split('\n').length - 1;
      }
      expect(lines).to.equal(rows);
    } finally {
      database.acquire = acquire;
    }
  });
});

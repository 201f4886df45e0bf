import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import pg from 'pg';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import type { RunningServer } from '../src/server.ts';
import { allTables, tenantTables } from './fixtures/roles.ts';
import { type Steps, watchSteps } from './fixtures/steps.ts';
import { type Interposed, startProxy } from './proxy.ts';
import {
  appUrl,
  type Clients,
  connect,
  type Failure,
  failureOf,
  headersOf,
  newTenant,
  ownerUrl,
  startTestServer,
  tenantSql,
} from './support.ts';

describe('turns whose backends are killed', () => {
  let proxy: Interposed;
  let server: RunningServer;
  let steps: Steps;
  let killer: pg.Client;
  let tables: string[];
  let tenant: string;
  let client: Clients;

  before(async () => {
    // Sums of usage are made of it a second later.
    tables = tenantTables(await allTables()).filter((table) => table !== 'usage_rollups');
    proxy = await startProxy(appUrl());
    const url = new URL(proxy.url);
    const name = `killed-${randomUUID()}`;
    url.searchParams.set('application_name', name);
    server = await startTestServer({}, undefined, url.href);
    killer = new pg.Client({ connectionString: ownerUrl() });
    await killer.connect();
    const kill = 'select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = $1';
    steps = watchSteps(proxy, () => killer.query(kill, [name]));
  });
  after(async () => {
    await server.stop();
    await killer.end();
    await proxy.close();
  });
  beforeEach(async () => {
    tenant = await newTenant();
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  });
  afterEach(() => client.close());

  type Contents = Record<string, unknown[]>;
  /** Every row of the tenant, in all tables. */
  async function contents(): Promise<Contents> {
    const rows = tables.map(
      (table) =>
        `(select coalesce(jsonb_agg(to_jsonb(t) - 'folded' order by t.*::text), '[]') from ${table} t) as ${table}`,
    );
    return (await tenantSql(tenant, `select ${rows.join(', ')}`))[0];
  }
  /** By how many rows each table has grown. */
  const growth = (before: Contents, after: Contents) =>
    Object.fromEntries(tables.map((table) => [table, after[table]!.length - before[table]!.length]));

  let surfaces = 0;
  const beginning = (requestId: string) => ({
    session: { surfaceId: `s${++surfaces}`, state: { n: surfaces } },
    holder: 'a',
    messages: [{ role: MessageRole.HUMAN, content: 'why?' }],
    context: {},
    requestId,
  });
  /** What makes a new call of each kind, that can succeed once without and often with a request_id. */
  const KINDS: Record<string, (requestId: string) => Promise<() => Promise<object>>> = {
    async BeginTurn(requestId) {
      const request = beginning(requestId);
      return () => client.conversation.beginTurn(request);
    },
    async CommitTurn(requestId) {
      const { session, lease, messages } = await client.conversation.beginTurn(beginning(''));
      const request = {
        sessionId: session!.id,
        fencingToken: lease!.fencingToken,
        messages: [{ role: MessageRole.ASSISTANT, content: 'because' }],
        messageIds: [messages[0]!.id],
        turn: { query: 'why?', response: 'because' },
        statePatch: { step: 1 },
        summaries: [{ id: 's', text: 'why and because', throughSeq: 2 }],
        contextEntries: [{ entry: { $case: 'decision' as const, value: { text: 'answer' } } }],
        llmRequests: [{ provider: 'p', model: 'm', promptTokens: 10, completionTokens: 5 }],
        toolCalls: [{ toolName: 'grep' }],
        prompts: [{ name: 'system', text: 'be kind' }],
        release: true,
        requestId,
      };
      return () => client.conversation.commitTurn(request);
    },
  };

  interface Outcome {
    answer: object | undefined;
    failure: Failure | undefined;
    before: Contents;
    after: Contents;
    grown: Record<string, number>;
  }
  /** What came of a call, and of the tables. */
  async function outcome(call: () => Promise<object>): Promise<Outcome> {
    const before = await contents();
    const result = await call().then(
      (answer) => ({ answer, failure: undefined }),
      (error) => ({ answer: undefined, failure: failureOf(error) }),
    );
    await steps.killed(); // else a backend could still be about to commit
    const after = await contents();
    return { ...result, before, after, grown: growth(before, after) };
  }
  const expectNothing = ({ before, after }: Outcome, what: string) => expect(after, what).to.deep.equal(before);
  /** By how many rows the tables grow when a call of this kind is left alone, which is the whole of it. */
  async function wholeOf(kind: string, requestId: string) {
    const { grown, failure } = await outcome(await KINDS[kind]!(requestId));
    expect(failure).to.equal(undefined);
    expect(grown).to.include({ messages: 1 });
    return grown;
  }
  async function expectOnce(call: () => Promise<object>, result: Outcome, whole: Record<string, number>, what: string) {
    expect(result.failure, what).to.equal(undefined);
    expect(result.grown, what).to.deep.equal(whole);
    const again = await outcome(call);
    expect(again.answer, `${what}, replayed`).to.deep.equal(result.answer);
    expectNothing(again, `${what}, replayed`);
  }
  /** Calls of a kind, each killed at a later step, until one has no such step. Gives the last step that was refused. */
  async function killedAtEachStep(
    kind: string,
    requestId: () => string,
    check: (call: () => Promise<object>, result: Outcome, what: string) => Promise<unknown>,
  ): Promise<number> {
    let refused = 0;
    for (let step = 1; ; step++) {
      const call = await KINDS[kind]!(requestId());
      steps.killBefore(tenant, step);
      const result = await outcome(call);
      if (!steps.reached()) {
        expect(step, 'a begin, a statement and a commit are three').to.be.greaterThan(3);
        expect(result.failure).to.equal(undefined);
        return refused;
      }
      if (result.failure) refused = step;
      await check(call, result, `${kind} killed before step ${step}`);
    }
  }

  for (const kind of Object.keys(KINDS)) {
    it(`leave nothing of a ${kind} without request_id, whichever step is the last, and say UNAVAILABLE`, async () => {
      const whole = await wholeOf(kind, '');
      const commit = await killedAtEachStep(
        kind,
        () => '',
        async (_call, result, what) => {
          if (!result.failure) return expect(result.grown, what).to.deep.equal(whole); // what is read after COMMIT is read again
          expect(result.failure, what).to.include({ code: status.UNAVAILABLE });
          expectNothing(result, what);
        },
      );
      expect(commit).to.be.greaterThan(2);
    });

    it(`do a ${kind} with a request_id once, whichever step is the last`, async () => {
      const whole = await wholeOf(kind, randomUUID());
      const check = (call: () => Promise<object>, result: Outcome, what: string) =>
        expectOnce(call, result, whole, what);
      expect(await killedAtEachStep(kind, randomUUID, check)).to.equal(0);
    });

    it(`do a ${kind} whole or not at all when they end while it commits, and say so if they say anything`, async () => {
      const commit = await killedAtEachStep(
        kind,
        () => '',
        async () => {},
      );
      const wholes = { '': await wholeOf(kind, ''), once: await wholeOf(kind, randomUUID()) };
      // The last step and those before it, which arrive together with it.
      for (const step of [commit, commit - 1, commit - 2, commit - 1, commit - 2]) {
        steps.killWith(tenant, step);
        const result = await outcome(await KINDS[kind]!(''));
        if (result.failure) expect(result.failure).to.include({ code: status.UNAVAILABLE });
        if (result.failure && result.grown.messages === 0) expectNothing(result, 'not at all');
        else expect(result.grown).to.deep.equal(wholes['']);

        const call = await KINDS[kind]!(randomUUID());
        steps.killWith(tenant, step);
        await expectOnce(call, await outcome(call), wholes.once, 'with a request_id');
      }
    });

    it(`do a ${kind} once when only the answer to its COMMIT is lost, and answer with it if it has a request_id`, async () => {
      const wholes = { '': await wholeOf(kind, ''), once: await wholeOf(kind, randomUUID()) };
      const unknown = await KINDS[kind]!('');
      steps.loseCommit(tenant);
      const result = await outcome(unknown);
      expect(result.failure).to.include({ code: status.UNAVAILABLE, reason: 'COMMIT_UNKNOWN' });
      expect(result.grown).to.deep.equal(wholes['']);

      const call = await KINDS[kind]!(randomUUID());
      steps.loseCommit(tenant);
      await expectOnce(call, await outcome(call), wholes.once, 'with a request_id');
      expect(steps.reached()).to.equal(true);
    });
  }
});

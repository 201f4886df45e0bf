import { expect } from 'chai';
import { v7 as uuidv7 } from 'uuid';
import type { RunningServer } from '../src/server.ts';
import { type ServerProcess, startProcess } from './fixtures/process.ts';
import { times } from './fixtures/results.ts';
import { recordTurns, result } from './fixtures/turns.ts';
import { allPages, type Clients, connect, headersOf, newTenant, startTestServer, tenantSql } from './support.ts';

const HOUR_MS = 3_600_000;

/** A process whose clock is ahead by an hour. */
const AHEAD = `--import ${JSON.stringify(
  `data:text/javascript,${encodeURIComponent(`const { now } = Date; Date.now = () => now() + ${HOUR_MS};`)}`,
)}`;

describe('the order of turns', function () {
  this.timeout(60_000);
  let server: RunningServer;
  let ahead: ServerProcess;
  let tenant: string;
  let clients: Clients[];
  let sessionId: string;

  before(async () => {
    [server, ahead] = await Promise.all([startTestServer(), startProcess({ env: { NODE_OPTIONS: AHEAD } })]);
  });
  after(() => Promise.all([server.stop(), ahead.stop()]));
  beforeEach(async () => {
    tenant = await newTenant(['user']);
    clients = [ahead.address, `127.0.0.1:${server.port}`].map((address) => connect(address, headersOf(tenant)));
    sessionId = await clients[1]!.memory
      .upsertSession({ session: { surfaceId: 'web', projectId: 'p' } })
      .then(({ session }) => session!.id);
  });
  afterEach(() => {
    for (const client of clients) client.close();
  });

  const read = async (client: Clients) => {
    const page = (pageToken: string) => client.conversation.listTurns({ sessionId, pageSize: 2, pageToken });
    const turns = (await allPages(page)).flatMap((each) => each.turns);
    const { latest, structuredData, reports } = await client.conversation.getSessionData({ sessionId });
    const { context } = await client.conversation.getContext({ sessionId });
    const { checkpoints } = await client.memory.listStateCheckpoints({ sessionId });
    return { turns, latest, structuredData, reports, context, checkpoints };
  };

  it('is that of their commits, however far apart the clocks of two servers are', async () => {
    const { threadId } = (await clients[1]!.memory.getSession({ sessionId })).session!;
    const { lease } = await clients[1]!.conversation.acquireTurn({ threadId, holder: 'a' });
    const commit = (client: Clients, n: number) =>
      client.conversation.commitTurn({
        sessionId,
        fencingToken: lease!.fencingToken,
        turn: {
          query: `${n}`,
          results: [result(`t${n}`, n), result('last', n)],
          report: { reportPath: '/r.md', summary: `${n}` },
        },
        statePatch: { n },
        llmRequests: [{ provider: 'p', model: `m${n}`, promptTokens: 1 }],
        toolCalls: [{ toolName: `tool${n}` }],
        prompts: [{ name: `prompt${n}`, text: 'x' }],
      });
    for (let n = 0; n < 8; n++) {
      const { turn } = await commit(clients[n % 2]!, n);
      // What it used is stored before its id is known.
      const turnId = turn!.id;
      const [{ toolCalls }, { prompts }, { llmRequests }] = await Promise.all([
        clients[0]!.audit.listToolCalls({ turnId }),
        clients[0]!.audit.listPrompts({ turnId }),
        clients[0]!.usage.listLlmRequests({ sessionId, turnId }),
      ]);
      expect([toolCalls[0]!.record!.toolName, prompts[0]!.record!.name, llmRequests[0]!.record!.model]).to.deep.equal([
        `tool${n}`,
        `prompt${n}`,
        `m${n}`,
      ]);
    }
    const down = times(8, (i) => `${7 - i}`);
    for (const client of clients) {
      const { turns, latest, structuredData, reports, context, checkpoints } = await read(client);
      expect(turns.map(({ query }) => query)).to.deep.equal(down);
      expect(latest!.query).to.equal('7');
      expect(context!.latestTurn!.query).to.equal('7');
      expect(reports.map(({ summary }) => summary)).to.deep.equal(down);
      expect(structuredData.map(({ taskId }) => taskId)).to.deep.equal(['last', ...down.map((n) => `t${n}`)]);
      expect(checkpoints.map(({ state }) => state!.n)).to.deep.equal(down.map(Number));
      expect(checkpoints.map(({ turnId }) => turnId)).to.deep.equal(turns.map(({ id }) => id));
      for (const { createTime } of turns) expect(createTime!.seconds).to.be.closeTo(Date.now() / 1000, 600);
    }
    // Of more than 50 checkpoints the first go, whoever made them, and the last is what a new session begins with.
    for (let n = 8; n < 53; n++) await commit(clients[n < 10 ? 0 : 1]!, n);
    const { checkpoints } = await clients[1]!.memory.listStateCheckpoints({ sessionId });
    expect(checkpoints.map(({ state }) => state!.n)).to.deep.equal(times(50, (i) => 52 - i));
    await clients[0]!.memory.endSession({ sessionId });
    const target = { $case: 'resumeProjectId' as const, value: 'p' };
    const { session } = await clients[0]!.memory.resumeSession({ target, surfaceId: 'web', createIfMissing: true });
    expect(session!.state).to.deep.equal({ n: 52 });
  });

  it('goes on after what was recorded by a clock that was ahead, or before the clock was set back', async () => {
    const record = (query: string) => recordTurns(server, tenant, sessionId, [{ query, results: [result(query, 1)] }]);
    await record('first');
    const [turn, checkpoint] = [HOUR_MS, 2 * HOUR_MS].map((ahead) => uuidv7({ msecs: Date.now() + ahead }));
    await tenantSql(tenant, `update turns set id = $1, create_time = now() + interval '2 hours'`, [turn]);
    await tenantSql(tenant, `update turn_results set turn_id = $1, update_time = now() + interval '2 hours'`, [turn]);
    await tenantSql(tenant, 'update state_checkpoints set id = $1', [checkpoint]);
    await record('second');
    await record('third');
    const { turns, structuredData, checkpoints } = await read(clients[1]!);
    expect(turns.map(({ query }) => query)).to.deep.equal(['third', 'second', 'first']);
    expect(structuredData.map(({ taskId }) => taskId)).to.deep.equal(['third', 'second', 'first']);
    expect(checkpoints.map(({ turnId }) => turnId).slice(0, 2)).to.deep.equal([turns[0]!.id, turns[1]!.id]);
    const times = turns.map(({ createTime }) => createTime!.seconds);
    expect(times).to.deep.equal([...times].sort((a, b) => b - a));
  });
});

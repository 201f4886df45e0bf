import { randomUUID } from 'node:crypto';
import { expect } from 'chai';
import fc from 'fast-check';
import { query } from '../src/db/statement.ts';
import { transactionOnce } from '../src/db/transaction.ts';
import { GetSessionDataResponse } from '../src/gen/memory/v1/conversation_service.ts';
import { Turn } from '../src/gen/memory/v1/turn.ts';
import type { RunningServer } from '../src/server.ts';
import { sweep } from '../src/tenants/expiry.ts';
import { RECORD_BYTES, recordBytes, recordOf } from '../src/turns/record.ts';
import { getSessionData, turnFromRow } from '../src/turns/repository.ts';
import { times } from './fixtures/results.ts';
import { recordTurns, result, WHOLE } from './fixtures/turns.ts';
import {
  allPages,
  type Clients,
  connect,
  failure,
  headersOf,
  newTenant,
  rowCounts,
  startTestServer,
  tenantSql,
  until,
} from './support.ts';

const LEFT = ['turns', 'turn_results', 'state_checkpoints'];

describe('turns', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;
  let sessionId: string;

  before(async () => {
    server = await startTestServer();
  });
  after(() => server.stop());
  beforeEach(async () => {
    tenant = await newTenant(['user', 'other']);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
    sessionId = (await upsert({})).id;
  });
  afterEach(() => client.close());

  const upsert = async (session: object) =>
    (await client.memory.upsertSession({ session: { surfaceId: 'web', projectId: 'p', ...session } })).session!;

  const record = (id: string, turns: Parameters<typeof recordTurns>[3]) => recordTurns(server, tenant, id, turns);
  const dataOf = (id = sessionId) => client.conversation.getSessionData({ sessionId: id });
  const expireAll = () => tenantSql(tenant, 'update sessions set expire_time = now()');

  describe('ListTurns', () => {
    it('gives back what was recorded, newest first', async () => {
      await record(sessionId, [WHOLE, { query: 'next' }]);
      const { turns, nextPageToken } = await client.conversation.listTurns({ sessionId });
      expect(nextPageToken).to.equal('');
      expect(turns.map((turn) => turn.query)).to.deep.equal(['next', 'Wie viele?']);
      const { id, createTime, results, ...rest } = turns[1]!;
      expect(id).to.match(/^[0-9a-f-]{14}7/);
      expect(createTime!.seconds).to.be.closeTo(Date.now() / 1000, 60);
      const { id: _, createTime: __, results: ___, ...wanted } = Turn.fromPartial({ ...WHOLE, sessionId } as object);
      expect(rest).to.deep.equal(wanted);
      expect(results.map(({ taskId, payloadJson }) => [taskId, JSON.parse(payloadJson.toString())])).to.deep.equal([
        ['a', { kind: 'table', row_count: 1, column_count: 1, columns: ['n'], preview: ['{"n":3}'], bytes: 9 }],
      ]);
    });

    it('answers a commit with the same turn, without query and response', async () => {
      const [row] = await record(sessionId, [WHOLE]);
      const [listed] = (await client.conversation.listTurns({ sessionId })).turns;
      expect(turnFromRow(row!)).to.deep.equal({ ...listed, query: '', response: '' });
    });

    it('pages by number, and by 1 MiB', async () => {
      await record(
        sessionId,
        times(7, (i) => ({ query: `${i}` })),
      );
      const pages = await allPages((pageToken) => client.conversation.listTurns({ sessionId, pageSize: 3, pageToken }));
      expect(pages.map(({ turns }) => turns.map((turn) => turn.query).join(''))).to.deep.equal(['654', '321', '0']);
      await record(
        sessionId,
        times(6, () => ({ response: 'x'.repeat(256 * 1024) })),
      );
      const large = await allPages((pageToken) => client.conversation.listTurns({ sessionId, pageToken }));
      expect(large.map(({ turns }) => turns.length)).to.deep.equal([3, 10]);
    });

    it('gives an empty page for a session without turns, and reads one that has ended', async () => {
      expect((await client.conversation.listTurns({ sessionId })).turns).to.deep.equal([]);
      await record(sessionId, [WHOLE]);
      await client.memory.endSession({ sessionId });
      expect((await client.conversation.listTurns({ sessionId })).turns).to.have.length(1);
      expect((await dataOf()).turns).to.have.length(1);
      expect((await client.memory.listStateCheckpoints({ sessionId })).checkpoints).to.have.length(1);
    });

    it('stores turns as small as the recorder reckons them', async () => {
      const text = fc.string({ unit: 'binary', maxLength: 50 }).map((t) => t.replaceAll('\0', '').repeat(40));
      const fields = fc.record({
        intent: fc.record({
          value: fc.string(),
          reasoning: text,
          confidence: fc.double({ min: 0, max: 1, noNaN: true }),
        }),
        plannerReasoning: text,
        tasks: fc.array(fc.record({ id: fc.string(), dependsOn: fc.array(fc.string()) }), { maxLength: 100 }),
        results: fc.array(
          fc.json().map((value) => result('a', value)),
          { maxLength: 100 },
        ),
        report: fc.record({ reportPath: fc.string(), summary: text, previews: fc.array(text) }),
      });
      const turns = fc.sample(fields, 100);
      await record(sessionId, turns);
      const stored = await tenantSql(
        tenant,
        'select byte_size - octet_length(query) - octet_length(response) - 200 as bytes from turns order by id',
      );
      turns.forEach((turn, i) => {
        const reckoned = recordBytes(recordOf(Turn.fromPartial(turn)));
        expect(stored[i].bytes)
          .to.be.at.most(reckoned)
          .and.at.least(reckoned - 340);
        expect(reckoned).to.be.at.most(RECORD_BYTES);
      });
    });
  });

  describe('GetSessionData', () => {
    it('gives the latest turn whole, the newest 50 without query and response, and what they left', async () => {
      expect(await dataOf()).to.deep.equal({ latest: undefined, turns: [], structuredData: [], reports: [] });
      await record(
        sessionId,
        times(60, (i) => ({ ...WHOLE, query: `${i}`, report: i % 2 ? WHOLE.report : undefined })),
      );
      const data = await dataOf();
      const { turns } = await client.conversation.listTurns({ sessionId });
      expect(data.latest).to.deep.equal(turns[0]);
      expect(data.turns).to.deep.equal(turns.map((turn) => ({ ...turn, query: '', response: '' })));
      expect(data.reports).to.deep.equal(times(20, () => WHOLE.report));
    });

    it('rolls the data of tasks by their ids, the newest 200', async () => {
      await record(sessionId, [
        { results: times(100, (i) => result(`t${i}`, i)) },
        { results: times(100, (i) => result(`t${100 + i}`, i)) },
      ]);
      const [last] = await record(sessionId, [
        { results: [result('t0', 'a'), result('new', 1), result('t0', 'again')] },
      ]);
      const { structuredData } = await dataOf();
      expect(structuredData).to.have.length(200);
      // t1 was the oldest, as t0 is of the last turn now, in which the second result counts.
      expect(structuredData.map((task) => task.taskId)).to.deep.equal([
        't0',
        'new',
        ...times(100, (i) => `t${199 - i}`),
        ...times(98, (i) => `t${99 - i}`),
      ]);
      expect(structuredData[0]).to.deep.equal({
        taskId: 't0',
        turnId: last!.id,
        data: { kind: 'text', preview: ['again'], bytes: 7 },
        updateTime: last!.createTime,
      });
      await record(
        sessionId,
        times(3, (n) => ({ results: times(100, (i) => result(`n${n}-${i}`, i)) })),
      );
      expect((await rowCounts(tenant, ['turn_results'])).turn_results).to.equal(200);
      expect((await dataOf()).structuredData.every((task) => /^n[12]-/.test(task.taskId))).to.equal(true);
    });

    it('fits into a response at its largest', async () => {
      const text = 'é\u0001'.repeat(1000);
      const report = { reportPath: text.slice(0, 1000), summary: text, previews: times(5, () => text) };
      const table = Object.fromEntries(
        times(60, (i) => [`${'ü'.repeat(40)}${i}`, { path: text, list: [1, 2], of: { a: 1 } }]),
      );
      const turns = times(200, (i) => ({
        ...(i === 199 && { response: 'x'.repeat(256 * 1024), query: 'x'.repeat(64 * 1024) }),
        intent: { reasoning: text },
        plannerReasoning: text,
        report: i > 150 ? report : undefined,
        results: [result(`${i}`, i % 2 ? table : times(9, () => table))],
      }));
      for (let i = 0; i < turns.length; i += 50) await record(sessionId, turns.slice(i, i + 50));
      const data = await dataOf();
      expect([data.turns.length, data.structuredData.length, data.reports.length]).to.deep.equal([50, 200, 20]);
      expect(GetSessionDataResponse.encode(data).finish().length).to.be.below(3.5 * 1024 * 1024);
    });

    it('reads no messages', async () => {
      await record(sessionId, [WHOLE]);
      const scope = { tenant, env: 'dev', user: 'user' };
      const limits = { deadline: Date.now() + 20_000 };
      await transactionOnce(server.kernel.database, scope, undefined, limits, async (tx) => {
        expect((await getSessionData(tx, sessionId))!.turns).to.have.length(1);
        const touched = await tx.query(
          query<{ name: string }>(`select distinct relation::regclass::text as name from pg_locks
            where pid = pg_backend_pid() and locktype = 'relation'`),
        );
        const names = touched.map(({ name }) => name);
        expect(names).to.include.members(['turns', 'turn_results']).and.not.include('messages');
      });
    });
  });

  describe('a session that goes', () => {
    const reads = (id: string) => [
      () => client.conversation.listTurns({ sessionId: id }),
      () => dataOf(id),
      () => client.memory.listStateCheckpoints({ sessionId: id }),
    ];

    // What another sweep holds, of another test file, goes with the next.
    const swept = (left: number) =>
      until(async () => {
        await sweep(server.kernel.database);
        return (await rowCounts(tenant, ['sessions'])).sessions === left;
      });

    it('takes along what its turns left, when it is deleted, also out of the stored results', async () => {
      await upsert({ state: { secret: 'word' } });
      const other = (await upsert({ threadId: 'other' })).id;
      await record(sessionId, [WHOLE, WHOLE]);
      await record(other, [WHOLE]);
      const [checkpoint] = (await client.memory.listStateCheckpoints({ sessionId })).checkpoints;
      const restoring = { sessionId, checkpointId: checkpoint!.id, requestId: randomUUID() };
      await client.memory.restoreSessionState(restoring);
      await client.memory.deleteSession({ sessionId });
      expect(await rowCounts(tenant, LEFT)).to.deep.equal({ turns: 1, turn_results: 1, state_checkpoints: 1 });
      expect(JSON.stringify(await tenantSql(tenant, 'select result from requests'))).not.to.include('word');
      expect(await failure(client.memory.restoreSessionState(restoring))).to.include({ reason: 'DELETED' });
      for (const read of reads(sessionId)) expect(await failure(read())).to.include({ code: 5, reason: 'DELETED' });
      expect(await record(sessionId, [WHOLE])).to.deep.equal([undefined]);
      expect((await rowCounts(tenant, LEFT)).turns).to.equal(1);
    });

    it('leaves nothing when a turn is recorded while it is deleted', async () => {
      const ids = await Promise.all(times(20, async (i) => (await upsert({ threadId: `t${i}` })).id));
      await Promise.all(
        ids.flatMap((id) => [record(id, [WHOLE]), client.memory.deleteSession({ sessionId: id }), record(id, [WHOLE])]),
      );
      expect(await rowCounts(tenant, LEFT)).to.deep.equal({ turns: 0, turn_results: 0, state_checkpoints: 0 });
    });

    it('hides it from the instant that it expires, and takes no more turns', async () => {
      await record(sessionId, [WHOLE]);
      await expireAll();
      for (const read of reads(sessionId)) expect(await failure(read())).to.include({ code: 5, reason: 'NOT_FOUND' });
      expect(await record(sessionId, [WHOLE])).to.deep.equal([undefined]);
    });

    it('takes it along when it is swept', async () => {
      await record(
        sessionId,
        times(3, () => WHOLE),
      );
      const kept = (await upsert({ threadId: 'kept' })).id;
      await record(kept, [WHOLE]);
      await tenantSql(tenant, 'update sessions set expire_time = now() where id = $1', [sessionId]);
      await swept(1);
      expect(await rowCounts(tenant, LEFT)).to.deep.equal({ turns: 1, turn_results: 1, state_checkpoints: 1 });
    });

    it('is swept in more than one batch', async () => {
      await tenantSql(
        tenant,
        `insert into sessions (tenant_id, env, id, user_id, surface_id, key_thread_id, thread_id, create_time, update_time, last_activity_time, expire_time)
        select tenant_id, env, gen_random_uuid(), 'user', 's', i::text, i::text, now(), now(), now(), now()
        from sessions, generate_series(1, 250) i`,
      );
      await swept(1);
    });
  });

  it('belong to one user', async () => {
    await record(sessionId, [WHOLE]);
    const [checkpoint] = (await client.memory.listStateCheckpoints({ sessionId })).checkpoints;
    const other = connect(`127.0.0.1:${server.port}`, headersOf(tenant, 'other'));
    const calls = [
      () => other.conversation.listTurns({ sessionId }),
      () => other.conversation.getSessionData({ sessionId }),
      () => other.memory.listStateCheckpoints({ sessionId }),
      () => other.memory.restoreSessionState({ sessionId, checkpointId: checkpoint!.id }),
      () => other.memory.resumeSession({ target: { $case: 'resumeProjectId', value: 'p' } }),
    ];
    for (const call of calls) expect(await failure(call())).to.include({ code: 5, message: 'session not found' });
    other.close();
  });
});

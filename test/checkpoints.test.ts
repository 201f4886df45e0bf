import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import type { RunningServer } from '../src/server.ts';
import { times } from './fixtures/results.ts';
import { recordTurns, WHOLE } from './fixtures/turns.ts';
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
} from './support.ts';

describe('recovery', () => {
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
  const expireAll = () => tenantSql(tenant, 'update sessions set expire_time = now()');

  describe('state checkpoints', () => {
    const states = async () =>
      (await client.memory.listStateCheckpoints({ sessionId })).checkpoints.map((checkpoint) => checkpoint.state);

    it('keep the state after each turn, the newest 50 of a session', async () => {
      await upsert({ state: { n: -1 } });
      const [turn] = await record(sessionId, [WHOLE]);
      const [none] = await record(sessionId, [undefined]);
      expect(none).to.equal(null);
      const { checkpoints } = await client.memory.listStateCheckpoints({ sessionId });
      expect(checkpoints.map(({ turnId, state }) => ({ turnId, state }))).to.deep.equal([
        { turnId: '', state: { n: -1 } },
        { turnId: turn!.id, state: { n: -1 } },
      ]);
      for (let n = 0; n < 52; n++) {
        await upsert({ state: { n } });
        await record(sessionId, [{}]);
      }
      expect(await states()).to.deep.equal(times(50, (i) => ({ n: 51 - i })));
      expect((await rowCounts(tenant, ['state_checkpoints'])).state_checkpoints).to.equal(50);
    });

    it('are listed by pages, also of 1 MiB', async () => {
      await upsert({ state: { text: 'x'.repeat(60 * 1024) } });
      await record(
        sessionId,
        times(20, () => ({})),
      );
      const pages = await allPages((pageToken) => client.memory.listStateCheckpoints({ sessionId, pageToken }));
      expect(pages.map(({ checkpoints }) => checkpoints.length)).to.deep.equal([17, 3]);
      const ids = pages.flatMap(({ checkpoints }) => checkpoints.map(({ id }) => id));
      expect(ids).to.deep.equal([...new Set(ids)].sort().reverse());
      const small = await allPages((pageToken) =>
        client.memory.listStateCheckpoints({ sessionId, pageSize: 9, pageToken }),
      );
      expect(small.flatMap(({ checkpoints }) => checkpoints.map(({ id }) => id))).to.deep.equal(ids);
    });

    it('set the state back as a whole', async () => {
      await upsert({ state: { a: 1, b: { c: 2 } }, title: 'kept' });
      await record(sessionId, [{}]);
      const before = await upsert({ state: { b: null, d: 4 } });
      const [checkpoint] = (await client.memory.listStateCheckpoints({ sessionId })).checkpoints;
      const request = { sessionId, checkpointId: checkpoint!.id, etag: before.etag, requestId: randomUUID() };
      const { session } = await client.memory.restoreSessionState(request);
      expect(session).to.deep.include({ state: { a: 1, b: { c: 2 } }, title: 'kept', revision: before.revision + 1 });
      expect(await client.memory.restoreSessionState(request)).to.deep.equal({ session });
      const stale = await failure(client.memory.restoreSessionState({ ...request, requestId: '' }));
      expect(stale).to.deep.include({
        code: status.ABORTED,
        reason: 'ETAG_MISMATCH',
        metadata: { etag: session!.etag },
      });
      const events = await tenantSql(
        tenant,
        `select metadata from audit_events where action = 'sessions.restore_state'`,
      );
      expect(events).to.deep.equal([{ metadata: { checkpoint_id: checkpoint!.id, revision: session!.revision } }]);
    });

    it('set nothing back that is not theirs, or not live', async () => {
      await record(sessionId, [{}]);
      const [checkpoint] = (await client.memory.listStateCheckpoints({ sessionId })).checkpoints;
      const other = await upsert({ threadId: 'other' });
      const restore = (id: string, checkpointId: string) =>
        failure(client.memory.restoreSessionState({ sessionId: id, checkpointId }));
      const missing = { code: status.NOT_FOUND, message: 'checkpoint not found' };
      expect(await restore(other.id, checkpoint!.id)).to.include(missing);
      expect(await restore(sessionId, randomUUID())).to.include(missing);
      await client.memory.endSession({ sessionId });
      expect(await restore(sessionId, checkpoint!.id)).to.include({ reason: 'SESSION_ENDED' });
      await client.memory.deleteSession({ sessionId });
      expect(await restore(sessionId, checkpoint!.id)).to.include({ code: status.NOT_FOUND, reason: 'DELETED' });
    });
  });

  describe('ResumeSession by project', () => {
    const resume = (project: string, rest: object = {}) =>
      client.memory.resumeSession({ target: { $case: 'resumeProjectId', value: project }, ...rest });
    const create = { createIfMissing: true, surfaceId: 'ide' };

    it('takes the live session that was active last', async () => {
      const second = await upsert({ threadId: 'second' });
      await upsert({ projectId: 'q', threadId: 'third' });
      await client.conversation.appendMessages({ threadId: 'second', messages: [{ role: 1, content: 'hello' }] });
      const resumed = await resume('p', create);
      expect(resumed).to.include({ created: false, recoveredFrom: '' });
      expect(resumed.session!.id).to.equal(second.id);
      expect(resumed.messages.map((message) => message.content)).to.deep.equal(['hello']);
      await client.memory.resumeSession({ target: { $case: 'sessionId', value: sessionId } });
      expect((await resume('p')).session!.id).to.equal(sessionId);
      await client.memory.endSession({ sessionId });
      expect((await resume('p')).session!.id).to.equal(second.id);
    });

    it('answers NOT_FOUND if there is none and none is to be made', async () => {
      expect(await failure(resume('unknown'))).to.include({ code: status.NOT_FOUND, message: 'session not found' });
      await client.memory.endSession({ sessionId });
      expect(await failure(resume('p'))).to.include({ code: status.NOT_FOUND });
    });

    it('makes one with the state of the last checkpoint', async () => {
      const personal = { email: 'a@example.com', preferences: { lang: 'de' }, title: 'old' };
      await upsert({ ...personal, state: { step: 1 } });
      await record(sessionId, [WHOLE]);
      const later = (await upsert({ threadId: 'later', state: { step: 2 } })).id;
      await record(later, [WHOLE]);
      await upsert({ state: { step: 3 } }); // not left by a turn
      await client.memory.endSession({ sessionId });
      await client.memory.endSession({ sessionId: later });
      const request = { ...create, requestId: randomUUID() };
      const resumed = await resume('p', request);
      expect(resumed).to.deep.include({ created: true, recoveredFrom: later, messages: [] });
      expect(resumed.session).to.deep.include({
        state: { step: 2 },
        projectId: 'p',
        surfaceId: 'ide',
        email: '',
        title: '',
        preferences: {},
      });
      expect(await resume('p', request)).to.deep.equal(resumed);
      const again = await resume('p', create);
      expect([again.session!.id, again.created, again.recoveredFrom]).to.deep.equal([resumed.session!.id, false, '']);
    });

    it('brings back nothing of what has expired or was deleted', async () => {
      await upsert({ state: { from: 'the deleted' } });
      await record(sessionId, [WHOLE]);
      const ended = (await upsert({ threadId: 'ended', state: { from: 'the ended' } })).id;
      await record(ended, [WHOLE]);
      await client.memory.endSession({ sessionId: ended });
      await client.memory.deleteSession({ sessionId });
      const expired = (await upsert({ threadId: 'expired', state: { from: 'the expired' } })).id;
      await record(expired, [WHOLE]);
      await tenantSql(tenant, 'update sessions set expire_time = now() where id = $1', [expired]);
      const first = await resume('p', create);
      expect([first.recoveredFrom, first.session!.state]).to.deep.equal([ended, { from: 'the ended' }]);
      await expireAll();
      const second = await resume('p', create);
      expect([second.created, second.recoveredFrom, second.session!.state]).to.deep.equal([true, '', {}]);
      expect((await resume('fresh', create)).recoveredFrom).to.equal('');
    });

    it('makes one session when it is asked 10 times at once', async () => {
      await upsert({ state: { a: 1 } });
      await record(sessionId, [WHOLE]);
      await client.memory.endSession({ sessionId });
      const all = await Promise.all(times(10, () => resume('p', create)));
      expect(new Set(all.map((resumed) => resumed.session!.id)).size).to.equal(1);
      expect(all.filter((resumed) => resumed.created).map((resumed) => resumed.recoveredFrom)).to.deep.equal([
        sessionId,
      ]);
      expect(all.map((resumed) => resumed.session!.state)).to.deep.equal(times(10, () => ({ a: 1 })));
    });

    it('refuses another project, and none', async () => {
      const refused = await failure(resume('p', { ...create, projectId: 'q' }));
      expect(refused.violations.map(({ field }) => field)).to.deep.equal(['project_id']);
      expect((await failure(resume(''))).violations.map(({ field }) => field)).to.deep.equal(['resume_project_id']);
    });
  });
});

import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { SessionEnded_Reason, type WatchSessionResponse } from '../src/gen/memory/v1/memory_service.ts';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import type { Session } from '../src/gen/memory/v1/session.ts';
import type { RunningServer } from '../src/server.ts';
import { sweep } from '../src/tenants/expiry.ts';
import { type Tape, watchSession } from './fixtures/live.ts';
import { type Clients, connect, type Failure, headersOf, newTenant, startTestServer, tenantSql } from './support.ts';

const { INVALID_ARGUMENT, NOT_FOUND, UNAVAILABLE } = status;

describe('watches of sessions', () => {
  let servers: RunningServer[];
  let tenant: string;
  let clients: Clients[];
  let client: Clients;
  let headers: Record<string, string>;
  let session: Session;

  before(async () => {
    servers = [await startTestServer(), await startTestServer()];
  });
  after(async () => {
    await Promise.all(servers.map((server) => server.stop()));
  });
  beforeEach(async () => {
    tenant = await newTenant(['user', 'other']);
    headers = headersOf(tenant);
    clients = servers.map(({ port }) => connect(`127.0.0.1:${port}`, headers));
    client = clients[0]!;
    session = (await client.memory.upsertSession({ session: { surfaceId: 'web', threadId: 't', title: '0' } }))
      .session!;
  });
  afterEach(() => clients.forEach((each) => each.close()));

  const watched = (after = 0, via = client) => watchSession(via, headers, session.id, after);
  const kindOf = ({ event }: WatchSessionResponse) => event!.$case;
  const bookmarked = (tape: Tape<WatchSessionResponse>) => tape.until((told) => kindOf(told) === 'bookmark');
  const titled = (tape: Tape<WatchSessionResponse>, title: string) =>
    tape.until(({ event }) => event?.$case === 'session' && event.value.title === title);
  const retitle = async (title: string, via = client) =>
    (await via.memory.upsertSession({ session: { id: session.id, title } })).session!;
  const get = async () => (await client.memory.getSession({ sessionId: session.id })).session!;
  const refused = async (tape: Tape<unknown>): Promise<Failure> =>
    (await tape.ended) ?? expect.fail('it should have failed');
  const ended = (tape: Tape<WatchSessionResponse>) => {
    const last = tape.all.at(-1)!;
    return last.event?.$case === 'ended' ? { revision: last.revision, ...last.event.value } : undefined;
  };

  it('tell the session as it is, and as it becomes, through any server', async () => {
    const tapes = clients.map((via) => watched(0, via));
    for (const tape of tapes) await bookmarked(tape);
    const changed = await retitle('1', clients[1]);
    for (const tape of tapes) {
      const told = await titled(tape, '1');
      expect(tape.all.map(kindOf)).to.deep.equal(['session', 'bookmark', 'session']);
      expect(tape.all[0]).to.deep.equal({
        revision: tape.all[1]!.revision,
        event: { $case: 'session', value: session },
      });
      expect(told.event!.value).to.deep.equal(changed);
      expect(told.revision).to.be.greaterThan(tape.all[0]!.revision);
      tape.cancel();
    }
  });

  it('tell nothing again that is known, and refuse what the session has not reached', async () => {
    await retitle('1');
    const first = watched();
    const { revision } = await titled(first, '1');
    first.cancel();
    const again = watched(revision);
    await bookmarked(again);
    expect(again.all).to.deep.equal([{ revision, event: { $case: 'bookmark', value: {} } }]);
    again.cancel();
    const ahead = await refused(watched(revision + 1));
    expect(ahead).to.include({ code: INVALID_ARGUMENT });
    expect(ahead.violations.map(({ field }) => field)).to.deep.equal(['after_revision']);
    expect((await refused(watched(-1))).code).to.equal(INVALID_ARGUMENT);
    expect((await refused(watchSession(client, headers, 'x'))).code).to.equal(INVALID_ARGUMENT);
  });

  it('may skip what came between, but not the last of 60 changes', async () => {
    const tapes = [...clients, ...clients].map((via) => watched(0, via));
    const changes = Array.from({ length: 60 }, (_, i) =>
      clients[i % 2]!.memory.upsertSession({ session: { id: session.id, state: { [`k${i}`]: i } } }),
    );
    await Promise.all(changes);
    await retitle('last');
    const last = await get();
    expect(Object.keys(last.state!)).to.have.length(60);
    for (const tape of tapes) {
      expect((await titled(tape, 'last')).event!.value).to.deep.equal(last);
      const revisions = tape.all.filter((told) => kindOf(told) === 'session').map(({ revision }) => revision);
      expect(revisions).to.deep.equal([...new Set(revisions)].sort((a, b) => a - b));
      tape.cancel();
    }
  });

  it('tell no activity, which is no change', async () => {
    const tape = watched();
    await bookmarked(tape);
    const messages = [{ role: MessageRole.HUMAN, content: 'hello' }];
    await client.conversation.appendMessages({ sessionId: session.id, messages });
    expect((await get()).lastActivityTime).not.to.deep.equal(session.lastActivityTime);
    await retitle('1');
    await titled(tape, '1');
    expect(tape.all.map(kindOf)).to.deep.equal(['session', 'bookmark', 'session']);
    tape.cancel();
  });

  it('tell what a turn changes', async () => {
    const tape = watched();
    const { lease } = await client.conversation.beginTurn({ session: { id: session.id, title: 'asked' }, holder: 'h' });
    await titled(tape, 'asked');
    await client.conversation.commitTurn({
      sessionId: session.id,
      fencingToken: lease!.fencingToken,
      statePatch: { step: 2 },
      summaries: [{ id: 's', text: 'so far', throughSeq: 1 }],
    });
    const told = await tape.until(({ event }) => event?.$case === 'session' && event.value.summaryRefs.length > 0);
    expect(told.event!.value).to.deep.include({ state: { step: 2 } });
    await client.conversation.deleteThread({ threadId: 't' });
    await tape.until(
      ({ event }) =>
        event?.$case === 'session' && event.value.summaryRefs.length === 0 && event.value.title === 'asked',
    );
    tape.cancel();
  });

  it('end with the session, once it was told as ended', async () => {
    const tapes = [...clients.map((via) => watched(0, via))];
    for (const tape of tapes) await bookmarked(tape);
    const over = (await client.memory.endSession({ sessionId: session.id })).session!;
    for (const tape of [...tapes, watched()]) {
      expect(await tape.ended).to.equal(undefined);
      const [told, end] = tape.all.slice(-2);
      expect(told!.event).to.deep.equal({ $case: 'session', value: over });
      expect(ended(tape)).to.deep.equal({ revision: end!.revision, reason: SessionEnded_Reason.ENDED });
    }
    const known = watched(tapes[0]!.all.at(-1)!.revision);
    expect(await known.ended).to.equal(undefined);
    expect(known.all.map(kindOf)).to.deep.equal(['ended']);
  });

  it('end when the session is deleted', async () => {
    const tapes = clients.map((via) => watched(0, via));
    for (const tape of tapes) await bookmarked(tape);
    const { revision } = tapes[0]!.all[0]!;
    await client.memory.deleteSession({ sessionId: session.id });
    for (const tape of [...tapes, watched(revision)]) {
      expect(await tape.ended).to.equal(undefined);
      expect(ended(tape)).to.deep.equal({ revision, reason: SessionEnded_Reason.DELETED });
    }
    expect(await refused(watched())).to.include({ code: NOT_FOUND, reason: 'DELETED' });
  });

  it('end when the session expires by the clock, and when it was swept', async () => {
    for (const sweeping of [false, true]) {
      const surfaceId = `expiring ${sweeping}`;
      ({ session } = (await client.memory.upsertSession({ session: { surfaceId } })) as { session: Session });
      const tapes = clients.map((via) => watched(0, via));
      for (const tape of tapes) await bookmarked(tape);
      await tenantSql(tenant, `update sessions set expire_time = clock_timestamp() where id = $1`, [session.id]);
      if (sweeping) await sweep(servers[0]!.kernel.database);
      for (const tape of tapes) {
        expect(await tape.ended).to.equal(undefined);
        expect(ended(tape)).to.include({ reason: SessionEnded_Reason.EXPIRED });
      }
      expect(await refused(watched())).to.include({ code: NOT_FOUND });
      expect(await refused(watched(1))).to.include({ code: NOT_FOUND });
    }
  });

  it("do not tell others' sessions from those that are not there", async () => {
    const missing = await refused(watchSession(client, headers, randomUUID()));
    expect(missing).to.include({ code: NOT_FOUND, reason: 'NOT_FOUND' });
    for (const after of [0, 1]) {
      expect(await refused(watchSession(client, headersOf(tenant, 'other'), session.id, after))).to.deep.equal(missing);
    }
    const elsewhere = headersOf(await newTenant(['user']));
    expect(await refused(watchSession(client, elsewhere, session.id))).to.deep.equal(missing);
  });

  it('end when their server stops, and go on elsewhere', async () => {
    const stopping = await startTestServer();
    const first = connect(`127.0.0.1:${stopping.port}`, headers);
    const tape = watched(0, first);
    await bookmarked(tape);
    await stopping.stop();
    expect(await refused(tape)).to.include({ code: UNAVAILABLE, reason: 'DRAINING' });
    first.close();
    await retitle('1');
    const again = watched(tape.all.at(-1)!.revision);
    await titled(again, '1');
    again.cancel();
  });
});

import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { openDatabase } from '../src/db/pool.ts';
import { transactionOnce } from '../src/db/transaction.ts';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import type { TurnLease } from '../src/gen/memory/v1/turn.ts';
import { RpcError } from '../src/rpc/errors.ts';
import type { RunningServer } from '../src/server.ts';
import { holdsFence, whyStale } from '../src/turns/leases.ts';
import {
  type Clients,
  connect,
  failure,
  headersOf,
  metadataOf,
  nanosOf,
  newTenant,
  serviceDatabase,
  startTestServer,
  tenantSql,
} from './support.ts';

const { HUMAN, ASSISTANT, TOOL } = MessageRole;
const STALE = { code: status.ABORTED, reason: 'STALE_FENCING_TOKEN' };
const TURN_HELD = { code: status.FAILED_PRECONDITION, reason: 'TURN_HELD' };
const DELETED = { code: status.NOT_FOUND, reason: 'DELETED' };

describe('turn leases', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;

  before(async () => {
    server = await startTestServer();
  });
  after(() => server.stop());
  beforeEach(async () => {
    tenant = await newTenant(['user', 'other']);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  });
  afterEach(() => client.close());

  const acquire = async (holder: string, ttl?: number, requestId = ''): Promise<TurnLease> => {
    const request = { threadId: 't', holder, ...(ttl && { ttl: { seconds: ttl } }), requestId };
    return (await client.conversation.acquireTurn(request)).lease!;
  };
  const renew = async (fencingToken: number, ttl = 60, requestId = '') =>
    (await client.conversation.renewTurn({ threadId: 't', fencingToken, ttl: { seconds: ttl }, requestId })).lease!;
  const release = (fencingToken: number, requestId = '') =>
    client.conversation.releaseTurn({ threadId: 't', fencingToken, requestId });
  const append = (content: string, { fencingToken = 0, role = ASSISTANT as MessageRole, clientId = '' } = {}) =>
    client.conversation.appendMessages({ threadId: 't', messages: [{ role, content, clientId }], fencingToken });
  const contents = async (threadId = 't') =>
    (await client.conversation.listMessages({ threadId, position: { $case: 'afterSeq', value: 0 } })).messages.map(
      (m) => m.content,
    );
  const lapse = () => tenantSql(tenant, `update threads set lease_expire_time = now() - interval '1 ms'`);
  const acquired = (all: PromiseSettledResult<TurnLease>[]) => {
    const won = all.filter((outcome) => outcome.status === 'fulfilled');
    expect(won).to.have.length(1);
    return won[0]!.value;
  };
  const failures = (...calls: Promise<unknown>[]) => Promise.all(calls.map(failure));
  /** How long the lease holds from now, in seconds by this machine's clock, which is the database's as well. */
  const left = (lease: TurnLease) => Number(nanosOf(lease.expireTime)) / 1e9 - Date.now() / 1000;

  it('are held by one at a time, and given in turn with growing tokens', async () => {
    const a = await acquire('a');
    expect(a).to.include({ threadId: 't', holder: 'a' });
    expect(left(a)).to.be.within(55, 60.5);
    const refused = await failure(acquire('b'));
    expect(refused).to.include(TURN_HELD);
    await release(a.fencingToken);
    const b = await acquire('b', 600);
    expect(b.fencingToken).to.be.greaterThan(a.fencingToken);
    expect(left(b)).to.be.within(590, 600.5);
  });

  it('tell whom they refuse who holds, until when, and so when to come again, but no token', async () => {
    const lease = await acquire('a "quoted" ä', 30);
    for (const refused of await failures(acquire('b'), append('x'))) {
      expect(refused).to.include(TURN_HELD);
      expect(Object.keys(refused.metadata)).to.have.members(['holder', 'expire_time']);
      expect(refused.metadata.holder).to.equal('a "quoted" ä');
      const micros = String(Math.floor(lease.expireTime!.nanos / 1000)).padStart(6, '0');
      const seconds = new Date(lease.expireTime!.seconds * 1000).toISOString().slice(0, 19);
      expect(refused.metadata.expire_time).to.equal(`${seconds}.${micros}Z`);
      expect(refused.retryAfterMs).to.be.within(20_000, 30_000);
      expect(refused.retryAfterMs! / 1000).to.be.closeTo(left(lease), 1);
    }
  });

  it('refuse the holder as well who asks again: only a renewal renews', async () => {
    const lease = await acquire('a', 30);
    expect(await failure(acquire('a'))).to.include(TURN_HELD);
    const longer = await renew(lease.fencingToken, 120);
    expect(longer).to.include({ holder: 'a', fencingToken: lease.fencingToken });
    expect(left(longer)).to.be.within(115, 120.5);
    expect(left(await renew(lease.fencingToken, 5))).to.be.within(0, 5.5);
  });

  it('that have lapsed can be taken at once, and are kept by their holder until then', async () => {
    const a = await acquire('a');
    await lapse();
    await append('late, but nobody came', { fencingToken: a.fencingToken });
    const again = await renew(a.fencingToken);
    expect(again.fencingToken).to.equal(a.fencingToken);
    expect(await failure(acquire('b'))).to.include(TURN_HELD);
    await lapse();
    const b = await acquire('b');
    expect(b.fencingToken).to.be.greaterThan(a.fencingToken);
    for (const refused of await failures(renew(a.fencingToken), release(a.fencingToken), append('x', a))) {
      expect(refused).to.include(STALE);
    }
    expect((await renew(b.fencingToken)).holder).to.equal('b');
    expect(await contents()).to.deep.equal(['late, but nobody came']);
  });

  it('really lapse', async () => {
    await acquire('a', 1);
    const { retryAfterMs } = await failure(acquire('b'));
    expect(retryAfterMs).to.be.within(1, 1000);
    await new Promise((resolve) => setTimeout(resolve, retryAfterMs! + 5));
    expect((await acquire('b')).holder).to.equal('b');
  });

  it('go to one of 20 who ask at once', async () => {
    const all = await Promise.allSettled(Array.from({ length: 20 }, (_, i) => acquire(`h${i}`)));
    const lease = acquired(all);
    await release(lease.fencingToken);
    const next = await Promise.allSettled(Array.from({ length: 20 }, (_, i) => acquire(`h${i}`)));
    expect(acquired(next).fencingToken).to.be.greaterThan(lease.fencingToken);
  });

  it('make the thread that they are asked for, without a message', async () => {
    await acquire('a');
    expect(await contents()).to.deep.equal([]);
    const { threads } = await client.conversation.listThreads();
    expect(threads).to.have.length(1);
    expect(threads[0]).to.include({ threadId: 't', lastSeq: 0 });
    expect((await append('first', { role: HUMAN })).messages[0]!.seq).to.equal(1);
  });

  it('admit the writes of their token, refuse those of others, and then write nothing', async () => {
    const a = await acquire('a');
    await append('one', a);
    await release(a.fencingToken);
    const b = await acquire('b');
    const stale = [a.fencingToken, a.fencingToken + 1, b.fencingToken + 1, b.fencingToken + 2, Number.MAX_SAFE_INTEGER];
    for (const fencingToken of stale.filter((token) => token !== b.fencingToken)) {
      for (const role of [ASSISTANT, HUMAN]) {
        const refused = await failure(append('x', { fencingToken, role }));
        expect(refused, `${fencingToken}`).to.include(STALE);
        expect(refused.metadata).to.deep.equal({});
      }
    }
    await append('two', b);
    await append('three', { ...b, role: HUMAN });
    await release(b.fencingToken);
    for (const fencingToken of [b.fencingToken, b.fencingToken + 1])
      expect(await failure(append('x', { fencingToken }))).to.include(STALE);
    expect(await contents()).to.deep.equal(['one', 'two', 'three']);
    const [row] = await tenantSql(
      tenant,
      'select last_seq::int, revision::int, fencing_token > $1 as released from threads',
      [b.fencingToken],
    );
    expect(row).to.deep.equal({ last_seq: 3, revision: 3, released: true });
  });

  it('refuse a token for a thread that is not there, and do not make it', async () => {
    expect(await failure(append('x', { fencingToken: 1 }))).to.include(STALE);
    for (const refused of await failures(renew(1), release(1)))
      expect(refused).to.include({ code: status.NOT_FOUND, reason: 'NOT_FOUND' });
    expect((await client.conversation.listThreads()).threads).to.deep.equal([]);
    await append('free for all', { role: TOOL });
    for (const refused of await failures(append('x', { fencingToken: 1 }), renew(1), release(1)))
      expect(refused).to.include(STALE);
  });

  it('let people type, and bundles land, while another holds', async () => {
    await acquire('a');
    await append('typed', { role: HUMAN });
    const messages = [
      { role: HUMAN, content: 'typed' },
      { role: TOOL, content: 'not typed' },
    ];
    expect(await failure(client.conversation.appendMessages({ threadId: 't', messages }))).to.include(TURN_HELD);
    const inline = {
      sourceThreadId: 't',
      selection: {
        selection: { $case: 'inline' as const, value: { messages: [{ role: ASSISTANT, content: 'sent' }] } },
      },
    };
    const source = { $case: 'inline' as const, value: inline };
    expect(await client.memory.forwardBundle({ source, targetThreadId: 't' })).to.include({ firstSeq: 2 });
    expect(await contents()).to.deep.equal(['typed', 'sent']);
  });

  it('are needed by nobody while none is live', async () => {
    await append('before');
    await acquire('a');
    await lapse();
    await append('lapsed');
    await release((await acquire('b')).fencingToken);
    await append('released');
    expect(await contents()).to.deep.equal(['before', 'lapsed', 'released']);
  });

  it('come before a look at what the messages are', async () => {
    const known = { role: ASSISTANT, clientId: 'c' };
    await append('said', known);
    const lease = await acquire('a');
    expect(await failure(append('said', known))).to.include(TURN_HELD);
    expect(await failure(append('other', known))).to.include(TURN_HELD);
    expect(await failure(append('other', { ...known, fencingToken: lease.fencingToken }))).to.include({
      reason: 'CLIENT_ID_REUSED',
    });
    expect((await append('said', { ...known, ...lease })).messages[0]!.seq).to.equal(1);
  });

  it('are of one thread of one user', async () => {
    const mine = await acquire('a');
    const other = metadataOf(headersOf(tenant, 'other'));
    const { lease } = await client.conversation.acquireTurn({ threadId: 't', holder: 'b' }, other);
    expect(lease!.holder).to.equal('b');
    await client.conversation.acquireTurn({ threadId: 't2', holder: 'a' });
    await release(mine.fencingToken);
    await client.conversation.renewTurn({ threadId: 't', fencingToken: lease!.fencingToken }, other);
  });

  it('end with their thread, whose tokens go on growing when it starts again', async () => {
    const a = await acquire('a');
    await client.conversation.deleteThread({ threadId: 't' });
    for (const refused of await failures(acquire('b'), renew(a.fencingToken), release(a.fencingToken), append('x', a)))
      expect(refused).to.include(DELETED);
    await client.memory.upsertSession({ session: { surfaceId: 'web', threadId: 't' } });
    for (const fencingToken of [a.fencingToken, a.fencingToken + 1]) {
      for (const refused of await failures(renew(fencingToken), release(fencingToken), append('x', { fencingToken })))
        expect(refused).to.include(STALE);
    }
    await append('nobody holds it');
    const b = await acquire('b');
    expect(b.fencingToken).to.be.greaterThan(a.fencingToken);
    expect(await contents()).to.deep.equal(['nobody holds it']);
  });

  it('end with the last session of their thread, and outlive the others', async () => {
    const session = async (surfaceId: string) =>
      (await client.memory.upsertSession({ session: { surfaceId, threadId: 't' } })).session!.id;
    const [web, ide] = [await session('web'), await session('ide')];
    const a = await acquire('a');
    await client.memory.deleteSession({ sessionId: web });
    await renew(a.fencingToken);
    await client.memory.deleteSession({ sessionId: ide });
    expect(await failure(renew(a.fencingToken))).to.include(DELETED);
    await session('slack');
    expect(await failure(append('x', a))).to.include(STALE);
    expect((await acquire('b')).fencingToken).to.be.greaterThan(a.fencingToken);
  });

  it('stay as they are while a transaction counts on them', async () => {
    const { url, preparedStatements } = serviceDatabase();
    const settings = { poolSize: 1, poolWaitMs: 5000, sharedConnections: 0, preparedStatements };
    const database = openDatabase({ connectionString: url, ...settings });
    const limits = { deadline: Date.now() + 10_000 };
    const { session } = await client.memory.upsertSession({ session: { surfaceId: 'web', threadId: 't' } });
    const counting = (fencingToken: number, work = async () => {}) =>
      transactionOnce(database, { tenant, env: 'dev', user: 'user' }, undefined, limits, async (tx) => {
        if (!(await holdsFence(tx, session!.id, fencingToken))) throw await whyStale(tx, 't');
        await work();
      }).catch((error) => (error instanceof RpcError ? error.reason : Promise.reject(error)));
    try {
      expect(await counting(1)).to.equal('STALE_FENCING_TOKEN');
      const a = await acquire('a');
      await lapse();
      const order: string[] = [];
      let taking: Promise<unknown> | undefined;
      await counting(a.fencingToken, async () => {
        taking = acquire('b').then(() => order.push('taken'));
        await new Promise((resolve) => setTimeout(resolve, 50));
        order.push('counted on');
      });
      await taking;
      expect(order).to.deep.equal(['counted on', 'taken']);
      expect(await counting(a.fencingToken)).to.equal('STALE_FENCING_TOKEN');
      await client.conversation.deleteThread({ threadId: 't' });
      expect(await counting(a.fencingToken)).to.equal('DELETED');
    } finally {
      await database.close();
    }
  });

  it('answer a request_id that comes again, also at once, as the first time', async () => {
    const id = randomUUID();
    const all = await Promise.all(Array.from({ length: 5 }, () => acquire('a', 30, id)));
    for (const lease of all) expect(lease).to.deep.equal(all[0]);
    const { fencingToken } = all[0]!;
    const kept = await renew(fencingToken, 100, id);
    await release(fencingToken, id);
    await release(fencingToken, id);
    expect(await failure(release(fencingToken))).to.include(STALE);
    expect(await renew(fencingToken, 100, id)).to.deep.equal(kept);
    expect(await acquire('a', 30, id)).to.deep.equal(all[0]);
    expect(await failure(acquire('b', 30, id))).to.include({ reason: 'REQUEST_ID_REUSED' });
    // What was refused is not kept: asked again, it may be granted.
    const other = randomUUID();
    const b = await acquire('b');
    expect(await failure(acquire('c', 30, other))).to.include(TURN_HELD);
    await release(b.fencingToken);
    expect((await acquire('c', 30, other)).holder).to.equal('c');
  });

  it('are in the audit trail, with their holders and without their tokens', async () => {
    const { fencingToken } = await acquire('agent-7');
    await failure(acquire('b'));
    await renew(fencingToken);
    await release(fencingToken);
    const { events } = await client.audit.listAuditEvents({});
    expect(events.map((event) => event.action)).to.deep.equal(['turns.release', 'turns.renew', 'turns.acquire']);
    expect(events.every((event) => event.resource === 'threads/t')).to.equal(true);
    expect(events[2]!.metadata).to.deep.equal({ holder: 'agent-7' });
    const rows = await tenantSql(tenant, 'select metadata from audit_events');
    expect(JSON.stringify(rows)).to.not.match(/token/i);
  });

  it('hold from 1 second to 10 minutes', async () => {
    const field = async (call: Promise<unknown>) =>
      (await failure(call)).violations.map((violation) => violation.field);
    const ask = (ttl: object) => client.conversation.acquireTurn({ threadId: 't', holder: 'a', ttl });
    for (const ttl of [{ seconds: 0 }, { nanos: 999_999_999 }, { seconds: 600, nanos: 1 }, { seconds: -5 }])
      expect(await field(ask(ttl)), JSON.stringify(ttl)).to.deep.equal(['ttl']);
    expect(await field(client.conversation.renewTurn({ threadId: 't', ttl: { seconds: 601 } }))).to.deep.equal([
      'fencing_token',
      'ttl',
    ]);
    expect(await field(client.conversation.acquireTurn({}))).to.deep.equal(['thread_id', 'holder']);
    expect(await field(release(-1))).to.deep.equal(['fencing_token']);
    expect(await field(append('x', { fencingToken: -1 }))).to.deep.equal(['fencing_token']);
    expect(left((await ask({ seconds: 1, nanos: 500_000_000 })).lease!)).to.be.within(0.5, 1.6);
  });
});

import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import type { RunningServer } from '../src/server.ts';
import {
  addMember,
  type Clients,
  connect,
  failure,
  headersOf,
  metadataOf,
  nanosOf,
  newTenant,
  startTestServer,
  tenantSql,
} from './support.ts';

describe('hand-offs', () => {
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

  const service = (scope = 'memory:handoff', env = 'dev', of = tenant) =>
    metadataOf({ 'x-tenant-id': of, 'x-env': env, ...(scope && { 'x-scopes': scope }) });
  const as = (user: string, env = 'dev') => metadataOf(headersOf(tenant, user, env));
  /** Forwards one message to `t`, and leaves a hand-off. */
  async function hand(destination = 'maybes', content = 'hello', metadata = as('user')): Promise<string> {
    const messages = [{ role: MessageRole.HUMAN, content }];
    await client.conversation.appendMessages({ threadId: 's', messages }, metadata);
    const inline = { sourceThreadId: 's', selection: { selection: { $case: 'lastN' as const, value: 1 } } };
    const source = { $case: 'inline' as const, value: inline };
    const request = { source, targetThreadId: 't', createTarget: true, handoff: { destination } };
    return (await client.memory.forwardBundle(request, metadata)).handoffId;
  }
  const pull = async (rest: object = {}, metadata = service()) =>
    (await client.memory.pullHandoffs({ destination: 'maybes', ...rest }, metadata)).handoffs;
  const ack = (handoffId: string, leaseToken: string, rest: object = {}, metadata = service()) =>
    client.memory.ackHandoff({ handoffId, leaseToken, ...rest }, metadata);
  const lapse = () => tenantSql(tenant, 'update handoffs set lease_expire_time = clock_timestamp()');

  it('are pulled with their bundle, without a user, and leased', async () => {
    const id = await hand();
    expect(id).to.have.length(36);
    const [handoff, ...rest] = await pull();
    expect(rest).to.deep.equal([]);
    expect(handoff).to.include({ id, userId: 'user', destination: 'maybes', targetThreadId: 't', attempt: 1 });
    expect(handoff!.bundle!.messages.map((message) => message.content)).to.deep.equal(['hello']);
    expect(handoff!.bundle).to.deep.include({ sourceThreadId: 's', messageCount: 1 });
    const minute = 60n * 1_000_000_000n;
    const lease = nanosOf(handoff!.leaseExpireTime) - nanosOf(handoff!.createTime);
    expect(lease >= minute && lease < minute * 2n).to.equal(true);
    expect(await pull()).to.deep.equal([]);
  });

  it('come back when the lease has ended, with a new token, until they are acknowledged', async () => {
    const id = await hand();
    const [first] = await pull({ lease: { seconds: 1, nanos: 0 } });
    await lapse();
    // Nobody has taken it over, but the lease is over.
    expect(await failure(ack(id, first!.leaseToken))).to.include({ code: status.ABORTED, reason: 'STALE_LEASE_TOKEN' });
    const [second] = await pull();
    expect(second).to.deep.include({ id, attempt: 2, bundle: first!.bundle });
    expect(second!.leaseToken).to.not.equal(first!.leaseToken);
    for (const token of [first!.leaseToken, randomUUID()]) {
      expect(await failure(ack(id, token))).to.include({ code: status.ABORTED, reason: 'STALE_LEASE_TOKEN' });
    }
    await ack(id, second!.leaseToken);
    await ack(id, second!.leaseToken);
    expect(await failure(ack(id, first!.leaseToken))).to.include({ reason: 'STALE_LEASE_TOKEN' });
    await lapse();
    await ack(id, second!.leaseToken);
    expect(await pull()).to.deep.equal([]);
    expect(await failure(ack(randomUUID(), second!.leaseToken))).to.include({ code: status.NOT_FOUND });
  });

  it('wait by destination, and are pulled oldest first, of every user', async () => {
    const ids = [];
    for (let i = 0; i < 12; i++) ids.push(await hand('maybes', `m${i}`, as(i % 2 ? 'other' : 'user')));
    const elsewhere = await hand('elsewhere');
    const first = await pull({ maxHandoffs: 1 });
    const second = await pull();
    const third = await pull({ maxHandoffs: 100 });
    const pulled = [first, second, third].map((handoffs) => handoffs.map((handoff) => handoff.id));
    expect(pulled).to.deep.equal([ids.slice(0, 1), ids.slice(1, 11), ids.slice(11)]);
    expect(second.map((handoff) => handoff.userId).slice(0, 2)).to.deep.equal(['other', 'user']);
    expect((await pull({ destination: 'elsewhere' })).map((handoff) => handoff.id)).to.deep.equal([elsewhere]);
    expect(await pull({ destination: 'nobody' })).to.deep.equal([]);
  });

  it('never reach two concurrent pullers', async () => {
    const hands = Array.from({ length: 30 }, (_, i) => hand('maybes', `m${i}`));
    const ids = await Promise.all(hands);
    const got: string[] = [];
    while (got.length < ids.length) {
      const all = await Promise.all(Array.from({ length: 6 }, () => pull({ maxHandoffs: 4 })));
      got.push(...all.flat().map((handoff) => handoff.id));
    }
    expect(got.sort()).to.deep.equal(ids.sort());
    expect(await pull()).to.deep.equal([]);
  });

  it('are leased once for one request_id', async () => {
    await hand();
    await hand();
    const requestId = randomUUID();
    const all = await Promise.all(Array.from({ length: 6 }, () => pull({ maxHandoffs: 1, requestId })));
    for (const handoffs of all) expect(handoffs).to.deep.equal(all[0]);
    expect(all[0]).to.have.length(1);
    const { id, leaseToken } = all[0]![0]!;
    const acked = randomUUID();
    await Promise.all(Array.from({ length: 6 }, () => ack(id, leaseToken, { requestId: acked })));
    expect(await pull({ maxHandoffs: 5 })).to.have.length(1);
    expect(await pull({ maxHandoffs: 1, requestId })).to.deep.equal(all[0]);
  });

  it('need the scope, in the tenant and env of the call', async () => {
    const id = await hand();
    await addMember(tenant, 'user', 'prod');
    const { leaseToken } = (await pull())[0]!;
    await lapse();
    const foreign = await newTenant(['user']);
    for (const metadata of [service(''), service('memory:operator'), service('memory:act-as'), as('user')]) {
      expect(await failure(pull({}, metadata))).to.include({ code: status.PERMISSION_DENIED });
      expect(await failure(ack(id, leaseToken, {}, metadata))).to.include({ code: status.PERMISSION_DENIED });
    }
    for (const metadata of [service('memory:handoff', 'prod'), service('memory:handoff', 'dev', foreign)]) {
      expect(await pull({}, metadata)).to.deep.equal([]);
      expect(await failure(ack(id, leaseToken, {}, metadata))).to.include({
        code: status.NOT_FOUND,
        reason: 'NOT_FOUND',
      });
    }
    const unknown = service('memory:handoff', 'dev', `t-${randomUUID()}`);
    expect(await failure(pull({}, unknown))).to.include({ code: status.PERMISSION_DENIED });
    expect(await pull()).to.have.length(1);
  });

  it('refuse a malformed pull with the field named', async () => {
    const bad: [object, string][] = [
      [{ destination: '' }, 'destination'],
      [{ destination: 'No Slug' }, 'destination'],
      [{ maxHandoffs: -1 }, 'max_handoffs'],
      [{ maxHandoffs: 101 }, 'max_handoffs'],
      [{ lease: { seconds: 0, nanos: 999_000_000 } }, 'lease'],
      [{ lease: { seconds: 3601, nanos: 0 } }, 'lease'],
    ];
    for (const [request, field] of bad) {
      const answer = await failure(pull(request));
      expect(answer.code).to.equal(status.INVALID_ARGUMENT);
      expect(answer.violations.map((violation) => violation.field)).to.deep.equal([field]);
    }
  });

  it('are left by a forward that lands, once', async () => {
    await client.conversation.appendMessages({ threadId: 's', messages: [{ role: MessageRole.HUMAN, content: 'x' }] });
    const selection = { selection: { $case: 'lastN' as const, value: 1 } };
    const { bundle } = await client.memory.saveBundle({ sourceThreadId: 's', selection });
    const forward = (handoff: object | undefined, rest: object = {}) =>
      client.memory.forwardBundle({
        source: { $case: 'bundleId', value: bundle!.id },
        targetThreadId: 't',
        createTarget: true,
        ...(handoff && { handoff }),
        ...rest,
      });
    expect((await forward(undefined)).handoffId).to.equal('');
    expect(await forward({ destination: 'maybes' })).to.include({ repeated: true });
    expect(await pull()).to.deep.equal([]);
    expect((await forward({ destination: 'maybes' }, { allowRepeat: true })).handoffId).to.not.equal('');
    expect(await pull()).to.have.length(1);
  });

  it('end a pull where they fill a response', async () => {
    for (let i = 0; i < 8; i++) {
      const messages = Array.from({ length: 4 }, () => ({
        role: MessageRole.HUMAN,
        content: `${i}`.repeat(250 * 1024),
      }));
      const inline = {
        sourceThreadId: 's',
        selection: { selection: { $case: 'inline' as const, value: { messages } } },
      };
      if (i === 0) await hand('other');
      await client.memory.forwardBundle({
        source: { $case: 'inline', value: inline },
        targetThreadId: 't',
        handoff: { destination: 'maybes' },
      });
    }
    const counts = [];
    for (let total = 0; total < 8; total += counts.at(-1)!) counts.push((await pull({ maxHandoffs: 100 })).length);
    expect(Math.max(...counts)).to.be.at.most(3);
    expect(counts.every((count) => count > 0)).to.equal(true);
  });
});

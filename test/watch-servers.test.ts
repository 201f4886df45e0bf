import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import pg from 'pg';
import { v7 as uuidv7 } from 'uuid';
import { reader } from '../src/db/transaction.ts';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import type { RunningServer } from '../src/server.ts';
import { readFeed } from '../src/watch/feed.ts';
import { watches } from '../src/watch/poller.ts';
import { feed, follower, isBookmark, kindOf, stream, watch, whole } from './fixtures/live.ts';
import { startProxy } from './proxy.ts';
import {
  appUrl,
  type Clients,
  connect,
  failure,
  headersOf,
  newTenant,
  ownerUrl,
  runSql,
  startTestServer,
  tenantSql,
} from './support.ts';

const { HUMAN } = MessageRole;
const { PERMISSION_DENIED, UNAVAILABLE } = status;

describe('watches of threads over several servers', () => {
  let servers: RunningServer[];
  let tenant: string;
  let clients: Clients[];
  let headers: Record<string, string>;

  before(async () => {
    servers = [await startTestServer(), await startTestServer()];
  });
  after(async () => {
    await Promise.all(servers.map((server) => server.stop()));
  });
  beforeEach(async () => {
    tenant = await newTenant(['user']);
    headers = headersOf(tenant);
    clients = servers.map(({ port }) => connect(`127.0.0.1:${port}`, headers));
  });
  afterEach(() => clients.forEach((client) => client.close()));

  const append = async (content: string, threadId = 't', via = clients[0]!) => {
    const messages = [{ role: HUMAN, content }];
    return (await via.conversation.appendMessages({ threadId, messages })).messages[0]!;
  };
  const watched = (via: Clients, after = 0, threadId = 't') => watch(via, headers, threadId, after);

  it('tell what happens through any of them', async () => {
    await append('first');
    const tapes = clients.map((client) => watched(client));
    for (const tape of tapes) await tape.until(isBookmark);
    const own = stream(clients[1]!, headers, { threadId: 't', clientId: 'c' });
    await own.opened();
    await append('meanwhile');
    own.chunk('Grüße');
    for (const tape of tapes) await tape.until((event) => kindOf(event) === 'textDelta');
    own.finish();
    await own.finished();
    const { id } = await append('gone');
    await clients[1]!.conversation.deleteMessage({ messageId: id });
    for (const tape of tapes) {
      await tape.until((event) => kindOf(event) === 'deleted');
      const follow = follower();
      for (const event of tape.all) follow.take(event);
      expect(follow.messages.get(2)).to.deep.equal(whole('Grüße'));
      expect(tape.all.map(kindOf)).to.deep.equal([
        ...['appended', 'bookmark', 'appended', 'appended', 'textDelta', 'finished', 'appended', 'deleted'],
      ]);
      tape.cancel();
    }
  });

  it('do not skip a commit that is held open while others commit', async () => {
    await append('first');
    await append('first', 'other');
    const tapes = clients.map((client) => watched(client, 1));
    const others = clients.map((client) => watched(client, 1, 'other'));
    for (const tape of [...tapes, ...others]) await tape.until(isBookmark);

    const holder = new pg.Client({ connectionString: appUrl() });
    await holder.connect();
    await holder.query(`begin; set local app.tenant_id = '${tenant}'; set local app.env = 'dev'`);
    await holder.query(
      `with thread as (
         update threads set last_seq = last_seq + 1, revision = revision + 1 where thread_id = 't' returning thread_uid, last_seq
       )
       insert into messages (tenant_id, env, thread_uid, seq, id, user_id, role, content, tool_call_id, create_time)
       select $1, 'dev', thread_uid, last_seq, $2, 'user', 1, 'held open', '', clock_timestamp() from thread`,
      [tenant, uuidv7()],
    );
    const waiting = append('behind it', 't', clients[1]);
    for (let i = 0; i < 20; i++) await append(`${i}`, 'other', clients[i % 2]);
    for (const tape of others) await tape.until(({ revision }) => revision === 21);
    for (const tape of tapes) expect(tape.all.map(kindOf)).to.deep.equal(['bookmark']);
    await holder.query('commit');
    await holder.end();
    expect((await waiting).seq).to.equal(3);
    for (const tape of tapes) {
      await tape.until(({ revision }) => revision === 3);
      expect(tape.all.map(({ event }) => event?.$case === 'appended' && event.value.message!.content)).to.deep.equal([
        ...[false, 'held open', 'behind it'],
      ]);
    }
    for (const tape of [...tapes, ...others]) tape.cancel();
  });

  it('miss nothing after the revision of a list, while four writers append', async () => {
    await append('first');
    let over = false;
    const writers = Array.from({ length: 4 }, async (_, n) => {
      for (let i = 0; !over; i++) await append(`${n} ${i}`, 't', clients[n % 2]);
    });
    for (let i = 0; i < 15; i++) {
      const { conversation } = clients[i % 2]!;
      const { messages, revision } = await conversation.listMessages({ threadId: 't', pageSize: 1 });
      const tape = watched(clients[(i >> 1) % 2]!, revision);
      const next = await tape.until((event) => !isBookmark(event));
      expect(next.event).to.have.nested.property('value.message.seq', messages[0]!.seq + 1);
      await tape.until((event) => event.revision === revision + 10);
      tape.cancel();
      const told = tape.all.filter((event) => !isBookmark(event)).map((event) => event.revision);
      expect(told.slice(0, 10)).to.deep.equal(Array.from({ length: 10 }, (_, k) => revision + k + 1));
    }
    over = true;
    await Promise.all(writers);
  });

  it('end when their server stops, and go on elsewhere', async () => {
    const stopping = await startTestServer();
    const first = connect(`127.0.0.1:${stopping.port}`, headers);
    await append('before');
    const tape = watched(first);
    await tape.until(isBookmark);
    await stopping.stop();
    const told = await tape.ended;
    expect(told).to.include({ code: UNAVAILABLE, reason: 'DRAINING' });
    first.close();
    await append('meanwhile');
    expect(
      (await feed(clients[0]!, headers, 't', tape.all.at(-1)!.revision)).map(({ revision }) => revision),
    ).to.deep.equal([2]);
  });

  it('end when their user is a member no more', async () => {
    await append('mine');
    const tape = watched(clients[0]!);
    await tape.until(isBookmark);
    await runSql(ownerUrl(), 'delete from tenant_members where tenant_id = $1', [tenant]);
    for (const { kernel } of servers) kernel.members.forget(tenant);
    expect((await failure(append('not mine any more'))).code).to.equal(PERMISSION_DENIED);
    // Who was admitted a while ago is looked at again when there is something to tell.
    const { now } = Date;
    Date.now = () => now() + 11_000;
    try {
      await tenantSql(
        tenant,
        `with thread as (update threads set revision = revision + 1 returning thread_uid, revision, last_seq)
         insert into thread_events (tenant_id, env, thread_uid, revision, user_id, kind, seq, last_seq, create_time)
         select $1, 'dev', thread_uid, revision, 'user', 3, 1, last_seq, clock_timestamp() from thread`,
        [tenant],
      );
      expect(await tape.ended).to.include({ code: PERMISSION_DENIED });
    } finally {
      Date.now = now;
    }
    expect(tape.all.map(kindOf)).to.deep.equal(['appended', 'bookmark']);
  });

  it('tell one watch what another of the same thread has seen already', async () => {
    const { database, changes } = servers[0]!.kernel;
    const scope = { tenant, env: 'dev', user: 'user' };
    const signal = new AbortController().signal;
    await append('first', 't', clients[1]);
    const own = watches(database, changes);
    const [early, late, waiting] = [
      own.open(scope, 'thread', 't'),
      own.open(scope, 'thread', 't'),
      own.open(scope, 'thread', 't'),
    ];
    const read = async (which: typeof early, after: number) =>
      which.saw((await which.read(after, (db) => readFeed(db, 't', after))).head);
    await read(early, 0);
    await read(waiting, 0);
    const woken = waiting.news(30_000, signal);
    await append('second', 't', clients[1]);
    await read(late, 1);
    await Promise.all([woken, early.news(30_000, signal)]);
    for (const which of [early, late, waiting]) which.close();
    expect(own.count).to.equal(0);
  });

  it('read no more than a few pages for who does not read', async function () {
    if (process.env.TEST_POOLER) this.skip(); // the way past the pooler is the one that is measured

    const proxy = await startProxy(appUrl());
    let answered = 0;
    proxy.toClient = (bytes) => {
      answered += bytes.length;
      return bytes;
    };
    const behind = await startTestServer({}, undefined, proxy.url);
    const client = connect(`127.0.0.1:${behind.port}`, headers);
    const size = 11 * 20_000;
    for (let i = 0; i < 10; i++) {
      const messages = Array.from({ length: 15 }, () => ({ role: HUMAN, content: 'some words '.repeat(size / 11) }));
      await client.conversation.appendMessages({ threadId: 't', messages });
    }
    const before = answered;
    const tape = watched(client);
    tape.pause();
    // Many turns of everything else that the server does.
    const position = { $case: 'afterSeq' as const, value: 150 };
    for (let i = 0; i < 200; i++) await client.conversation.listMessages({ threadId: 't', position });
    expect(answered - before).to.be.lessThan(60 * size);
    tape.resume();
    await tape.until(isBookmark);
    expect(tape.all.map(({ revision }) => revision)).to.deep.equal([
      ...Array.from({ length: 150 }, (_, i) => i + 1),
      150,
    ]);
    expect(answered - before).to.be.greaterThan(150 * size);
    tape.cancel();
    client.close();
    await behind.stop();
    await proxy.close();
  });

  it('read for a thread of any length only what is new', async () => {
    const scope = { tenant, env: 'dev', user: 'user' };
    for (let i = 0; i < 30; i++) await append(`${i}`);
    const db = reader(servers[0]!.kernel.database, scope, { deadline: Date.now() + 10_000 });
    expect((await readFeed(db, 't', 30)).events).to.deep.equal([]);
    expect((await readFeed(db, 't', 28)).events.map(({ revision }) => revision)).to.deep.equal([29, 30]);
  });
});

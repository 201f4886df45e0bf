import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { query } from '../src/db/statement.ts';
import { transaction } from '../src/db/transaction.ts';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import type { ThreadEvent } from '../src/gen/memory/v1/thread_event.ts';
import type { RunningServer } from '../src/server.ts';
import { sweep } from '../src/tenants/expiry.ts';
import { removeOldest } from '../src/threads/retention.ts';
import { age, keep } from './fixtures/aging.ts';
import { feed, follower, holding, kindOf, stream, watch } from './fixtures/live.ts';
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
  useOwnDatabase,
} from './support.ts';

const { HUMAN } = MessageRole;

describe('retention of messages', () => {
  let server: RunningServer;
  let tenant: string;
  let headers: Record<string, string>;
  let client: Clients;

  let restore = () => {};

  before(async () => {
    restore = await useOwnDatabase();
    server = await startTestServer();
  });
  after(async () => {
    await server?.stop();
    restore();
  });
  beforeEach(async () => {
    tenant = await newTenant(['user', 'admin']);
    headers = headersOf(tenant);
    client = connect(`127.0.0.1:${server.port}`, headers);
    await keep(tenant, { messages_days: 30 });
  });
  afterEach(() => client.close());

  const sql = (text: string, values?: unknown[]) => tenantSql(tenant, text, values);
  const sweepAll = () => sweep(server.kernel.database);
  const append = async (contents: string[], threadId = 't') => {
    const messages = contents.map((content) => ({ role: HUMAN, content, clientId: content }));
    return (await client.conversation.appendMessages({ threadId, messages })).messages;
  };
  const list = async (threadId = 't') => {
    const position = { $case: 'afterSeq' as const, value: 0 };
    const pages = await allPages((pageToken) => client.conversation.listMessages({ threadId, position, pageToken }));
    return pages.flatMap((page) => page.messages);
  };
  const contents = async (threadId = 't') => (await list(threadId)).map(({ content }) => content);
  const read = (after = 0, threadId = 't') => feed(client, headers, threadId, after);
  const revision = async () => (await client.conversation.listMessages({ threadId: 't' })).revision;
  /** What somebody who follows the thread holds of it after these events. */
  const followed = (...parts: ThreadEvent[][]) => {
    const follow = follower();
    for (const event of parts.flat()) follow.take(event);
    return [...follow.messages].filter(([, { deleted }]) => !deleted).map(([seq, { text }]) => [seq, text]);
  };
  async function streamed(clientId: string, text: string, how: 'finish' | 'break', from = 0) {
    const own = stream(client, headers, { threadId: 't', clientId });
    await own.opened();
    for (let at = from; at < text.length; at += 2) {
      own.chunk(text.slice(at, at + 2));
      await own.acked(Math.min(at + 2, text.length));
    }
    if (how === 'finish') {
      own.finish();
      await own.finished();
    } else {
      own.halfClose();
      await own.ended;
    }
  }

  it('removes them at their age to the microsecond, by the clock of the database', async () => {
    await append(['old', 'due', 'young', 'new']);
    const limits = { deadline: Date.now() + 20_000 };
    const scope = { tenant, env: 'dev', user: 'user' };
    const n = await transaction(server.kernel.database, scope, undefined, limits, { repeatable: false }, async (tx) => {
      await tx.query(
        query(`update messages set create_time = now() - interval '720 hours' + (seq - 2) * interval '1 microsecond'`),
      );
      return removeOldest(tx, 't');
    });
    expect([n, await contents()]).to.deep.equal([2, ['young', 'new']]);
  });

  it('leaves nothing of them, and goes on with the next seq', async () => {
    await client.memory.upsertSession({
      session: {
        surfaceId: 'web',
        threadId: 't',
        summaryRefs: [{ id: 's', text: 'what was said', throughSeq: 2 }],
      },
    });
    const [first] = await append(['zebra one', 'zebra two', 'zebra three']);
    const deletedId = (await append(['zebra four']))[0]!.id;
    await client.conversation.deleteMessage({ messageId: deletedId });
    const selection = { selection: { $case: 'lastN' as const, value: 2 } };
    const { bundle } = await client.memory.saveBundle({ sourceThreadId: 't', selection });
    await client.memory.forwardBundle({
      source: { $case: 'bundleId', value: bundle!.id },
      targetThreadId: 'target',
      createTarget: true,
    });
    await streamed('streamed', 'zebra answers', 'finish');
    await sql(`update messages set create_time = create_time - interval '40 days'
      where thread_uid = (select thread_uid from threads where thread_id = 't')`);
    await sql(`update threads set create_time = create_time - interval '40 days' where thread_id = 't'`);
    await sweepAll();
    expect(await contents()).to.deep.equal([]);
    expect(await rowCounts(tenant, ['messages', 'thread_events', 'dropped_threads'])).to.deep.equal({
      messages: 2,
      thread_events: 0,
      dropped_threads: 0,
    });
    // The copies that were forwarded, and the bundle, which live by themselves.
    expect(await holding(tenant, 'zebra')).to.deep.equal(['bundles', 'messages']);
    expect(await contents('target')).to.deep.equal(['zebra two', 'zebra three']);
    expect((await client.conversation.searchMessages({ query: 'zebra' })).results).to.have.length(2);
    const gone = client.conversation.getMessage({ messageId: first!.id });
    expect(await failure(gone)).to.include({ code: status.NOT_FOUND, reason: 'NOT_FOUND' });
    const [again] = await append(['zebra one']);
    expect([again!.seq, again!.id === first!.id]).to.deep.equal([6, false]);
    const [{ summaryRefs }] = (await client.memory.listSessions({})).sessions as [any];
    expect(summaryRefs[0].text).to.equal('what was said');
  });

  it('keeps what is being streamed, and what comes after it', async () => {
    await append(['one', 'two']);
    const own = stream(client, headers, { threadId: 't', clientId: 'three' });
    await own.opened();
    own.chunk('thr');
    await own.acked(3);
    await append(['four']);
    await age(tenant, 40);
    await sweepAll();
    expect(await contents()).to.deep.equal(['thr', 'four']);
    own.chunk('ee');
    own.finish();
    await own.finished();
    expect(await contents()).to.deep.equal(['three', 'four']);
    expect(followed(await read())).to.deep.equal([
      [3, 'three'],
      [4, 'four'],
    ]);
    await sweepAll();
    expect(await contents()).to.deep.equal([]);
    expect(followed(await read())).to.deep.equal([]);
  });

  it('keeps an older message behind a younger one until that goes', async () => {
    await append(['one', 'two', 'three']);
    await sql(
      `update messages set create_time = create_time - case seq when 2 then interval '10 days' else interval '40 days' end`,
    );
    await sql(`update threads set create_time = create_time - interval '40 days'`);
    await sweepAll();
    expect(await contents()).to.deep.equal(['two', 'three']);
    await age(tenant, 25);
    await sweepAll();
    expect(await contents()).to.deep.equal([]);
  });

  it('is told to who watches, and to who comes back from any revision before', async () => {
    await append(['a', 'b']);
    await streamed('c', 'cccccc', 'finish');
    await append(['d', 'e']);
    await client.conversation.deleteMessage({ messageId: (await list())[1]!.id });
    await streamed('f', 'ff', 'break');
    await append(['g', 'h']);
    await streamed('f', 'ffffff', 'break', 2);
    const all = await read();
    const live = watch(client, headers, 't');
    await live.until((event) => kindOf(event) === 'bookmark');
    for (let through = 1; through <= 8; through++) {
      await sql(`update threads set create_time = create_time - interval '40 days', oldest_time = null`);
      await sql(`update messages set create_time = create_time - interval '40 days' where seq = $1`, [through]);
      await sweepAll();
      const left = (await list()).map(({ seq, content }) => [seq, content]);
      expect(left.map(([seq]) => seq)).to.deep.equal([1, 3, 4, 5, 6, 7, 8].filter((seq) => seq > through));
      for (let from = 0; from <= all.length; from++) {
        const events = await read(from);
        expect(followed(all.slice(0, from), events), `from ${from}, without ${through}`).to.deep.equal(left);
      }
      await live.until(({ event }) => event!.$case === 'cleared' && event!.value.throughSeq === through);
      expect(followed(live.all)).to.deep.equal(left);
    }
    live.cancel();
    expect(await rowCounts(tenant, ['messages', 'thread_events'])).to.deep.equal({ messages: 0, thread_events: 0 });
    await append(['i']);
    expect(followed(await read())).to.deep.equal([[9, 'i']]);
    expect(followed(await read(await revision()))).to.deep.equal([]);
  });

  it('removes a long thread in batches, and moves on from threads whose oldest message is younger', async () => {
    await append(['one']);
    await append(['other'], 'young');
    await sql(`insert into messages (tenant_id, env, thread_uid, seq, id, user_id, role, content, create_time)
      select tenant_id, env, thread_uid, s, gen_random_uuid(), user_id, 1, 'x', now() from threads, generate_series(2, 2600) s where thread_id = 't'`);
    await sql(`update threads set last_seq = 2600, revision = 2600 where thread_id = 't'`);
    await age(tenant, 40);
    await sql(`update messages set create_time = now() where seq = 2600 or content = 'other'`);
    const { database } = server.kernel;
    await Promise.all([sweep(database), sweep(database), sweep(database)]);
    await sweepAll();
    expect(await contents()).to.deep.equal(['x']);
    const [row] = await sql(`select swept_count::int as n from expiry_stats where kind = 'retention_messages'`);
    expect(row.n).to.equal(2599);
    const [{ moved }] = await sql(
      `select bool_and(oldest_time = (select min(create_time) from messages m where m.thread_uid = t.thread_uid)) as moved from threads t`,
    );
    expect(moved).to.equal(true);
  });

  it('goes on beside appends, streams, watches and searches, of which none misses or doubles anything', async () => {
    const threads = ['a', 'b', 'c'];
    const end = Date.now() + 3000;
    const appended = new Map(threads.map((thread) => [thread, 0]));
    const tapes = threads.map((thread) => ({ thread, follow: follower() }));
    for (const thread of threads) await append(['first'], thread);
    const busy = () => Date.now() < end;
    const write = async (thread: string, writer: number) => {
      for (let i = 0; busy(); i++) {
        const [message] = await append([`kiwi ${writer} ${i}`], thread);
        appended.set(thread, Math.max(appended.get(thread)!, message!.seq));
      }
    };
    const answer = async (thread: string) => {
      for (let i = 0; busy(); i++) {
        const own = stream(client, headers, { threadId: thread, clientId: `answer ${i}` });
        await own.opened();
        own.chunk('kiwi ');
        await own.acked(5);
        own.chunk('juice');
        own.finish();
        expect((await own.finished()).seq).to.be.greaterThan(0);
      }
    };
    const search = async () => {
      while (busy()) await client.conversation.searchMessages({ query: 'kiwi' });
    };
    // Comes and goes, and so comes back before, amid and after what is removed.
    const follows = async ({ thread, follow }: (typeof tapes)[number]) => {
      for (let head = -1; busy() || follow.revision < head; ) {
        for (const event of await feed(client, headers, thread, follow.revision)) follow.take(event);
        if (!busy()) head = (await client.conversation.listMessages({ threadId: thread })).revision;
      }
    };
    const grow = async () => {
      // Once more when all have ended, as they may have been faster.
      for (let more = true; more; ) {
        more = busy();
        await sql(`update threads set create_time = create_time - interval '40 days' where oldest_time is null`);
        await sql(
          `update messages m set create_time = m.create_time - interval '40 days' from threads t
           where t.thread_uid = m.thread_uid and m.seq < t.last_seq - 5 and m.create_time > now() - interval '30 days'`,
        );
        await sql(
          `update threads set oldest_time = oldest_time - interval '40 days' where oldest_time > now() - interval '30 days'`,
        );
        await sweepAll();
      }
    };
    await Promise.all([
      ...threads.flatMap((thread) => [write(thread, 1), write(thread, 2), answer(thread)]),
      ...tapes.map(follows),
      search(),
      grow(),
      grow(),
    ]);
    await sweepAll();
    for (const { thread, follow } of tapes) {
      for (const event of await feed(client, headers, thread, follow.revision)) follow.take(event);
      const left = await list(thread);
      expect(follow.lastSeq).to.equal(left.at(-1)?.seq ?? follow.lastSeq);
      expect([...follow.messages].map(([seq, { text }]) => [seq, text])).to.deep.equal(
        left.map(({ seq, content }) => [seq, content]),
      );
      expect(left.length).to.be.lessThan(follow.lastSeq);
      expect(left.map(({ seq }) => seq)).to.deep.equal(left.map((_, i) => left[0]!.seq + i));
    }
  });
});

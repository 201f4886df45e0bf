import { status } from '@grpc/grpc-js';
import { MessageRole } from '../../src/gen/memory/v1/message.ts';
import type { ThreadEvent } from '../../src/gen/memory/v1/thread_event.ts';
import { follower, stream, type Told, watch, whole } from '../fixtures/live.ts';
import { allPages, type Clients, connect, headersOf, newTenant } from '../support.ts';
import { kill } from './crash.ts';
import { CHANNEL } from './ledger.ts';
import { makeRandom } from './random.ts';
import type { Random, Scenario } from './scenario.ts';

const THREADS = 4;
const WATCHERS = 2;
const CHARACTERS = 2000;
const LETTERS = ['a', 'b', ' ', 'é', '中', '👋'];
/** What a call answers whose server, database or connection is gone, or that was waiting for one of them. */
const BROKEN = [status.UNAVAILABLE, status.CANCELLED, status.DEADLINE_EXCEEDED];
const CALL_MS = 10_000;
/** What telling and reading all of it takes in the end, as a part of all. */
const CHECKS = 0.3;

export const live: Scenario = {
  name: 'live',
  about: 'messages streamed and threads watched while servers and Postgres are killed',
  weight: 2,
  async run(arena) {
    const postgres = await arena.startPostgres();
    const servers = await Promise.all([arena.startServer({ postgres }), arena.startServer({ postgres })]);
    const tenant = await newTenant(['user'], {}, postgres.ownerUrl);
    const headers = headersOf(tenant);
    const clients = servers.map(({ address }) => connect(address, headers, CHANNEL));
    arena.cleanup(() => clients.forEach((client) => client.close()));
    let going = true;
    let finished = 0;
    let resumed = 0;

    /** Streams messages one after the other, each until it is finished. Gives what the thread must hold. */
    async function write(threadId: string, random: Random): Promise<Told[]> {
      const texts: string[] = [];
      do {
        const text = Array.from({ length: CHARACTERS }, () => random.pick(LETTERS)).join('');
        while (!(await attempt(random.pick(clients), threadId, `m${texts.length}`, text, random))) resumed++;
        texts.push(text);
        finished++;
      } while (going);
      const end = { threadId, messages: [{ role: MessageRole.HUMAN, content: 'the end', clientId: 'end' }] };
      await persist(() => random.pick(clients).conversation.appendMessages(end));
      return [...texts, 'the end'].map(whole);
    }

    async function attempt(client: Clients, threadId: string, clientId: string, text: string, random: Random) {
      const open = { threadId, clientId, role: MessageRole.ASSISTANT };
      const own = stream(client, headers, open, { deadline: Date.now() + CALL_MS });
      try {
        const { durableOffset } = await own.opened();
        const rest = [...Buffer.from(text).subarray(durableOffset).toString()];
        for (let at = 0; at < rest.length; ) {
          const length = 1 + random.int(200);
          own.chunk(rest.slice(at, at + length).join(''));
          at += length;
          if (random.chance(0.5)) await own.until(({ $case }) => $case === 'ack');
        }
        own.finish();
        await own.finished();
        return true;
      } catch (error) {
        const failure = await own.ended;
        if (!failure || !BROKEN.includes(failure.code)) throw error;
        return false;
      }
    }

    /** Follows a thread until its end, over watches that end at random and when their server does. */
    async function follow(threadId: string, random: Random): Promise<Map<number, Told>> {
      const following = follower();
      for (let over = false; !over; ) {
        const tape = watch(random.pick(clients), headers, threadId, following.revision);
        let left = 1 + random.int(100);
        await tape.until((event) => --left === 0 || isEnd(event)).catch(() => {});
        tape.cancel();
        const failure = await tape.ended;
        const missing = failure?.code === status.NOT_FOUND && following.revision === 0; // nothing is written yet
        if (failure && !missing && !BROKEN.includes(failure.code)) throw new Error(`a watch ended: ${failure.message}`);
        for (const event of tape.all) {
          following.take(event);
          over ||= isEnd(event);
        }
      }
      return following.messages;
    }

    const threads = Array.from({ length: THREADS }, (_, n) => `t${n}`);
    const work = Promise.all(
      threads.map((threadId) =>
        Promise.all([
          write(threadId, makeRandom(arena.seed, `writer of ${threadId}`)),
          ...Array.from({ length: WATCHERS }, (_, n) =>
            follow(threadId, makeRandom(arena.seed, `watcher ${n} of ${threadId}`)),
          ),
        ]),
      ),
    );
    work.catch(() => {}); // thrown where it is awaited
    let kills = 0;
    for (const until = Date.now() + arena.timeLeft() * (1 - CHECKS); Date.now() < until; kills++) {
      const goal = finished + 1 + arena.random.int(THREADS);
      while (finished < goal && Date.now() < until) await Promise.race([work, tick()]);
      await kill(arena, postgres, servers, arena.random.pick(['server', 'server', 'Postgres'] as const));
    }
    going = false;
    for (const [n, [written, ...seen]] of (await work).entries()) {
      const told = new Map(written.map((message, i) => [i + 1, message]));
      for (const messages of seen) expectSame(told, messages, `what a watcher of ${threads[n]} saw`);
      const read = (pageToken: string) =>
        clients[0]!.conversation.listMessages({
          threadId: threads[n],
          position: { $case: 'afterSeq', value: 0 },
          pageToken,
        });
      const stored = (await allPages(read)).flatMap((page) => page.messages);
      const listed = new Map(stored.map(({ seq, content, state }) => [seq, { text: content, state, deleted: false }]));
      expectSame(told, listed, `what ${threads[n]} holds`);
    }
    return { kills, messages: finished, resumed };
  },
};

const tick = () => new Promise((resolve) => setTimeout(resolve, 50));

const isEnd = ({ event }: ThreadEvent) => event?.$case === 'appended' && event.value.message?.clientId === 'end';

/** Until it is answered. */
async function persist(call: () => Promise<unknown>): Promise<void> {
  for (;;) {
    try {
      await call();
      return;
    } catch (error) {
      if (!BROKEN.includes((error as { code: status }).code)) throw error;
    }
  }
}

function expectSame(expected: Map<number, Told>, found: Map<number, Told>, what: string): void {
  for (const seq of new Set([...expected.keys(), ...found.keys()])) {
    const [want, got] = [expected.get(seq), found.get(seq)];
    if (JSON.stringify(want) !== JSON.stringify(got)) {
      throw new Error(`${what} differs at ${seq}: ${want?.text.length} characters written, ${got?.text.length} seen`);
    }
  }
}

import { randomUUID } from 'node:crypto';
import { type ServiceError, status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import type { ThreadEvent } from '../src/gen/memory/v1/thread_event.ts';
import type { RunningServer } from '../src/server.ts';
import { feed, follower, kindOf, pieces, random, stream, type Told, watch, whole } from './fixtures/live.ts';
import { startProcess } from './fixtures/process.ts';
import { type Interposed, startProxy } from './proxy.ts';
import { appUrl, type Clients, connect, headersOf, newTenant, startTestServer, until } from './support.ts';

const { HUMAN } = MessageRole;
const { CANCELLED, UNAVAILABLE } = status;

// What fails is printed with its seed. Another: TEST_SEED.
const seed = Number(process.env.TEST_SEED ?? 20_261_121);
const LETTERS = [...'abcdefgh ijklmnop qrstuvwxyz äöüß жиз 漢字 👋🏽🎉\n'];

describe(`live threads at random (seed ${seed})`, function () {
  this.timeout(120_000);
  let tenant: string;
  let headers: Record<string, string>;
  beforeEach(async () => {
    tenant = await newTenant();
    headers = headersOf(tenant);
  });

  const start = (client: Clients, threadId: string) =>
    client.conversation.appendMessages({ threadId, messages: [{ role: HUMAN, content: 'start' }] });
  const textOf = (next: () => number, length: number) =>
    Array.from({ length }, () => LETTERS[Math.floor(next() * LETTERS.length)]).join('');

  /** Follows a thread over watches that end at random, each through another client, until an event of the whole is enough. */
  async function followed(
    next: () => number,
    via: () => Clients,
    threadId: string,
    enough: (event: ThreadEvent) => boolean,
  ) {
    const follow = follower();
    for (;;) {
      const tape = watch(via(), headers, threadId, follow.revision);
      let left = 1 + Math.floor(next() * 30);
      await tape.until((event) => --left === 0 || enough(event)).catch(() => {});
      tape.cancel();
      for (const event of [...tape.all]) follow.take(event);
      if (tape.all.some(enough)) return follow;
      const told = await tape.ended;
      expect(told?.code, JSON.stringify(told)).to.be.oneOf([CANCELLED, UNAVAILABLE]);
    }
  }

  it('streams cut at 200 points, by client, server and database, lose and double nothing', async () => {
    interface Slot {
      server: RunningServer;
      client: Clients;
      proxy: Interposed;
      /** What happens to the next write: it is not passed on, or its answer is lost. */
      trap: 'before' | 'after' | undefined;
    }
    async function newSlot(): Promise<Slot> {
      const proxy = await startProxy(appUrl());
      const server = await startTestServer({}, undefined, proxy.url);
      const slot: Slot = { server, proxy, client: connect(`127.0.0.1:${server.port}`, headers), trap: undefined };
      proxy.toServer = (bytes, connection) => {
        if (!slot.trap || !bytes.includes('commit')) return bytes;
        if (slot.trap === 'before') connection.cut();
        else setImmediate(() => setTimeout(() => connection.cut(), 10));
        if (slot.trap === 'after') connection.deafen();
        slot.trap = undefined;
        return bytes;
      };
      return slot;
    }
    async function end({ server, client, proxy }: Slot): Promise<void> {
      await server.stop();
      client.close();
      await proxy.close();
    }
    const slots = [await newSlot(), await newSlot()];
    const endings: Promise<void>[] = [];
    const cuts = { client: 0, database: 0, server: 0 };

    async function written(n: number, threadId: string, text: string): Promise<void> {
      const next = random(seed + n);
      const bytes = Buffer.from(text);
      const open = { threadId, clientId: 'c' };
      for (let left = 25; ; ) {
        const i = Math.floor(next() * 2);
        const slot = slots[i]!;
        const own = stream(slot.client, headers, open);
        const opened = await own.opened().catch(() => undefined);
        if (!opened) {
          expect((await own.ended)?.code).to.be.oneOf([CANCELLED, UNAVAILABLE]);
          continue;
        }
        const rest = bytes.subarray(opened.durableOffset).toString();
        const share = left > 0 ? Math.floor((rest.length * next() * 1.5) / (left + 1)) : rest.length;
        for (let at = 0; at < share; ) {
          const chunk = [...rest.slice(at, at + 200)].slice(0, 1 + Math.floor(next() * 80)).join('');
          own.chunk(chunk);
          at += chunk.length;
        }
        if (left === 0) {
          own.finish();
          if (await own.finished().catch(() => undefined)) return;
          continue;
        }
        left--;
        if (next() < 0.5 && share > 0) await own.until((frame) => frame.$case === 'ack').catch(() => {});
        const kind = next();
        if (kind < 0.1) {
          cuts.server++;
          const [replaced] = slots.splice(i, 1, await newSlot());
          endings.push(end(replaced!));
        } else if (kind < 0.55) {
          cuts.database++;
          slot.trap = next() < 0.5 ? 'before' : 'after';
          const sent = own.all.length;
          // The next write goes into the trap, unless another stream's did.
          await Promise.race([
            own.ended,
            own.until((frame) => own.all.length > sent && frame.$case === 'ack').catch(() => {}),
            // If another's did, this one may have nothing left to write.
            until(async () => !slot.trap),
          ]);
          own.cancel();
        } else {
          cuts.client++;
          own.cancel();
        }
        const told = await own.ended;
        expect(told?.code, JSON.stringify(told)).to.be.oneOf([CANCELLED, UNAVAILABLE]);
      }
    }

    const finished = (event: ThreadEvent) =>
      event.event?.$case === 'finished' && event.event.value.message!.state === whole('').state;
    const threads = await Promise.all(
      Array.from({ length: 8 }, async (_, n) => {
        const threadId = `t${n}`;
        const next = random(seed * 31 + n);
        const via = () => slots[Math.floor(next() * 2)]!.client;
        const text = textOf(next, 30_000);
        await start(slots[0]!.client, threadId);
        const [follow] = await Promise.all([followed(next, via, threadId, finished), written(n, threadId, text)]);
        return { threadId, via, text, follow };
      }),
    );
    // Only now, as until the last cut a server may stop that one of these calls is on.
    for (const { threadId, via, text, follow } of threads) {
      const told = new Map<number, Told>([
        [1, whole('start')],
        [2, whole(text)],
      ]);
      expect(follow.messages).to.deep.equal(told);
      const again = follower();
      for (const event of await feed(via(), headers, threadId)) again.take(event);
      expect(again.events.map(kindOf)).to.deep.equal(follow.events.map(kindOf));
      expect(again.messages).to.deep.equal(told);
      const { messages } = await via().conversation.listMessages({ threadId });
      expect(messages.map(({ content }) => content)).to.deep.equal([text, 'start']);
    }
    expect(cuts.client + cuts.database + cuts.server).to.equal(200);
    expect(Math.min(...Object.values(cuts))).to.be.greaterThan(5);
    await Promise.all([...endings, ...slots.map(end)]);
  });

  it('are told to three watchers once and in order, while eight write, and one of two servers is killed', async () => {
    const processes = await Promise.all([startProcess(), startProcess()]);
    const clients = processes.map(({ port }) => connect(`127.0.0.1:${port}`, headers));
    const alive = [...clients];
    const anyOf = (next: () => number) => () => alive[Math.floor(next() * alive.length)]!;
    await start(clients[0]!, 't');

    /** Again until it was done, by whichever server. */
    const insist = <T>(via: () => Clients, work: (client: Clients) => Promise<T>): Promise<T> =>
      until(() =>
        work(via()).then(
          (done) => ({ done }),
          (error: ServiceError) => {
            if (error.code !== UNAVAILABLE) throw error;
            return undefined;
          },
        ),
      ).then(({ done }) => done);

    const expected = new Map<string, Told>();
    async function write(n: number): Promise<void> {
      const next = random(seed + 100 + n);
      const via = anyOf(next);
      for (let i = 0; i < 12; i++) {
        const clientId = `${n}-${i}`;
        const text = `${clientId} ${textOf(next, 40)}`;
        const kind = next();
        if (kind < 0.4) {
          await insist(via, async (client) => {
            const own = stream(client, headers, { threadId: 't', clientId });
            const { durableOffset } = await own.opened();
            const rest = Buffer.from(text).subarray(durableOffset).toString();
            for (const piece of pieces(rest, 10)) own.chunk(piece);
            own.finish();
            await own.finished();
          });
          expected.set(clientId, whole(text));
          continue;
        }
        const messages = [{ role: HUMAN, content: text, clientId }];
        const appended = await insist(via, (client) => client.conversation.appendMessages({ threadId: 't', messages }));
        expected.set(clientId, whole(text));
        if (kind < 0.85) continue;
        const messageId = appended.messages[0]!.id;
        const requestId = randomUUID();
        await insist(via, (client) => client.conversation.deleteMessage({ messageId, requestId }));
        expected.set(clientId, { ...whole(''), deleted: true });
      }
    }
    let head = Number.POSITIVE_INFINITY;
    const watchers = Array.from({ length: 3 }, (_, n) => {
      const next = random(seed + 200 + n);
      return followed(next, anyOf(next), 't', ({ revision }) => revision >= head);
    });
    const writing = Promise.all(Array.from({ length: 8 }, (_, n) => write(n)));
    // In the middle of it.
    const tape = watch(clients[1]!, headers, 't');
    await tape.until(({ revision }) => revision > 60);
    tape.cancel();
    alive.splice(0, 1);
    processes[0]!.kill('SIGKILL');
    await processes[0]!.exited;
    await writing;
    head = (await clients[1]!.conversation.listMessages({ threadId: 't' })).revision + 1;
    await clients[1]!.conversation.appendMessages({ threadId: 't', messages: [{ role: HUMAN, content: 'the end' }] });
    const [first, ...others] = await Promise.all(watchers);
    const all = await feed(clients[1]!, headers, 't');
    const outline = (events: ThreadEvent[]) =>
      events.map((event) => [event.revision, kindOf(event), (event.event as any).value.message?.seq]);
    for (const watcher of [first!, ...others]) {
      expect(outline(watcher.events)).to.deep.equal(outline(all));
      expect(watcher.messages).to.deep.equal(first!.messages);
    }
    const told = new Map<string, Told>();
    for (const { event } of all) {
      if (event?.$case !== 'appended') continue;
      const { clientId, seq } = event.value.message!;
      if (clientId) expect(told.has(clientId), clientId).to.equal(false);
      if (clientId) told.set(clientId, first!.messages.get(seq)!);
    }
    expect(told).to.deep.equal(expected);
    clients.forEach((client) => client.close());
    await processes[1]!.stop();
  });
});

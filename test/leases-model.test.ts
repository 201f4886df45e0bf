import { randomUUID } from 'node:crypto';
import { type ServiceError, status } from '@grpc/grpc-js';
import { expect } from 'chai';
import fc from 'fast-check';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import { checkHistory, type Event, type Stored } from './fixtures/lease-history.ts';
import { type ServerProcess, startProcess } from './fixtures/process.ts';
import { type Clients, connect, type Failure, failureOf, headersOf, newTenant, tenantSql } from './support.ts';

const { HUMAN, ASSISTANT } = MessageRole;
const { ABORTED, FAILED_PRECONDITION, NOT_FOUND } = status;

// What fails is printed with its seed and path. More of it: TEST_SEED and TEST_RUNS.
const seed = Number(process.env.TEST_SEED ?? 20_260_727);
const RUNS = Number(process.env.TEST_RUNS ?? 1);

/** Something that one holds at a time, and what can be done with it. */
interface Leased {
  what: string;
  /** The reason to refuse whoever comes while another holds it. */
  held: string;
  /** The kinds of steps, and of events, that there are beside those of every lease. */
  steps: Step['kind'][];
  events: Event['kind'][];
  /** What is told to who writes with a token where nothing is yet. */
  nowhere: [status, string];
  acquire(client: Clients, id: string, holder: string): Promise<Lease>;
  renew(client: Clients, id: string, fencingToken: number): Promise<Lease>;
  release(client: Clients, id: string, fencingToken: number): Promise<unknown>;
  write(client: Clients, id: string, content: string, fencingToken: number, role: MessageRole): Promise<unknown>;
  /** Both as SQL, of the one named $1. */
  lapse: string;
  stored: string;
}

interface Lease {
  holder: string;
  fencingToken: number;
}

const STALE: [status, string] = [ABORTED, 'STALE_FENCING_TOKEN'];

const TURNS: Leased = {
  what: 'turns of threads',
  held: 'TURN_HELD',
  steps: ['bare', 'bare', 'bare', 'forward', 'delete', 'revive'],
  events: ['human', 'human', 'bare', 'bare', 'forward'],
  nowhere: STALE,
  acquire: async (client, threadId, holder) => (await client.conversation.acquireTurn({ threadId, holder })).lease!,
  renew: async (client, threadId, fencingToken) =>
    (await client.conversation.renewTurn({ threadId, fencingToken })).lease!,
  release: (client, threadId, fencingToken) => client.conversation.releaseTurn({ threadId, fencingToken }),
  write: (client, threadId, content, fencingToken, role) =>
    client.conversation.appendMessages({ threadId, messages: [{ role, content }], fencingToken }),
  lapse: `update threads set lease_expire_time = clock_timestamp() where thread_id = $1 and lease_holder is not null`,
  stored: `select m.seq::int, m.content from messages m join threads t using (tenant_id, env, thread_uid) where t.thread_id = $1 order by 1`,
};

const section = (sectionId: string) => ({ projectId: 'atlas', sectionId });

const SECTIONS: Leased = {
  what: 'locks of sections',
  held: 'SECTION_HELD',
  steps: [],
  events: [],
  nowhere: [NOT_FOUND, 'NOT_FOUND'],
  acquire: async (client, id, holder) => (await client.artifact.lockSection({ ...section(id), holder })).lock!,
  renew: async (client, id, fencingToken) =>
    (await client.artifact.renewSectionLock({ ...section(id), fencingToken })).lock!,
  release: (client, id, fencingToken) => client.artifact.unlockSection({ ...section(id), fencingToken }),
  write: (client, id, content, fencingToken) => client.artifact.saveDraft({ ...section(id), content, fencingToken }),
  lapse: `update drafts set lease_expire_time = clock_timestamp() where section_id = $1 and lease_holder is not null`,
  stored: `select revision::int as seq, content from draft_revisions where section_id = $1 order by 1`,
};

for (const kind of [TURNS, SECTIONS]) leasesByRandomSchedules(kind);

function leasesByRandomSchedules(of: Leased): void {
  describe(`${of.what} by random schedules (seed ${seed})`, function () {
    this.timeout(60_000 * RUNS);
    let servers: ServerProcess[] = [];
    let clients: Clients[] = [];
    let tenant: string;

    before(async () => {
      servers = await Promise.all([startProcess(), startProcess()]);
      tenant = await newTenant();
      // Two clients for each server.
      clients = [...servers, ...servers].map(({ address }) => connect(address, headersOf(tenant)));
      await TURNS.write(clients[0]!, 'source', 'x', 0, HUMAN);
    });
    after(async () => {
      for (const client of clients) client.close();
      await Promise.all(servers.map((server) => server.stop()));
    });

    const ask = <Response>(call: Promise<Response>): Promise<{ response?: Response; refused?: Failure }> =>
      call.then(
        (response) => ({ response }),
        (error: ServiceError) => ({ refused: failureOf(error) }),
      );
    const lapse = (id: string) => tenantSql(tenant, of.lapse, [id]);
    const forward = (client: Clients, threadId: string, content: string) => {
      const messages = [{ role: ASSISTANT, content }];
      const inline = {
        sourceThreadId: 'source',
        selection: { selection: { $case: 'inline' as const, value: { messages } } },
      };
      const source = { $case: 'inline' as const, value: inline };
      return ask(client.memory.forwardBundle({ source, targetThreadId: threadId, createTarget: true }));
    };
    const stored = (id: string): Promise<Stored[]> => tenantSql(tenant, of.stored, [id]);

    it('do exactly what one of them with one lease would do, step by step through any of the servers', async () => {
      const via = fc.nat(3);
      // The newest token, one of the past, or one that was never given.
      const which = fc.oneof(
        { weight: 3, arbitrary: fc.constant<Which>('newest') },
        { weight: 2, arbitrary: fc.constantFrom<Which>('before', 'next', 'far') },
      );
      const more: Step['kind'][] = [...of.steps, 'lapse'];
      const step = fc.oneof(
        { weight: 4, arbitrary: fc.record({ via, kind: fc.constant('acquire' as const) }) },
        { weight: 6, arbitrary: fc.record({ via, kind: fc.constant('append' as const), human: fc.boolean(), which }) },
        {
          weight: 4,
          arbitrary: fc.record({ via, kind: fc.constantFrom('renew' as const, 'release' as const), which }),
        },
        {
          weight: 1 + of.steps.length,
          arbitrary: fc.record({ via, kind: fc.constantFrom(...more), human: fc.boolean() }),
        },
      ) as fc.Arbitrary<Step>;
      const property = fc.asyncProperty(fc.array(step, { maxLength: 30 }), async (steps) => {
        const thread: Model = {
          id: randomUUID(),
          there: false,
          deleted: false,
          newest: 0,
          holder: '',
          live: false,
          log: [],
        };
        for (const [i, taken] of steps.entries()) await follow(thread, taken, `${i} ${JSON.stringify(taken)}`, i);
        if (thread.there && !thread.deleted)
          expect((await stored(thread.id)).map((message) => message.content)).to.deep.equal(thread.log);
      });
      await fc.assert(property, { seed, numRuns: 60 * RUNS });
    });

    /** Takes a step, and checks its answer against what the model says. */
    async function follow(thread: Model, step: Step, what: string, i: number): Promise<void> {
      const client = clients[step.via]!;
      const { conversation, memory } = client;
      const threadId = thread.id;
      const gone = !thread.there ? [NOT_FOUND, 'NOT_FOUND'] : thread.deleted ? [NOT_FOUND, 'DELETED'] : undefined;
      const buried = thread.deleted ? [NOT_FOUND, 'DELETED'] : undefined;
      const token = {
        newest: thread.newest,
        before: thread.newest - 1,
        next: thread.newest + 1,
        far: thread.newest + 7,
      };
      const fencingToken = Math.max(1, step.which ? token[step.which] : 0);
      const stale = thread.holder && fencingToken === thread.newest ? undefined : thread.there ? STALE : of.nowhere;
      const held = thread.live ? [FAILED_PRECONDITION, of.held] : undefined;
      const expected = (refused: Failure | undefined, fault: (string | number)[] | undefined) => {
        expect(refused && [refused.code, refused.reason], what).to.deep.equal(fault);
        return !fault;
      };
      const content = `m${i}`;

      switch (step.kind) {
        case 'acquire': {
          const { response, refused } = await ask(of.acquire(client, threadId, content));
          if (!expected(refused, buried ?? held)) {
            if (!buried) expect(refused!.metadata.holder, what).to.equal(thread.holder);
            return;
          }
          expect(response!.fencingToken, what).to.be.greaterThan(thread.newest);
          Object.assign(thread, { there: true, holder: content, live: true, newest: response!.fencingToken });
          return;
        }
        case 'renew': {
          const { response, refused } = await ask(of.renew(client, threadId, fencingToken));
          if (!expected(refused, gone ?? stale)) return;
          expect(response, what).to.include({ holder: thread.holder, fencingToken });
          thread.live = true;
          return;
        }
        case 'release': {
          const { refused } = await ask(of.release(client, threadId, fencingToken));
          if (expected(refused, gone ?? stale)) Object.assign(thread, { holder: '', live: false });
          return;
        }
        case 'append':
        case 'bare': {
          const role = step.human ? HUMAN : ASSISTANT;
          const given = step.kind === 'append' ? fencingToken : 0;
          const { refused } = await ask(of.write(client, threadId, content, given, role));
          const fault = given ? stale : step.human ? undefined : held;
          if (!expected(refused, buried ?? fault)) return;
          thread.there = true;
          thread.log.push(content);
          return;
        }
        case 'forward': {
          const { refused } = await forward(clients[step.via]!, threadId, content);
          if (!expected(refused, buried)) return;
          thread.there = true;
          thread.log.push(content);
          return;
        }
        case 'lapse':
          await lapse(threadId);
          thread.live = false;
          return;
        case 'delete': {
          const { refused } = await ask(conversation.deleteThread({ threadId }));
          if (expected(refused, gone)) Object.assign(thread, { deleted: true, holder: '', live: false, log: [] });
          return;
        }
        case 'revive':
          if (!thread.deleted) return;
          await memory.upsertSession({ session: { surfaceId: `${threadId} ${i}`, threadId } });
          thread.deleted = false;
      }
    }

    it('are held by one at a time, fence the past out and let people through, all at once', async () => {
      const kind = fc.constantFrom<Event['kind']>(
        ...(['acquire', 'acquire', 'acquire', 'fenced', 'fenced', 'fenced', 'fenced'] as const),
        ...(['renew', 'release', 'lapse'] as const),
        ...of.events,
      );
      const scripts = fc.array(fc.array(kind, { minLength: 5, maxLength: 25 }), { minLength: 4, maxLength: 8 });
      const property = fc.asyncProperty(scripts, async (all) => {
        const threadId = randomUUID();
        const events: Event[] = [];
        const now = { value: 0 };
        await Promise.all(
          all.map((script, n) => play(clients[n % clients.length]!, `c${n}`, threadId, script, events, now)),
        );
        checkHistory(events, await stored(threadId).catch(() => []));
      });
      // Another run of the same schedule is another interleaving: there is nothing to shrink.
      await fc.assert(property, { seed, numRuns: 25 * RUNS, endOnFailure: true });
    });

    /** One client that does what it is told, with the last lease that it got, for as long as it likes. */
    async function play(
      client: Clients,
      holder: string,
      threadId: string,
      script: Event['kind'][],
      events: Event[],
      now: { value: number },
    ): Promise<void> {
      let own = 0;
      for (const [i, kind] of script.entries()) {
        const token = ['renew', 'release', 'fenced'].includes(kind) ? own : 0;
        if (token === 0 && ['renew', 'release', 'fenced'].includes(kind)) continue;
        const content = ['fenced', 'human', 'bare', 'forward'].includes(kind) ? `${holder} ${i} ${kind} ${token}` : '';
        const event: Event = { kind, token, content, start: now.value++, end: 0, ok: false, reason: '' };
        const doing: Record<Event['kind'], () => Promise<{ response?: any; refused?: Failure }>> = {
          acquire: () => ask(of.acquire(client, threadId, holder)),
          renew: () => ask(of.renew(client, threadId, token)),
          release: () => ask(of.release(client, threadId, token)),
          fenced: () => ask(of.write(client, threadId, content, token, i % 3 ? ASSISTANT : HUMAN)),
          human: () => ask(of.write(client, threadId, content, 0, HUMAN)),
          bare: () => ask(of.write(client, threadId, content, 0, ASSISTANT)),
          forward: () => forward(client, threadId, content),
          lapse: async () => ({ response: await lapse(threadId) }),
        };
        const { response, refused } = await doing[kind]();
        Object.assign(event, { end: now.value++, ok: !refused, reason: refused?.reason ?? '' });
        if (kind === 'acquire' && response) own = event.token = response.fencingToken;
        events.push(event);
      }
    }
  });
}

type Which = 'newest' | 'before' | 'next' | 'far';

interface Step {
  /** The client. */
  via: number;
  kind: 'acquire' | 'renew' | 'release' | 'append' | 'bare' | 'forward' | 'lapse' | 'delete' | 'revive';
  human?: boolean;
  which?: Which;
}

interface Model {
  id: string;
  there: boolean;
  deleted: boolean;
  /** The token of the newest lease. */
  newest: number;
  /** '' if nobody holds the lease. */
  holder: string;
  live: boolean;
  log: string[];
}

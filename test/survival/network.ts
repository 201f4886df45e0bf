import { setTimeout as sleep } from 'node:timers/promises';
import type { Connection, Hook, Interposed } from '../proxy.ts';
import { startProxy } from '../proxy.ts';
import { connect, headersOf } from '../support.ts';
import { checkAftermath } from './aftermath.ts';
import { startLoad } from './load.ts';
import type { Arena, Random, Scenario } from './scenario.ts';

const CLIENTS = 8;
const CHECKS = 0.15;
/** The contract, and how often longer a busy machine may take. */
const RECOVERY_MS = 2000;
const BUSY = 5;

export const network: Scenario = {
  name: 'network',
  about: 'networks that delay, cut, swallow and stall, between clients and server and between server and database',
  weight: 2,
  async run(arena) {
    const postgres = await arena.startPostgres();
    const server = await arena.startServer({ postgres });
    const front = await startProxy(`tcp://${server.address}`);
    arena.cleanup(front.close);
    const load = await startLoad(arena, postgres, [new URL(front.url).host], CLIENTS);
    const until = Date.now() + arena.timeLeft() * (1 - CHECKS);
    const counts: Record<string, number> = {};
    const recoveries: number[] = [];
    // Every trouble on each link in turn, in another order each time.
    let plan: [Trouble, Interposed][] = [];
    while (Date.now() < until && load.ledger.faults.length === 0) {
      if (plan.length === 0) plan = shuffled(arena.random, troubles(front, postgres.link));
      const [trouble, link] = plan.pop()!;
      await load.progress(1 + arena.random.int(100));
      await trouble.strike(link, arena);
      Object.assign(link, CALM);
      const start = performance.now();
      await load.allAnswered();
      recoveries.push(performance.now() - start);
      counts[trouble.name] = (counts[trouble.name] ?? 0) + 1;
      arena.tell(
        `${trouble.name} ${link === front ? 'before' : 'behind'} the server: back in ${recoveries.at(-1)! | 0} ms`,
      );
    }
    await load.end();
    await postgres.stop();
    await postgres.start();
    const clients = connect(server.address, headersOf(load.tenant));
    arena.cleanup(clients.close);
    const figures = await checkAftermath(load.ledger, load.tenant, clients, postgres.ownerUrl);
    recoveries.sort((a, b) => a - b);
    const slowest = Math.round(recoveries.at(-1) ?? 0);
    if (slowest > RECOVERY_MS * BUSY) throw new Error(`it took ${slowest} ms until all clients were served again`);
    const median = Math.round(recoveries[recoveries.length >> 1] ?? 0);
    const over = recoveries.filter((ms) => ms > RECOVERY_MS).length;
    return { ...counts, 'recovery ms p50': median, 'slowest ms': slowest, 'over 2 s': over, ...figures };
  },
};

interface Trouble {
  name: string;
  /** Resolves when the network is back, but for its hooks. */
  strike(link: Interposed, arena: Arena): Promise<void>;
}

const CALM: Pick<Interposed, 'toServer' | 'toClient'> = { toServer: (bytes) => bytes, toClient: (bytes) => bytes };
const both = (link: Interposed, hook: Hook) => Object.assign(link, { toServer: hook, toClient: hook });
const lasting = ({ random }: Arena) => sleep(500 + random.int(2500));

const delay: Trouble = {
  name: 'delays',
  async strike(link, arena) {
    const { random } = arena;
    both(link, async (bytes) => {
      await sleep(random.int(60));
      return bytes;
    });
    await lasting(arena);
  },
};

/** What has passed is a part of a message, a frame or a statement. */
const cutMidMessage: Trouble = {
  name: 'cuts mid-message',
  async strike(link, { random }) {
    const cutting = new Promise<void>((resolve) => {
      let left = 1 + random.int(10);
      const hook: Hook = (bytes, connection) => {
        if (random.chance(0.9)) return bytes;
        setImmediate(connection.cut);
        if (--left === 0) resolve();
        return bytes.subarray(0, random.int(bytes.length));
      };
      Object.assign(link, random.chance(0.5) ? { toServer: hook } : { toClient: hook });
    });
    await cutting;
  },
};

/** Half of them before Postgres can have answered, half after it has, so that it is done and nobody knows. */
const cutAfterCommit: Trouble = {
  name: 'cuts after COMMIT',
  async strike(link, { random }) {
    const committing = new WeakSet<Connection>();
    await new Promise<void>((resolve) => {
      let left = 1 + random.int(10);
      const cut = (connection: Connection) => {
        setImmediate(connection.cut);
        if (--left === 0) resolve();
      };
      link.toServer = (bytes, connection) => {
        if (bytes.includes('commit\0') && random.chance(0.3)) {
          if (random.chance(0.5)) cut(connection);
          else committing.add(connection);
        }
        return bytes;
      };
      link.toClient = (bytes, connection) => {
        if (!committing.has(connection) || !bytes.includes('COMMIT\0')) return bytes;
        cut(connection);
        return Buffer.alloc(0);
      };
    });
  },
};

/** As packets that are lost and sent again: nothing is missing in the end. */
const stall: Trouble = {
  name: 'stalls',
  async strike(link, arena) {
    const { promise, resolve } = Promise.withResolvers<void>();
    both(link, async (bytes) => {
      await promise;
      return bytes;
    });
    await lasting(arena);
    resolve();
  },
};

/** As a router that forgets its connections: what was sent is gone, and in the end they are cut. */
const blackhole: Trouble = {
  name: 'blackholes',
  async strike(link, arena) {
    both(link, () => Buffer.alloc(0));
    await lasting(arena);
    link.cutAll();
  },
};

const troubles = (front: Interposed, back: Interposed): [Trouble, Interposed][] => [
  ...[delay, cutMidMessage, stall, blackhole].flatMap((trouble): [Trouble, Interposed][] => [
    [trouble, front],
    [trouble, back],
  ]),
  [cutAfterCommit, back],
  [cutAfterCommit, back],
];

function shuffled<T>(random: Random, list: T[]): T[] {
  return list
    .map((item) => ({ item, at: random.int(1_000_000) }))
    .sort((a, b) => a.at - b.at)
    .map(({ item }) => item);
}

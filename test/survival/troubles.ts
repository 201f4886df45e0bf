import { setTimeout as sleep } from 'node:timers/promises';
import type { Connection, Hook, Interposed } from '../proxy.ts';
import type { Arena } from './scenario.ts';

/** Something that goes wrong on a link, by its hooks. */
export interface Trouble {
  name: string;
  /** Resolves when the network is back, but for its hooks. */
  strike(link: Interposed, arena: Arena): Promise<void>;
}

export const CALM: Pick<Interposed, 'toServer' | 'toClient'> = {
  toServer: (bytes) => bytes,
  toClient: (bytes) => bytes,
};
const both = (link: Interposed, hook: Hook) => Object.assign(link, { toServer: hook, toClient: hook });
/** Sometimes longer than any call may take. */
const lasting = ({ random }: Arena) => sleep(500 + random.int(random.chance(0.2) ? 6000 : 2000));

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
export const cutAfterCommit: Trouble = {
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

/** Every trouble on each link where it can be. */
export const troubles = (front: Interposed, back: Interposed): [Trouble, Interposed][] => [
  ...[delay, cutMidMessage, stall, blackhole].flatMap((trouble): [Trouble, Interposed][] => [
    [trouble, front],
    [trouble, back],
  ]),
  [cutAfterCommit, back],
  [cutAfterCommit, back],
];

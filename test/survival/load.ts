import type { ChannelOptions } from '@grpc/grpc-js';
import { newTenant, until } from '../support.ts';
import { type Ledger, newLedger, openWorker } from './ledger.ts';
import { makeRandom } from './random.ts';
import type { Arena, Postgres } from './scenario.ts';
import { work } from './workload.ts';

export interface Load {
  readonly tenant: string;
  readonly ledger: Ledger;
  /** Waits until so many more intentions are acknowledged: what is broken next is broken under way. */
  progress(more: number): Promise<void>;
  /** Waits until each client has had an answer to something that it has asked from now on. */
  allAnswered(): Promise<void>;
  /** Begins nothing new, and waits until all workers are done with what they have begun. */
  end(): Promise<void>;
}

/** Which no client comes to: what they create is counted. */
export const QUOTAS = { max_sessions: 1000 };

/** So many clients, each with connections of its own to all servers. */
export async function startLoad(
  arena: Arena,
  postgres: Postgres,
  addresses: string[],
  clients: number,
  { channel, quotas = {} }: { channel?: Partial<ChannelOptions>; quotas?: Record<string, number> } = {},
): Promise<Load> {
  const tenant = await newTenant(['user'], { quotas }, postgres.ownerUrl);
  const ledger = newLedger();
  let going = true;
  const workers = Array.from({ length: clients }, (_, n) =>
    openWorker(n, addresses, tenant, ledger, makeRandom(arena.seed, `worker ${n}`), () => going, channel),
  );
  arena.cleanup(() => {
    going = false;
    for (const worker of workers) worker.close();
  });
  const done = Promise.all(workers.map(work));
  done.catch(() => {}); // thrown where it is awaited
  return {
    tenant,
    ledger,
    async progress(more) {
      const goal = ledger.acknowledged + more;
      const reached = until(async () => ledger.acknowledged >= goal || ledger.faults.length > 0);
      await Promise.race([reached, done]);
    },
    async allAnswered() {
      const now = performance.now();
      await until(async () => ledger.faults.length > 0 || workers.every((worker) => worker.answered() > now));
    },
    async end() {
      going = false;
      await done;
    },
  };
}

import { mayTakeMore } from '../db/fair.ts';
import type { Identity } from './context.ts';
import type { RpcError } from './errors.ts';
import { type InFlight, pushback } from './inflight.ts';
import { overQuota } from './quotas.ts';

/** What a tenant takes of this server. */
interface Taken {
  calls: number;
  streams: number;
  /** When the calls that went in are paid for at the tenant's rate, and when the last one that was refused was told to come. */
  paid: number;
  told: number;
  pushback?: (limit: number) => number;
  /** What came to be stored since the tenant's content was measured. */
  measured: number;
  bytes: number;
}

/** Bounds what each tenant takes of this server, as its quotas say and so that others have a part of it. */
export interface Turnstile {
  /** Lets a call in that has entered, or refuses it. Gives what ends it. */
  enter(identity: Identity, kind: 'calls' | 'streams'): () => void;
  /** Notes so many bytes that come to be stored. Gives the refusal if the tenant has no room for them. */
  store(identity: Identity, bytes: number): RpcError | undefined;
}

const SECOND_MS = 1000;
/** Nobody is told to come later than this for the rate. */
const LATEST_MS = 5000;

const nothing = () => {};

export function turnstile(entrances: { calls: InFlight; streams: InFlight }, clock = Date.now): Turnstile {
  const tenants = new Map<string, Taken>();

  function takenBy(tenant: string): Taken {
    let taken = tenants.get(tenant);
    if (!taken) {
      taken = { calls: 0, streams: 0, paid: 0, told: 0, measured: 0, bytes: 0 };
      tenants.set(tenant, taken);
    }
    return taken;
  }

  return {
    enter({ tenant, membership: { quotas } }, kind) {
      if (!tenant) return nothing; // an operator's, or anybody's
      const taken = takenBy(tenant);
      const entrance = entrances[kind];
      if (!mayTakeMore(taken[kind], entrance.count - 1, entrance.limit)) entrance.refuse(' of this tenant');
      const { maxConcurrentCalls: most = 0, maxCallsPerSecond: rate = 0 } = quotas;
      if (most && kind === 'calls' && taken.calls >= most) {
        taken.pushback ??= pushback(clock);
        throw overQuota(tenant, 'maxConcurrentCalls', most, taken.pushback(most));
      }
      if (rate) {
        const waitMs = pay(taken, rate, clock());
        if (waitMs > 0) throw overQuota(tenant, 'maxCallsPerSecond', rate, waitMs);
      }
      taken[kind]++;
      return () => {
        taken[kind]--;
        const { calls, streams, paid, bytes } = taken;
        if (calls + streams + bytes === 0 && paid <= clock() && tenants.get(tenant) === taken) tenants.delete(tenant);
      };
    },

    store({ tenant, membership: { quotas, stored } }, bytes) {
      const most = quotas.maxStoredBytes;
      if (!most) return undefined;
      const taken = takenBy(tenant);
      if (taken.measured !== stored.time) Object.assign(taken, { measured: stored.time, bytes: 0 });
      if (stored.bytes + taken.bytes + bytes > most) return overQuota(tenant, 'maxStoredBytes', most);
      taken.bytes += bytes;
      return undefined;
    },
  };
}

/** Lets a call in at the rate, a second's worth at once. Else how long it has to wait: each that is refused gets a place of its own. */
function pay(taken: Taken, rate: number, now: number): number {
  const each = SECOND_MS / rate;
  const paid = Math.max(taken.paid, now) + each;
  const due = paid - SECOND_MS - now;
  if (due <= 1e-6) {
    taken.paid = paid;
    return 0;
  }
  taken.told = Math.min(Math.max(now + due, taken.told + each), now + LATEST_MS);
  return taken.told - now;
}

import { mayTakeMore, mostOf } from '../db/fair.ts';
import type { Identity } from './context.ts';
import type { RpcError } from './errors.ts';
import { type InFlight, pushback } from './inflight.ts';
import { type Membership, NOT_MEASURED } from './membership.ts';
import { overQuota } from './quotas.ts';

/** What a tenant takes of this server. */
interface Taken {
  calls: number;
  streams: number;
  /** When the calls that went in are paid for at the tenant's rate, and when the last one that was refused was told to come. */
  paid: number;
  told: number;
  pushback?: (limit: number) => number;
  /** The newest measure of the tenant's content, and what came to be stored since it became known. */
  measured: Membership['stored'];
  bytes: number;
}

/** What a call stores of content, until it is known how much that is. */
export interface Storing {
  /** Why there is no room for it. */
  full?: RpcError;
  /** Puts what was really stored in the place of what was noted. */
  end(bytes: number): void;
}

/** Bounds what each tenant takes of this server, as its quotas say and so that others have a part of it. */
export interface Turnstile {
  /** Lets a call in that has entered, or refuses it. Gives what ends it. */
  enter(identity: Identity, kind: 'calls' | 'streams'): () => void;
  /** Notes so many bytes that come to be stored, unless the tenant has no room for them. */
  store(identity: Identity, bytes: number): Storing;
}

const SECOND_MS = 1000;
/** Nobody is told to come later than this for the rate. */
const LATEST_MS = 5000;

const nothing = () => {};
const FREE: Storing = { end: nothing };

export function turnstile(entrances: { calls: InFlight; streams: InFlight }, clock = Date.now): Turnstile {
  const tenants = new Map<string, Taken>();

  function takenBy(tenant: string): Taken {
    let taken = tenants.get(tenant);
    if (!taken) {
      taken = { calls: 0, streams: 0, paid: 0, told: 0, measured: NOT_MEASURED, bytes: 0 };
      tenants.set(tenant, taken);
    }
    return taken;
  }

  return {
    enter({ tenant, membership: { quotas } }, kind) {
      if (!tenant) return nothing; // an operator's, or anybody's
      const taken = takenBy(tenant);
      const entrance = entrances[kind];
      if (!mayTakeMore(taken[kind], entrance.count - 1, entrance.limit))
        entrance.refuse(' of this tenant', mostOf(entrance.limit));
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
      if (!most) return FREE;
      const taken = takenBy(tenant);
      // What is known of some users may be older than what is known of others.
      if (stored.time > taken.measured.time) Object.assign(taken, { measured: stored, bytes: 0 });
      const { measured } = taken;
      const full = measured.bytes + taken.bytes + bytes > most;
      let noted = full ? 0 : bytes;
      taken.bytes += noted;
      const storing: Storing = {
        end(really) {
          // Since then it may have been measured, and what was noted forgotten.
          taken.bytes += really - (taken.measured === measured ? noted : 0);
          noted = really;
        },
      };
      return full ? { ...storing, full: overQuota(tenant, 'maxStoredBytes', most) } : storing;
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

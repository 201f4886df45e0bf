import type { Call } from './exchange.ts';
import { Interrupted, isLost, PoolExhausted, sqlState } from './failure.ts';
import type { Database, Limits } from './pool.ts';
import { exchanging, type TenantScope } from './transaction.ts';

// Changes of one statement, those of many calls in one transaction: one BEGIN, one COMMIT that reaches the disk, one write to
// the socket. Nobody waits for others to come: what is there when a lane is free goes together, alone if it is alone.
//
// Appends of 500 characters, 64 callers, over `pg`, beside a transaction for each: Postgres takes 220 µs of CPU instead of 360,
// this process 32 instead of 68, and 1.6 to 2.1 times as many are done in a second. 2 and 4 lanes do equally well, 8 worse.

/** How many transactions of a tenant and env are under way at once, and how much each may hold. */
const LANES = 4;
const MOST = 16;
const MOST_CHARACTERS = 256 * 1024;

/** A lock that one of them waits for must not hold up the others for long. */
const LOCK_MS = 100;

/** With less time left than this a call goes alone: the time of a transaction is that of its most hurried call. */
const HURRIED_MS = 500;

interface Waiting {
  call: Call;
  locks: string;
  limits: Limits;
  characters: number;
  since: number;
  resolve: (rows: any[]) => void;
  reject: (error: unknown) => void;
}

interface Lanes {
  waiting: Waiting[];
  running: number;
  /** What calls that are run alone wait for, after they could not be run with others. */
  troubled: Map<string, number>;
}

const lanesOf = new WeakMap<Database, Map<string, Lanes>>();

/**
 * Runs a statement and COMMIT, among those of other calls of the tenant and env, and gives its rows. `locks` names the row
 * that it locks: those of a transaction are locked in one order, so that two transactions do not wait for each other. If
 * one of them fails, nothing of the transaction stands, and each is run again alone.
 */
export function finalAmongOthers(
  database: Database,
  scope: TenantScope,
  limits: Limits,
  locks: string,
  call: Call,
): Promise<any[]> {
  const all = lanesOf.get(database) ?? new Map<string, Lanes>();
  lanesOf.set(database, all);
  const key = `${scope.tenant}/${scope.env}`;
  const lanes: Lanes = all.get(key) ?? { waiting: [], running: 0, troubled: new Map() };
  if (lanes.troubled.has(locks) || limits.deadline - Date.now() < HURRIED_MS) {
    return alone(database, scope, limits, call);
  }
  all.set(key, lanes);

  return new Promise((resolve, reject) => {
    const characters = call.values.reduce<number>(
      (sum, value) => sum + (typeof value === 'string' ? value.length : 0),
      0,
    );
    lanes.waiting.push({ call, locks, limits, characters, since: Date.now(), resolve, reject });
    // What else comes in this turn of the event loop goes along.
    if (lanes.waiting.length === 1) setImmediate(start);
  });

  function start(): void {
    while (lanes.running < LANES) {
      const batch = take(lanes.waiting, database.options.poolWaitMs);
      if (batch.length === 0) break;
      lanes.running++;
      void run(database, scope, lanes, batch).then(() => {
        lanes.running--;
        start();
      });
    }
    if (lanes.running === 0 && lanes.troubled.size === 0 && all.get(key) === lanes) all.delete(key);
  }
}

const alone = (database: Database, scope: TenantScope, limits: Limits, call: Call): Promise<any[]> =>
  exchanging(database, scope, limits, (send) => send(call, true));

/** The next calls to go together. Those that are over, or have waited for as long as one may for a connection, are told so. */
function take(waiting: Waiting[], poolWaitMs: number): Waiting[] {
  const batch: Waiting[] = [];
  let characters = 0;
  for (let next = waiting[0]; next && batch.length < MOST; next = waiting[0]) {
    if (batch.length > 0 && characters + next.characters > MOST_CHARACTERS) break;
    waiting.shift();
    if (next.limits.signal?.aborted) next.reject(new Interrupted('gone while waiting for its turn'));
    else if (Date.now() - next.since > poolWaitMs) next.reject(new PoolExhausted('no turn came in time'));
    else {
      batch.push(next);
      characters += next.characters;
    }
  }
  return batch.sort((a, b) => (a.locks < b.locks ? -1 : a.locks > b.locks ? 1 : 0));
}

async function run(database: Database, scope: TenantScope, lanes: Lanes, batch: Waiting[]): Promise<void> {
  const [first] = batch;
  if (batch.length === 1) {
    await alone(database, scope, first!.limits, first!.call).then(first!.resolve, first!.reject);
    return;
  }
  const deadline = Math.min(...batch.map(({ limits }) => limits.deadline));
  try {
    const rows = await exchanging(database, scope, { deadline, lockMs: LOCK_MS }, (send) =>
      Promise.all(batch.map(({ call }, i) => send(call, i === batch.length - 1))),
    );
    batch.forEach(({ resolve }, i) => {
      resolve(rows[i]!);
    });
  } catch (error) {
    // Only what Postgres refused is known to be undone.
    const undone = sqlState(error) !== '' && !isLost(error);
    for (const one of batch) {
      if (undone) void runAlone(database, scope, lanes, one);
      else one.reject(error);
    }
  }
}

/** What comes meanwhile for the same row goes alone as well, rather than into a transaction that fails again. */
async function runAlone(database: Database, scope: TenantScope, { troubled }: Lanes, one: Waiting): Promise<void> {
  const { locks, limits, call, resolve, reject } = one;
  troubled.set(locks, (troubled.get(locks) ?? 0) + 1);
  await alone(database, scope, limits, call).then(resolve, reject);
  const left = troubled.get(locks)! - 1;
  if (left > 0) troubled.set(locks, left);
  else troubled.delete(locks);
}

import pg from 'pg';
import { v7 as uuidv7 } from 'uuid';
import { type Call, Command, Unit } from './exchange.ts';
import { CommitUnknown, DatabaseAway, Interrupted, isLost, isStale, isTransient } from './failure.ts';
import { type Database, destroy, type Limits } from './pool.ts';
import type { Statement, Value } from './statement.ts';

/** What row-level security reads. */
export interface TenantScope {
  tenant: string;
  env: string;
}

/** Whose rows a statement may touch. It becomes $1, $2 and $3, and the settings that row-level security reads. */
export interface Scope extends TenantScope {
  user: string;
}

/** What tells a request from others: what is stored of it, and whether what was stored earlier is of the same. */
export interface Fingerprint {
  stored: Buffer;
  is(earlier: Buffer): boolean;
}

/** What each change writes into its audit event and its stored result: $4 to $10, see `change` in statement.ts. */
export interface Stamp {
  actor: string;
  method: string;
  requestId: string | null;
  fingerprint: Fingerprint | null;
  eventId: string;
  traceId: string;
  requester: string;
}

/** Runs statements in a tenant's scope. */
export interface TenantDb {
  readonly scope: Scope;
  /** In a transaction, queries that are asked for without waiting for each other run in their order, sent in one write. */
  query<Row>(statement: Statement<Row>, values?: Value[]): Promise<Row[]>;
}

/** A transaction in a tenant's scope, before its last statement. */
export interface FinalTx {
  readonly scope: Scope;
  /**
   * The transaction's last statement, with COMMIT in the same write. What it did stands, whatever is thrown afterwards: it
   * is for statements that decide by themselves whether they do anything.
   */
  final<Row>(statement: Statement<Row>, values?: Value[]): Promise<Row[]>;
}

/** A transaction in a tenant's scope. */
export interface TenantTx extends TenantDb, FinalTx {
  /**
   * The same transaction, for a step of a larger change: nothing of it commits, each step's event has an id of its own, and
   * only the whole stores a result for its request_id.
   */
  readonly step: TenantTx;
}

/** How a transaction differs from others. */
export interface Modes {
  /** Bounds each wait for a lock. */
  lockMs?: number;
  /** Only reads, and all statements see the same. */
  snapshot?: boolean;
}

const SLUG = /^[a-z0-9-]{0,63}$/;

// Literal SET LOCAL, as Citus carries it to the shards. Slugs need no quoting; anything else never gets here.
function prologue({ tenant, env }: TenantScope, timeoutMs: number, { lockMs, snapshot }: Modes): string {
  if (!SLUG.test(tenant) || !SLUG.test(env)) throw new Error('the scope is not made of slugs');
  const locks = lockMs === undefined ? '' : `; set local lock_timeout = ${lockMs}`;
  const mode = snapshot ? ' isolation level repeatable read, read only' : '';
  return `begin${mode}; set local app.tenant_id = '${tenant}'; set local app.env = '${env}'; set local statement_timeout = ${timeoutMs}${locks}`;
}

const BEGUN = /^BEGIN(,SET){3,4}$/;

/** Sends a statement, with COMMIT in the same write if it is the last one. */
type Send = (call: Call, last: boolean) => Promise<any[]>;

/** The parameters that lead each statement. */
export function leading(statement: Statement<unknown>, scope: Scope, stamp: Stamp | undefined): Value[] {
  const { tenant, env, user } = scope;
  if (!statement.change) return [tenant, env, user];
  if (!stamp) throw new Error('a change needs a stamp');
  const { actor, method, requestId, fingerprint, eventId, traceId, requester } = stamp;
  return [tenant, env, user, actor, method, requestId, fingerprint?.stored ?? null, eventId, traceId, requester];
}

/**
 * Runs one transaction on a connection of the pool. It resolves only if every reply came and COMMIT answered COMMIT: a
 * prologue that fails would let the statement run outside of any transaction, and a transaction that failed answers COMMIT
 * with ROLLBACK, without an error.
 */
export async function exchanging<T>(
  database: Database,
  scope: TenantScope,
  limits: Limits & Modes,
  work: (send: Send) => Promise<T>,
): Promise<T> {
  const client = await database.acquire(limits, scope.tenant);
  let state: 'new' | 'open' | 'done' = 'new';

  async function send(units: Unit<any>[], last: boolean): Promise<void> {
    const left = Math.max(1, limits.deadline - Date.now());
    const begin = state === 'new' ? new Command(prologue(scope, left, limits)) : undefined;
    const commit = last ? new Command('commit') : undefined;
    state = last ? 'done' : 'open';
    const parts = [begin, ...units, commit].filter((part) => part !== undefined);

    const { stream } = (client as any).connection;
    stream.cork();
    for (const part of parts) client.query(part as any);
    stream.uncork();
    const watch = watchOver(client, limits, left);
    const replies = await Promise.allSettled(parts.map((part) => part.done as Promise<unknown>));
    await watch.end();

    const failure = replies.find((reply) => reply.status === 'rejected')?.reason;
    if (failure && last && replies.at(-1)!.status === 'rejected' && isLost(failure)) {
      throw new CommitUnknown('the connection was lost around COMMIT', { cause: failure });
    }
    if (failure) throw isLost(failure) ? new DatabaseAway('the connection was lost', { cause: failure }) : failure;
    if (begin && !BEGUN.test((await begin.done).join())) throw new Error('BEGIN did not answer as it should');
    if (commit && (await commit.done).join() !== 'COMMIT') throw new Error('COMMIT was answered with a rollback');
  }

  // Queries that nobody waits between leave in one write: it is what a short statement costs most.
  const waiting: Unit<any>[] = [];
  let sent = Promise.resolve();
  let over = false;
  async function exchange(call: Call, last: boolean): Promise<any[]> {
    if (over) throw new Error('the transaction is over');
    over = last;
    const unit = new Unit<any>([call], database.options.preparedStatements);
    if (waiting.push(unit) === 1) sent = sent.then(() => send(waiting.splice(0), over));
    await sent;
    return await unit.done;
  }

  try {
    const result = await work(exchange);
    await sent;
    if ((state as string) === 'open') await send([], true);
    return result;
  } catch (error) {
    await sent.catch(() => {}); // what is still under way could else be cancelled, or answered, in the next transaction
    if ((state as string) === 'open') await rollback(client);
    if (isStale(error)) destroy(client);
    throw error;
  } finally {
    database.release(client);
  }
}

/** Runs `work` in one transaction, once. */
export const transactionOnce = <T>(
  database: Database,
  scope: Scope,
  stamp: Stamp | undefined,
  limits: Limits & Modes,
  work: (tx: TenantTx) => Promise<T>,
): Promise<T> =>
  exchanging(database, scope, limits, (exchange) => {
    const run =
      (last: boolean, stampOf: () => Stamp | undefined) =>
      (statement: Statement<any>, values: Value[] = []) =>
        exchange({ statement, values: [...leading(statement, scope, stampOf()), ...values] }, last);
    const stepStamp = () => stamp && { ...stamp, requestId: null, eventId: uuidv7() };
    const step = { scope, query: run(false, stepStamp), final: run(false, stepStamp) } as TenantTx;
    (step as { step: TenantTx }).step = step;
    return work({ scope, query: run(false, () => stamp), final: run(true, () => stamp), step });
  });

async function rollback(client: pg.Client): Promise<void> {
  const command = new Command('rollback');
  client.query(command as any);
  // A connection that does not even roll back is closed on release, as it is not idle.
  const timer = setTimeout(() => destroy(client), 2000);
  await command.done.catch(() => {});
  clearTimeout(timer);
}

/** Cancels what runs when the call is over, and gives up on a connection that answers nothing at all. */
function watchOver(client: pg.Client, limits: Limits, left: number): { end(): Promise<void> } {
  let over = false;
  let cancelling: Promise<void> | undefined;
  const cancel = () => {
    cancelling ??= (async () => {
      // A cancel that arrives before the statement does is lost, so it is sent until the statement has ended.
      for (let wait = 10; !over; wait = Math.min(100, wait * 2)) {
        await cancelRequest(client);
        if (!over) await new Promise((resolve) => setTimeout(resolve, wait));
      }
    })();
  };
  const deaf = setTimeout(() => destroy(client), left + 1000);
  limits.signal?.addEventListener('abort', cancel);
  if (limits.signal?.aborted) cancel();
  return {
    async end() {
      over = true;
      clearTimeout(deaf);
      limits.signal?.removeEventListener('abort', cancel);
      await cancelling; // else it could hit the connection's next transaction
    },
  };
}

/** The protocol's CancelRequest, on a connection of its own. Resolves when the server has closed that: it is delivered. */
function cancelRequest(client: pg.Client): Promise<void> {
  return new Promise((resolve) => {
    const { host, port, ssl } = client as any;
    const connection = new (pg as any).Connection({ ssl });
    connection.once('error', () => resolve());
    connection.once('end', () => resolve());
    const send = () => connection.cancel((client as any).processID, (client as any).secretKey);
    connection.once(ssl ? 'sslconnect' : 'connect', send);
    setTimeout(() => connection.stream.destroy(), 2000).unref();
    if (host?.startsWith('/')) connection.connect(`${host}/.s.PGSQL.${port}`);
    else connection.connect(port, host);
  });
}

/**
 * What steps of a change come to that do not wait for each other. If some of them fail, it fails as the first of them would
 * have, had they been taken one by one.
 */
export async function together<Results extends readonly unknown[]>(
  steps: {
    [Step in keyof Results]: Results[Step] | Promise<Results[Step]>;
  },
): Promise<Results> {
  const settled = await Promise.allSettled(steps);
  return settled.map((step) => {
    if (step.status === 'rejected') throw step.reason;
    return step.value;
  }) as unknown as Results;
}

const ATTEMPTS = 4;

export interface Retry<T> {
  /** Whether it does no harm twice, so that a lost connection is a reason to run it again. */
  repeatable: boolean;
  /** Asked after each failure whether an earlier run's result is there after all. */
  recover?: () => Promise<T | undefined>;
}

/** Runs a transaction again where another run can succeed. */
export async function retried<T>(
  limits: Limits,
  { repeatable, recover }: Retry<T>,
  once: () => Promise<T>,
): Promise<T> {
  const canRetry = (error: unknown) =>
    isTransient(error) || isStale(error) || (repeatable && (isLost(error) || error instanceof CommitUnknown));
  for (let attempt = 1; ; attempt++) {
    try {
      return await once();
    } catch (error) {
      let failure = error;
      try {
        const earlier = await recover?.();
        if (earlier !== undefined) return earlier;
      } catch (lookup) {
        failure = lookup;
      }
      if (!canRetry(failure) || attempt === ATTEMPTS) throw failure;
      await pause(attempt, limits);
    }
  }
}

/** Runs `work` in one transaction, again where another run can succeed. */
export const transaction = <T>(
  database: Database,
  scope: Scope,
  stamp: Stamp | undefined,
  limits: Limits & Modes,
  retry: Retry<T>,
  work: (tx: TenantTx) => Promise<T>,
): Promise<T> => retried(limits, retry, () => transactionOnce(database, scope, stamp, limits, work));

/** A random pause that grows with the attempts, so that those who collided do not collide again. */
async function pause(attempt: number, limits: Limits): Promise<void> {
  const ms = Math.random() * 10 * 2 ** attempt;
  if (limits.signal?.aborted || Date.now() + ms > limits.deadline) throw new Interrupted('no time left to try again');
  await new Promise((resolve) => setTimeout(resolve, ms));
}

/** Reads of one call: point reads over the shared connections, others in a transaction each, both tried again when a connection is lost. */
export function reader(database: Database, scope: Scope, limits: Limits): TenantDb {
  return {
    scope,
    async query<Row>(statement: Statement<Row>, values: Value[] = []): Promise<Row[]> {
      const { shared } = database;
      if (!shared || !statement.shared) {
        return transaction(database, scope, undefined, limits, { repeatable: true }, (tx) =>
          tx.final(statement, values),
        );
      }
      const parameters = [...leading(statement, scope, undefined), ...values];
      for (let attempt = 1; ; attempt++) {
        try {
          return await shared.read(scope, statement, parameters, limits.deadline);
        } catch (error) {
          if (attempt === ATTEMPTS || !(isLost(error) || isStale(error)))
            throw isLost(error) ? new DatabaseAway('the connection was lost', { cause: error }) : error;
          await pause(attempt, limits);
        }
      }
    },
  };
}

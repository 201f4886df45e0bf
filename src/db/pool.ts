import knex, { type Knex } from 'knex';
import type pg from 'pg';
import { DatabaseAway, Interrupted, PoolExhausted } from './failure.ts';
import { fairShare } from './fair.ts';
import { openSharedReads, type SharedReads } from './shared.ts';

export interface DatabaseOptions {
  /** As pg understands it: a connection string, or the standard PG* variables if undefined. */
  connectionString: string | undefined;
  poolSize: number;
  poolWaitMs: number;
  /** Connections that point reads share. 0: each read takes a transaction of its own (for Citus). */
  sharedConnections: number;
  preparedStatements: boolean;
}

/** How long a call may go on, as Date.now() has it, and what ends it sooner. */
export interface Limits {
  deadline: number;
  signal?: AbortSignal | undefined;
}

export interface Database {
  readonly options: DatabaseOptions;
  readonly shared: SharedReads | undefined;
  /** A connection for a tenant: all of them wait for theirs in turns. */
  acquire(limits: Limits, tenant: string): Promise<pg.Client>;
  release(client: pg.Client): void;
  /** Connections in use, idle, and calls waiting for one. */
  usage(): { used: number; free: number; waiting: number };
  close(): Promise<void>;
}

/** The settings of every connection of ours. */
export function connectionSettings(connectionString: string | undefined): pg.ClientConfig {
  return {
    ...(connectionString ? { connectionString } : {}),
    application_name: 'memoryd',
    connectionTimeoutMillis: 5000,
    keepAlive: true,
    keepAliveInitialDelayMillis: 10_000,
  };
}

/** Knex prints what goes wrong, which reaches our log, or whoever typed the command, anyway. */
export const QUIET = { warn() {}, error() {}, debug() {}, deprecate() {} };

/** Ends a connection at once, whatever it is doing. The pool gives it to nobody any more. */
export function destroy(client: pg.Client): void {
  (client as any).__knex__disposed = new Error('destroyed');
  (client as any).connection.stream.destroy();
}

export function openDatabase(options: DatabaseOptions): Database {
  const settings = { ...connectionSettings(options.connectionString), pipeline: true };
  const pool: Knex = knex({
    client: 'pg',
    connection: settings as Knex.PgConnectionConfig,
    pool: { min: 0, max: options.poolSize, idleTimeoutMillis: 60_000 },
    acquireConnectionTimeout: options.poolWaitMs,
    log: QUIET,
  });
  const tarn = pool.client.pool;
  const shared =
    options.sharedConnections > 0
      ? openSharedReads(settings, options.sharedConnections, options.preparedStatements)
      : undefined;

  const fair = fairShare(options.poolSize, options.poolWaitMs);
  const holders = new WeakMap<pg.Client, string>();

  async function acquire(tenant: string): Promise<pg.Client> {
    await fair.take(tenant);
    try {
      const client = await pool.client.acquireConnection();
      holders.set(client, tenant);
      return client;
    } catch (error) {
      fair.give(tenant);
      throw error;
    }
  }

  function giveBack(client: pg.Client): void {
    void pool.client.releaseConnection(client);
    fair.give(holders.get(client)!);
  }

  return {
    options,
    shared,
    acquire: (limits, tenant) => within(limits, acquire(tenant), giveBack),
    release(client) {
      // Only a connection outside any transaction may serve another call.
      if (client.getTransactionStatus() !== 'I') destroy(client);
      giveBack(client);
    },
    usage: () => ({
      used: tarn.numUsed(),
      free: tarn.numFree(),
      waiting: fair.waiting + tarn.numPendingAcquires(),
    }),
    async close() {
      await shared?.close();
      await pool.destroy();
    },
  };
}

/** Waits for a connection only as long as the call lasts. Knex cannot be told to stop: one that comes late goes back. */
function within(limits: Limits, acquired: Promise<pg.Client>, giveBack: (late: pg.Client) => void): Promise<pg.Client> {
  return new Promise((resolve, reject) => {
    let over = false;
    const finish = (act: () => void) => {
      over = true;
      clearTimeout(timer);
      limits.signal?.removeEventListener('abort', giveUp);
      act();
    };
    const giveUp = () => finish(() => reject(new Interrupted('gone while waiting for a connection')));
    const timer = setTimeout(giveUp, Math.max(0, limits.deadline - Date.now()));
    limits.signal?.addEventListener('abort', giveUp);
    if (limits.signal?.aborted) giveUp();
    acquired.then(
      (client) => (over ? giveBack(client) : finish(() => resolve(client))),
      (error) => !over && finish(() => reject(acquireFailure(error))),
    );
  });
}

function acquireFailure(error: unknown): Error {
  if (error instanceof PoolExhausted) return error;
  if (error instanceof knex.KnexTimeoutError) return new PoolExhausted('no database connection came free in time');
  return new DatabaseAway('the database cannot be reached', { cause: error });
}

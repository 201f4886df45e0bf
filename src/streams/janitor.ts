import type { Logger } from 'pino';
import { serviceStamp } from '../db/change.ts';
import type { Changes } from '../db/changes.ts';
import { isLost } from '../db/failure.ts';
import type { Database } from '../db/pool.ts';
import { rounds } from '../db/queue.ts';
import { type Scope, transaction } from '../db/transaction.ts';
import { describe } from '../rpc/observe.ts';
import { forgetStream, interruptStream, staleStreams } from './repository.ts';

const EVERY_MS = 1000;
const LIMIT_MS = 10_000;

// Over the tenants, as the role that may see where streams are, but nothing of them.
const STALE_TENANTS = `
  select distinct tenant_id as tenant, env from message_streams where expire_time <= clock_timestamp() limit 1000`;

/** Marks the streams as interrupted whose servers are gone. Each process looks, and one of them finds it first. */
export function startJanitor(
  connectionString: string | undefined,
  database: Database,
  changes: Changes,
  log: Logger,
): { stop(): Promise<void> } {
  return rounds(
    connectionString,
    EVERY_MS,
    async (pool) => {
      const { rows } = await pool.query<{ tenant: string; env: string }>(STALE_TENANTS);
      for (const row of rows) await interruptAll(database, row, changes);
    },
    // The next round comes when the database does; what it refuses would be refused each second.
    (error) => log[isLost(error) ? 'debug' : 'warn']({ err: describe(error) }, 'looking for broken streams'),
  );
}

async function interruptAll(database: Database, { tenant, env }: Omit<Scope, 'user'>, changes: Changes): Promise<void> {
  const limits = () => ({ deadline: Date.now() + LIMIT_MS });
  const nobody = { tenant, env, user: '' };
  const stale = await transaction(database, nobody, undefined, limits(), { repeatable: true }, staleStreams);
  for (const { messageId, writer, userId, there } of stale) {
    const scope = { ...nobody, user: userId };
    await transaction(
      database,
      scope,
      serviceStamp('streams.interrupt'),
      limits(),
      { repeatable: true },
      async (tx) => {
        if (there) await interruptStream(tx, messageId, writer);
        else await forgetStream(tx, messageId, writer);
      },
    );
    changes.tell(scope);
  }
}

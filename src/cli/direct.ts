import { databaseUrlOf } from '../config.ts';
import { type Database, type Limits, openDatabase } from '../db/pool.ts';
import { UserError } from '../errors.ts';
import { withClient } from '../preflight.ts';
import { RpcError, toRpcError } from '../rpc/errors.ts';
import { Check } from '../rpc/validate.ts';

/** What a command of one-off work needs: the database as the service uses it, and time. */
export interface Direct {
  database: Database;
  limits: Limits;
}

/** Runs a command's work on the database that the environment names; refusals are told in a line. */
export async function direct<T>(work: (context: Direct) => Promise<T>): Promise<T> {
  const connectionString = databaseUrlOf(process.env);
  await withClient(connectionString, async () => {}); // tells in words why it cannot be reached
  const database = openDatabase({
    connectionString,
    poolSize: 1,
    poolWaitMs: 10_000,
    sharedConnections: 0,
    preparedStatements: false,
  });
  try {
    return await work({ database, limits: { deadline: Date.now() + 60 * 60_000 } });
  } catch (error) {
    const { reason, message, code } = toRpcError(error);
    if (error instanceof RpcError || reason !== 'INTERNAL') throw new UserError(message, { cause: code });
    throw error;
  } finally {
    await database.close();
  }
}

export function requireUuid(what: string, value: string): void {
  const check = new Check();
  check.uuid(what, value);
  check.done();
}

/** A message as people read it: timestamps as ISO 8601, nothing that is not set. */
export function print(message: unknown): void {
  const readable = (_key: string, value: unknown) => {
    if (value instanceof Map) return Object.fromEntries(value);
    const { seconds, nanos, ...others } = (value ?? {}) as Record<string, unknown>;
    const isTime = typeof seconds === 'number' && typeof nanos === 'number' && Object.keys(others).length === 0;
    return isTime ? new Date(seconds * 1000 + nanos / 1e6).toISOString() : value;
  };
  console.log(JSON.stringify(message, readable, 2));
}

import { databaseUrlOf } from '../config.ts';
import { type Keyring, readKeyring } from '../db/keyring.ts';
import { readSchemaState, schemaFault } from '../db/migrate.ts';
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
  // First what can be told in words: that it cannot be reached, or has another schema.
  const state = await withClient(connectionString, (client) => readSchemaState((sql) => client.query(sql)));
  const fault = schemaFault(state);
  if (fault) throw new UserError(fault);
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

/** Refuses malformed arguments, all at once. */
export function checked(fill: (check: Check) => void): void {
  const check = new Check();
  fill(check);
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

/** The keys of a file, to sign with and to look at signatures. */
export const keyringIn = (file: string): Promise<Keyring> =>
  readKeyring(file).catch((error) => {
    throw new UserError(`${file}: ${error.message}`);
  });

/** The database cannot be reached, or a connection was lost while nothing of the call was committed. */
export class DatabaseAway extends Error {}

/** A connection was lost after COMMIT was sent: nobody can tell whether it happened. */
export class CommitUnknown extends Error {}

/** No connection came free in time. */
export class PoolExhausted extends Error {}

/** What a transaction had looked at has changed before it could go by that. */
export class Overtaken extends Error {}

/** The caller is gone or its deadline has passed. */
export class Interrupted extends Error {}

const codeOf = (error: unknown): string => {
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === 'string' ? code : '';
};

/** Postgres's SQLSTATE of an error that the server reported, else ''. */
export function sqlState(error: unknown): string {
  const code = codeOf(error);
  return /^[0-9A-Z]{5}$/.test(code) && typeof (error as { severity?: unknown }).severity === 'string' ? code : '';
}

/** Whether running the same transaction again can succeed: a serialization failure, a deadlock, a concurrent duplicate. */
export function isTransient(error: unknown): boolean {
  return error instanceof Overtaken || ['40001', '40P01', '23505'].includes(sqlState(error));
}

/** Whether a prepared statement must be prepared anew: its result type changed under it, or the connection lost it. */
export function isStale(error: unknown): boolean {
  const state = sqlState(error);
  return state === '26000' || (state === '0A000' && /cached plan/.test((error as Error).message));
}

/** Whether the connection is gone: the server ended it, or the network did. */
export function isLost(error: unknown): boolean {
  if (error instanceof DatabaseAway) return true;
  const state = sqlState(error);
  if (state) return state.startsWith('08') || ['57P01', '57P02', '57P03', '57P05', '53300'].includes(state);
  if (/^(ECONN|EPIPE|ETIMEDOUT|EHOST|ENET|ENOTFOUND|EAI_|ERR_STREAM|ERR_SOCKET)/.test(codeOf(error))) return true;
  return (
    error instanceof Error &&
    /^(Connection terminated|Client has encountered a connection error|timeout expired)/.test(error.message)
  );
}

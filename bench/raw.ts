import pg from 'pg';
import { v7 as uuidv7 } from 'uuid';
import type { Statement, Value } from '../src/db/statement.ts';
import { leading, type Stamp, type TenantTx } from '../src/db/transaction.ts';
import { getSession } from '../src/sessions/repository.ts';
import { upsertSession } from '../src/sessions/upsert.ts';
import { appendMessages as append } from '../src/threads/append.ts';
import { listMessages } from '../src/threads/repository.ts';
import { any, type Work } from './loop.ts';
import { appendMessages, type Subjects, touchSession } from './subjects.ts';

const MAX_CONNECTIONS = 20; // as many as the server under test has

/** The tenant set once for a connection. */
export const tenantOptions = ({ scope }: Subjects) => `-c app.tenant_id=${scope.tenant} -c app.env=${scope.env}`;

/**
 * The same statements as prepared queries of plain `pg`, without a service around them: no transaction but the implicit one,
 * the tenant set once per connection. What is left of a row is what pg makes of it.
 */
export function pgWork(connectionString: string, subjects: Subjects): Work {
  const { scope } = subjects;
  const options = tenantOptions(subjects);
  const pool = new pg.Pool({ connectionString, options, max: MAX_CONNECTIONS });
  const run = async (statement: Statement<any>, values: Value[]) => {
    const stamp = statement.change ? newStamp(scope.user) : undefined;
    const { name, text } = statement;
    return (await pool.query({ name, text, values: [...leading(statement, scope, stamp), ...values] })).rows;
  };
  const tx = { scope, query: run, final: run } as TenantTx;

  const gets = subjects.readSessions.map((id) => captured((db) => getSession(db, id)));
  const { readThread } = subjects;
  const list = captured((db) => listMessages(db, readThread, { seq: Number.MAX_SAFE_INTEGER, ascending: false }, 51));
  return {
    GetSession: () => some(run(...any(gets))),
    UpsertSession: (caller) => some(upsertSession(tx, upsertOf(subjects.writtenSessions[caller]!))),
    AppendMessages: (caller) => some(append(tx, appendOf(subjects.writtenThreads[caller]!))),
    ListMessages: () => some(run(...list)),
  };
}

async function some(rows: Promise<unknown[]>): Promise<unknown> {
  if ((await rows).length === 0) throw new Error('the statement found nothing');
  return rows;
}

const appendOf = (threadId: string) => ({
  ...appendMessages(threadId),
  sessionId: '',
  tokenCounts: [110],
  messageLimit: undefined,
});

/** A statement with all its values, as it could be run by others. */
export interface Bound {
  statement: Statement<any>;
  values: Value[];
}

export function boundOf({ scope, readSessions, writtenThreads }: Subjects): Record<string, Bound> {
  const bound = ([statement, values]: [Statement<any>, Value[]]): Bound => {
    const stamp = statement.change ? newStamp(scope.user) : undefined;
    return { statement, values: [...leading(statement, scope, stamp), ...values] };
  };
  return {
    GetSession: bound(captured((db) => getSession(db, readSessions[0]!))),
    AppendMessages: bound(captured((db) => append(db, appendOf(writtenThreads[0]!)))),
  };
}

/** The statement and values with which a repository's function begins. */
function captured(begin: (db: TenantTx) => Promise<unknown>): [Statement<any>, Value[]] {
  let call: [Statement<any>, Value[]] | undefined;
  const query = (statement: Statement<any>, values: Value[] = []): Promise<never[]> => {
    call = [statement, values];
    return new Promise(() => {}); // it never goes on
  };
  void begin({ scope: { tenant: '', env: '', user: '' }, query, final: query } as unknown as TenantTx);
  return call!;
}

function upsertOf(id: string): Parameters<typeof upsertSession>[1] {
  const { state, metadata } = touchSession(id).session!;
  const change = { state, metadata, replace: [] };
  const found = { id, surfaceId: '', projectId: '', threadId: '' };
  return { ...found, change, expiry: {}, anonymous: false, revokeKeys: false, sessionLimit: undefined };
}

const newStamp = (user: string): Stamp => ({
  actor: user,
  method: 'bench',
  requestId: null,
  fingerprint: null,
  eventId: uuidv7(),
  traceId: '',
  requester: user,
});

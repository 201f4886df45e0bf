import type { Logger } from 'pino';
import type { Changes } from '../db/changes.ts';
import type { Database } from '../db/pool.ts';
import { query, type Statement, type Value } from '../db/statement.ts';
import { type Scope, transaction } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { MessageRole } from '../gen/memory/v1/message.ts';
import type { Memberships } from '../rpc/membership.ts';
import { describe } from '../rpc/observe.ts';
import { readUser } from './reading.ts';

/** How soon after a change of a user's data what the user wrote is read. */
const SOON_MS = 500;
const LOOKUP_MS = 5000;
/** Of users; the round reads what the others wrote. */
const MAX_WAITING = 10_000;
const AT_ONCE = 4;

/** Reads soon what calls of this process appended. Whatever it does not come to, the next round of {@link readAll} does. */
export function readSoon(
  database: Database,
  members: Memberships,
  changes: Changes,
  log: Logger,
): { stop(): Promise<void> } {
  let waiting = new Map<string, Scope>();
  let timer: NodeJS.Timeout | undefined;
  let reading: Promise<void> = Promise.resolve();
  let stopped = false;

  changes.listen((scope) => {
    if (!scope.user || stopped || waiting.size >= MAX_WAITING) return;
    waiting.set(`${scope.tenant}/${scope.env}/${scope.user}`, scope);
    schedule();
  });

  function schedule(): void {
    timer ??= setTimeout(() => {
      reading = readWaiting().finally(() => {
        timer = undefined;
        if (waiting.size > 0 && !stopped) schedule();
      });
    }, SOON_MS);
    timer.unref();
  }

  async function readWaiting(): Promise<void> {
    const scopes = [...waiting.values()];
    waiting = new Map();
    await Promise.all(
      Array.from({ length: AT_ONCE }, async () => {
        for (let scope = scopes.pop(); scope && !stopped; scope = scopes.pop()) await readOne(scope);
      }),
    );
  }

  async function readOne(scope: Scope): Promise<void> {
    const { tenant, env, user } = scope;
    try {
      const { extracts } = await members.find(tenant, env, user, { deadline: Date.now() + LOOKUP_MS });
      if (extracts) await readUser(database, scope);
    } catch (error) {
      log.debug({ err: describe(error) }, 'reading for profiles');
    }
  }

  return {
    async stop() {
      stopped = true;
      clearTimeout(timer);
      await reading;
    },
  };
}

const DIRECTORY: Scope = { tenant: '', env: '', user: '' };

const TENANTS = query<{ tenantId: string; envs: string[]; extractTime: Timestamp }>(`
  select tenant_id, envs, extract_time from tenants
  where extract_time is not null and tenant_id > $4 order by tenant_id limit 1000`);

// Users with a message between two ids that nobody has read, or whose thread waits for the end of one.
const USERS = query<{ userId: string }>(`
  select distinct m.user_id from messages m
  join threads t on t.tenant_id = $1 and t.env = $2 and t.user_id = m.user_id and t.thread_uid = m.thread_uid and t.delete_time is null
  left join thread_readings r on r.tenant_id = $1 and r.env = $2 and r.thread_uid = m.thread_uid
  where m.tenant_id = $1 and m.env = $2 and m.role = ${MessageRole.HUMAN} and m.id <= $4::uuid
    and m.id > coalesce((select message_id from reading_rounds where tenant_id = $1 and env = $2), $5::uuid)
    and m.seq > coalesce(r.seq, 0)
  union
  select r.user_id from thread_readings r where r.tenant_id = $1 and r.env = $2 and r.waiting`);

const DONE = query(`
  insert into reading_rounds as r (tenant_id, env, message_id) values ($1, $2, $4::uuid)
  on conflict (tenant_id, env) do update set message_id = greatest(r.message_id, excluded.message_id)`);

/** Below all ids that are made from an instant on. */
const floorId = (ms: number): string => {
  const hex = Math.max(0, Math.floor(ms)).toString(16).padStart(12, '0');
  return `${hex.slice(0, 8)}-${hex.slice(8)}-7000-8000-000000000000`;
};

/**
 * Reads what nobody read soon: by a process that ended, or while the database was away. A message has its id before it is
 * there, so only those are looked for that are old enough for their call to have ended: `settledMs`.
 */
export async function readAll(database: Database, settledMs: number, signal?: AbortSignal): Promise<number> {
  const run = <Row>(scope: Scope, statement: Statement<Row>, values: Value[]): Promise<Row[]> => {
    signal?.throwIfAborted();
    const limits = { deadline: Date.now() + 60_000, signal };
    return transaction(database, scope, undefined, limits, { repeatable: true }, (tx) => tx.final(statement, values));
  };
  let count = 0;
  let failure: unknown;
  // What fails is begun again by the next round, and nobody else waits for it.
  const apart = async (work: () => Promise<unknown>): Promise<boolean> => {
    try {
      await work();
      return true;
    } catch (error) {
      signal?.throwIfAborted();
      failure ??= error;
      return false;
    }
  };
  const readEnv = async (scope: Scope, extractTime: Timestamp): Promise<void> => {
    const through = floorId(Date.now() - settledMs);
    const since = floorId(extractTime.seconds * 1000 - settledMs);
    let whole = true;
    for (const { userId } of await run(scope, USERS, [through, since])) {
      signal?.throwIfAborted();
      const read = await apart(async () => {
        count += await readUser(database, { ...scope, user: userId });
      });
      whole &&= read;
    }
    if (whole) await run(scope, DONE, [through]);
  };
  for (let after = ''; ; ) {
    const tenants = await run(DIRECTORY, TENANTS, [after]);
    if (tenants.length === 0) break;
    for (const { tenantId, envs, extractTime } of tenants) {
      for (const env of envs) await apart(() => readEnv({ tenant: tenantId, env, user: '' }, extractTime));
      after = tenantId;
    }
  }
  if (failure) throw failure;
  return count;
}

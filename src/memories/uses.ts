import type { Database } from '../db/pool.ts';
import { json, query } from '../db/statement.ts';
import { type Scope, transaction } from '../db/transaction.ts';

/** How long accesses are gathered before they are written. */
const EVERY_MS = 1000;
const LIMIT_MS = 10_000;
/** More than these are not kept while the database is away. */
const MAX_WAITING = 100_000;
const BATCH = 1000;

// Locked in the order of ids, as other processes count accesses of the same memories.
const COUNT = query<{ n: number }>(`
  with accesses as materialized (
    select (v ->> 'id')::uuid as id, (v ->> 'n')::bigint as n, clock_timestamp() - make_interval(secs => (v ->> 'ago')::float8) as at
    from jsonb_array_elements($4::jsonb) v
  ), locked as materialized (
    select u.memory_id from memory_uses u join accesses a on a.id = u.memory_id
    where u.tenant_id = $1 and u.env = $2
    order by u.memory_id for no key update of u
  ), counted as (
    update memory_uses u
    set access_count = u.access_count + a.n, last_access_time = greatest(u.last_access_time, a.at), use_time = greatest(u.use_time, a.at)
    from accesses a, locked l
    where u.tenant_id = $1 and u.env = $2 and u.memory_id = a.id and l.memory_id = a.id
    returning 1
  )
  select count(*)::int as n from counted`);

interface Access {
  id: string;
  n: number;
  /** When the last one was, as performance.now() has it. */
  at: number;
}

/** Counts the accesses of memories, for all calls of the process together: readers wait neither for it nor for each other. */
export interface Uses {
  count(scope: Scope, ids: string[]): void;
  /** Writes what is still waiting. */
  stop(): Promise<void>;
}

export function countUses(database: Database): Uses {
  /** By tenant and env. */
  let waiting = new Map<string, { scope: Scope; accesses: Map<string, Access> }>();
  let kept = 0;
  let timer: NodeJS.Timeout | undefined;
  let writing: Promise<void> = Promise.resolve();

  function add(scope: Scope, access: Access): void {
    const key = `${scope.tenant}/${scope.env}`;
    let group = waiting.get(key);
    if (!group) {
      group = { scope: { ...scope, user: '' }, accesses: new Map() };
      waiting.set(key, group);
    }
    const known = group.accesses.get(access.id);
    if (known) {
      known.n += access.n;
      known.at = Math.max(known.at, access.at);
    } else if (kept < MAX_WAITING) {
      kept++;
      group.accesses.set(access.id, access);
    }
  }

  async function write(): Promise<void> {
    const groups = [...waiting.values()];
    waiting = new Map();
    kept = 0;
    for (const { scope, accesses } of groups) {
      const all = [...accesses.values()];
      for (let from = 0; from < all.length; from += BATCH) {
        const batch = all.slice(from, from + BATCH);
        const values = batch.map(({ id, n, at }) => ({ id, n, ago: (performance.now() - at) / 1000 }));
        await transaction(
          database,
          scope,
          undefined,
          { deadline: Date.now() + LIMIT_MS },
          { repeatable: false },
          (tx) => tx.final(COUNT, [json(values)]),
        ).catch(() => batch.forEach((access) => add(scope, access))); // the database is away: later
      }
    }
    if (kept > 0) schedule();
  }

  function schedule(): void {
    timer ??= setTimeout(() => {
      timer = undefined;
      writing = write();
    }, EVERY_MS);
    timer.unref();
  }

  return {
    count(scope, ids) {
      const at = performance.now();
      for (const id of ids) add(scope, { id, n: 1, at });
      if (ids.length > 0) schedule();
    },
    async stop() {
      clearTimeout(timer);
      await writing;
      await write();
      clearTimeout(timer);
    },
  };
}

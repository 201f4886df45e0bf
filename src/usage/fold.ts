import type { Database } from '../db/pool.ts';
import { query } from '../db/statement.ts';
import { type Scope, transaction } from '../db/transaction.ts';
import { everyPlace, inTurns } from '../tenants/places.ts';

/** How long calls gather before they are added up. */
const EVERY_MS = 1000;
const LIMIT_MS = 30_000;
const BATCH = 5000;

/** The UTC day of a call. */
export const dayOf = (row: string): string => `(${row}.create_time at time zone 'UTC')::date`;

// Calls are taken and added up in one statement, so that each is in the sums or waits for them, whatever happens. Those of
// another process that adds up at the same time are skipped; the sums are written in the order of their keys, so that two
// never lock each other out. Whoever records a call touches no sum, and so waits for nobody.
const FOLD = query<{ n: number }>(`
  with taken as (
    update llm_requests r set folded = true
    where tenant_id = $1 and env = $2 and not folded and id = any (array(
      select id from llm_requests where tenant_id = $1 and env = $2 and not folded order by id limit ${BATCH} for update skip locked))
    returning ${dayOf('r')} as day, user_id, project_id, coalesce(session_id::text, '') as session_id, provider, model,
      prompt_tokens, cached_tokens, completion_tokens, total_tokens, cost, latency_ms
  ), added as (
    insert into usage_rollups as u (tenant_id, env, grain, subject, day, user_id, project_id, provider, model, requests,
      prompt_tokens, cached_tokens, completion_tokens, total_tokens, cost, latency_ms)
    select $1, $2, g.grain, g.subject, t.day, g.user_id, g.project_id, t.provider, t.model, count(*), sum(t.prompt_tokens),
      sum(t.cached_tokens), sum(t.completion_tokens), sum(t.total_tokens), sum(t.cost), sum(t.latency_ms)
    from taken t cross join lateral (values
      (1, '', '', ''),
      (2, t.project_id, '', ''),
      (3, t.user_id, '', t.project_id),
      (4, t.session_id, t.user_id, t.project_id)
    ) g (grain, subject, user_id, project_id)
    group by g.grain, g.subject, t.day, g.user_id, g.project_id, t.provider, t.model
    order by g.grain, g.subject, t.day, g.user_id, g.project_id, t.provider, t.model
    on conflict (tenant_id, env, grain, subject, day, user_id, project_id, provider, model) do update set
      requests = u.requests + excluded.requests, prompt_tokens = u.prompt_tokens + excluded.prompt_tokens,
      cached_tokens = u.cached_tokens + excluded.cached_tokens,
      completion_tokens = u.completion_tokens + excluded.completion_tokens, total_tokens = u.total_tokens + excluded.total_tokens,
      cost = u.cost + excluded.cost, latency_ms = u.latency_ms + excluded.latency_ms
    returning 1
  )
  select count(*)::int as n from taken`);

/** Adds up a batch of what waits in a tenant and env. Resolves to how many calls that were. */
async function foldBatch(database: Database, scope: Scope, signal?: AbortSignal): Promise<number> {
  const limits = { deadline: Date.now() + LIMIT_MS, signal };
  const [row] = await transaction(database, { ...scope, user: '' }, undefined, limits, { repeatable: true }, (tx) =>
    tx.final(FOLD),
  );
  return row!.n;
}

/** Adds up what waits in some places, in turns. Resolves to how many calls that were. */
export async function fold(database: Database, ...scopes: Scope[]): Promise<number> {
  let total = 0;
  await inTurns(scopes, async (scope) => {
    const n = await foldBatch(database, scope);
    total += n;
    return n === BATCH;
  });
  return total;
}

/** Adds up what waits anywhere, such as what processes that were killed have recorded. */
export async function foldAll(database: Database, signal?: AbortSignal): Promise<number> {
  let total = 0;
  await everyPlace(database, signal, async (scope) => {
    const n = await foldBatch(database, scope, signal);
    total += n;
    return n === BATCH;
  });
  return total;
}

/** Adds up soon after calls were recorded by this process. What a killed one leaves, the job of all processes adds up. */
export interface Folder {
  note(scope: Scope): void;
  /** Adds up what is still waiting. */
  stop(): Promise<void>;
}

export function startFolder(database: Database): Folder {
  let waiting = new Map<string, Scope>();
  let timer: NodeJS.Timeout | undefined;
  let folding: Promise<void> = Promise.resolve();

  async function foldWaiting(): Promise<void> {
    const scopes = [...waiting.values()];
    waiting = new Map();
    // If the database is away, the next call or the job comes back to it: nothing is lost, the sums only cost more to read.
    await inTurns(scopes, (scope) =>
      foldBatch(database, scope).then(
        (n) => n === BATCH,
        () => false,
      ),
    );
  }

  return {
    note(scope) {
      waiting.set(`${scope.tenant}/${scope.env}`, scope);
      timer ??= setTimeout(() => {
        timer = undefined;
        folding = folding.then(foldWaiting);
      }, EVERY_MS);
      timer.unref();
    },
    async stop() {
      clearTimeout(timer);
      await folding;
      await foldWaiting();
    },
  };
}

import type { Database } from '../db/pool.ts';
import { query, type Statement } from '../db/statement.ts';
import { type Scope, type TenantTx, together, transaction } from '../db/transaction.ts';
import type { Kind } from './sweeping.ts';

/** A tenant, and those of its envs that are to be visited. */
export interface Places {
  tenantId: string;
  envs: string[];
}

const TENANTS = query<Places>(
  `select tenant_id, envs from tenants
   where tenant_id > $4 order by tenant_id limit 1000`,
);

const DIRECTORY: Scope = { tenant: '', env: '', user: '' };

/**
 * Takes a step at each of some places, and further ones where it tells that there is more to do: in turns, so that a place with
 * much to do holds up no other. None begins once the signal is given.
 */
export async function inTurns<Place>(
  places: AsyncIterable<Place> | Iterable<Place>,
  step: (place: Place) => Promise<boolean>,
  signal?: AbortSignal,
): Promise<void> {
  let more: Place[];
  do {
    more = [];
    for await (const place of places) {
      if (signal?.aborted) return;
      if (await step(place)) more.push(place);
    }
    places = more;
  } while (more.length > 0);
}

/** A bounded piece of work in a place. Tells whether there is more to do. */
type Step = (scope: Scope) => Promise<boolean>;

/** Takes steps in each env of each tenant, in turns. */
export const everyPlace = (database: Database, signal: AbortSignal | undefined, step: Step): Promise<void> =>
  walk(database, signal, step, (tx, after) => tx.final(TENANTS, [after]));

// The role that sees where work is due, of all tenants, and no content.
const AS_JOBS = query(`select set_config('role', 'memoryd_jobs', true)`);

/** What may be due, or the hint that tells where it may be. */
type Due = Pick<Kind, 'table' | 'due' | 'hint'>;

/**
 * The places where rows of these kinds may be due, a thousand tenants at a time: a look into the index of each kind costs some
 * microseconds, a visit half a millisecond. `limit` keeps the planner from reading whole tables to hash them.
 */
const due = (kinds: Due[], of: string) => {
  const looks = kinds.map((kind) => {
    const { table, due } = kind.hint ?? kind;
    const where = ` and ${due}`.replaceAll('$1', 'tenants.tenant_id').replaceAll('$2', 'place.env');
    return `(select true from ${table} where tenant_id = tenants.tenant_id and env = place.env${where} limit 1)`;
  });
  return query<Places>(`
    select tenant_id, array(select env from unnest(envs) as place (env) where coalesce(${[...new Set(looks)].join(', ')}, false)) as envs
    from tenants where tenant_id > $4 and ${of} order by tenant_id limit 1000`);
};

/** Takes steps in the places that a statement finds due, in turns. It goes on after the tenant $4; its own values follow. */
export const inDue = (
  statement: Statement<Places>,
  values: string[],
  database: Database,
  signal: AbortSignal | undefined,
  step: Step,
): Promise<void> =>
  walk(database, signal, step, async (tx, after) => {
    const [, places] = await together([tx.query(AS_JOBS), tx.final(statement, [after, ...values])]);
    return places;
  });

/** Takes steps in the places where rows of these tables may be due, in turns, of tenants for which a condition holds. */
export function duePlaces(kinds: Due[], of = 'true') {
  const statement = due(kinds, of);
  return (database: Database, signal: AbortSignal | undefined, step: Step): Promise<void> =>
    inDue(statement, [], database, signal, step);
}

type Next = (tx: TenantTx, after: string) => Promise<Places[]>;

const walk = (database: Database, signal: AbortSignal | undefined, step: Step, next: Next): Promise<void> =>
  inTurns(placesOf(database, signal, next), (scope) => {
    signal?.throwIfAborted();
    return step(scope);
  });

async function* placesOf(database: Database, signal: AbortSignal | undefined, next: Next): AsyncIterable<Scope> {
  for (let after = ''; ; ) {
    const limits = { deadline: Date.now() + 60_000, signal };
    const tenants = await transaction(database, DIRECTORY, undefined, limits, { repeatable: true }, (tx) =>
      next(tx, after),
    );
    if (tenants.length === 0) return;
    for (const { tenantId, envs } of tenants) for (const env of envs) yield { tenant: tenantId, env, user: '' };
    after = tenants.at(-1)!.tenantId;
  }
}

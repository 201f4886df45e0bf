import { query, type Statement } from '../db/statement.ts';

export const BATCH = 1000;

/** A kind of thing that goes by itself: its table, and which of its rows are due. */
export interface Kind {
  kind: string;
  table: string;
  due: string;
  /** The order in which they go: where an index has it, what is due is found there, however little the planner knows of it. */
  order?: string;
  batch?: number;
  /** Where it is seen that rows may be due, by who sees no content: by default as they are found. */
  hint?: { table: string; due: string };
}

export interface Count {
  kind: string;
  n: number;
}

/** The CTE that counts what was removed: the rows of a CTE `counts`. */
export const COUNTED = `counted as (
    insert into expiry_stats as e (tenant_id, env, kind, swept_count, last_sweep_time)
    select $1, $2, kind, n, now() from counts order by kind
    on conflict (tenant_id, env, kind) do update
      set swept_count = e.swept_count + excluded.swept_count, last_sweep_time = excluded.last_sweep_time
    returning 1
  )`;

/** The rows of a kind that are due, at most so many. */
export const dueRows = ({ table, due, order }: Kind, columns: string, limit: number): string =>
  `select ${columns} from ${table} where tenant_id = $1 and env = $2 and ${due}${order ? ` order by ${order}` : ''} limit ${limit}`;

/**
 * Removes a batch of each kind in a tenant and env, and counts it. One statement for all kinds, as nearly always there is
 * nothing to do: a walk over many tenants is then one round trip each. Locked rows are skipped; they belong to a call, or to
 * another sweep. `also` are further CTEs, each with a comma after it.
 */
export const removal = (kinds: Kind[], also = ''): Statement<Count> =>
  query<Count>(`
  with ${kinds
    .map(
      (kind, i) => `gone_${i} as (
    delete from ${kind.table}
    where tenant_id = $1 and env = $2 and ctid = any (array(
      ${dueRows(kind, 'ctid', kind.batch ?? BATCH)} for update skip locked))
    returning 1
  )`,
    )
    .join(', ')}, ${also} counts as (
    select kind, sum(n)::int as n from (
      ${kinds.map(({ kind }, i) => `select '${kind}' as kind, count(*) as n from gone_${i}`).join(' union all ')}
    ) c group by kind having sum(n) > 0
  ), ${COUNTED}
  select kind, n from counts`);

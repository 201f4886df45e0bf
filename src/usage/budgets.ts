import { status } from '@grpc/grpc-js';
import { audited, requested } from '../db/change.ts';
import { change, query, type Value } from '../db/statement.ts';
import type { TenantDb, TenantTx } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { Budget, Budget_Period, Budget_Scope, BudgetStatus } from '../gen/memory/v1/usage.ts';
import { denied, etagMismatch, notFound, RpcError } from '../rpc/errors.ts';
import { etagOf } from '../rpc/validate.ts';
import { dayOf } from './fold.ts';
import { idBefore } from './ids.ts';

const { TENANT, PROJECT, USER, SESSION } = Budget_Scope;

const COLUMNS = `scope, subject, period, trim_scale(cost_limit)::text as cost_limit, token_limit, enforce, create_time, update_time,
    updated_by, revision`;

export interface BudgetRow {
  scope: number;
  subject: string;
  period: number;
  costLimit: string | null;
  tokenLimit: number | null;
  enforce: boolean;
  createTime: Timestamp;
  updateTime: Timestamp;
  updatedBy: string;
  revision: number;
}

/** A budget in its current period. */
export interface StatusRow extends BudgetRow {
  byAdmin: boolean;
  costSpent: string;
  tokensSpent: number;
  costLeft: string | null;
  tokensLeft: number | null;
  exceeded: boolean;
  periodStartTime: Timestamp;
  periodEndTime: Timestamp;
  msLeft: number;
}

export function budgetFromRow(row: BudgetRow): Budget {
  const { scope, subject, period, enforce, createTime, updateTime, updatedBy } = row;
  return Budget.fromPartial({
    ...({ scope, period } as object),
    subject,
    costLimit: row.costLimit ?? '',
    tokenLimit: row.tokenLimit ?? 0,
    enforce,
    createTime,
    updateTime,
    updatedBy,
    etag: etagOf(row.revision),
  });
}

export function statusFromRow(row: StatusRow): BudgetStatus {
  const { costSpent, tokensSpent, costLeft, tokensLeft, exceeded, periodStartTime, periodEndTime } = row;
  return BudgetStatus.fromPartial({
    budget: budgetFromRow(row),
    costSpent,
    tokensSpent,
    costLeft: costLeft ?? '',
    tokensLeft: tokensLeft ?? 0,
    exceeded,
    periodStartTime,
    periodEndTime,
  });
}

/** Whether a call counts for a budget. */
const COUNTS = `case b.scope when ${TENANT} then true when ${PROJECT} then r.project_id = b.subject
    when ${USER} then r.user_id = b.subject else r.session_id = b.session_id end`;

/**
 * The budgets of a condition over `b`, which may end in an order and a limit, with what was spent: the sums of the period's days, and the calls that are in none of
 * them yet, which are read once for all, and no older ones than the periods are. A budget's scope is the grain of its sums.
 */
const statuses = (which: string, order: string): string => `
  with budget as materialized (
    select b.*, p.began, (p.began + case b.period when ${Budget_Period.DAY} then interval '1 day' else interval '1 month' end) as ends
    from budgets b
    cross join lateral (
      select date_trunc(case b.period when ${Budget_Period.DAY} then 'day' else 'month' end, now() at time zone 'UTC') as began
    ) p
    where b.tenant_id = $1 and b.env = $2 and ${which}
  ), waiting as materialized (
    select ${dayOf('r')} as day, user_id, project_id, session_id, cost, total_tokens from llm_requests r
    where tenant_id = $1 and env = $2 and not folded and id > (select ${idBefore('min(began)')} from budget)
      and exists (select from budget b where ${dayOf('r')} >= b.began::date and ${COUNTS})
  ), of_period as (
    select b.*, s.cost as cost_spent, s.tokens as tokens_spent,
      b.cost_limit - s.cost as cost_left, b.token_limit - s.tokens as tokens_left
    from budget b
    cross join lateral (
      select coalesce(sum(cost), 0) as cost, coalesce(sum(total_tokens), 0)::bigint as tokens from (
        select u.cost, u.total_tokens from usage_rollups u
        where u.tenant_id = $1 and u.env = $2 and u.grain = b.scope and u.subject = b.subject and u.day >= b.began::date
        union all
        select r.cost, r.total_tokens from waiting r where r.day >= b.began::date and ${COUNTS}
      ) t
    ) s
  )
  select ${COLUMNS}, by_admin, trim_scale(cost_spent)::text as cost_spent, tokens_spent, trim_scale(of_period.cost_left)::text as cost_left, tokens_left,
    coalesce(of_period.cost_left <= 0, false) or coalesce(tokens_left <= 0, false) as exceeded,
    began at time zone 'UTC' as period_start_time, ends at time zone 'UTC' as period_end_time,
    ceil(extract(epoch from ends - (now() at time zone 'UTC')) * 1000)::bigint as ms_left
  from of_period
  order by ${order}`;

/** $4 and $5 are the project and the session. */
export const OF_CALL = query<StatusRow>(
  statuses(
    `(b.scope, b.subject) in ((${TENANT}, ''), (${USER}, $3), (${PROJECT}, nullif($4, '')), (${SESSION}, $5))`,
    `least(of_period.cost_left / nullif(of_period.cost_limit, 0), tokens_left::numeric / token_limit) nulls first, scope, period`,
  ),
);

/** The budgets that a call of the user in a project and session counts for, the tightest first. */
export async function budgetsOf(db: TenantDb, projectId: string, sessionId: string | null): Promise<StatusRow[]> {
  return db.query(OF_CALL, [projectId, sessionId]);
}

/** Refuses what comes next once an enforced budget is spent. */
export function refuseSpent(budgets: StatusRow[]): void {
  const spent = budgets.filter((budget) => budget.enforce && budget.exceeded).sort((a, b) => b.msLeft - a.msLeft)[0];
  if (!spent) return;
  const name = nameOf(spent);
  throw new RpcError(status.RESOURCE_EXHAUSTED, 'BUDGET_EXCEEDED', `the budget ${name} is spent`, {
    metadata: { budget: name },
    retryAfterMs: spent.msLeft,
    quota: { subject: name, description: 'the enforced budget of the period is spent' },
  });
}

const SCOPES: Record<number, string> = {
  [TENANT]: 'tenant',
  [PROJECT]: 'projects',
  [USER]: 'users',
  [SESSION]: 'sessions',
};

export const nameOf = ({ scope, subject, period }: Key): string =>
  [SCOPES[scope], subject, period === Budget_Period.DAY ? 'day' : 'month'].filter(Boolean).join('/');

export interface Key {
  scope: number;
  subject: string;
  period: number;
}

const about = {
  resource: `'budgets/' || scope || '/' || subject || '/' || period`,
  metadata: `jsonb_build_object('cost_limit', cost_limit::text, 'token_limit', token_limit, 'enforce', enforce)`,
};

// Of a session only who has it, or an admin: where there is none, nothing is set. Revisions begin with the time, so that none
// comes again when a budget is deleted and set anew: its etag would be that of another.
const SET = change<BudgetRow>(`
  with saved as (
    insert into budgets as b (tenant_id, env, scope, subject, period, session_id, cost_limit, token_limit, enforce, by_admin, revision,
      create_time, update_time, updated_by)
    select $1, $2, $11::smallint, $12::text, $13::smallint, $19::uuid, $14::numeric, $15::bigint,
      $16::boolean, $17::boolean, (extract(epoch from c.at) * 1000000)::bigint, c.at, c.at, $3
    from (select clock_timestamp() as at) c
    where ($19 is null or exists (
        select from sessions s where s.tenant_id = $1 and s.env = $2 and ($17 or s.user_id = $3) and s.id = $19 and s.delete_time is null))
      and ($18::bigint is null or exists (
        select from budgets o where o.tenant_id = $1 and o.env = $2 and (o.scope, o.subject, o.period) = ($11, $12, $13)))
    on conflict (tenant_id, env, scope, subject, period) do update
      set cost_limit = excluded.cost_limit, token_limit = excluded.token_limit, enforce = excluded.enforce, by_admin = excluded.by_admin,
        revision = b.revision + 1, update_time = greatest(b.update_time, excluded.update_time), updated_by = excluded.updated_by
      where (not b.by_admin or excluded.by_admin) and ($18 is null or b.revision = $18)
    returning ${COLUMNS}
  ), ${audited('budgets.set', 'saved', about)}, ${requested('saved')}
  select * from saved`);

const keyed = ({ scope, subject, period }: Key): Value[] => [scope, subject, period];

/** Gives no row if it refused: see {@link whyNotChanged}. */
export async function setBudget(
  tx: TenantTx,
  budget: Budget,
  byAdmin: boolean,
  revision: number | undefined,
): Promise<BudgetRow[]> {
  const { costLimit, tokenLimit, enforce } = budget;
  const sessionId = budget.scope === SESSION ? budget.subject : null;
  const values = [costLimit || null, tokenLimit || null, enforce, byAdmin, revision, sessionId];
  return tx.final(SET, [...keyed(budget), ...values]);
}

const DELETE = change<BudgetRow>(`
  with gone as (
    delete from budgets
    where tenant_id = $1 and env = $2 and scope = $11::smallint and subject = $12 and period = $13::smallint
      and ($14::boolean or not by_admin) and ($15::bigint is null or revision = $15)
      and ($14 or scope <> ${SESSION} or exists (
        select from sessions s where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = session_id))
    returning ${COLUMNS}
  ), ${audited('budgets.delete', 'gone', about)}, ${requested('gone')}
  select * from gone`);

/** Gives no row if it refused: see {@link whyNotChanged}. */
export async function deleteBudget(tx: TenantTx, key: Key, byAdmin: boolean, revision: number | undefined) {
  return tx.final(DELETE, [...keyed(key), byAdmin, revision]);
}

/** Whether the user may see a budget: all of what members share, of the rest its own; an admin ($4) everything. */
const VISIBLE = `($4::boolean or b.scope in (${TENANT}, ${PROJECT}) or (b.scope = ${USER} and b.subject = $3) or exists (
    select from sessions s where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = b.session_id))`;

const GET = query<StatusRow>(
  statuses(`${VISIBLE} and (b.scope, b.subject, b.period) = ($5::smallint, $6, $7::smallint)`, 'scope'),
);

export async function findBudget(db: TenantDb, key: Key, admin: boolean) {
  const [row] = await db.query(GET, [admin, ...keyed(key)]);
  return row;
}

/** Why a budget was neither set nor deleted. */
export async function whyNotChanged(
  db: TenantDb,
  key: Key,
  admin: boolean,
  revision: number | undefined,
): Promise<RpcError> {
  const found = await findBudget(db, key, admin);
  if (found?.byAdmin && !admin) return denied('ADMIN_REQUIRED', 'an admin has set this budget');
  if (revision !== undefined) return etagMismatch(found ? etagOf(found.revision) : '');
  return notFound(key.scope === SESSION && !found ? 'session or budget' : 'budget');
}

const LIST = query<StatusRow>(
  statuses(
    `${VISIBLE} and ($5::smallint is null or (b.scope, b.subject, b.period) > ($5, $6::text, $7::smallint))
    order by b.scope, b.subject, b.period limit $8::int`,
    'scope, subject, period',
  ),
);

export async function listBudgets(
  db: TenantDb,
  admin: boolean,
  after: string[] | undefined,
  limit: number,
): Promise<StatusRow[]> {
  return db.query(LIST, [admin, after?.[0], after?.[1], after?.[2], limit]);
}

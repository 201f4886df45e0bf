import { query, type Statement, type Value } from '../db/statement.ts';
import type { TenantDb } from '../db/transaction.ts';
import { Usage, UsageDimension } from '../gen/memory/v1/usage.ts';
import { dayOf } from './fold.ts';
import { idsOfDays } from './ids.ts';

const { SESSION, USER, PROJECT, DAY, PROVIDER, MODEL } = UsageDimension;

/** The dimensions in the order in which usage is told: so do the keys of the sums run, so that a page reads no more than itself. */
const COLUMNS: [UsageDimension, column: string, key: keyof Usage][] = [
  [SESSION, 'session_id', 'sessionId'],
  [USER, 'user_id', 'userId'],
  [PROJECT, 'project_id', 'projectId'],
  [DAY, 'day', 'day'],
  [PROVIDER, 'provider', 'provider'],
  [MODEL, 'model', 'model'],
];

/** Where the sums of each grain keep what they are by; see migration 14. */
const GRAINS: Record<number, { session_id: string; user_id: string; project_id: string }> = {
  1: { session_id: `''`, user_id: `''`, project_id: `''` },
  2: { session_id: `''`, user_id: `''`, project_id: 'subject' },
  3: { session_id: `''`, user_id: 'subject', project_id: 'project_id' },
  4: { session_id: 'subject', user_id: 'user_id', project_id: 'project_id' },
};

const SUMS = ['requests', 'prompt_tokens', 'cached_tokens', 'completion_tokens', 'total_tokens', 'cost', 'latency_ms'];

/** What is not told as it is stored. */
const TOLD: Record<string, string> = { day: `to_char(u.day, 'YYYY-MM-DD') as day` };
const ADDED: Record<string, string> = { cost: 'trim_scale(coalesce(sum(cost), 0))::text as cost' };

interface Shape {
  grain: number;
  by: UsageDimension[];
  /** A user or a session is named: each is a place in an index, which a condition that may be left out is not. */
  ofUser: boolean;
  ofSession: boolean;
  /** After a page. */
  goesOn: boolean;
}

/**
 * The sums of the coarsest grain that tells what is asked for, and the calls that are in none of them yet: one statement, so
 * that it sees each call once. The conditions stand outside of the union, and its types are the same: only then does Postgres
 * walk both in the order of the keys, and stop at the end of a page.
 */
function make({ grain, by, ofUser, ofSession, goesOn }: Shape): Statement<Record<string, unknown>> {
  const keys = COLUMNS.filter(([dimension]) => by.includes(dimension)).map(([, column]) => column);
  const { session_id, user_id, project_id } = GRAINS[grain]!;
  const after = keys.map((column, i) => `$${13 + i}${column === 'day' ? '::date' : '::text'}`);
  const where = [
    `($6 = '' or project_id = $6)`,
    `$7 in ('', provider) and $8 in ('', model)`,
    `day >= coalesce($9::date, '-infinity') and day <= coalesce($10::date, 'infinity')`,
    ofUser ? 'user_id = $4' : `$4 = ''`,
    ofSession ? 'session_id = $5' : `$5::text = ''`,
    goesOn && `(${keys.join(', ')}) > (${after.join(', ')})`,
  ].filter(Boolean);
  const grouped = keys.map((key) => `u.${key}`).join(', ');
  return query(`
    with waiting as materialized (
      select r.*, ${dayOf('r')} as day from llm_requests r
      where tenant_id = $1 and env = $2 and not folded and id > $11::uuid and id < $12::uuid
        ${ofUser ? 'and user_id = $4' : ''} ${ofSession ? 'and session_id = $5::text::uuid' : ''}
    )
    select ${[...keys.map((key) => TOLD[key] ?? key), ...SUMS.map((sum) => ADDED[sum] ?? `coalesce(sum(${sum}), 0)::bigint as ${sum}`)].join(', ')}
    from (
      select tenant_id, env, grain, ${session_id} as session_id, ${user_id} as user_id, ${project_id} as project_id, day, provider,
        model, ${SUMS.join(', ')}
      from usage_rollups
      union all
      select tenant_id, env, ${grain}::smallint, coalesce(session_id::text, ''), user_id, project_id, day, provider, model, 1::bigint,
        prompt_tokens, cached_tokens, completion_tokens, total_tokens, cost::numeric, latency_ms
      from waiting
    ) u
    where tenant_id = $1 and env = $2 and grain = ${grain} and ${where.join(' and ')}
    ${grouped && `group by ${grouped} order by ${grouped}`}
    limit $${13 + (goesOn ? keys.length : 0)}::int`);
}

const statements = new Map<string, Statement<Record<string, unknown>>>();

function statementOf(shape: Shape) {
  const name = JSON.stringify(shape);
  const made = statements.get(name) ?? make(shape);
  statements.set(name, made);
  return made;
}

export interface UsageFilter {
  userId: string;
  sessionId: string;
  projectId: string;
  provider: string;
  model: string;
  /** UTC days as YYYY-MM-DD, both part of it, or ''. */
  startDay: string;
  endDay: string;
}

/** The statement that tells usage so, and its own parameters. */
export function usageQuery(
  groupBy: UsageDimension[],
  filter: UsageFilter,
  after: string[] | undefined,
  limit: number,
): { statement: Statement<Record<string, unknown>>; values: Value[] } {
  const { userId, sessionId, projectId, provider, model, startDay, endDay } = filter;
  const by = COLUMNS.map(([dimension]) => dimension).filter((dimension) => groupBy.includes(dimension));
  const named = (dimension: UsageDimension, value: string) => value !== '' || by.includes(dimension);
  const grain = named(SESSION, sessionId) ? 4 : named(USER, userId) ? 3 : named(PROJECT, projectId) ? 2 : 1;
  const shape = { grain, by, ofUser: userId !== '', ofSession: sessionId !== '', goesOn: after !== undefined };
  const days = [startDay || null, endDay || null];
  const { from, to } = idsOfDays(startDay, endDay);
  const values = [userId, sessionId, projectId, provider, model, ...days, from, to, ...(after ?? []), limit];
  return { statement: statementOf(shape), values };
}

export async function readUsage(db: TenantDb, ...asked: Parameters<typeof usageQuery>): Promise<Usage[]> {
  const { statement, values } = usageQuery(...asked);
  return (await db.query(statement, values)).map((row) => Usage.fromPartial(row as object));
}

/** Where a page ends. */
export const positionOf = (groupBy: UsageDimension[], usage: Usage): string[] =>
  COLUMNS.filter(([dimension]) => groupBy.includes(dimension)).map(([, , key]) => String(usage[key]));

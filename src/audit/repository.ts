import { query } from '../db/statement.ts';
import type { TenantDb } from '../db/transaction.ts';
import { AuditEvent } from '../gen/memory/v1/audit_service.ts';

// Events of the env, and those of the tenant itself (env ''): two walks of an index, each stopped at the page's end, where
// one condition over both envs would sort all of the tenant's events.
const events = (env: string, byUser: string) => `(
    select id, env, user_id, actor, action, outcome, resource, session_id, request_id, trace_id, metadata, create_time
    from audit_events
    where tenant_id = $1 and env = ${env} and ${byUser}
      and $5 in ('', action) and ($6::uuid is null or session_id = $6) and $7 in ('', resource) and $8::int in (0, outcome)
      and ($9::timestamptz is null or create_time >= $9) and ($10::timestamptz is null or create_time < $10)
      and id < coalesce($11::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
    order by id desc limit $12::int
  )`;

const LIST_OF_USER = query<EventRow>(`${events('$2', 'user_id = $4')}`);
const LIST_OF_TENANT = query<EventRow>(`
  select * from (${events('$2', `$4 in ('', user_id)`)} union all ${events(`''`, `$4 in ('', user_id)`)}) e
  order by id desc limit $12::int`);

interface EventRow extends Record<string, any> {
  id: string;
}

export interface EventFilter {
  /** '' for all users, which only admins may ask for. */
  userId: string;
  action: string;
  sessionId: string;
  resource: string;
  outcome: number;
  startTime: string | null;
  endTime: string | null;
}

export async function listAuditEvents(
  db: TenantDb,
  filter: EventFilter,
  wholeTenant: boolean,
  after: string | undefined,
  limit: number,
): Promise<AuditEvent[]> {
  const { userId, action, sessionId, resource, outcome, startTime, endTime } = filter;
  const values = [userId, action, sessionId || null, resource, outcome, startTime, endTime, after, limit];
  const rows = await db.query(wholeTenant ? LIST_OF_TENANT : LIST_OF_USER, values);
  return rows.map((row) =>
    AuditEvent.fromPartial({
      ...(row as object),
      sessionId: row.sessionId ?? '',
      requestId: row.requestId ?? '',
      metadata: row.metadata ?? undefined,
    }),
  );
}

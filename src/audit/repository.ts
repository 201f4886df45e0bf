import { pointRead, query, timestampText } from '../db/statement.ts';
import type { TenantDb } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { AuditEvent, type AuditEvent_Outcome } from '../gen/memory/v1/audit_service.ts';
import { before, type Position } from './chain.ts';

const COLUMNS =
  'id, env, user_id, actor, action, outcome, resource, session_id, request_id, trace_id, metadata, create_time';

export interface EventFilter {
  /** '' for all users, which only admins may ask for. */
  userId: string;
  action: string;
  sessionId: string;
  resource: string;
  outcome: AuditEvent_Outcome;
  actor: string;
  traceId: string;
  callRequestId: string;
}

// From $4 to $11: see `valuesOf`. Which user it is about comes first, as an index has that.
const MATCHING = `$5::text in ('', e.action) and ($6::uuid is null or e.session_id = $6) and $7::text in ('', e.resource)
      and $8::int in (0, e.outcome) and $9::text in ('', e.actor) and $10::text in ('', e.trace_id) and ($11::uuid is null or e.request_id = $11)`;
const OF_ANY = `$4::text in ('', e.user_id)`;

function valuesOf(filter: EventFilter) {
  const { userId, action, sessionId, resource, outcome, actor, traceId, callRequestId } = filter;
  return [userId, action, sessionId || null, resource, outcome, actor, traceId, callRequestId || null];
}

type Order = 'asc' | 'desc';

// Events of the env, and those of the tenant itself (env ''): two walks of an index, each stopped at the page's end, where
// one condition over both envs would sort all of the tenant's events.
const events = (env: string, byUser: string, order: Order) => `(
    select ${COLUMNS} from audit_events e
    where tenant_id = $1 and env = ${env} and ${byUser} and ${MATCHING}
      and ($12::timestamptz is null or create_time >= $12) and ($13::timestamptz is null or create_time < $13)
      and id > $14::uuid and id < $15::uuid
    order by id ${order} limit $16::int
  )`;

const ofUser = (order: Order) => query<EventRow>(events('$2', 'user_id = $4', order));
const ofTenant = (order: Order) =>
  query<EventRow>(`
  select * from (${events('$2', OF_ANY, order)} union all ${events(`''`, OF_ANY, order)}) e
  order by id ${order} limit $16::int`);
const LIST = {
  asc: { own: ofUser('asc'), all: ofTenant('asc') },
  desc: { own: ofUser('desc'), all: ofTenant('desc') },
};

interface EventRow extends Record<string, any> {
  id: string;
}

const eventFromRow = (row: EventRow): AuditEvent =>
  AuditEvent.fromPartial({
    ...(row as object),
    sessionId: row.sessionId ?? '',
    requestId: row.requestId ?? '',
    metadata: row.metadata ?? undefined,
  });

export interface Times {
  startTime: Timestamp | undefined;
  endTime: Timestamp | undefined;
}

const DAY = 24 * 3600;

/** The least id that is made at a time. */
function idAt(seconds: number): string {
  const digits = Math.min(Math.max(seconds * 1000, 0), 2 ** 48 - 1)
    .toString(16)
    .padStart(12, '0');
  return `${digits.slice(0, 8)}-${digits.slice(8)}-0000-0000-000000000000`;
}

/** Events by their ids, which tell when their calls began, from after the position `after` on: the newest first, or the oldest. */
export async function listAuditEvents(
  db: TenantDb,
  filter: EventFilter,
  { startTime, endTime }: Times,
  whose: 'own' | 'all',
  order: Order,
  after: string | undefined,
  limit: number,
): Promise<AuditEvent[]> {
  // A day more, as ids have the time of a server's clock, and events that of the database's.
  const low = startTime ? idAt(startTime.seconds - DAY) : idAt(0);
  const high = endTime ? idAt(endTime.seconds + DAY) : 'ffffffff-ffff-ffff-ffff-ffffffffffff';
  const bounds = order === 'asc' ? [after ?? low, high] : [low, after ?? high];
  const values = [...valuesOf(filter), timestampText(startTime), timestampText(endTime), ...bounds, limit];
  return (await db.query(LIST[order][whose], values)).map(eventFromRow);
}

// In a statement of its own, before the events: what is below it can be seen by all that come after.
const HORIZON = pointRead<{ horizon: string }>('select pg_snapshot_xmin(pg_current_snapshot())::text as horizon');

const SCANNED = 500;

const scanned = (env: string, byUser: string) => `(
      select * from audit_events e
      where tenant_id = $1 and env = ${env} and ${byUser} and (xid, id) > ($12::xid8, $13::uuid) and xid < $14::xid8
      order by xid, id limit ${SCANNED}
    )`;
const newest = (env: string) => `(
      select xid from audit_events e where tenant_id = $1 and env = ${env} and xid < $14::xid8 order by xid desc limit 1
    )`;

const OF_USER = 'e.user_id = $4';

// Of one user by an index of those. However few of the events are wanted, no more than a page of them is looked at.
const following = (envs: string[], whom: string) =>
  pointRead<FeedRow>(`
  with scanned as materialized (
    select s.*, count(*) over ()::int as n, row_number() over (order by xid desc, id desc) = 1 as last from (
      select * from (${envs.map((env) => scanned(env, whom === OF_USER ? whom : 'true')).join(' union all ')}) s
      order by xid, id limit ${SCANNED}
    ) s
  )
  select coalesce(greatest(${newest('$2')}, ${newest(`''`)}), '0')::text as head,
    exists (select from audit_events e where tenant_id = $1 and env = $2 and xid >= $14::xid8) as coming, e.*
  from (select 1) one
  left join (
    select ${COLUMNS}, xid::text as xid, n, ${whom} and ${MATCHING} as wanted
    from scanned e where last or ${whom} and ${MATCHING}
  ) e on true
  order by e.xid::xid8, e.id`);
const FOLLOWING = {
  own: following(['$2'], OF_USER),
  ofOne: following(['$2', `''`], OF_USER),
  all: following(['$2', `''`], OF_ANY),
};

interface FeedRow extends EventRow {
  head: string;
  coming: boolean;
  xid: string | null;
  n: number;
  wanted: boolean;
}

export interface Feed {
  events: { event: AuditEvent; position: Position }[];
  /** Up to where events have been looked at. */
  position: Position;
  /** Whether there is more after that, which can be read now. */
  more: boolean;
  /** Whether there is some that a running transaction still holds back. */
  coming: boolean;
  /** The newest transaction that left an event which can be read. */
  head: number;
}

/** The place after everything that can be read now. */
export async function nowPosition(db: TenantDb): Promise<Position> {
  const [{ horizon } = { horizon: '0' }] = await db.query(HORIZON);
  return before(horizon);
}

/** The next events after a position, in the order in which nothing that commits late comes before what has been told. */
export async function followAuditEvents(
  db: TenantDb,
  filter: EventFilter,
  whose: 'own' | 'all',
  after: Position,
): Promise<Feed> {
  const end = await nowPosition(db);
  const which = whose === 'all' && filter.userId ? 'ofOne' : whose;
  const rows = await db.query(FOLLOWING[which], [...valuesOf(filter), after.xid, after.id, end.xid]);
  const [{ head, coming }] = rows as [FeedRow];
  const found = rows.filter((row) => row.xid !== null);
  const last = found.at(-1);
  const more = last !== undefined && last.n >= SCANNED;
  return {
    events: found
      .filter((row) => row.wanted)
      .map((row) => ({ event: eventFromRow(row), position: { xid: row.xid!, id: row.id } })),
    position: more ? { xid: last.xid!, id: last.id } : end,
    more,
    coming,
    head: Number(head),
  };
}

import { wiped } from '../db/change.ts';
import { change, json, pointRead, query, rowFromJson } from '../db/statement.ts';
import type { TenantDb, TenantTx } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { SessionTaskData, Turn, TurnIntent, TurnReport, TurnTask } from '../gen/memory/v1/turn.ts';
import { liveSession } from '../threads/repository.ts';
import type { TurnRecord } from './record.ts';

const MAX_RESULTS = 200;
const MAX_CHECKPOINTS = 50;
const MAX_TURNS = 50;
const MAX_REPORTS = 20;

/** All columns of a turn but query and response. */
const COLUMNS = `id, session_id, intent, planner_reasoning, reflection, tasks, results, report, truncated, first_seq, last_seq, create_time`;

export interface TurnRow {
  id: string;
  sessionId: string;
  query?: string;
  response?: string;
  intent: object | null;
  plannerReasoning: string;
  reflection: string;
  tasks: Record<string, unknown>[];
  results: { task_id: string; data: object }[];
  report: Record<string, unknown> | null;
  truncated: string[];
  firstSeq: number;
  lastSeq: number;
  createTime: Timestamp;
}

export function turnFromRow(row: TurnRow): Turn {
  return Turn.fromPartial({
    ...(row as object),
    intent: row.intent ? TurnIntent.fromPartial(row.intent) : undefined,
    tasks: row.tasks.map((task) => TurnTask.fromPartial(rowFromJson(task))),
    results: row.results.map(({ task_id, data }) => ({
      taskId: task_id,
      payloadJson: Buffer.from(JSON.stringify(data)),
    })),
    report: row.report ? reportOf(row.report) : undefined,
  });
}

const reportOf = (report: Record<string, unknown>) => TurnReport.fromPartial(rowFromJson(report));

/** The time that a UUIDv7 tells, and a millisecond: another one that is made of it comes after it. */
const after = (id: string) =>
  `to_timestamp((('x' || left(replace(${id}::text, '-', ''), 12))::bit(48)::bigint + 1) / 1000.0)`;

const newestOf = (table: string) => `(
      select id, create_time from ${table} where tenant_id = $1 and env = $2 and session_id = (select id from session)
      order by id desc limit 1)`;

// The session's row is locked first: turns of one session come one after the other, and DeleteSession misses none of them.
// Ids are made here, each after the last one, as it is by them that turns are listed and pruned: the clocks of two servers may
// be further apart than two turns, and the database's may be set back.
// A CTE does not see what another one writes, so that what is pruned is counted around what is new. Checkpoints are pruned
// from a place in the index on: joined by their ids, a plan made on a small table read each of them 50 times.
const RECORD = change<{ id: string | null }>(`
  with session as materialized (
    select s.id, s.project_id, s.state from sessions s
    where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $11::uuid
      and ${liveSession('s')}
    for no key update
  ), made as materialized (
    select s.*, greatest(c.at, last.create_time) as at, greatest(c.at, last.next_time) as id_time
    from session s, (select clock_timestamp() as at) c, (
      select max(create_time) as create_time, max(${after('id')}) as next_time
      from (${newestOf('turns')} union all ${newestOf('state_checkpoints')}) newest
    ) last
  ), turn as (
    insert into turns (tenant_id, env, session_id, id, user_id, query, response, intent, planner_reasoning, reflection, tasks, results,
      report, truncated, first_seq, last_seq, create_time)
    select $1, $2, s.id, uuid_v7(s.id_time), $3, $13, $14, $15::jsonb, $16, $17, $18::jsonb, $19::jsonb, $20::jsonb, $21::jsonb,
      $22::bigint, $23::bigint, s.at
    from made s where $12::boolean
    returning ${COLUMNS}
  ), produced as materialized (
    select distinct on (v ->> 'task_id') v ->> 'task_id' as task_id, ord - 1 as place
    from jsonb_array_elements($19) with ordinality as e (v, ord)
    order by v ->> 'task_id', ord desc
  ), stored as (
    insert into turn_results (tenant_id, env, session_id, task_id, user_id, turn_id, place, update_time)
    select $1, $2, t.session_id, p.task_id, $3, t.id, p.place, t.create_time from turn t, produced p
    on conflict (tenant_id, env, session_id, task_id) do update
      set turn_id = excluded.turn_id, place = excluded.place, update_time = excluded.update_time
    returning 1
  ), forgotten as (
    delete from turn_results r using (
      select task_id from turn_results
      where tenant_id = $1 and env = $2 and session_id = (select session_id from turn)
        and task_id not in (select task_id from produced)
      order by turn_id desc, place desc
      offset ${MAX_RESULTS} - (select count(*) from produced)
    ) old
    where r.tenant_id = $1 and r.env = $2 and r.session_id = $11 and r.task_id = old.task_id
    returning 1
  ), checkpoint as (
    insert into state_checkpoints (tenant_id, env, session_id, id, user_id, project_id, turn_id, state, create_time)
    select $1, $2, s.id, uuid_v7(s.id_time), $3, s.project_id, (select id from turn), s.state, s.at from made s
    returning 1
  ), pruned as (
    delete from state_checkpoints
    where tenant_id = $1 and env = $2 and session_id = $11 and id <= (
      select id from state_checkpoints
      where tenant_id = $1 and env = $2 and session_id = (select id from session)
      order by id desc offset ${MAX_CHECKPOINTS - 1} limit 1
    )
    returning 1
  )
  select turn.* from session left join turn on true`);

export interface TurnEntry {
  sessionId: string;
  /** Without one only a checkpoint of the session's state is left. */
  record: TurnRecord | undefined;
  /** 0 if the turn has no messages. */
  firstSeq: number;
  lastSeq: number;
}

/**
 * Stores a turn, what its tasks produced, and a checkpoint of the state that the session has by now, in the caller's
 * transaction, which must have locked the session's row in an earlier statement. Gives null if there was no turn to record,
 * and undefined if the session is not live.
 */
export async function recordTurn(tx: TenantTx, entry: TurnEntry): Promise<TurnRow | null | undefined> {
  const { sessionId, record, firstSeq, lastSeq } = entry;
  const [row] = await tx.query(RECORD, [
    sessionId,
    record !== undefined,
    record?.query,
    record?.response,
    json(record?.intent),
    record?.planner_reasoning,
    record?.reflection,
    json(record?.tasks),
    json(record?.results ?? []),
    json(record?.report),
    json(record?.truncated),
    firstSeq,
    lastSeq,
  ]);
  return row && (row.id === null ? null : (row as TurnRow));
}

const readable = (id: string) => `(
    select s.id from sessions s
    where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = ${id}
      and s.delete_time is null and (s.expire_time is null or s.expire_time > now()))`;

// Rows past 1 MiB are never read.
const LIST = pointRead<TurnRow & { byteSize: number }>(`
  select ${COLUMNS}, query, response, byte_size
  from (
    select t.*, sum(byte_size) over (order by id desc rows unbounded preceding) as running
    from (
      select * from turns
      where tenant_id = $1 and env = $2 and user_id = $3 and session_id = ${readable('$4::uuid')}
        and id < coalesce($5::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
      order by id desc limit $6::int
    ) t
  ) t
  where running - byte_size <= 1048576
  order by id desc`);

export async function listTurns(
  db: TenantDb,
  sessionId: string,
  after: string | undefined,
  limit: number,
): Promise<(TurnRow & { byteSize: number })[]> {
  return db.query(LIST, [sessionId, after, limit]);
}

interface SessionDataRow {
  latest: { query: string; response: string } | null;
  turns: Record<string, unknown>[] | null;
  structuredData: Record<string, unknown>[] | null;
  reports: Record<string, unknown>[] | null;
}

// One statement, so that its parts agree.
const DATA = query<SessionDataRow>(`
  select (
    select json_build_object('query', query, 'response', response) from turns
    where tenant_id = $1 and env = $2 and user_id = $3 and session_id = s.id
    order by id desc limit 1
  ) as latest, (
    select json_agg(t order by id desc) from (
      select ${COLUMNS} from turns
      where tenant_id = $1 and env = $2 and user_id = $3 and session_id = s.id
      order by id desc limit ${MAX_TURNS}
    ) t
  ) as turns, (
    select json_agg(json_build_object('task_id', r.task_id, 'turn_id', r.turn_id, 'data', t.results -> r.place -> 'data',
      'update_time', r.update_time) order by r.turn_id desc, r.place desc)
    from (
      select * from turn_results
      where tenant_id = $1 and env = $2 and user_id = $3 and session_id = s.id
      order by turn_id desc, place desc limit ${MAX_RESULTS}
    ) r
    join turns t on t.tenant_id = $1 and t.env = $2 and t.session_id = s.id and t.id = r.turn_id
  ) as structured_data, (
    select json_agg(report order by id desc) from (
      select id, report from turns
      where tenant_id = $1 and env = $2 and user_id = $3 and session_id = s.id and report is not null
      order by id desc limit ${MAX_REPORTS}
    ) r
  ) as reports
  from sessions s where s.id = ${readable('$4::uuid')} and s.tenant_id = $1 and s.env = $2`);

export interface SessionData {
  latest: Turn | undefined;
  turns: Turn[];
  structuredData: SessionTaskData[];
  reports: TurnReport[];
}

/** What the turns of a session left, or undefined if there is no such session. Reads no messages. */
export async function getSessionData(db: TenantDb, sessionId: string): Promise<SessionData | undefined> {
  const [row] = await db.query(DATA, [sessionId]);
  if (!row) return undefined;
  const turns = (row.turns ?? []).map((turn) => rowFromJson(turn) as TurnRow);
  return {
    latest: turns[0] && turnFromRow({ ...turns[0], ...row.latest }),
    turns: turns.map(turnFromRow),
    structuredData: (row.structuredData ?? []).map((task) => SessionTaskData.fromPartial(rowFromJson(task))),
    reports: (row.reports ?? []).map(reportOf),
  };
}

const FIND_MESSAGES = query<{ id: string; seq: number }>(`
  select m.id, m.seq from messages m
  join sessions s on s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $4::uuid
  join threads t on t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_id = s.thread_id and t.thread_uid = m.thread_uid
    and t.delete_time is null
  where m.tenant_id = $1 and m.env = $2 and m.user_id = $3 and m.id = any ($5::uuid[]) and m.delete_time is null
  order by m.seq`);

/** Those of these messages that the session's thread has, in order. */
export async function findMessages(
  db: TenantDb,
  sessionId: string,
  ids: string[],
): Promise<{ id: string; seq: number }[]> {
  return ids.length === 0 ? [] : db.query(FIND_MESSAGES, [sessionId, ids]);
}

/** The CTEs that wipe what the turns of the sessions of a CTE left. Their rows must be locked since an earlier statement. */
export const wipedTurns = (sessions: string) => wiped(['turns', 'turn_results', 'state_checkpoints'], sessions);

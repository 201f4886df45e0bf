import { query } from '../db/statement.ts';
import type { TenantDb, TenantTx } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { Prompt, PromptRecord, ToolCall, ToolCallRecord } from '../gen/memory/v1/call.ts';
import { deleted, notFound } from '../rpc/errors.ts';
import { sessionEnded } from '../threads/append.ts';
import { liveSession } from '../threads/repository.ts';
import type { JsonObject } from '../wire/struct.ts';

// Shared with others that record, and held against who deletes the session or wipes its history meanwhile.
const LOCK = query<{ live: boolean; gone: boolean; hasTurn: boolean }>(`
  select ${liveSession('s')} as live, s.delete_time is not null as gone, $5::uuid is null or exists (
    select from turns t where t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.session_id = s.id and t.id = $5) as has_turn
  from sessions s
  where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $4::uuid
    and (s.expire_time is null or s.expire_time > now())
  for share`);

/** Holds the user's live session, which must have the turn that is named. */
export async function holdSession(tx: TenantTx, sessionId: string, turnId: string): Promise<void> {
  const [session] = await tx.query(LOCK, [sessionId, turnId || null]);
  if (!session) throw notFound('session');
  if (session.gone) throw deleted('session');
  if (!session.live) throw sessionEnded();
  if (!session.hasTurn) throw notFound('turn');
}

interface RecordRow {
  id: string;
  sessionId: string;
  turnId: string | null;
  createTime: Timestamp;
  byteSize: number;
}

export interface ToolCallRow extends RecordRow {
  input: JsonObject | null;
  output: JsonObject | null;
}

// Past 1 MiB the rows are not read. No point reads: a filter that matches rarely walks all of a user's rows.
const list = <Row>(table: string, columns: string, filters: string, ofSession: boolean, from: number) =>
  query<Row & RecordRow>(`
  select id, session_id, turn_id, create_time, byte_size, ${columns} from (
    select r.*, sum(byte_size) over (order by id desc rows unbounded preceding) as running from (
      select * from ${table}
      where tenant_id = $1 and env = $2 and user_id = $3 and ${ofSession ? 'session_id = $4::uuid' : '$4::uuid is null'}
        and ($5::uuid is null or turn_id = $5) and ${filters}
        and id < coalesce($${from}::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
      order by id desc limit $${from + 1}::int
    ) r
  ) r
  where running - byte_size <= 1048576
  order by id desc`);

const TOOL_CALL = 'tool_name, tool_call_id, input, output, status, latency_ms, attempt, error, retry_of';
const LIST_TOOL_CALLS = [false, true].map((ofSession) =>
  list<ToolCallRow>('tool_calls', TOOL_CALL, `$6 in ('', tool_name) and $7 in ('', status)`, ofSession, 8),
);
const LIST_PROMPTS = [false, true].map((ofSession) =>
  list<RecordRow>('prompts', 'name, version, text', `$6 in ('', name)`, ofSession, 7),
);

export async function listToolCalls(
  db: TenantDb,
  filter: { sessionId: string; turnId: string; toolName: string; status: string },
  after: string | undefined,
  limit: number,
): Promise<ToolCallRow[]> {
  const { sessionId, turnId, toolName, status } = filter;
  const values = [sessionId || null, turnId || null, toolName, status, after, limit];
  return db.query(LIST_TOOL_CALLS[Number(sessionId !== '')]!, values);
}

export async function listPrompts(
  db: TenantDb,
  filter: { sessionId: string; turnId: string; name: string },
  after: string | undefined,
  limit: number,
): Promise<RecordRow[]> {
  const { sessionId, turnId, name } = filter;
  const values = [sessionId || null, turnId || null, name, after, limit];
  return db.query(LIST_PROMPTS[Number(sessionId !== '')]!, values);
}

export function toolCallFromRow(row: ToolCallRow): ToolCall {
  const { id, sessionId, turnId, createTime, input, output, ...record } = row;
  return ToolCall.fromPartial({
    id,
    sessionId,
    turnId: turnId ?? '',
    record: ToolCallRecord.fromPartial({
      ...(record as object),
      input: input ?? undefined,
      output: output ?? undefined,
    }),
    createTime,
  });
}

export function promptFromRow({ id, sessionId, turnId, createTime, ...record }: RecordRow): Prompt {
  return Prompt.fromPartial({
    id,
    sessionId,
    turnId: turnId ?? '',
    record: PromptRecord.fromPartial(record as object),
    createTime,
  });
}

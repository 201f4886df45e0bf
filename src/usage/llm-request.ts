import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { LlmRequest, LlmRequestRecord } from '../gen/memory/v1/call.ts';
import type { JsonObject } from '../wire/struct.ts';

const PLAIN =
  `id user_id session_id turn_id project_id provider model prompt_tokens cached_tokens completion_tokens total_tokens
  latency_ms status external_id create_time`.split(/\s+/);
const DECIMALS = ['cost', 'prompt_unit_cost', 'cached_unit_cost', 'completion_unit_cost'];

/** What is stored of a call of a model, but for the parameters. Decimals are text, as short as they can be written. */
export const llmColumns = (row: string): string =>
  [
    ...PLAIN.map((column) => `${row}.${column}`),
    ...DECIMALS.map((column) => `trim_scale(${row}.${column})::text as ${column}`),
  ].join(', ');

export interface LlmRow {
  id: string;
  userId: string;
  sessionId: string | null;
  turnId: string | null;
  projectId: string;
  provider: string;
  model: string;
  promptTokens: number;
  cachedTokens: number;
  completionTokens: number;
  totalTokens: number;
  promptUnitCost: string | null;
  cachedUnitCost: string | null;
  completionUnitCost: string | null;
  cost: string;
  latencyMs: number;
  status: string;
  externalId: string;
  createTime: Timestamp;
  request?: JsonObject | null;
  response?: JsonObject | null;
}

export function llmRequestFromRow(row: LlmRow): LlmRequest {
  const { id, userId, sessionId, turnId, projectId, createTime, ...record } = row;
  return LlmRequest.fromPartial({
    id,
    userId,
    sessionId: sessionId ?? '',
    turnId: turnId ?? '',
    projectId,
    record: LlmRequestRecord.fromPartial({
      ...(record as object),
      promptUnitCost: record.promptUnitCost ?? '',
      cachedUnitCost: record.cachedUnitCost ?? '',
      completionUnitCost: record.completionUnitCost ?? '',
      request: record.request ?? undefined,
      response: record.response ?? undefined,
    }),
    createTime,
  });
}

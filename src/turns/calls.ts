import { v7 as uuidv7 } from 'uuid';
import { wiped } from '../db/change.ts';
import { change, json } from '../db/statement.ts';
import type { TenantTx } from '../db/transaction.ts';
import type { LlmRequestRecord, PromptRecord, ToolCallRecord } from '../gen/memory/v1/conversation_service.ts';
import type { Check } from '../rpc/validate.ts';

/** What a turn used. */
export interface Calls {
  llmRequests: LlmRequestRecord[];
  toolCalls: ToolCallRecord[];
  prompts: PromptRecord[];
}

const MAX_CALLS = 100;
const COST = /^\d{1,18}(\.\d{1,12})?$/;

export function checkCalls(check: Check, { llmRequests, toolCalls, prompts }: Calls): void {
  if (check.count('llm_requests', llmRequests, MAX_CALLS)) {
    llmRequests.forEach((request, i) => {
      const field = `llm_requests[${i}]`;
      check.id(`${field}.provider`, request.provider);
      check.id(`${field}.model`, request.model);
      check.seq(`${field}.prompt_tokens`, request.promptTokens);
      check.seq(`${field}.completion_tokens`, request.completionTokens);
      check.seq(`${field}.total_tokens`, request.totalTokens);
      check.that(request.cost === '' || COST.test(request.cost), `${field}.cost`, 'not a decimal such as 0.00125');
      check.seq(`${field}.latency_ms`, request.latencyMs);
      check.text(`${field}.status`, request.status, 64);
    });
  }
  if (check.count('tool_calls', toolCalls, MAX_CALLS)) {
    toolCalls.forEach((call, i) => {
      const field = `tool_calls[${i}]`;
      check.id(`${field}.tool_name`, call.toolName);
      check.optionalId(`${field}.tool_call_id`, call.toolCallId);
      check.struct(`${field}.input`, call.input);
      check.struct(`${field}.output`, call.output);
      check.text(`${field}.status`, call.status, 64);
      check.seq(`${field}.latency_ms`, call.latencyMs);
      check.range(`${field}.attempt`, call.attempt, 0, 1000);
      check.text(`${field}.error`, call.error, 2000);
    });
  }
  if (check.count('prompts', prompts, MAX_CALLS)) {
    prompts.forEach((prompt, i) => {
      const field = `prompts[${i}]`;
      check.id(`${field}.name`, prompt.name);
      check.text(`${field}.version`, prompt.version, 64);
      check.content(`${field}.text`, prompt.text, 64 * 1024);
    });
  }
}

const INSERT = change(`
  with llm as (
    insert into llm_requests (tenant_id, env, id, user_id, session_id, turn_id, project_id, provider, model, prompt_tokens,
      completion_tokens, total_tokens, cost, latency_ms, status, create_time)
    select $1, $2, (v ->> 'id')::uuid, $3, $11::uuid, $12::uuid, $13, v ->> 'provider', v ->> 'model', (v ->> 'promptTokens')::bigint,
      (v ->> 'completionTokens')::bigint, (v ->> 'totalTokens')::bigint, (v ->> 'cost')::numeric, (v ->> 'latencyMs')::bigint,
      v ->> 'status', clock_timestamp()
    from jsonb_array_elements($14::jsonb) v
    returning 1
  ), tool as (
    insert into tool_calls (tenant_id, env, id, user_id, session_id, turn_id, tool_name, tool_call_id, input, output, status,
      latency_ms, attempt, error, create_time)
    select $1, $2, (v ->> 'id')::uuid, $3, $11, $12, v ->> 'toolName', v ->> 'toolCallId', v -> 'input', v -> 'output', v ->> 'status',
      (v ->> 'latencyMs')::bigint, (v ->> 'attempt')::int, v ->> 'error', clock_timestamp()
    from jsonb_array_elements($15::jsonb) v
    returning 1
  ), prompt as (
    insert into prompts (tenant_id, env, id, user_id, session_id, turn_id, name, version, text, create_time)
    select $1, $2, (v ->> 'id')::uuid, $3, $11, $12, v ->> 'name', v ->> 'version', v ->> 'text', clock_timestamp()
    from jsonb_array_elements($16::jsonb) v
    returning 1
  )
  select 1 as done`);

/** Stores what a turn used, in its order. */
export async function insertCalls(
  tx: TenantTx,
  where: { sessionId: string; turnId: string | null; projectId: string },
  { llmRequests, toolCalls, prompts }: Calls,
): Promise<void> {
  if (llmRequests.length + toolCalls.length + prompts.length === 0) return;
  const identified = <T>(list: T[]) => list.map((item) => ({ ...item, id: uuidv7() }));
  const priced = llmRequests.map((request) => ({
    ...request,
    cost: request.cost || '0',
    totalTokens: request.totalTokens || request.promptTokens + request.completionTokens,
  }));
  const numbered = toolCalls.map((call) => ({ ...call, attempt: call.attempt || 1 }));
  await tx.query(INSERT, [
    where.sessionId,
    where.turnId,
    where.projectId,
    json(identified(priced)),
    json(identified(numbered)),
    json(identified(prompts)),
  ]);
}

/** The CTEs that wipe what turns of the sessions of a CTE used, but for what it cost. */
export const wipedCalls = (sessions: string) => wiped(['tool_calls', 'prompts'], sessions);

import { status } from '@grpc/grpc-js';
import { v7 as uuidv7 } from 'uuid';
import { wiped } from '../db/change.ts';
import { change, json, query } from '../db/statement.ts';
import { type TenantTx, together } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import type { LlmRequestRecord, PromptRecord, ToolCallRecord } from '../gen/memory/v1/call.ts';
import { RpcError } from '../rpc/errors.ts';
import type { Check } from '../rpc/validate.ts';
import { type LlmRow, llmColumns } from './llm-request.ts';
import { requestParameters, responseParameters } from './parameters.ts';
import { redactStruct, redactText } from './redact.ts';

/** What a turn used. */
export interface Calls {
  llmRequests: LlmRequestRecord[];
  toolCalls: ToolCallRecord[];
  prompts: PromptRecord[];
}

/** Where it was used. */
export interface Place {
  sessionId: string | null;
  /** {@link RECORDED} is the one that an earlier statement of the transaction has recorded in the session. */
  turnId: string | null;
  projectId: string;
}

/** A turn gets its id in the database, and what it used is stored in the same write, before that is known. */
export const RECORDED = 'recorded';
const TURN = `coalesce(nullif($12::text, '${RECORDED}')::uuid, case when $12 = '${RECORDED}' then (
      select t.id from turns t where t.tenant_id = $1 and t.env = $2 and t.session_id = $11::uuid order by t.id desc limit 1) end)`;

const MAX_CALLS = 100;
const MAX_TOKENS = 1e9;
const MAX_MS = 1e9;
/** Tokens and unit costs within their limits never come to more than a cost may be. */
const COST = /^\d{1,18}(\.\d{1,12})?$/;
const UNIT_COST = /^\d{1,6}(\.\d{1,12})?$/;

export function checkCalls(check: Check, { llmRequests, toolCalls, prompts }: Calls): void {
  if (check.count('llm_requests', llmRequests, MAX_CALLS)) {
    llmRequests.forEach((request, i) => checkLlmRequest(check, `llm_requests[${i}]`, request));
  }
  if (check.count('tool_calls', toolCalls, MAX_CALLS)) {
    toolCalls.forEach((call, i) => checkToolCall(check, `tool_calls[${i}]`, call));
  }
  if (check.count('prompts', prompts, MAX_CALLS)) {
    prompts.forEach((prompt, i) => checkPrompt(check, `prompts[${i}]`, prompt));
  }
}

export function checkCost(check: Check, field: string, cost: string, pattern = COST): void {
  check.that(cost === '' || pattern.test(cost), field, 'not a decimal such as 0.00125');
}

export function checkLlmRequest(check: Check, field: string, request: LlmRequestRecord): void {
  check.id(`${field}.provider`, request.provider);
  check.id(`${field}.model`, request.model);
  check.range(`${field}.prompt_tokens`, request.promptTokens, 0, MAX_TOKENS);
  check.range(`${field}.completion_tokens`, request.completionTokens, 0, MAX_TOKENS);
  check.range(`${field}.total_tokens`, request.totalTokens, 0, 2 * MAX_TOKENS);
  const parts = request.promptTokens + request.completionTokens;
  const whole = request.totalTokens === 0 || request.totalTokens >= parts;
  check.that(whole, `${field}.total_tokens`, 'less than prompt_tokens and completion_tokens together');
  check.seq(`${field}.cached_tokens`, request.cachedTokens);
  check.that(request.cachedTokens <= request.promptTokens, `${field}.cached_tokens`, 'more than prompt_tokens');
  checkCost(check, `${field}.cost`, request.cost);
  checkCost(check, `${field}.prompt_unit_cost`, request.promptUnitCost, UNIT_COST);
  checkCost(check, `${field}.cached_unit_cost`, request.cachedUnitCost, UNIT_COST);
  checkCost(check, `${field}.completion_unit_cost`, request.completionUnitCost, UNIT_COST);
  check.range(`${field}.latency_ms`, request.latencyMs, 0, MAX_MS);
  check.text(`${field}.status`, request.status, 64);
  check.optionalId(`${field}.external_id`, request.externalId);
  check.struct(`${field}.request`, request.request);
  check.struct(`${field}.response`, request.response);
}

export function checkToolCall(check: Check, field: string, call: ToolCallRecord): void {
  check.id(`${field}.tool_name`, call.toolName);
  check.optionalId(`${field}.tool_call_id`, call.toolCallId);
  check.struct(`${field}.input`, call.input);
  check.struct(`${field}.output`, call.output);
  check.text(`${field}.status`, call.status, 64);
  check.range(`${field}.latency_ms`, call.latencyMs, 0, MAX_MS);
  check.range(`${field}.attempt`, call.attempt, 0, 1000);
  check.text(`${field}.error`, call.error, 2000);
  check.optionalId(`${field}.retry_of`, call.retryOf);
}

export function checkPrompt(check: Check, field: string, prompt: PromptRecord): void {
  check.id(`${field}.name`, prompt.name);
  check.text(`${field}.version`, prompt.version, 64);
  check.content(`${field}.text`, prompt.text, 64 * 1024);
}

/** What is stored of a call: complete, and without content or secrets. Bodies and texts go no further than here. */
export const keptOfLlmRequest = (request: LlmRequestRecord): LlmRequestRecord => ({
  ...request,
  status: redactText(request.status),
  totalTokens: request.totalTokens || request.promptTokens + request.completionTokens,
  request: requestParameters(request.request),
  response: responseParameters(request.response),
});

export const keptOfToolCall = (call: ToolCallRecord): ToolCallRecord => ({
  ...call,
  attempt: call.attempt || 1,
  status: redactText(call.status),
  error: redactText(call.error),
  input: redactStruct(call.input),
  output: redactStruct(call.output),
});

export const keptOfPrompt = (prompt: PromptRecord): PromptRecord => ({ ...prompt, text: redactText(prompt.text) });

// Only inserts: whoever records waits for nobody. The sums are made of it later, see fold.ts.
const INSERT_LLM_REQUESTS = change<LlmRow>(`
  insert into llm_requests as r (tenant_id, env, id, user_id, session_id, turn_id, project_id, provider, model, prompt_tokens,
    cached_tokens, completion_tokens, total_tokens, prompt_unit_cost, cached_unit_cost, completion_unit_cost, cost, latency_ms,
    status, external_id, request, response, create_time)
  select $1, $2, v.id, $3, $11::uuid, ${TURN}, $13, v.provider, v.model, v.prompt_tokens, v.cached_tokens, v.completion_tokens,
    v.total_tokens, c.prompt, c.cached, c.completion,
    coalesce(nullif(v.cost, '')::numeric,
      (v.prompt_tokens - v.cached_tokens) * coalesce(c.prompt, 0) + v.cached_tokens * coalesce(c.cached, c.prompt, 0)
        + v.completion_tokens * coalesce(c.completion, 0)),
    v.latency_ms, v.status, v.external_id, v.request, v.response, clock_timestamp()
  from jsonb_to_recordset($14::jsonb) as v (id uuid, provider text, model text, prompt_tokens bigint, cached_tokens bigint,
    completion_tokens bigint, total_tokens bigint, cost text, prompt_unit_cost text, cached_unit_cost text, completion_unit_cost text,
    latency_ms bigint, status text, external_id text, request jsonb, response jsonb)
  cross join lateral (select nullif(v.prompt_unit_cost, '')::numeric as prompt, nullif(v.cached_unit_cost, '')::numeric as cached,
    nullif(v.completion_unit_cost, '')::numeric as completion) c
  on conflict do nothing
  returning ${llmColumns('r')}`);

// Those that were recorded before by their provider's id, and whether they were the same.
const KNOWN = query<LlmRow & { same: boolean }>(`
  select ${llmColumns('r')}, r.request, r.response, r.model = v.model and r.prompt_tokens = v.prompt_tokens and
    r.cached_tokens = v.cached_tokens and r.completion_tokens = v.completion_tokens and r.total_tokens = v.total_tokens
    and (v.cost = '' or r.cost = v.cost::numeric)
    and (r.prompt_unit_cost, r.cached_unit_cost, r.completion_unit_cost) is not distinct from
      (nullif(v.prompt_unit_cost, '')::numeric, nullif(v.cached_unit_cost, '')::numeric, nullif(v.completion_unit_cost, '')::numeric) as same
  from jsonb_to_recordset($4::jsonb) as v (provider text, external_id text, model text, prompt_tokens bigint,
    cached_tokens bigint, completion_tokens bigint, total_tokens bigint, cost text, prompt_unit_cost text, cached_unit_cost text,
    completion_unit_cost text)
  join llm_requests r on r.tenant_id = $1 and r.env = $2 and r.user_id = $3 and r.provider = v.provider
    and r.external_id = v.external_id and v.external_id <> ''`);

export interface StoredRow {
  id: string;
  createTime: Timestamp;
}

const INSERT_TOOL_CALLS = change<StoredRow>(`
  insert into tool_calls (tenant_id, env, id, user_id, session_id, turn_id, tool_name, tool_call_id, input, output, status,
    latency_ms, attempt, error, retry_of, create_time)
  select $1, $2, (v ->> 'id')::uuid, $3, $11::uuid, ${TURN}, v ->> 'toolName', v ->> 'toolCallId', v -> 'input', v -> 'output',
    v ->> 'status', (v ->> 'latencyMs')::bigint, (v ->> 'attempt')::int, v ->> 'error', v ->> 'retryOf', clock_timestamp()
  from jsonb_array_elements($13::jsonb) v
  returning id, create_time`);

const INSERT_PROMPTS = change<StoredRow>(`
  insert into prompts (tenant_id, env, id, user_id, session_id, turn_id, name, version, text, create_time)
  select $1, $2, (v ->> 'id')::uuid, $3, $11::uuid, ${TURN}, v ->> 'name', v ->> 'version', v ->> 'text', clock_timestamp()
  from jsonb_array_elements($13::jsonb) v
  returning id, create_time`);

// UUIDv7 grows within a process: what is listed by its id comes in the order in which it was given.
const identified = <T>(list: T[]) => list.map((item) => ({ ...item, id: uuidv7() }));

const columns = (request: LlmRequestRecord & { id: string }) => ({
  id: request.id,
  provider: request.provider,
  model: request.model,
  prompt_tokens: request.promptTokens,
  cached_tokens: request.cachedTokens,
  completion_tokens: request.completionTokens,
  total_tokens: request.totalTokens,
  cost: request.cost,
  prompt_unit_cost: request.promptUnitCost,
  cached_unit_cost: request.cachedUnitCost,
  completion_unit_cost: request.completionUnitCost,
  latency_ms: request.latencyMs,
  status: request.status,
  external_id: request.externalId,
  request: request.request,
  response: request.response,
});

/** What came of recording calls of models. */
export interface Recorded {
  made: LlmRow[];
  /** Those that had been recorded before. */
  known: LlmRow[];
}

/** Stores calls of models. One whose provider's id is known is not stored again. */
export async function insertLlmRequests(tx: TenantTx, place: Place, requests: LlmRequestRecord[]): Promise<Recorded> {
  if (requests.length === 0) return { made: [], known: [] };
  const rows = json(identified(requests.map(keptOfLlmRequest)).map(columns));
  const made = await tx.query(INSERT_LLM_REQUESTS, [place.sessionId, place.turnId, place.projectId, rows]);
  if (made.length === requests.length) return { made, known: [] };
  const fresh = new Set(made.map((row) => row.id));
  const stored = await tx.query(KNOWN, [rows]);
  if (stored.some((row) => !row.same)) throw externalIdReused();
  return { made, known: stored.filter((row) => !fresh.has(row.id)) };
}

const externalIdReused = () =>
  new RpcError(
    status.ALREADY_EXISTS,
    'EXTERNAL_ID_REUSED',
    'the external_id was recorded with another model, tokens or cost',
  );

export async function insertToolCalls(tx: TenantTx, place: Place, calls: ToolCallRecord[]): Promise<StoredRow[]> {
  if (calls.length === 0) return [];
  return tx.query(INSERT_TOOL_CALLS, [place.sessionId, place.turnId, json(identified(calls.map(keptOfToolCall)))]);
}

export async function insertPrompts(tx: TenantTx, place: Place, prompts: PromptRecord[]): Promise<StoredRow[]> {
  if (prompts.length === 0) return [];
  return tx.query(INSERT_PROMPTS, [place.sessionId, place.turnId, json(identified(prompts.map(keptOfPrompt)))]);
}

/** Stores what a turn used, in one write. */
export async function insertCalls(
  tx: TenantTx,
  place: Place,
  { llmRequests, toolCalls, prompts }: Calls,
): Promise<void> {
  await together([
    insertLlmRequests(tx, place, llmRequests),
    insertToolCalls(tx, place, toolCalls),
    insertPrompts(tx, place, prompts),
  ]);
}

/** The CTEs that wipe what turns of the sessions of a CTE used, but for what it cost. */
export const wipedCalls = (sessions: string) => wiped(['tool_calls', 'prompts'], sessions);

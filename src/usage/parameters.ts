import type { JsonObject } from '../wire/struct.ts';
import { redactText } from './redact.ts';

/**
 * How a value is kept: as a number or a flag; a word as it is; of a list of tools their names; of a list how long it is; of
 * an object the parts that are named, or all of its numbers.
 */
type Kept = 'number' | 'flag' | 'word' | 'names' | 'length' | 'numbers' | { [key: string]: Kept };

const SAMPLING: Record<string, Kept> = {
  temperature: 'number',
  top_p: 'number',
  top_k: 'number',
  max_tokens: 'number',
  max_completion_tokens: 'number',
  max_output_tokens: 'number',
  n: 'number',
  candidate_count: 'number',
  seed: 'number',
  presence_penalty: 'number',
  frequency_penalty: 'number',
};

/** Of the bodies of requests, as the interfaces of the large providers name things. Camel case counts as snake case. */
const REQUEST: Record<string, Kept> = {
  ...SAMPLING,
  model: 'word',
  stream: 'flag',
  logprobs: 'flag',
  top_logprobs: 'number',
  parallel_tool_calls: 'flag',
  service_tier: 'word',
  reasoning_effort: 'word',
  reasoning: { effort: 'word' },
  thinking: { type: 'word', budget_tokens: 'number' },
  response_format: { type: 'word' },
  tool_choice: 'word',
  tools: 'names',
  messages: 'length',
  input: 'length',
  contents: 'length',
  generation_config: SAMPLING,
};

const RESPONSE: Record<string, Kept> = {
  id: 'word',
  object: 'word',
  model: 'word',
  created: 'number',
  system_fingerprint: 'word',
  service_tier: 'word',
  stop_reason: 'word',
  choices: { finish_reason: 'word', index: 'number' },
  candidates: { finish_reason: 'word', index: 'number' },
  usage: 'numbers',
  usage_metadata: 'numbers',
};

const MAX_LISTED = 128;
/** What a name may be: neither a sentence nor, as most of them look, a secret. */
const WORD = /^[\w.:@/-]{1,64}$/;

const snakeCase = (key: string) => key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
const word = (value: unknown) =>
  typeof value === 'string' && WORD.test(value) && redactText(value) === value ? value : undefined;

function kept(value: unknown, how: Kept): unknown {
  if (how === 'number') return typeof value === 'number' ? value : undefined;
  if (how === 'flag') return typeof value === 'boolean' ? value : undefined;
  if (how === 'word') return word(value);
  if (how === 'length') return Array.isArray(value) ? value.length : undefined;
  if (how === 'names') return Array.isArray(value) ? defined(value.slice(0, MAX_LISTED).map(nameOf)) : undefined;
  if (how === 'numbers') return isObject(value) ? numbers(value) : undefined;
  if (Array.isArray(value)) return value.slice(0, MAX_LISTED).map((element) => kept(element, how) ?? {});
  return isObject(value) ? parts(value, how) : undefined;
}

const defined = (values: unknown[]) => values.filter((value) => value !== undefined);
const nameOf = (tool: any) => word(tool?.name) ?? word(tool?.function?.name);

function parts(value: Record<string, unknown>, named: Record<string, Kept>): JsonObject {
  const entries = Object.entries(value).map(([key, inner]) => {
    const how = Object.hasOwn(named, snakeCase(key)) ? named[snakeCase(key)]! : undefined;
    return [snakeCase(key), how && kept(inner, how)] as const;
  });
  return Object.fromEntries(entries.filter(([, inner]) => inner !== undefined)) as JsonObject;
}

function numbers(value: Record<string, unknown>): Record<string, unknown> {
  const entries = Object.entries(value).slice(0, MAX_LISTED);
  return Object.fromEntries(
    entries
      .map(([key, inner]) => [word(key), isObject(inner) ? numbers(inner) : kept(inner, 'number')] as const)
      .filter(([key, inner]) => key !== undefined && inner !== undefined),
  );
}

/** What is kept of the body of a request: by an allow-list, so that what nobody has thought of is not kept. */
export const requestParameters = (body: JsonObject | undefined) => body && parts(body, REQUEST);
export const responseParameters = (body: JsonObject | undefined) => body && parts(body, RESPONSE);

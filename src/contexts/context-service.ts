import {
  Context,
  type ContextOptions,
  ContextSection,
  type ConversationServiceService,
} from '../gen/memory/v1/conversation_service.ts';
import type { Call } from '../rpc/context.ts';
import type { Handlers } from '../rpc/implement.ts';
import { Check, MAX_PAGE_ROWS } from '../rpc/validate.ts';
import { messageFromRow } from '../threads/repository.ts';
import { countTokens, DEFAULT_TOKENIZER } from '../tokens/counter.ts';
import { Struct } from '../wire/struct.ts';
import { assemble, type Limits, type Material, type MessageCost } from './assemble.ts';
import { type ContextRow, type NewestLimits, type NewestRow, readMaterial } from './context-repository.ts';
import { partsOf, summariesOf } from './parts.ts';

const DEFAULT_LAST_N = 50;
const MAX_TOKENS = 1_000_000;
const MAX_QUERY = 1000;
/** Messages of a context under `max_tokens`. */
const MAX_MESSAGES = 2000;
/** More than a response can hold. */
const MAX_READ_TOKENS = 8 * 1024 * 1024;
/** Of a response, with some room for what frames it. */
export const RESPONSE_BYTES = 4 * 1024 * 1024 - 16 * 1024;

const MAX_TEXTS = 1000;
const TEXTS_BYTES = 1024 * 1024;

/** The sections, by what the repository calls them. */
const SECTIONS: [ContextSection, string][] = [
  [ContextSection.PREFERENCES, 'preferences'],
  [ContextSection.PINNED, 'pinned'],
  [ContextSection.SUMMARIES, 'summaries'],
  [ContextSection.SESSION_CONTEXT, 'session_context'],
  [ContextSection.LATEST_TURN, 'latest_turn'],
  [ContextSection.MESSAGES, 'messages'],
  [ContextSection.MEMORIES, 'memories'],
  [ContextSection.PROFILE, 'profile'],
  [ContextSection.PROJECT_PROFILE, 'project_profile'],
  [ContextSection.DRAFTS, 'drafts'],
];

export const contextReadHandlers: Pick<Handlers<typeof ConversationServiceService>, 'getContext' | 'countTokens'> = {
  async getContext(request, call) {
    const check = new Check();
    check.uuid('session_id', request.sessionId);
    checkContextOptions(check, 'options', request.options);
    check.done();

    const context = await readContext(call, request.sessionId, request.options);
    call.count('read', 'messages', context.messages.length);
    return { context };
  },

  async countTokens({ texts }, _call) {
    const check = new Check();
    if (check.count('texts', texts, MAX_TEXTS, 1)) {
      texts.forEach((text, i) => check.text(`texts[${i}]`, text, TEXTS_BYTES));
      const bytes = texts.reduce((sum, text) => sum + Buffer.byteLength(text), 0);
      check.that(bytes <= TEXTS_BYTES, 'texts', 'over 1 MiB together');
    }
    check.done();

    return { counts: await countTokens(texts, DEFAULT_TOKENIZER), tokenizer: DEFAULT_TOKENIZER };
  },
};

export function checkContextOptions(check: Check, field: string, options: ContextOptions | undefined): void {
  if (!options) return;
  const { limit, include, budgets } = options;
  if (limit?.$case === 'lastN') check.range(`${field}.last_n`, limit.value, 1, MAX_PAGE_ROWS);
  if (limit?.$case === 'maxTokens') check.range(`${field}.max_tokens`, limit.value, 1, MAX_TOKENS);
  check.text(`${field}.memory_query`, options.memoryQuery, MAX_QUERY);
  if (check.count(`${field}.include`, include, SECTIONS.length)) {
    include.forEach((section, i) => check.oneOf(`${field}.include[${i}]`, section, ContextSection));
  }
  if (!check.count(`${field}.budgets`, budgets, SECTIONS.length)) return;
  budgets.forEach(({ section, maxTokens }, i) => {
    check.oneOf(`${field}.budgets[${i}].section`, section, ContextSection);
    check.range(`${field}.budgets[${i}].max_tokens`, maxTokens, 0, MAX_TOKENS);
    const first = budgets.findIndex((budget) => budget.section === section) === i;
    check.that(first, `${field}.budgets[${i}].section`, 'given twice');
  });
}

/** The context of a session, in a response that holds so many other bytes. The options have been checked. */
export async function readContext(
  call: Call,
  sessionId: string,
  options: ContextOptions | undefined,
  otherBytes = 0,
): Promise<Context> {
  const limits = limitsOf(options, Math.max(0, RESPONSE_BYTES - otherBytes));
  const include = new Set(options?.include);
  const wanted = SECTIONS.filter(([section]) => include.size === 0 || include.has(section));
  const names = wanted.map(([, name]) => name);
  const sought = options?.memoryQuery ?? '';
  const { context: row, messages: rows } = await readMaterial(call.db, sessionId, names, newestOf(limits), sought);

  const parts = partsOf(row);
  const listed = [...parts.values()].flat();
  const uncounted = rows.filter((message) => message.content !== null && message.tokenCount === null);
  const texts = [...listed.flatMap((part) => part.texts), ...uncounted.map((message) => message.content!)];
  const counts = (await countTokens(texts)).values();
  const next = () => counts.next().value!;
  const costs = new Map(
    listed.map((part) => [part, { tokens: part.texts.reduce((sum) => sum + next(), 0), bytes: part.bytes }]),
  );
  for (const message of uncounted) message.tokenCount = next();

  const items = new Map([...parts].map(([section, list]) => [section, list.map((part) => costs.get(part)!)]));
  const coverage = summariesOf(row).map((summary) => summary.throughSeq);
  const messages = names.includes('messages') ? messagesOf(row, rows) : undefined;
  const plan = assemble({ items, coverage, messages }, limits);

  const context = Context.fromPartial({ truncated: plan.truncated });
  for (const [section, list] of parts) {
    const kept = plan.kept.get(section)!;
    list.filter((_, i) => kept[i]).forEach((part) => part.put(context));
  }
  const kept = rows.slice(0, plan.keptMessages).reverse();
  context.messages = kept.map((message) => messageFromRow({ ...message, content: message.content! }, row.threadId));
  context.sections = wanted.map(([section]) => ({ section, tokenCount: plan.tokens.get(section) ?? 0 }));
  context.tokenCount = context.sections.reduce((sum, section) => sum + section.tokenCount, 0);
  return context;
}

function limitsOf(options: ContextOptions | undefined, maxBytes: number): Limits {
  const budgets = new Map(options?.budgets.map(({ section, maxTokens }) => [section, maxTokens]));
  const { limit } = options ?? {};
  if (limit?.$case === 'maxTokens') return { maxTokens: limit.value, maxBytes, budgets };
  return { lastN: limit?.value ?? DEFAULT_LAST_N, maxBytes, budgets };
}

function newestOf({ lastN, maxTokens, maxBytes, budgets }: Limits): NewestLimits {
  const tokens = Math.min(maxTokens ?? MAX_READ_TOKENS, budgets.get(ContextSection.MESSAGES) ?? MAX_READ_TOKENS);
  return { rows: lastN ?? MAX_MESSAGES, tokens, bytes: maxBytes };
}

/** The newest messages as `assemble` sees them. One that came after the thread's first was looked for counts as well. */
function messagesOf(row: ContextRow, rows: NewestRow[]): Material['messages'] {
  const lastSeq = rows[0]?.seq ?? 0;
  const firstSeq = row.firstSeq ?? rows.at(-1)?.seq ?? lastSeq + 1;
  return { costs: rows.map((message) => messageCost(message, row.threadId)), firstSeq, lastSeq };
}

/** Tokens are those of the content alone. Bytes are what the message takes of a response, at most. */
function messageCost(row: NewestRow, threadId: string): MessageCost {
  const ids = [threadId, row.clientId ?? '', row.toolCallId, JSON.stringify(row.forwardedFrom ?? '')];
  const metadata = row.metadata ? Struct.encode(row.metadata).finish().length : 0;
  const bytes = row.byteSize + metadata + ids.reduce((sum, id) => sum + Buffer.byteLength(id), 100);
  return { seq: row.seq, tokens: row.tokenCount ?? 0, bytes, unread: row.unread ?? undefined };
}

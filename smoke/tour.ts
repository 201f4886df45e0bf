import { randomUUID } from 'node:crypto';
import type { Caller, Reply } from './callers.ts';
import { document } from './document.ts';
import { erasure } from './erasure.ts';
import { live } from './live.ts';
import { memories } from './memories.ts';
import { person } from './person.ts';
import { quotas } from './quotas.ts';
import { retention } from './retention.ts';
import { Surprise, same } from './surprise.ts';
import { trail } from './trail.ts';

type Headers = Record<string, string>;

const who = (tenant: string, user: string): Headers => ({ 'x-tenant-id': tenant, 'x-env': 'dev', 'x-user-id': user });

/** The people whom `npm start` seeds. */
export const MEMBER = who('acme', 'member');
export const OWNER = who('acme', 'owner');
export const OUTSIDER = who('globex', 'outsider');
const INTRUDER = who('acme', 'outsider');

const SERVICES = ['memory.v1.AuditService', 'memory.v1.ConversationService', 'memory.v1.MemoryService'];
const MEMORY = 'memory.v1.MemoryService';
const CONVERSATION = 'memory.v1.ConversationService';
const USAGE = 'memory.v1.UsageService';
const AUDIT = 'memory.v1.AuditService';

const pick = (field: string, list: Record<string, unknown>[]): unknown[] => list.map((item) => item[field]);
const short = (id: string): string => (id.length > 13 ? `${id.slice(0, 13)}…` : id);
const contents = (messages: { content: string }[]): string => messages.map(({ content }) => `“${content}”`).join(' ');

/** The service from end to end, one line told for each step. Everything is made anew, so it can be run again and again. */
export async function tour(caller: Caller, say: (step: string, answer: string) => void): Promise<void> {
  const run = randomUUID();
  const threadId = `smoke-${run}`;
  const targetId = `smoke-${run}-target`;

  async function ok(method: string, request: object, headers: Headers = MEMBER): Promise<any> {
    const { code, message, response } = await caller.call(method, request, headers);
    if (code === 'OK') return response;
    const hint = /PERMISSION|UNAUTH/.test(code) ? ' (the tour needs the tenants of `npm start`)' : '';
    throw new Surprise(`${method} answers ${code}: ${message}${hint}`);
  }

  async function refused(code: string, reason: string, method: string, request: object, headers = MEMBER) {
    const reply = await caller.call(method, request, headers);
    same(`the code of ${method}`, reply.code, code);
    same(`the ErrorInfo of ${method}`, reply.details.ErrorInfo?.reason, reason);
    same(`the domain of ${method}`, reply.details.ErrorInfo?.domain, 'memoryd');
    return reply;
  }
  const told = ({ code, message, details }: Reply) => `${code} (${details.ErrorInfo.reason}): ${message}`;

  if (caller.services) {
    const services = await caller.services();
    for (const name of SERVICES) same(`that reflection lists ${name}`, services.includes(name), true);
    say('reflection', `${services.length} services: ${SERVICES.join(', ')}, …`);
  }

  const health = await ok('grpc.health.v1.Health/Check', { service: MEMORY }, {});
  same('the health', health.status, 'SERVING');
  say('Check', health.status);

  const pinnedRefs = [{ id: 'fact', kind: 'KIND_FACT', text: 'Prefers short answers.' }];
  const fields = { surfaceId: 'smoke', threadId, title: 'A tour', pinnedRefs };
  const { session, created } = await ok(`${MEMORY}/UpsertSession`, { session: fields, requestId: randomUUID() });
  same('created', created, true);
  same('the revision', session.revision, '1');
  same('the user', session.userId, 'member');
  same('the pinned text', session.pinnedRefs[0]?.text, pinnedRefs[0]!.text);
  say('UpsertSession', `created session ${short(session.id)}, etag ${session.etag}`);
  const itself = { sessionId: session.id };

  const again = await ok(`${MEMORY}/UpsertSession`, { session: { surfaceId: 'smoke', threadId, title: 'The tour' } });
  same('created', again.created, false);
  same('the id', again.session.id, session.id);
  same('the revision', again.session.revision, '2');
  same('the number of pinned refs', again.session.pinnedRefs.length, 1);
  say('UpsertSession', `changed its title, kept its pinned fact, etag ${again.session.etag}`);

  const got = await ok(`${MEMORY}/GetSession`, itself);
  same('the session', got.session, again.session);
  say('GetSession', `“${got.session.title}” of ${got.session.userId}, revision ${got.session.revision}`);

  const question = { role: 'MESSAGE_ROLE_HUMAN', content: 'What is a bundle?', clientId: 'question' };
  const answer = { role: 'MESSAGE_ROLE_ASSISTANT', content: 'Messages, copied.' };
  const append = { ...itself, messages: [question, answer], requestId: randomUUID() };
  const appended = await ok(`${CONVERSATION}/AppendMessages`, append);
  same('the seqs', pick('seq', appended.messages), ['1', '2']);
  say('AppendMessages', 'a question and an answer got seq 1 and 2');

  same('the answer to the same request_id', await ok(`${CONVERSATION}/AppendMessages`, append), appended);
  say('AppendMessages', 'the same request_id once more: the same answer, nothing appended');

  const listed = await ok(`${CONVERSATION}/ListMessages`, { threadId, afterSeq: '0' });
  same('the messages', pick('content', listed.messages), [question.content, answer.content]);
  say('ListMessages', contents(listed.messages));

  const found = await ok(`${CONVERSATION}/SearchMessages`, { query: 'bund* -copied', threadId });
  same('the messages found', pick('content', pick('message', found.results) as any[]), [question.content]);
  const pieces: any[] = found.results[0].snippets.flatMap((snippet: any) => snippet.pieces);
  same(
    'what matches',
    pick(
      'text',
      pieces.filter((piece) => piece.match),
    ),
    ['bundle'],
  );
  say(
    'SearchMessages',
    `bund* without “copied”: ${pieces.map(({ text, match }) => (match ? `[${text}]` : text)).join('')}`,
  );

  const next = { role: 'MESSAGE_ROLE_HUMAN', content: 'And who forwards it?' };
  const begun = await ok(`${CONVERSATION}/BeginTurn`, {
    session: { id: session.id },
    holder: 'tour',
    messages: [next],
    context: { maxTokens: 1000 },
    requestId: randomUUID(),
  });
  same('the context', pick('content', begun.context.messages), [question.content, answer.content, next.content]);
  say('BeginTurn', `took the turn, appended a question, got a context of ${begun.context.tokenCount} tokens`);

  const committed = await ok(`${CONVERSATION}/CommitTurn`, {
    sessionId: session.id,
    fencingToken: begun.lease.fencingToken,
    messages: [{ role: 'MESSAGE_ROLE_ASSISTANT', content: 'You do.' }],
    turn: { query: next.content, response: 'You do.' },
    statePatch: { step: 2 },
    llmRequests: [{ provider: 'tour', model: 'm', promptTokens: '100', promptUnitCost: '0.000003' }],
    toolCalls: [{ toolName: 'fetch', error: 'refused: Authorization: Bearer a-secret-of-somebody' }],
    release: true,
    requestId: randomUUID(),
  });
  same('the seqs', pick('seq', committed.messages), ['4']);
  say('CommitTurn', 'appended the answer, recorded the turn, patched the state, gave the turn back');

  const usage = await ok(`${USAGE}/GetUsage`, { sessionId: session.id, groupBy: ['USAGE_DIMENSION_MODEL'] });
  same('the usage', [usage.usage.length, usage.usage[0]?.requests, usage.usage[0]?.cost], [1, '1', '0.0003']);
  say(
    'GetUsage',
    `one call of model ${usage.usage[0].model}, ${usage.usage[0].totalTokens} tokens, ${usage.usage[0].cost}`,
  );
  const { toolCalls } = await ok(`${AUDIT}/ListToolCalls`, { sessionId: session.id });
  same('the error', toolCalls[0]?.record.error, 'refused: Authorization: [redacted]');
  say('ListToolCalls', `one call of ${toolCalls[0].record.toolName}, with its secret redacted`);

  const limit = {
    scope: 'SCOPE_SESSION',
    subject: session.id,
    period: 'PERIOD_DAY',
    costLimit: '0.0003',
    enforce: true,
  };
  await ok(`${USAGE}/SetBudget`, { budget: limit, requestId: randomUUID() });
  const spent = await refused('RESOURCE_EXHAUSTED', 'BUDGET_EXCEEDED', `${CONVERSATION}/BeginTurn`, {
    session: { id: session.id },
    holder: 'tour',
  });
  say('BeginTurn', `with a budget of ${limit.costLimit} for the session: ${told(spent)}`);

  const selection = { messageIds: { ids: pick('id', appended.messages) } };
  const { bundle } = await ok(`${MEMORY}/SaveBundle`, { sourceThreadId: threadId, selection, requestId: randomUUID() });
  same('the number of messages', bundle.messageCount, 2);
  say('SaveBundle', `bundle ${short(bundle.id)} of ${bundle.messageCount} messages`);

  const forward = { bundleId: bundle.id, targetThreadId: targetId, createTarget: true, requestId: randomUUID() };
  const forwarded = await ok(`${MEMORY}/ForwardBundle`, forward);
  same('the seqs', [forwarded.firstSeq, forwarded.lastSeq, forwarded.repeated], ['1', '2', false]);
  say('ForwardBundle', `landed in another thread as seq ${forwarded.firstSeq} to ${forwarded.lastSeq}`);

  const copies = await ok(`${CONVERSATION}/ListMessages`, { threadId: targetId, afterSeq: '0' });
  const from = { bundleId: bundle.id, threadId, seq: '1', unverified: false };
  same('the provenance', copies.messages[0]?.forwardedFrom, from);
  say('ListMessages', `${contents(copies.messages)}, forwarded from seq ${from.seq} of the first thread`);

  const { sessions } = await ok(`${MEMORY}/ListSessions`, { threadId });
  same('the sessions', pick('id', sessions), [session.id]);
  say('ListSessions', `1 session of this thread: ${short(session.id)}`);

  await live({ caller, headers: MEMBER, threadId: `smoke-${run}-live`, ok, say });

  await memories({ projectId: `smoke-${run}-facts`, ok, refused, told, say });
  await person({ threadId: `smoke-${run}-person`, member: MEMBER, owner: OWNER, ok, refused, told, say });
  await document({ projectId: `smoke-${run}`, ok, refused, told, say });

  await trail({ caller, threadId: `smoke-${run}-trail`, owner: OWNER, ok, say });

  await erasure({ userId: `smoke-${run}`, admin: OWNER, ok, refused, told, say });
  await retention({ tenantId: 'acme', admin: OWNER, ok, say });
  const stage = { ok, refused, told, say };
  await quotas({ tenantId: 'globex', member: OUTSIDER, threadId: `smoke-${run}-quota`, ...stage });

  const foreign = await refused('NOT_FOUND', 'NOT_FOUND', `${MEMORY}/GetSession`, itself, OUTSIDER);
  say('GetSession', `as outsider of globex: ${told(foreign)}`);
  same('the answer to another user', await caller.call(`${MEMORY}/GetSession`, itself, OWNER), foreign);
  say('GetSession', 'as owner, another user of acme: the same answer');
  const outside = await refused('PERMISSION_DENIED', 'NOT_A_MEMBER', `${MEMORY}/GetSession`, itself, INTRUDER);
  say('GetSession', `as outsider in acme: ${told(outside)}`);

  const bad = { session: { surfaceId: '', title: 'x'.repeat(501) }, requestId: 'no-uuid' };
  const rejected = await refused('INVALID_ARGUMENT', 'INVALID_REQUEST', `${MEMORY}/UpsertSession`, bad);
  const violations: { field: string; description: string }[] = rejected.details.BadRequest?.fieldViolations ?? [];
  const named = violations.map(({ field }) => field).sort();
  same('the violations', named, ['request_id', 'session.surface_id', 'session.title']);
  const lines = violations.map(({ field, description }) => `${field} ${description}`);
  say('UpsertSession', `with three mistakes: ${rejected.code}: ${lines.join('; ')}`);

  const deleted = await ok(`${MEMORY}/DeleteSession`, itself);
  same('that the thread was deleted', deleted.threadDeleted, true);
  await ok(`${CONVERSATION}/DeleteThread`, { threadId: targetId });
  const gone = await refused('NOT_FOUND', 'DELETED', `${MEMORY}/GetSession`, itself);
  say('DeleteSession', `and both threads; then GetSession: ${told(gone)}`);
}

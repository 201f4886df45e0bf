import { checkEntries } from '../contexts/context.ts';
import { checkContextOptions, readContext } from '../contexts/context-service.ts';
import { appendEntries } from '../contexts/repository.ts';
import { finisher } from '../db/change.ts';
import { type TenantTx, together } from '../db/transaction.ts';
import type {
  BeginTurnRequest,
  CommitTurnRequest,
  ConversationServiceService,
} from '../gen/memory/v1/conversation_service.ts';
import { UpsertSessionRequest } from '../gen/memory/v1/memory_service.ts';
import { Session } from '../gen/memory/v1/session.ts';
import { withinSessions } from '../quotas/sessions.ts';
import type { Access } from '../rpc/access.ts';
import type { Call } from '../rpc/context.ts';
import { deleted, invalid, notFound } from '../rpc/errors.ts';
import type { Handlers } from '../rpc/implement.ts';
import { Check, etagOf, revisionOf } from '../rpc/validate.ts';
import { applyPiiPolicy, changeOf, checkSummaries, checkUpsert } from '../sessions/change.ts';
import { ownerOf } from '../sessions/owner.ts';
import { type SavedRow, sessionFromRow, whyNotSaved } from '../sessions/repository.ts';
import { saveSession, type Upsert } from '../sessions/upsert.ts';
import { type Append, type AppendedRow, appendMessages, whyNotAppended } from '../threads/append.ts';
import { appendedMessage, checkAppended } from '../threads/message.ts';
import { contentTokens } from '../tokens/counter.ts';
import { budgetsOf, refuseSpent, type StatusRow, statusFromRow } from '../usage/budgets.ts';
import { checkCalls, insertCalls, RECORDED } from '../usage/calls.ts';
import type { Folder } from '../usage/fold.ts';
import {
  acquireTurn,
  holdsFence,
  type LeaseRow,
  leaseFromRow,
  releaseTurn,
  whyNotAcquired,
  whyStale,
} from './leases.ts';
import { checkTurn, recordOf } from './record.ts';
import { findMessages, recordTurn, type TurnRow, turnFromRow } from './repository.ts';

export const turnAccess: Record<string, Access> = { beginTurn: { userOptional: true } };

const finishBegin = finisher('turns.begin');
const finishCommit = finisher('turns.commit');

interface Begun extends SavedRow {
  lease: LeaseRow;
  appended: AppendedRow[];
}

interface Committed {
  id: string;
  threadId: string;
  revision: number;
  appended: AppendedRow[];
  turn: TurnRow | null;
  /** Not in results of versions before budgets. */
  budgets?: StatusRow[];
  /** The session was deleted since: only a replay tells. */
  gone?: true;
}

export const turnHandlers = (
  folder: Folder,
): Pick<Handlers<typeof ConversationServiceService>, 'beginTurn' | 'commitTurn'> => ({
  async beginTurn(request, call) {
    checkBegin(request, call);
    const owner = ownerOf(call, request.anonymous);
    const upsert = upsertOf(call, UpsertSessionRequest.fromPartial({ session: request.session }), request.anonymous);
    const { messages } = request;
    const { maxMessagesPerThread: messageLimit } = call.identity.membership.quotas;
    const tokenCounts = await contentTokens(messages);

    const begin = async (tx: TenantTx) => {
      const saved = await save(tx, upsert);
      const { id, threadId, projectId } = saved;
      // In one write, for which the token comes too late: the append goes first, while the turn is still free. What people
      // type lands anyway, and all of it is undone if the turn is not.
      const append = { threadId, sessionId: id, messages, tokenCounts, messageLimit };
      const [early, lease, budgets] = await together([
        messages.length > 0 ? appendMessages(tx.step, { ...append, fencingToken: 0 }) : [],
        acquireTurn(tx.step, threadId, request.holder, request.leaseTtl),
        owner.identity.membership.budgets ? budgetsOf(tx.step, projectId, id) : [],
      ]);
      refuseSpent(budgets);
      if (!lease) throw await whyNotAcquired(tx.step, threadId);
      const { fencingToken } = lease;
      const appended = early.length > 0 ? early : await appendAll(tx, { ...append, fencingToken });
      const about = { resource: `sessions/${id}`, sessionId: id, metadata: { holder: request.holder } };
      return finishBegin(tx, about, { ...saved, lease, appended });
    };
    const [begun] = await withinSessions(owner, () => owner.change<Begun>(request, begin));
    if (begun!.gone) throw deleted('session');
    const { lease, appended, ...row } = begun!;
    Object.assign(call.about, {
      sessionId: row.id,
      threadId: row.threadId,
      ...(row.created && { session: 'started' }),
    });
    const session = sessionFromRow(row);
    return {
      session,
      sessionCreated: row.created,
      lease: leaseFromRow(lease),
      messages: appended.map(appendedMessage),
      context: request.context && (await readContext(owner, row.id, request.context, sizeOf(session))),
    };
  },

  async commitTurn(request, call) {
    checkCommit(request);
    const { sessionId, fencingToken } = request;
    const patch = {
      id: sessionId,
      state: request.statePatch,
      summaryRefs: request.summaries,
      etag: request.expectedEtag,
    };
    const upsert = upsertOf(call, UpsertSessionRequest.fromPartial({ session: patch }), false, asPatch);
    const { messages } = request;
    const { maxMessagesPerThread: messageLimit } = call.identity.membership.quotas;
    const tokenCounts = await contentTokens(messages);
    const record = request.turn && recordOf(request.turn); // takes CPU, so not while a connection is held

    const [committed] = await call.change<Committed>(request, async (tx) => {
      const [{ threadId, projectId, revision }, appended, current, named] = await together([
        save(tx, upsert),
        appendAll(tx, { threadId: '', sessionId, messages, tokenCounts, fencingToken, messageLimit }),
        messages.length > 0 || holdsFence(tx.step, sessionId, fencingToken), // an append checks it itself
        findMessages(tx.step, sessionId, request.messageIds),
      ]);
      if (!current) throw await whyStale(tx.step, threadId);
      if (named.length < countOf(request.messageIds)) throw notFound('message');
      const seqs = [...appended, ...named].map((message) => message.seq);
      const [turn, , , , budgets] = await together([
        recordTurn(tx.step, {
          sessionId,
          record,
          firstSeq: seqs.length > 0 ? Math.min(...seqs) : 0,
          lastSeq: Math.max(0, ...seqs),
        }),
        request.contextEntries.length > 0 && appendEntries(tx.step, sessionId, request.contextEntries),
        insertCalls(tx.step, { sessionId, turnId: record ? RECORDED : null, projectId }, request),
        request.release && releaseTurn(tx.step, threadId, fencingToken),
        call.identity.membership.budgets ? budgetsOf(tx.step, projectId, sessionId) : [],
      ]);
      const metadata = { messages: appended.length, entries: request.contextEntries.length, released: request.release };
      const about = { resource: `sessions/${sessionId}`, sessionId, metadata };
      return finishCommit(tx, about, { id: sessionId, threadId, revision, appended, turn: turn ?? null, budgets });
    });
    if (committed!.gone) throw deleted('session');
    call.about.threadId = committed!.threadId;
    const { appended, turn, revision, budgets = [] } = committed!;
    if (request.llmRequests.length > 0) folder.note(call.db.scope);
    return {
      messages: appended.map(appendedMessage),
      turn: turn ? turnFromRow(turn) : undefined,
      sessionEtag: etagOf(revision),
      budgets: budgets.map(statusFromRow),
    };
  },
});

const countOf = (ids: string[]) => new Set(ids.map((id) => id.toLowerCase())).size;

const sizeOf = (session: Session) => Session.encode(session).finish().length;

async function save(tx: TenantTx, upsert: Upsert): Promise<SavedRow> {
  const [saved] = await saveSession(tx.step, upsert);
  if (!saved) throw await whyNotSaved(tx.step, upsert);
  return saved;
}

async function appendAll(tx: TenantTx, append: Append): Promise<AppendedRow[]> {
  if (append.messages.length === 0) return [];
  const appended = await appendMessages(tx.step, append);
  if (appended.length === 0) throw await whyNotAppended(tx.step, append);
  return appended;
}

/** The field of a turn's request that stands for one of a session. */
const asPatch = (field: string) =>
  field.replace(/^session\.state/, 'state_patch').replace(/^session\.summary_refs/, 'summaries');

/** The request's session as an upsert of it would be, under the tenant's policy. */
function upsertOf(
  call: Call,
  request: UpsertSessionRequest,
  anonymous: boolean,
  named = (field: string) => field,
): Upsert {
  const session = request.session!;
  const change = changeOf(request);
  const violations = applyPiiPolicy(change, call.identity.membership.pii);
  if (violations.length > 0) throw invalid(violations.map((found) => ({ ...found, field: named(found.field) })));
  const { id, surfaceId, projectId, threadId, etag } = session;
  return {
    id,
    surfaceId,
    projectId,
    threadId,
    change,
    expiry: {},
    revision: revisionOf(etag),
    anonymous,
    revokeKeys: false,
    sessionLimit: call.identity.membership.quotas.maxSessions,
  };
}

function checkBegin(request: BeginTurnRequest, call: Call): void {
  const check = new Check();
  checkUpsert(check, UpsertSessionRequest.fromPartial({ session: request.session, requestId: request.requestId }));
  check.that(!(request.anonymous && call.identity.user), 'anonymous', 'the metadata names a user');
  check.that(!(request.anonymous && request.session?.id), 'anonymous', 'names a session that exists');
  check.id('holder', request.holder);
  check.leaseTtl('lease_ttl', request.leaseTtl);
  checkAppended(check, request.messages, 0);
  checkContextOptions(check, 'context', request.context);
  check.done();
}

function checkCommit(request: CommitTurnRequest): void {
  const check = new Check();
  check.uuid('session_id', request.sessionId);
  check.fencingToken('fencing_token', request.fencingToken);
  checkAppended(check, request.messages, 0);
  if (check.count('message_ids', request.messageIds, 100)) {
    request.messageIds.forEach((id, i) => check.uuid(`message_ids[${i}]`, id));
  }
  if (request.turn) checkTurn(check, 'turn', request.turn);
  check.struct('state_patch', request.statePatch);
  checkEntries(check, 'context_entries', request.contextEntries);
  checkCalls(check, request);
  check.etag('expected_etag', request.expectedEtag);
  check.optionalUuid('request_id', request.requestId);
  checkSummaries(check, 'summaries', request.summaries);
  check.done();
}

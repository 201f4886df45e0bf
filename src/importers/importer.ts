import { commandStamp } from '../db/change.ts';
import type { Database } from '../db/pool.ts';
import { reader, type Scope, type TenantTx, transaction } from '../db/transaction.ts';
import { UpsertSessionRequest } from '../gen/memory/v1/memory_service.ts';
import { Member_Role } from '../gen/memory/v1/tenant.ts';
import { ANY_NUMBER } from '../quotas/sessions.ts';
import type { Violation } from '../rpc/errors.ts';
import { Check } from '../rpc/validate.ts';
import { applyPiiPolicy, changeOf, checkUpsert, type SessionChange } from '../sessions/change.ts';
import { upsertSession } from '../sessions/upsert.ts';
import { putMember } from '../tenants/repository.ts';
import { type Append, appendMessages, whyNotAppended } from '../threads/append.ts';
import { contentTokens } from '../tokens/counter.ts';
import { type Dated, messagesOf } from './message.ts';
import type { Report } from './report.ts';
import { backdate, backdateSession, knownIds, type SessionKey, type Standing, standingOf } from './repository.ts';
import { isSkipped, objectOf, type Skipped, type SourceMessage, type SourceSession } from './source.ts';

/** Where conversations go, and how. */
export interface Place {
  database: Database;
  tenant: string;
  env: string;
  /** The tenant's policy for personal data in sessions. */
  pii: number;
  /** The surface of the sessions: the framework's name. */
  surfaceId: string;
  /** Makes the users members who are none. */
  addMembers: boolean;
  /** Changes nothing. */
  dryRun: boolean;
}

const CALL_MS = 60_000;

const limits = () => ({ deadline: Date.now() + CALL_MS });

/**
 * Stores conversations of another framework by the statements that calls use. Sessions are found again by their key and messages
 * by their ids there, so that an import that is run again goes on, and doubles nothing.
 */
export async function importConversations(
  place: Place,
  sessions: AsyncIterable<SourceSession | Skipped>,
  report: Report,
  tick: () => void,
): Promise<void> {
  for await (const session of sessions) {
    if (isSkipped(session)) report.leave('sessions left out', session.why, session.id);
    else await importSession(place, session, report, tick);
    tick();
  }
}

async function importSession(place: Place, session: SourceSession, report: Report, tick: () => void): Promise<void> {
  const check = new Check();
  check.id('user', session.user);
  check.id('thread', session.threadId);
  check.optionalId('project', session.projectId);
  const [fault] = check.violations;
  if (fault) return report.leave('sessions left out', `its ${fault.field} is ${fault.description}`, session.id);

  const { tenant, env, surfaceId } = place;
  const scope = { tenant, env, user: session.user };
  const key = { surfaceId, projectId: session.projectId, threadId: session.threadId };
  const standing = await standingOf(reader(place.database, scope, limits()), key);
  if (standing.erased) return report.leave('sessions left out', 'its user is being erased', session.id);
  if (standing.deleted) return report.leave('sessions left out', 'it was deleted here', session.id);
  if (!standing.member && !(await joined(place, scope))) {
    report.leave('sessions of users who are no members, see --add-members', 'they are stored', session.id);
  }
  const sessionId = await sessionOf(place, scope, key, session, standing, report);
  for await (const items of session.messages()) {
    const there = items.filter((item): item is SourceMessage => !isSkipped(item));
    for (const item of items) if (isSkipped(item)) report.leave('messages left out', item.why, item.id);
    const messages = there.flatMap((message) => messagesOf(message, surfaceId, report));
    await importMessages(place, scope, { threadId: key.threadId, sessionId }, messages, report);
    tick();
  }
}

/** Makes the user a member, if that was asked for. */
async function joined({ database, addMembers, dryRun }: Place, { user, ...scope }: Scope): Promise<boolean> {
  if (addMembers && !dryRun) {
    const work = (tx: TenantTx) => putMember(tx, user, Member_Role.MEMBER);
    await transaction(database, { ...scope, user: '' }, commandStamp('Import'), limits(), { repeatable: true }, work);
  }
  return addMembers;
}

/** The session as it is here, or made anew. One that is here is left as it is: it may have gone on. Null if it has ended. */
async function sessionOf(
  place: Place,
  scope: Scope,
  key: SessionKey,
  session: SourceSession,
  standing: Standing,
  report: Report,
): Promise<string | null> {
  report.add(standing.known ? 'sessions that were here already' : 'sessions');
  if (standing.known) return standing.sessionId;
  const change = fieldsOf(key, session, place.pii, report);
  if (place.dryRun) return null;
  const work = async (tx: TenantTx) => {
    const upsert = {
      id: '',
      ...key,
      change,
      expiry: {},
      anonymous: false,
      revokeKeys: false,
      sessionLimit: ANY_NUMBER,
    };
    const [row] = await upsertSession(tx.step, upsert);
    await backdateSession(tx, row!.id, session.createTime, session.updateTime);
    return row!.id;
  };
  return transaction(place.database, scope, commandStamp('Import'), limits(), { repeatable: true }, work);
}

/** What a new session is to hold: without what is over a limit, or what the tenant's policy rejects. */
function fieldsOf(key: SessionKey, session: SourceSession, pii: number, report: Report): SessionChange {
  const request = UpsertSessionRequest.fromPartial({
    session: { ...key, title: session.title, state: session.state, metadata: session.metadata },
  });
  const check = new Check();
  checkUpsert(check, request);
  const change = changeOf(request);
  const refuse = (name: string, { description }: Violation) => {
    report.leave(`session fields left out: ${name}`, description, session.id);
  };
  for (const violation of check.violations) {
    const [, name] = violation.field.split(/[.[]/);
    delete change[name!];
    refuse(name!, violation);
  }
  // Of a Struct only the keys go whose values the policy rejects.
  for (const name of ['state', 'metadata']) {
    const kept = Object.entries(objectOf(change[name])).filter(([key, value]) => {
      const [violation] = applyPiiPolicy({ [name]: { [key]: value }, replace: [] }, pii);
      if (violation) refuse(name, violation);
      return !violation;
    });
    if (change[name]) change[name] = Object.fromEntries(kept);
  }
  for (const violation of applyPiiPolicy(change, pii)) {
    delete change.title;
    refuse('title', violation);
  }
  return change;
}

async function importMessages(
  place: Place,
  scope: Scope,
  { threadId, sessionId }: { threadId: string; sessionId: string | null },
  messages: Dated[],
  report: Report,
): Promise<void> {
  for (let from = 0; from < messages.length; from += 100) {
    const some = messages.slice(from, from + 100);
    if (place.dryRun) {
      const ids = some.map(({ message }) => message.clientId);
      const known = await knownIds(reader(place.database, scope, limits()), threadId, ids);
      count(report, some.length - known.length, known.length);
    } else {
      await append(place, scope, { threadId, sessionId }, some, report);
    }
  }
}

function count(report: Report, fresh: number, known: number): void {
  if (fresh > 0) report.add('messages', fresh);
  if (known > 0) report.add('messages that were here already', known);
}

/** All messages were there. */
class NothingNew extends Error {}

/** Appends messages; if one of them is refused, the others one by one. */
async function append(
  place: Place,
  scope: Scope,
  { threadId, sessionId }: { threadId: string; sessionId: string | null },
  dated: Dated[],
  report: Report,
): Promise<void> {
  const messages = dated.map(({ message }) => message);
  const tokenCounts = await contentTokens(messages);
  const given: Append = {
    threadId,
    sessionId: sessionId ?? '',
    messages,
    tokenCounts,
    fencingToken: 0,
    messageLimit: undefined,
  };
  const work = async (tx: TenantTx) => {
    const rows = await appendMessages(tx.step, given);
    // An append moves the activity of the session, also if it appends nothing: then it is undone.
    if (rows.length > 0 && !rows.some((row) => row.fresh)) throw new NothingNew();
    const fresh = rows.flatMap(({ seq, fresh }, i) =>
      fresh && dated[i]!.time ? [{ seq, time: dated[i]!.time! }] : [],
    );
    await backdate(tx, threadId, sessionId, fresh);
    return rows;
  };
  const stored = transaction(place.database, scope, commandStamp('Import'), limits(), { repeatable: true }, work);
  const rows = await stored.catch((error) => {
    if (error instanceof NothingNew) return undefined;
    throw error;
  });
  if (!rows) return count(report, 0, dated.length);
  if (rows.length > 0) {
    const fresh = rows.filter((row) => row.fresh).length;
    return count(report, fresh, rows.length - fresh);
  }
  if (dated.length > 1) {
    for (const one of dated) await append(place, scope, { threadId, sessionId }, [one], report);
    return;
  }
  const why = await whyNotAppended(reader(place.database, scope, limits()), given);
  report.leave('messages left out', why.message, messages[0]!.clientId);
}

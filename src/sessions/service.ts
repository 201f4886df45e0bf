import { createHash, randomBytes } from 'node:crypto';
import type { Keyring } from '../db/keyring.ts';
import { within } from '../db/page.ts';
import { secondsOf, timestampText } from '../db/statement.ts';
import type { TenantTx } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import type {
  MemoryServiceService,
  ResumeSessionRequest,
  UpsertSessionRequest,
} from '../gen/memory/v1/memory_service.ts';
import { findProfile, profileFromRow } from '../projects/repository.ts';
import { withinSessions } from '../quotas/sessions.ts';
import type { Access } from '../rpc/access.ts';
import { isMember } from '../rpc/access.ts';
import type { Call } from '../rpc/context.ts';
import { denied, invalid, notFound } from '../rpc/errors.ts';
import type { Handlers } from '../rpc/implement.ts';
import type { Memberships } from '../rpc/membership.ts';
import { Check, revisionOf } from '../rpc/validate.ts';
import { listMessages, messageFromRow } from '../threads/repository.ts';
import { newestCheckpoint } from '../turns/checkpoints.ts';
import { applyPiiPolicy, changeOf, checkUpsert } from './change.ts';
import { ownerOf } from './owner.ts';
import {
  deleteSession,
  endSession,
  findBySessionKey,
  getSession,
  listSessions,
  resumeProject,
  resumeSession,
  type SavedRow,
  sessionFromRow,
  whyNotSaved,
} from './repository.ts';
import { namesEmail, saveSession, type Upsert, upsertSession } from './upsert.ts';

export interface SessionDeps {
  keyring: Keyring;
  members: Memberships;
  /** How long a session key works. */
  sessionKeySeconds: number;
}

export const sessionAccess: Record<string, Access> = {
  upsertSession: { userOptional: true },
  resumeSession: { userOptional: true },
};

type SessionMethods =
  | 'upsertSession'
  | 'getSession'
  | 'listSessions'
  | 'resumeSession'
  | 'endSession'
  | 'deleteSession';

const rowOf = (call: Call, { id, surfaceId, projectId, threadId }: Upsert): string =>
  id || [call.db.scope.user, surfaceId, projectId, threadId].join('/');

export function sessionHandlers(deps: SessionDeps): Pick<Handlers<typeof MemoryServiceService>, SessionMethods> {
  return {
    async upsertSession(request, call) {
      const check = new Check();
      checkUpsert(check, request);
      check.that(!(request.anonymous && call.identity.user), 'anonymous', 'the metadata names a user');
      check.that(!(request.anonymous && request.session?.id), 'anonymous', 'names a session that exists');
      check.done();
      const owner = ownerOf(call, request.anonymous);

      const change = changeOf(request);
      const violations = applyPiiPolicy(change, call.identity.membership.pii);
      if (violations.length > 0) throw invalid(violations);
      const { session } = request;
      const key = request.issueSessionKey ? newSessionKey(deps, call, request.requestId) : undefined;
      const upsert: Upsert = {
        id: session!.id,
        surfaceId: session!.surfaceId,
        projectId: session!.projectId,
        threadId: session!.threadId,
        change,
        expiry: expiryOf(request),
        revision: revisionOf(session!.etag),
        anonymous: request.anonymous,
        key,
        revokeKeys: request.revokeSessionKeys,
        sessionLimit: limitOf(call),
      };
      const saved = async (saving: Promise<SavedRow[]>) => {
        const rows = await saving;
        if (rows.length === 0) throw await whyNotSaved(owner.db, upsert);
        return rows;
      };
      const [row] = await withinSessions(owner, () =>
        namesEmail(upsert)
          ? owner.change(request, (tx) => saved(saveSession(tx, upsert)))
          : owner.changeAmongOthers(request, rowOf(owner, upsert), (tx) => saved(upsertSession(tx, upsert))),
      );
      call.about.sessionId = row!.id;
      if (row!.created) {
        call.count('created', 'sessions', 1);
        call.about.session = 'started';
      }
      return {
        session: sessionFromRow(row!),
        created: row!.created,
        sessionKey: keyOf(deps, call, request.requestId, row!, key),
      };
    },

    async getSession(request, call) {
      const check = new Check();
      check.uuid('session_id', request.sessionId);
      check.done();
      const session = await getSession(call.db, request.sessionId);
      call.count('read', 'sessions', 1);
      return { session };
    },

    async listSessions(request, call) {
      const check = new Check();
      const { surfaceId, projectId, threadId, toolId, workspacePath, processId, pinned, archived, ended, activeSince } =
        request;
      check.optionalId('surface_id', surfaceId);
      check.optionalId('project_id', projectId);
      check.optionalId('thread_id', threadId);
      check.optionalId('tool_id', toolId);
      check.text('workspace_path', workspacePath, 4096);
      check.optionalId('process_id', processId);
      check.time('active_since', activeSince);
      check.page(request);
      check.done();

      const page = call.page(request);
      const since = timestampText(activeSince);
      const filters = [
        surfaceId,
        projectId,
        threadId,
        toolId,
        workspacePath,
        processId,
        pinned,
        archived,
        ended,
        since,
      ];
      const found = await listSessions(call.db, filters, page.after, page.limit);
      const position = (row: { lastActivityTime: Timestamp; id: string }) => [
        timestampText(row.lastActivityTime),
        row.id,
      ];
      const { rows, nextPageToken } = page.cut(found, position, (row) => row.byteSize);
      call.count('read', 'sessions', rows.length);
      return { sessions: rows.map(sessionFromRow), nextPageToken };
    },

    async resumeSession(request, call) {
      const check = new Check();
      checkResume(check, request, call);
      check.done();
      const { owner, id } = await resumed(deps, request, call);
      const project = request.target?.$case === 'resumeProjectId' ? request.target.value : '';

      const create: Upsert = {
        id: '',
        surfaceId: request.surfaceId,
        projectId: project || request.projectId,
        threadId: request.threadId,
        change: { replace: [] },
        expiry: {},
        anonymous: request.anonymous && !call.identity.user && !id,
        revokeKeys: false,
        withLastSeq: true,
        sessionLimit: limitOf(call),
      };
      const resume = async (tx: TenantTx) => {
        const found = project ? await resumeProject(tx, project) : id ? await resumeSession(tx, id) : [];
        if (found.length > 0) return found;
        if (request.createIfMissing) {
          return upsertSession(tx, { ...create, recovered: project ? await newestCheckpoint(tx, project) : undefined });
        }
        if (project) throw notFound('session');
        throw await whyNotSaved(owner.db, { id, surfaceId: '', projectId: '', threadId: '' });
      };
      const [row] = await withinSessions(owner, () => owner.change<SavedRow>(request, resume));
      call.about.sessionId = row!.id;
      const lastN = request.lastN ?? 50;
      // Up to where the thread stood then, so that a replay tells the same.
      const newest = { seq: (row!.lastSeq ?? 0) + 1, ascending: false };
      const found = lastN > 0 ? await listMessages(owner.db, row!.threadId, newest, lastN) : [];
      const profile = project ? await findProfile(owner.db, project) : undefined;
      call.stored(row!.recoveredFrom ? Buffer.byteLength(JSON.stringify(row!.state)) : 0);
      call.count(row!.created ? 'created' : 'read', 'sessions', 1);
      if (row!.created) call.about.session = 'started';
      call.count('read', 'messages', found.length);
      return {
        session: sessionFromRow(row!),
        messages: within(found, (message) => message.byteSize)
          .map((message) => messageFromRow(message, row!.threadId))
          .reverse(),
        created: row!.created,
        recoveredFrom: row!.recoveredFrom ?? '',
        projectProfile: profile && !profile.stub ? profileFromRow(profile) : undefined,
      };
    },

    async endSession(request, call) {
      checkNamed(request);
      const [row] = await call.change(request, async (tx) => {
        const ended = await endSession(tx, request.sessionId, revisionOf(request.etag), limitOf(call));
        if (ended.length === 0) throw await whyNotSaved(call.db, named(request.sessionId));
        return ended;
      });
      call.about.session = 'ended';
      return { session: sessionFromRow(row!) };
    },

    async deleteSession(request, call) {
      checkNamed(request);
      const [row] = await call.change(request, async (tx) => {
        const gone = await deleteSession(tx, request.sessionId, revisionOf(request.etag), limitOf(call));
        if (gone.length === 0) throw await whyNotSaved(call.db, named(request.sessionId));
        return gone;
      });
      call.about.session = 'deleted';
      return { threadDeleted: row!.threadDeleted };
    },
  };
}

const limitOf = (call: Call) => call.identity.membership.quotas.maxSessions;

const named = (id: string) => ({ id, surfaceId: '', projectId: '', threadId: '' });

function checkNamed(request: { sessionId: string; etag: string; requestId: string }): void {
  const check = new Check();
  check.uuid('session_id', request.sessionId);
  check.etag('etag', request.etag);
  check.optionalUuid('request_id', request.requestId);
  check.done();
}

function checkResume(check: Check, request: ResumeSessionRequest, call: Call): void {
  if (request.target?.$case === 'sessionId') check.uuid('session_id', request.target.value);
  if (request.target?.$case === 'sessionKey') check.text('session_key', request.target.value, 128, 1);
  if (request.target?.$case === 'resumeProjectId') {
    const { value } = request.target;
    check.id('resume_project_id', value);
    check.that([value, ''].includes(request.projectId), 'project_id', 'not the project that is resumed');
  }
  check.that(request.target !== undefined || request.createIfMissing, 'target', 'required without create_if_missing');
  check.range('last_n', request.lastN ?? 50, 0, 500);
  if (request.createIfMissing) check.id('surface_id', request.surfaceId);
  else check.optionalId('surface_id', request.surfaceId);
  check.optionalId('project_id', request.projectId);
  check.optionalId('thread_id', request.threadId);
  check.optionalUuid('request_id', request.requestId);
  check.that(!(request.anonymous && call.identity.user), 'anonymous', 'the metadata names a user');
  check.that(!request.anonymous || request.createIfMissing, 'anonymous', 'needs create_if_missing');
}

/** Which session is named, '' if none is, and whose it is. A session key tells both. */
async function resumed(
  deps: SessionDeps,
  request: ResumeSessionRequest,
  call: Call,
): Promise<{ owner: Call; id: string }> {
  const { target } = request;
  if (target?.$case !== 'sessionKey') {
    const id = target?.$case === 'sessionId' ? target.value : '';
    return { owner: ownerOf(call, request.anonymous), id };
  }

  const found = await findBySessionKey(call.db, hashOf(target.value));
  if (!found) {
    if (!request.createIfMissing) throw notFound('session');
    return { owner: ownerOf(call, request.anonymous), id: '' };
  }
  const owner = call.as({ user: found.userId });
  const { tenant, env } = call.identity;
  const membership = await deps.members.find(tenant, env, found.userId, call.limits);
  if (!isMember(membership, call.identity)) throw denied('NOT_A_MEMBER', 'not a member of this tenant and env');
  return { owner, id: found.sessionId };
}

function expiryOf({ expiration, slidingTtl, updateMask }: UpsertSessionRequest): Upsert['expiry'] {
  if (expiration?.$case === 'expireTime') return { expireTime: timestampText(expiration.value) };
  if (expiration?.$case === 'ttl') {
    return { ttlSeconds: secondsOf(expiration.value), sliding: slidingTtl };
  }
  return { never: updateMask?.includes('expiration') ?? false };
}

const hashOf = (key: string) => createHash('sha256').update(key).digest();

/** What seals the key to its place: the caller's tenant, env and request. */
const sealContext = ({ identity }: Call, requestId: string) => [
  'session-key',
  identity.tenant,
  identity.env,
  requestId,
];

/** A session key of 256 random bits. With a request_id it is kept sealed beside the result, so that a replay gives it again. */
function newSessionKey(deps: SessionDeps, call: Call, requestId: string) {
  const text = `msk_${randomBytes(32).toString('base64url')}`;
  const sealed = requestId && deps.keyring.seal(sealContext(call, requestId), text);
  return { text, hash: hashOf(text), lifeSeconds: deps.sessionKeySeconds, sealed };
}

function keyOf(
  deps: SessionDeps,
  call: Call,
  requestId: string,
  row: SavedRow,
  key: { text: string } | undefined,
): string {
  if (!row.sealedKey) return key?.text ?? '';
  return deps.keyring.open(sealContext(call, requestId), row.sealedKey) ?? '';
}

import type { ArtifactServiceService } from '../gen/memory/v1/artifact_service.ts';
import type { DraftRevision } from '../gen/memory/v1/draft.ts';
import { hasInputs } from '../inputs/repository.ts';
import { checkProfile, prepareProfile } from '../projects/put.ts';
import { inThread } from '../projects/thread.ts';
import type { Call } from '../rpc/context.ts';
import { notFound } from '../rpc/errors.ts';
import type { Handlers } from '../rpc/implement.ts';
import { changePrepared } from '../rpc/prepared.ts';
import { Check } from '../rpc/validate.ts';
import { checkSection } from './lock-service.ts';
import type { Section } from './locks.ts';
import {
  type Before,
  beforeSave,
  type Content,
  checkDraft,
  draftFromRow,
  draftSize,
  getDraft,
  getRevision,
  listDrafts,
  listRevisions,
  revisionFromRow,
  type SavedRevision,
  saveRevision,
} from './repository.ts';
import { checkPrompts, checkSources, sourcesText, storedSource } from './sources.ts';

const CONTENT_BYTES = 1024 * 1024;

type DraftMethods = 'saveDraft' | 'getDraft' | 'listDrafts' | 'listRevisions' | 'restoreDraft';

export const draftHandlers: Pick<Handlers<typeof ArtifactServiceService>, DraftMethods> = {
  async saveDraft(request, call) {
    const { projectId, fencingToken, sessionId, profileChange } = request;
    const check = new Check();
    checkSection(check, request);
    check.fencingToken('fencing_token', fencingToken);
    if (request.content) check.content('content', request.content, CONTENT_BYTES);
    checkSources(check, request.sources);
    checkPrompts(check, request.prompts);
    check.struct('metadata', request.metadata);
    check.optionalUuid('session_id', sessionId);
    if (profileChange) await checkProfile(check, 'profile_change.', profileChange, call);
    check.optionalUuid('request_id', request.requestId);
    check.done();

    const { content, prompts, metadata = {} } = request;
    const given: Content = { content, sources: request.sources.map(storedSource), prompts, metadata };
    const inputs = given.sources.flatMap(({ inputId }) => inputId ?? []);
    const prepare = async () => {
      const before = await beforeSave(call.db, request, fencingToken, sessionId);
      if (!(await hasInputs(call.db, projectId, inputs))) throw notFound('input');
      const profile = profileChange && (await prepareProfile(call, projectId, 'profile_change.', profileChange));
      return { ...(await compare(call, before, given)), profile: profile?.put };
    };
    const [row] = await changePrepared(call, request, prepare, (tx, ready) =>
      saveRevision(tx, { ...request, ...given, ...ready, restoredRevision: 0 }),
    );
    return { revision: saved(call, row!, profileChange?.yaml) };
  },

  async getDraft(request, call) {
    const check = new Check();
    checkSection(check, request);
    check.seq('revision', request.revision);
    check.done();

    const { draft, revision } = await getDraft(call.db, request, request.revision);
    call.count('read', 'draft_revisions', 1);
    return { draft: draftFromRow(draft), revision: revisionFromRow(revision) };
  },

  async listDrafts(request, call) {
    const check = new Check();
    check.id('project_id', request.projectId);
    check.page(request);
    check.done();

    const page = call.page(request);
    const found = await listDrafts(call.db, request.projectId, page.after?.[0], page.limit);
    const { rows, nextPageToken } = page.cut(found, (row) => [row.sectionId], draftSize);
    call.count('read', 'drafts', rows.length);
    return { drafts: rows.map(draftFromRow), nextPageToken };
  },

  async listRevisions(request, call) {
    const check = new Check();
    checkSection(check, request);
    check.page(request);
    check.done();

    const page = call.page(request);
    const found = await listRevisions(call.db, request, page.after?.[0], page.limit);
    if (found.length === 0 && !page.after) await checkDraft(call.db, request);
    const { rows, nextPageToken } = page.cut(
      found,
      (row) => [String(row.revision)],
      (row) => row.byteSize,
    );
    call.count('read', 'draft_revisions', rows.length);
    return { revisions: rows.map(revisionFromRow), nextPageToken };
  },

  async restoreDraft(request, call) {
    const { fencingToken, revision } = request;
    const check = new Check();
    checkSection(check, request);
    check.fencingToken('fencing_token', fencingToken);
    check.that(revision >= 1, 'revision', revision === 0 ? 'required' : 'negative');
    check.optionalUuid('request_id', request.requestId);
    check.done();

    const prepare = async () => {
      const before = await beforeSave(call.db, request, fencingToken);
      const { content, sources, prompts, metadata } = await getRevision(call.db, request, revision);
      const given: Content = { content, sources, prompts, metadata };
      return { ...given, ...(await compare(call, before, given)) };
    };
    const section: Section = request;
    const [row] = await changePrepared(call, request, prepare, (tx, ready) =>
      saveRevision(tx, { ...section, fencingToken, ...ready, restoredRevision: revision, sessionId: '' }),
    );
    return { revision: saved(call, row!) };
  },
};

function saved(call: Call, row: SavedRevision, profile = ''): DraftRevision {
  call.stored(row.sizeBytes + row.byteSize + Buffer.byteLength(profile));
  call.count('created', 'draft_revisions', 1);
  return revisionFromRow(row);
}

/** How a new revision differs from the one before. The first differs from nothing, which needs not be told. */
async function compare(
  call: Call,
  { revision, content, sources }: Before,
  after: Pick<Content, 'content' | 'sources'>,
) {
  if (revision === 0) return { before: 0, contentDiff: '', sourcesDiff: '', diffTruncated: false };
  const names: [string, string] = [`revision ${revision}`, `revision ${revision + 1}`];
  const pairs: [string, string][] = [
    [content, after.content],
    [sourcesText(sources), sourcesText(after.sources)],
  ];
  const [ofContent, ofSources] = await inThread(call, 'diff', pairs, names);
  return {
    before: revision,
    contentDiff: ofContent!.text,
    sourcesDiff: ofSources!.text,
    diffTruncated: ofContent!.truncated || ofSources!.truncated,
  };
}

import { audited, requested } from '../db/change.ts';
import { held, type LeaseState, stateOf } from '../db/lease.ts';
import { change, json, pointRead, query, rowFromJson } from '../db/statement.ts';
import { type TenantDb, type TenantTx, together } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { Draft, DraftRevision } from '../gen/memory/v1/draft.ts';
import { type PutProfile, putProfile } from '../projects/repository.ts';
import { notFound, staleToken } from '../rpc/errors.ts';
import { Outdated } from '../rpc/prepared.ts';
import { READABLE } from '../sessions/repository.ts';
import type { JsonObject } from '../wire/struct.ts';
import { lockFromState, type Section } from './locks.ts';
import { type StoredSource, sourceFromStored } from './sources.ts';

/** What a revision holds. */
export interface Content {
  content: string;
  sources: StoredSource[];
  prompts: { name: string; version: string; text: string }[];
  metadata: JsonObject;
}

export interface RevisionRow extends Section, Partial<Content> {
  revision: number;
  sessionId: string | null;
  contentDiff?: string;
  sourcesDiff?: string;
  diffTruncated: boolean;
  restoredRevision: number;
  profileVersion: number;
  locked: boolean;
  sizeBytes: number;
  createTime: Timestamp;
  createdBy: string;
}

export function revisionFromRow({ sources = [], ...row }: RevisionRow): DraftRevision {
  return DraftRevision.fromPartial({
    ...row,
    sessionId: row.sessionId ?? '',
    sources: sources.map(sourceFromStored),
  } as object);
}

const REVISION = `r.project_id, r.section_id, r.revision, r.session_id, r.diff_truncated, r.restored_revision, r.profile_version,
    r.lock_time is not null as locked, r.size_bytes, r.create_time, r.created_by`;
const CONTENT = 'r.content, r.sources, r.prompts, r.metadata';

/** The newest revision of a section, before a save: what the new one will differ from. */
export interface Before extends Pick<Content, 'content' | 'sources'> {
  revision: number;
}

const BEFORE = query<Before & { held: boolean; sessionThere: boolean }>(`
  select t.revision, coalesce(r.content, '') as content, coalesce(r.sources, '[]') as sources, ${held('t', '$6::bigint')} as held,
    $7::uuid is null or exists (
      select from sessions s where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $7 and ${READABLE}
    ) as session_there
  from drafts t
  left join draft_revisions r on r.tenant_id = $1 and r.env = $2 and r.project_id = t.project_id and r.section_id = t.section_id
    and r.revision = t.revision
  where t.tenant_id = $1 and t.env = $2 and t.project_id = $4 and t.section_id = $5`);

/** Refuses who does not hold the section's lock: {@link saveRevision} decides, but then much has been done in vain. */
export async function beforeSave(
  db: TenantDb,
  { projectId, sectionId }: Section,
  fencingToken: number,
  sessionId = '',
): Promise<Before> {
  const [before] = await db.query(BEFORE, [projectId, sectionId, fencingToken, sessionId || null]);
  if (!before) throw notFound('section');
  if (!before.held) throw staleToken();
  if (!before.sessionThere) throw notFound('session');
  return before;
}

/** A revision as it was just stored, with what its diffs come to. */
export interface SavedRevision extends RevisionRow {
  byteSize: number;
}

const save = (action: string) =>
  change<SavedRevision>(`
  with saved as (
    update drafts t set revision = t.revision + 1, update_time = greatest(t.update_time, clock_timestamp()), updated_by = $3
    where t.tenant_id = $1 and t.env = $2 and t.project_id = $11 and t.section_id = $12 and ${held('t', '$13::bigint')}
      and t.revision = $14::bigint
    returning t.revision, t.update_time
  ), content as (
    insert into draft_revisions as r (tenant_id, env, project_id, section_id, revision, content, sources, prompts, metadata,
      content_diff, sources_diff, diff_truncated, restored_revision, profile_version, session_id, create_time, created_by)
    select $1, $2, $11, $12, revision, $15::text, $16::jsonb, $17::jsonb, $18::jsonb, $19::text, $20::text, $21::boolean,
      $22::bigint, coalesce($23::bigint, (
        select p.version from project_profiles p where p.tenant_id = $1 and p.env = $2 and p.project_id = $11), 0),
      $24::uuid, update_time, $3
    from saved
    returning ${REVISION}, r.byte_size
  ), ${audited(action, 'content', {
    resource: `'projects/' || project_id || '/drafts/' || section_id`,
    session: 'session_id',
    metadata: `jsonb_build_object('revision', revision, 'size_bytes', size_bytes)`,
  })}, ${requested('content')}
  select * from content`);

const SAVE = save('drafts.save');
const RESTORE = save('drafts.restore');

export interface NewRevision extends Section, Content {
  fencingToken: number;
  before: number;
  contentDiff: string;
  sourcesDiff: string;
  diffTruncated: boolean;
  /** 0 if the content is new. */
  restoredRevision: number;
  sessionId: string;
  /** A new version of the profile, to be made with it. */
  profile?: PutProfile | undefined;
}

/** Makes the revision after `before`, and the new version of the profile. Refuses as `Outdated` if it is not so, or no lock is held, any more. */
export async function saveRevision(tx: TenantTx, next: NewRevision): Promise<SavedRevision[]> {
  const { profile } = next;
  const values = [
    next.projectId,
    next.sectionId,
    next.fencingToken,
    next.before,
    next.content,
    json(next.sources),
    json(next.prompts),
    json(next.metadata),
    next.contentDiff,
    next.sourcesDiff,
    next.diffTruncated,
    next.restoredRevision,
    profile && profile.newest + 1,
    next.sessionId || null,
  ];
  const statement = next.restoredRevision > 0 ? RESTORE : SAVE;
  // With a profile, COMMIT has to wait until both are known to have been written.
  const [rows] = profile
    ? await together([tx.query(statement, values), putProfile(tx.step, profile)])
    : [await tx.final(statement, values)];
  if (rows.length === 0) throw new Outdated('the section has changed');
  return rows;
}

export interface DraftRow extends Section, LeaseState {
  revision: number;
  sizeBytes: number;
  profileVersion: number;
  locked: boolean;
  userId: string;
  createTime: Timestamp;
  updateTime: Timestamp;
  createdBy: string;
  updatedBy: string;
}

export function draftFromRow(row: DraftRow): Draft {
  const { projectId, sectionId, revision, sizeBytes, profileVersion, locked } = row;
  const { createTime, updateTime, createdBy, updatedBy } = row;
  const lock = lockFromState({ projectId, sectionId }, row);
  return Draft.fromPartial({
    ...{ projectId, sectionId, revision, sizeBytes, profileVersion, locked, lock },
    ...{ createTime, updateTime, createdBy, updatedBy },
  });
}

/** What a draft takes of a response, at most: its ids come twice, as its lock has them too. */
export function draftSize({ projectId, sectionId, createdBy, updatedBy, userId, leaseHolder }: DraftRow): number {
  const twice = projectId + sectionId;
  return 200 + Buffer.byteLength(twice + twice + createdBy + updatedBy + userId + (leaseHolder ?? ''));
}

const DRAFT = `t.project_id, t.section_id, t.revision, t.create_time, t.update_time, t.created_by, t.updated_by, t.locked_by as user_id,
    ${stateOf('t')}`;
const OF_DRAFT = 'r.tenant_id = $1 and r.env = $2 and r.project_id = t.project_id and r.section_id = t.section_id';

const newest = (where: string) => `
  select ${DRAFT}, r.size_bytes, r.profile_version, r.lock_time is not null as locked from drafts t
  join draft_revisions r on ${OF_DRAFT} and r.revision = t.revision
  where t.tenant_id = $1 and t.env = $2 and t.project_id = $4 and ${where}`;

const EXISTS = pointRead<{ revision: number }>(
  `select t.revision from drafts t where t.tenant_id = $1 and t.env = $2 and t.project_id = $4 and t.section_id = $5 and t.revision > 0`,
);

export async function checkDraft(db: TenantDb, { projectId, sectionId }: Section): Promise<void> {
  if ((await db.query(EXISTS, [projectId, sectionId])).length === 0) throw notFound('draft');
}

// One statement, so that the draft and its revision agree.
const GET = query<Partial<RevisionRow & Content> & { draft: Record<string, unknown> }>(`
  select to_jsonb(draft) as draft, ${REVISION}, ${CONTENT} from (${newest('t.section_id = $5')}
  ) draft
  left join draft_revisions r on r.tenant_id = $1 and r.env = $2 and r.project_id = $4 and r.section_id = $5
    and r.revision = coalesce(nullif($6::bigint, 0), draft.revision)`);

/** A draft, and a revision of it, or the newest if that is 0. */
export async function getDraft(
  db: TenantDb,
  { projectId, sectionId }: Section,
  wanted: number,
): Promise<{ draft: DraftRow; revision: RevisionRow & Content }> {
  const [row] = await db.query(GET, [projectId, sectionId, wanted]);
  if (!row) throw notFound('draft');
  const { draft, ...revision } = row;
  if (revision.revision === null) throw notFound('revision');
  return { draft: rowFromJson(draft) as DraftRow, revision: revision as RevisionRow & Content };
}

const GET_REVISION = query<RevisionRow & Content>(`
  select ${REVISION}, ${CONTENT} from draft_revisions r
  where r.tenant_id = $1 and r.env = $2 and r.project_id = $4 and r.section_id = $5
    and r.revision = $6::bigint`);

/** A revision of a section. */
export async function getRevision(
  db: TenantDb,
  { projectId, sectionId }: Section,
  revision: number,
): Promise<RevisionRow & Content> {
  const [row] = await db.query(GET_REVISION, [projectId, sectionId, revision]);
  if (!row) throw notFound('revision');
  return row;
}

const LIST = pointRead<DraftRow>(`${newest('t.section_id > $5')}
  order by t.section_id limit $6::int`);

export async function listDrafts(
  db: TenantDb,
  projectId: string,
  after: string | undefined,
  limit: number,
): Promise<DraftRow[]> {
  return db.query(LIST, [projectId, after ?? '', limit]);
}

const OPEN_DRAFTS = 20;
const OPEN_BYTES = 256 * 1024;

/** The drafts of the project of a session's row that are being written, as JSON: null if there are none. What exceeds the limit is not read. */
export const openDrafts = (session: string) => `(
      select jsonb_agg(to_jsonb(draft) - array['update_time', 'running'] order by draft.update_time desc, draft.section_id) from (
        select ${REVISION}, r.content, t.update_time,
          sum(r.size_bytes) over (order by t.update_time desc, t.section_id rows unbounded preceding) as running
        from (
          select t.section_id, t.project_id, t.revision, t.update_time from drafts t
          join draft_revisions r on ${OF_DRAFT} and r.revision = t.revision and r.lock_time is null
          where t.tenant_id = $1 and t.env = $2 and t.project_id = ${session}.project_id and t.revision > 0
          order by t.update_time desc, t.section_id limit ${OPEN_DRAFTS}
        ) t
        join draft_revisions r on ${OF_DRAFT} and r.revision = t.revision
      ) draft where draft.running <= ${OPEN_BYTES})`;

// Past 1 MiB the diffs are not read.
const LIST_REVISIONS = query<RevisionRow & { byteSize: number }>(`
  select ${REVISION}, r.content_diff, r.sources_diff, r.byte_size from (
    select r.revision, sum(r.byte_size) over (order by r.revision desc rows unbounded preceding) - r.byte_size as before
    from (
      select r.revision, r.byte_size from draft_revisions r
      where r.tenant_id = $1 and r.env = $2 and r.project_id = $4 and r.section_id = $5
        and r.revision < coalesce($6::bigint, 9223372036854775807)
      order by r.revision desc limit $7::int
    ) r
  ) page
  join draft_revisions r on r.tenant_id = $1 and r.env = $2 and r.project_id = $4 and r.section_id = $5 and r.revision = page.revision
  where page.before <= 1048576
  order by r.revision desc`);

export async function listRevisions(
  db: TenantDb,
  { projectId, sectionId }: Section,
  before: string | undefined,
  limit: number,
): Promise<(RevisionRow & { byteSize: number })[]> {
  return db.query(LIST_REVISIONS, [projectId, sectionId, before, limit]);
}

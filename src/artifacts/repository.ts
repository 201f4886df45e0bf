import { status } from '@grpc/grpc-js';
import { v7 as uuidv7 } from 'uuid';
import { audited, requested } from '../db/change.ts';
import { change, json, pointRead, query, rowFromJson } from '../db/statement.ts';
import { type TenantDb, type TenantTx, together } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import {
  type Approval,
  Artifact,
  type SectionRevision,
  Snapshot,
  Snapshot_Kind,
  Snapshot_UploadState,
} from '../gen/memory/v1/artifact.ts';
import { holdProfile } from '../projects/repository.ts';
import { invalid, notFound, RpcError } from '../rpc/errors.ts';
import { READABLE } from '../sessions/repository.ts';
import type { JsonObject } from '../wire/struct.ts';
import { queuedArtifact, queuedProfiles, snapshotFromRow } from './snapshots.ts';

/** What an artifact is put together from, with the inputs that it cites: a snapshot of it is made in memory. */
export const SOURCE_BYTES = 16 * 1024 * 1024;
/** What is said of it otherwise. */
export const TOO_MUCH = `over ${SOURCE_BYTES / 1024 ** 2} MiB together with the inputs that they cite`;

/** The ids of the inputs that a revision cites. */
export const CITED = (revision: string) =>
  `select (jsonb_path_query(${revision}.sources, '$[*].inputId') #>> '{}')::uuid`;

/** What the server makes of an artifact. */
interface CommittedRow {
  id: string;
  version: number;
  profileVersion: number;
  sizeBytes: number;
  createTime: Timestamp;
  createdBy: string;
  snapshotId: string;
}

interface Content {
  projectId: string;
  artifactKey: string;
  sections: SectionRevision[];
  finalOutput: string;
  reviewers: string[];
  approvals: Approval[];
  gateStage: string;
  metadata: JsonObject | undefined;
  sessionId: string | null;
}

type Shown = Omit<Content, 'finalOutput'> & { finalOutput?: string };

export interface ArtifactRow extends Omit<CommittedRow, 'snapshotId'>, Shown {
  byteSize: number;
  snapshot: Record<string, unknown> | null;
}

const artifactFrom = (row: Omit<CommittedRow, 'snapshotId'> & Shown, snapshot: Snapshot | undefined): Artifact =>
  Artifact.fromPartial({
    ...row,
    sessionId: row.sessionId ?? '',
    approvals: row.approvals.map((approval) => ({ ...approval, decideTime: approval.decideTime ?? row.createTime })),
    snapshot,
  } as object);

export const artifactFromRow = ({ snapshot, byteSize: _, ...row }: ArtifactRow): Artifact =>
  artifactFrom(row, snapshot ? snapshotFromRow(rowFromJson(snapshot)) : undefined);

/** What was committed just now, without its output. */
export function artifactFromCommit(
  { finalOutput: _, ...commit }: Commit,
  { snapshotId, ...row }: CommittedRow,
): Artifact {
  const { createTime, version } = row;
  const { projectId, artifactKey } = commit;
  const of = { projectId, artifactKey, version, kind: Snapshot_Kind.ARTIFACT };
  const waiting = {
    id: snapshotId,
    uploadState: Snapshot_UploadState.PENDING,
    nextAttemptTime: createTime,
    createTime,
  };
  return artifactFrom(
    { ...commit, metadata: commit.metadata ?? {}, ...row },
    Snapshot.fromPartial({ ...of, ...waiting }),
  );
}

const COMMIT = change<CommittedRow>(`
  with wanted as (
    select w.section_id, w.revision from unnest($15::text[], $16::bigint[]) as w (section_id, revision)
  ), named as (
    select r.size_bytes, r.sources from wanted w
    join draft_revisions r on r.tenant_id = $1 and r.env = $2 and r.project_id = $12 and r.section_id = w.section_id and r.revision = w.revision
  ), cited as (
    select i.content_bytes from project_inputs i
    where i.tenant_id = $1 and i.env = $2 and i.project_id = $12 and i.id in (select c.id from named, lateral (${CITED('named')}) c (id))
  ), profile as (
    select v.version from project_profile_versions v
    where v.tenant_id = $1 and v.env = $2 and v.project_id = $12 and v.version = coalesce(nullif($18::bigint, 0), (
      select p.version from project_profiles p where p.tenant_id = $1 and p.env = $2 and p.project_id = $12))
  ), saved as (
    insert into artifacts (tenant_id, env, id, project_id, artifact_key, version, session_id, final_output, sections, profile_version,
      reviewers, approvals, gate_stage, metadata, create_time, created_by)
    select $1, $2, $11::uuid, $12::text, $13::text, 1 + coalesce((
        select max(a.version) from artifacts a where a.tenant_id = $1 and a.env = $2 and a.project_id = $12 and a.artifact_key = $13), 0),
      $23::uuid, $17::text, $14::jsonb, coalesce((select version from profile), 0),
      $19::jsonb, $20::jsonb, $21::text, $22::jsonb, clock_timestamp(), $3
    where (select count(*) from named) = cardinality($15)
      and ($18 = 0 or exists (select from profile))
      and (select sum(size_bytes) from named) + (select coalesce(sum(content_bytes), 0) from cited) <= ${SOURCE_BYTES}
      and ($23 is null or exists (
        select from sessions s where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $23 and ${READABLE}))
    returning id, project_id, artifact_key, version, session_id, profile_version, size_bytes, create_time, created_by, $24::uuid as snapshot_id
  ), locked_revisions as (
    update draft_revisions r set lock_time = saved.create_time from saved, wanted w
    where r.tenant_id = $1 and r.env = $2 and r.project_id = saved.project_id and r.section_id = w.section_id and r.revision = w.revision
      and r.lock_time is null
    returning 1
  ), locked_profile as (
    update project_profile_versions v set lock_time = saved.create_time from saved
    where v.tenant_id = $1 and v.env = $2 and v.project_id = saved.project_id and v.version = saved.profile_version and v.lock_time is null
    returning 1
  ), ${queuedArtifact('$24::uuid')}, ${queuedProfiles('saved')}, ${audited('artifacts.commit', 'saved', {
    resource: `'projects/' || project_id || '/artifacts/' || id`,
    session: 'session_id',
    metadata: `jsonb_build_object('version', version, 'profile_version', profile_version)`,
  })}, ${requested('saved')}
  select * from saved`);

export interface Commit extends Content {
  profileVersion: number;
}

/** Gives no rows if it refused: see {@link whyNotCommitted}. */
export async function commitArtifact(tx: TenantTx, commit: Commit, snapshotId: string) {
  const { projectId, artifactKey, sections, finalOutput, reviewers, approvals, gateStage, metadata, sessionId } =
    commit;
  const values = [
    uuidv7(),
    projectId,
    artifactKey,
    json(sections),
    sections.map(({ sectionId }) => sectionId),
    sections.map(({ revision }) => String(revision)),
    finalOutput,
    commit.profileVersion,
    json(reviewers),
    json(approvals),
    gateStage,
    json(metadata ?? {}),
    sessionId || null,
    snapshotId,
  ];
  // A put that comes first makes the version that is committed, and one that comes later finds it locked.
  const [, committed] = await together([holdProfile(tx, projectId), tx.final(COMMIT, values)]);
  return committed;
}

const WHY = query<{ missing: number[] | null; profile: boolean; session: boolean }>(`
  with wanted as (
    select w.section_id, w.revision, w.place from unnest($5::text[], $6::bigint[]) with ordinality as w (section_id, revision, place)
  ), named as (
    select w.place from wanted w
    join draft_revisions r on r.tenant_id = $1 and r.env = $2 and r.project_id = $4 and r.section_id = w.section_id and r.revision = w.revision
  )
  select
    (select jsonb_agg(place - 1 order by place) from wanted where place not in (select place from named)) as missing,
    $7::bigint = 0 or exists (
      select from project_profile_versions v where v.tenant_id = $1 and v.env = $2 and v.project_id = $4 and v.version = $7) as profile,
    $8::uuid is null or exists (
      select from sessions s where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $8 and ${READABLE}) as session`);

/** Why nothing was committed: something that it names is not there, or all is there and too much. */
export async function whyNotCommitted(db: TenantDb, commit: Commit): Promise<RpcError> {
  const { projectId, sections, profileVersion, sessionId } = commit;
  const ids = sections.map(({ sectionId }) => sectionId);
  const revisions = sections.map(({ revision }) => String(revision));
  const [why] = await db.query(WHY, [projectId, ids, revisions, profileVersion, sessionId || null]);
  const absent = (why?.missing ?? []).map((place) => `sections[${place}]`);
  if (!why?.profile) absent.push('profile_version');
  if (absent.length > 0) return new RpcError(status.NOT_FOUND, 'NOT_FOUND', `not found: ${absent.join(', ')}`);
  if (!why?.session) return notFound('session');
  return invalid([{ field: 'sections', description: TOO_MUCH }]);
}

const COLUMNS = `a.id, a.project_id, a.artifact_key, a.version, a.session_id, a.sections, a.profile_version, a.reviewers, a.approvals,
  a.gate_stage, a.metadata, a.create_time, a.created_by, a.size_bytes, a.byte_size`;

const SNAPSHOT = `(
  select to_jsonb(s) from snapshots s
  where s.tenant_id = $1 and s.env = $2 and s.project_id = a.project_id and s.kind = ${Snapshot_Kind.ARTIFACT}
    and s.artifact_key = a.artifact_key and s.version = a.version) as snapshot`;

export interface Key {
  projectId: string;
  artifactKey: string;
}

const GET = pointRead<ArtifactRow>(`
  select ${COLUMNS}, a.final_output, ${SNAPSHOT} from artifacts a
  where a.tenant_id = $1 and a.env = $2 and a.project_id = $4 and a.artifact_key = $5 and ($6::bigint = 0 or a.version = $6)
  order by a.version desc limit 1`);

export async function getArtifact(
  db: TenantDb,
  { projectId, artifactKey }: Key,
  version: number,
): Promise<ArtifactRow | undefined> {
  const [row] = await db.query(GET, [projectId, artifactKey, version]);
  return row;
}

// Past 1 MiB rows are left out: what is read of them is cut to the page.
const list = (which: string) =>
  pointRead<ArtifactRow>(`
  select ${COLUMNS}, ${SNAPSHOT} from (
    select a.*, sum(a.byte_size) over (order by a.id desc rows unbounded preceding) as running from (
      select ${COLUMNS} from artifacts a
      where a.tenant_id = $1 and a.env = $2 and a.project_id = $4 and ${which} and ($6::uuid is null or a.id < $6)
      order by a.id desc limit $7::int
    ) a
  ) a
  where a.running - a.byte_size <= 1048576
  order by a.id desc`);

const [LIST, LIST_OF_KEY] = [list(`$5::text = ''`), list('a.artifact_key = $5::text')];

export async function listArtifacts(
  db: TenantDb,
  { projectId, artifactKey }: Key,
  after: string | undefined,
  limit: number,
): Promise<ArtifactRow[]> {
  return db.query(artifactKey ? LIST_OF_KEY : LIST, [projectId, artifactKey, after, limit]);
}

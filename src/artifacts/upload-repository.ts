import type pg from 'pg';
import { audited } from '../db/change.ts';
import { change, query } from '../db/statement.ts';
import type { TenantTx } from '../db/transaction.ts';
import { Snapshot_Kind, Snapshot_UploadState } from '../gen/memory/v1/artifact.ts';
import type { SnapshotFile } from '../snapshots/store.ts';
import { type Kept, RECORDS, type RecordKind } from './records.ts';
import { CITED, SOURCE_BYTES } from './repository.ts';

const { PENDING, STORED, FAILED } = Snapshot_UploadState;
const { PROFILE } = Snapshot_Kind;

// Over the tenants, as the role that may see where uploads wait, but nothing of them.
const DUE_TENANTS = `
  select distinct tenant_id as tenant, env from snapshots
  where upload_state = ${PENDING} and due_time <= clock_timestamp() limit 1000`;

export async function tenantsWithDueUploads(pool: pg.Pool): Promise<{ tenant: string; env: string }[]> {
  return (await pool.query(DUE_TENANTS)).rows;
}

const COUNTS = `
  select count(*) filter (where upload_state = ${PENDING})::int as pending, count(*) filter (where upload_state = ${FAILED})::int as failed
  from snapshots where upload_state = ${PENDING} or upload_state = ${FAILED}`;

/** How many snapshots wait, and how many were given up, of all tenants. */
export async function uploadCounts(pool: pg.Pool): Promise<{ pending: number; failed: number }> {
  return (await pool.query(COUNTS)).rows[0];
}

export interface Claimed {
  id: string;
  projectId: string;
  kind: Snapshot_Kind;
  artifactKey: string;
  version: number;
  attempts: number;
  /** What is in the store of it names somebody who is erased: it must not stay. */
  rewrite: boolean;
}

// How long it has been tried counts from the first attempt, and without the time in which nobody was there to take it.
const CLAIM = query<Claimed>(`
  update snapshots set uploader = $4::uuid, attempts = attempts + 1, due_time = clock_timestamp() + make_interval(secs => $5::float8),
    queue_time = queue_time + (clock_timestamp() - due_time)
  where tenant_id = $1 and env = $2 and id = (
    select id from snapshots where tenant_id = $1 and env = $2 and upload_state = ${PENDING} and due_time <= clock_timestamp()
    order by due_time limit 1 for update skip locked)
  returning id, project_id, kind, artifact_key, version, attempts, rewrite`);

/** Takes an upload that is due, for so long: until then nobody else does it. Undefined if none is. */
export async function claimUpload(tx: TenantTx, uploader: string, seconds: number): Promise<Claimed | undefined> {
  const [row] = await tx.final(CLAIM, [uploader, seconds]);
  return row;
}

const KEEP = query<{ id: string }>(`
  update snapshots set due_time = clock_timestamp() + make_interval(secs => $6::float8)
  where tenant_id = $1 and env = $2 and id = $4::uuid and uploader = $5::uuid and upload_state = ${PENDING}
  returning id`);

/** Keeps it for longer. False if somebody else has it by now. */
export async function keepUpload(tx: TenantTx, id: string, uploader: string, seconds: number): Promise<boolean> {
  return (await tx.final(KEEP, [id, uploader, seconds])).length > 0;
}

const record = (kind: RecordKind, from: string, read = 'true') => {
  const { columns, more, text } = RECORDS[kind];
  const row = [...columns, ...more].map((column) => `'${column}', r.${column}`).join(', ');
  return `select '${kind}' as kind, jsonb_pretty(jsonb_build_object(${row})) as row, case when ${read} then r.${text} end as text from ${from}`;
};
const PROFILE_OF = (version: string, read?: string) =>
  record(
    'profiles',
    `project_profile_versions r where r.tenant_id = $1 and r.env = $2 and r.project_id = $4 and r.version = ${version}`,
    read,
  );

const READ_PROFILE = query<Kept>(PROFILE_OF('$5::bigint'));

// An input may have got its text after it was cited, and the artifact was committed: too many of them are not even read.
const FITS = '(select fits from room)';
const READ_ARTIFACT = query<Omit<Kept, 'text'> & { text: string | null }>(`
  with artifact as (
    select a.* from artifacts a
    where a.tenant_id = $1 and a.env = $2 and a.project_id = $4 and a.artifact_key = $5 and a.version = $6::bigint
  ), named as (
    select r.*, s.place, d.create_time as draft_create_time, d.created_by as draft_created_by
    from artifact, jsonb_array_elements(artifact.sections) with ordinality s (section, place)
    join draft_revisions r on r.tenant_id = $1 and r.env = $2 and r.project_id = $4
      and r.section_id = s.section ->> 'sectionId' and r.revision = (s.section ->> 'revision')::bigint
    join drafts d on d.tenant_id = $1 and d.env = $2 and d.project_id = $4 and d.section_id = r.section_id
  ), cited as (
    select i.* from project_inputs i
    where i.tenant_id = $1 and i.env = $2 and i.project_id = $4 and i.id in (select c.id from named, lateral (${CITED('named')}) c (id))
  ), room as (
    select (select sum(size_bytes) from named) + (select coalesce(sum(content_bytes), 0) from cited) <= ${SOURCE_BYTES} as fits
  )
  ${PROFILE_OF('(select profile_version from artifact)', FITS)}
  union all (${record('inputs', 'cited r', FITS)} order by r.id)
  union all (${record('sections', 'named r', FITS)} order by r.place)
  union all ${record('artifacts', 'artifact r', FITS)}`);

/** What goes into a snapshot. Undefined if it has become too much for one. */
export async function readSnapshot(
  tx: TenantTx,
  { kind, projectId, artifactKey, version }: Claimed,
): Promise<Kept[] | undefined> {
  if (kind === PROFILE) return tx.final(READ_PROFILE, [projectId, version]);
  const rows = await tx.final(READ_ARTIFACT, [projectId, artifactKey, version]);
  return rows.every((row): row is Kept => row.text !== null) ? rows : undefined;
}

const resource = `'projects/' || project_id || '/snapshots/' || id`;

const DONE = change<{ id: string }>(`
  with stored as (
    update snapshots set upload_state = ${STORED}, rewrite = false, uploader = null, reason = '', link = $13::text, sha256 = $14::text,
      size_bytes = $15::bigint, store_time = clock_timestamp()
    where tenant_id = $1 and env = $2 and id = $11::uuid and uploader = $12::uuid and upload_state = ${PENDING}
    returning id, project_id, size_bytes
  ), ${audited('snapshots.store', 'stored', { resource, metadata: `jsonb_build_object('size_bytes', size_bytes)` })}
  select id from stored`);

/** The store has it. Nothing happens if somebody else has the upload by now: they come to the same. */
export async function uploadDone(tx: TenantTx, id: string, uploader: string, link: string, file: SnapshotFile) {
  return tx.final(DONE, [id, uploader, link, file.sha256, file.bytes.length]);
}

// What an erasure waits for is given up only when nothing is left of it in the store.
const PUT_OFF = change<{ uploadState: Snapshot_UploadState }>(`
  with tried as materialized (
    select id, $15::bool or not rewrite and queue_time <= clock_timestamp() - interval '1 day' as over from snapshots
    where tenant_id = $1 and env = $2 and id = $11::uuid and uploader = $12::uuid and upload_state = ${PENDING}
    for update
  ), put_off as (
    update snapshots s set uploader = null, reason = $13::text, due_time = clock_timestamp() + make_interval(secs => $14::float8),
      upload_state = case when over then ${FAILED} else ${PENDING} end, rewrite = s.rewrite and not over,
      link = case when over then '' else s.link end, sha256 = case when over then '' else s.sha256 end,
      size_bytes = case when over then 0 else s.size_bytes end, store_time = case when over then null else s.store_time end
    from tried
    where s.tenant_id = $1 and s.env = $2 and s.id = tried.id
    returning s.id, s.project_id, s.upload_state
  ), failed as (
    select id, project_id from put_off where upload_state = ${FAILED}
  ), ${audited('snapshots.fail', 'failed', { resource })}
  select upload_state from put_off`);

/** It did not work: to be tried again later, or given up, for good or because it has not worked for a day. */
export async function putOff(
  tx: TenantTx,
  id: string,
  uploader: string,
  reason: string,
  seconds: number,
  permanent: boolean,
): Promise<Snapshot_UploadState | undefined> {
  const [row] = await tx.final(PUT_OFF, [id, uploader, reason, seconds, permanent]);
  return row?.uploadState;
}

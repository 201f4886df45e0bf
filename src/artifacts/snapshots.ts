import { audited, requested } from '../db/change.ts';
import { change, pointRead } from '../db/statement.ts';
import type { TenantDb, TenantTx } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { Snapshot, Snapshot_Kind, Snapshot_UploadState } from '../gen/memory/v1/artifact.ts';

const { PENDING, STORED } = Snapshot_UploadState;
const { ARTIFACT, PROFILE } = Snapshot_Kind;

export interface SnapshotRow {
  id: string;
  projectId: string;
  kind: Snapshot_Kind;
  artifactKey: string;
  version: number;
  uploadState: Snapshot_UploadState;
  reason: string;
  attempts: number;
  dueTime: Timestamp;
  link: string;
  sha256: string;
  sizeBytes: number;
  createTime: Timestamp;
  storeTime: Timestamp | null;
}

export const SNAPSHOT_COLUMNS = `id, project_id, kind, artifact_key, version, upload_state, reason, attempts, due_time, link, sha256,
  size_bytes, create_time, store_time`;

export const snapshotFromRow = ({ dueTime, storeTime, ...row }: SnapshotRow): Snapshot =>
  Snapshot.fromPartial({
    ...row,
    nextAttemptTime: row.uploadState === PENDING ? dueTime : undefined,
    storeTime: storeTime ?? undefined,
  } as object);

const QUEUE = `insert into snapshots (tenant_id, env, id, project_id, kind, artifact_key, version, queue_time, due_time, create_time, created_by)`;

/** The CTE that queues the snapshot of the artifact of the CTE `saved`. `id` is an SQL expression. */
export const queuedArtifact = (id: string): string => `queued_artifact as (
    ${QUEUE}
    select $1, $2, ${id}, project_id, ${ARTIFACT}, artifact_key, version, create_time, create_time, create_time, $3 from saved
    returning 1
  )`;

/**
 * The CTE that queues snapshots of a project's profile: of each version that has none yet. The CTE `source` has the columns
 * project_id and create_time, and if it makes a version itself, which the table does not show yet, that version.
 */
export const queuedProfiles = (source: string, version = 'null::bigint'): string => `queued_profiles as (
    ${QUEUE}
    select $1, $2, uuid_v7(t.create_time), t.project_id, ${PROFILE}, '', v.version, t.create_time, t.create_time, t.create_time, $3
    from ${source} t, lateral (
      select p.version from project_profile_versions p where p.tenant_id = $1 and p.env = $2 and p.project_id = t.project_id
      union select ${version}
    ) v
    where v.version is not null and not exists (
      select from snapshots s where s.tenant_id = $1 and s.env = $2 and s.project_id = t.project_id and s.kind = ${PROFILE}
        and s.artifact_key = '' and s.version = v.version)
    on conflict (tenant_id, env, project_id, kind, artifact_key, version) do nothing
    returning 1
  )`;

const LIST = pointRead<SnapshotRow>(`
  select ${SNAPSHOT_COLUMNS} from snapshots
  where tenant_id = $1 and env = $2 and project_id = $4 and ($5::smallint = 0 or upload_state = $5)
    and ($6::uuid is null or id < $6)
  order by id desc limit $7::int`);

export async function listSnapshots(
  db: TenantDb,
  { projectId, uploadState }: { projectId: string; uploadState: Snapshot_UploadState },
  after: string | undefined,
  limit: number,
): Promise<SnapshotRow[]> {
  return db.query(LIST, [projectId, uploadState, after, limit]);
}

// One that is being uploaded goes on as it is: what is to be done again would be done twice.
const RETRY = change<SnapshotRow>(`
  with retried as (
    update snapshots set upload_state = ${PENDING}, attempts = 0, queue_time = clock_timestamp(),
      due_time = case when uploader is null then clock_timestamp() else due_time end
    where tenant_id = $1 and env = $2 and id = $11::uuid and upload_state <> ${STORED}
    returning ${SNAPSHOT_COLUMNS}
  ), ${audited('snapshots.retry', 'retried', {
    resource: `'projects/' || project_id || '/snapshots/' || id`,
  })}, ${requested('retried')}
  select * from retried`);

/** Gives no rows for one that is stored, or not there. */
export async function retrySnapshot(tx: TenantTx, id: string): Promise<SnapshotRow[]> {
  return tx.final(RETRY, [id]);
}

const STATE = pointRead<{ uploadState: Snapshot_UploadState }>(
  `select upload_state from snapshots where tenant_id = $1 and env = $2 and id = $4::uuid`,
);

export async function uploadStateOf(db: TenantDb, id: string): Promise<Snapshot_UploadState | undefined> {
  const [row] = await db.query(STATE, [id]);
  return row?.uploadState;
}

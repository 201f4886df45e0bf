import { queuedProfiles } from '../artifacts/snapshots.ts';
import { audited, requested } from '../db/change.ts';
import { change, pointRead, query } from '../db/statement.ts';
import { type TenantDb, type TenantTx, together } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { ProjectProfile } from '../gen/memory/v1/project_profile.ts';
import { notFound } from '../rpc/errors.ts';
import { Outdated } from '../rpc/prepared.ts';

const COLUMNS = `v.project_id, v.version, v.base_version, v.merged, v.stub, v.lock_time is not null as locked, v.size_bytes,
    v.create_time, v.created_by`;

export interface ProfileRow {
  projectId: string;
  version: number;
  baseVersion: number;
  merged: boolean;
  stub: boolean;
  locked: boolean;
  sizeBytes: number;
  createTime: Timestamp;
  createdBy: string;
  yaml?: string;
}

export const profileFromRow = (row: ProfileRow): ProjectProfile => ProjectProfile.fromPartial(row);

const NEWEST = `(
      select p.version from project_profiles p where p.tenant_id = $1 and p.env = $2 and p.project_id = $4)`;

// Not shared: a document may have 256 KiB.
const GET = query<ProfileRow>(`
  select ${COLUMNS}, v.yaml from project_profile_versions v
  where v.tenant_id = $1 and v.env = $2 and v.project_id = $4 and v.version = coalesce(nullif($5::bigint, 0), ${NEWEST})`);

/** The profile of a project at a version, or the newest if that is 0. Undefined if there is none. */
export async function findProfile(db: TenantDb, projectId: string, version = 0): Promise<ProfileRow | undefined> {
  const [row] = await db.query(GET, [projectId, version]);
  return row;
}

export async function getProfile(db: TenantDb, projectId: string, version: number): Promise<ProfileRow> {
  const row = await findProfile(db, projectId, version);
  if (!row) throw notFound('project profile');
  return row;
}

const LIST = pointRead<ProfileRow>(`
  select ${COLUMNS} from project_profile_versions v
  where v.tenant_id = $1 and v.env = $2 and v.project_id = $4 and v.version < coalesce($5::bigint, 9223372036854775807)
  order by v.version desc limit $6::int`);

export async function listProfiles(
  db: TenantDb,
  projectId: string,
  before: string | undefined,
  limit: number,
): Promise<ProfileRow[]> {
  return db.query(LIST, [projectId, before, limit]);
}

/** The newest profile of the project of a session's row, as JSON: null if there is none that somebody has written. */
export const writtenProfile = (session: string) => `(
      select to_jsonb(profile) from (
        select ${COLUMNS}, v.yaml
        from project_profiles p
        join project_profile_versions v on v.tenant_id = $1 and v.env = $2 and v.project_id = p.project_id and v.version = p.version
        where p.tenant_id = $1 and p.env = $2 and p.project_id = ${session}.project_id and not v.stub
      ) profile)`;

export interface PutProfile {
  projectId: string;
  yaml: string;
  baseVersion: number;
  merged: boolean;
  /** The newest version, which this one replaces. 0 if there is none. */
  newest: number;
  /** Also if that is locked. */
  reopen: boolean;
}

export type PutRow = Pick<ProfileRow, 'version'> & { created: boolean };

const HOLD = query<{ version: number }>(`
  select p.version from project_profiles p where p.tenant_id = $1 and p.env = $2 and p.project_id = $4 for no key update`);

/**
 * Keeps others from making or locking versions of a project's profile until the transaction ends. It has to be a statement
 * of its own: the next one sees what those did who held it before.
 */
export const holdProfile = (tx: TenantTx, projectId: string) => tx.query(HOLD, [projectId]);

const PUT = change<PutRow>(`
  with made as (
    insert into project_profiles (tenant_id, env, project_id, version, create_time, update_time, created_by, updated_by)
    select $1, $2, $11::text, 1, c.at, c.at, $3, $3 from (select clock_timestamp() as at) c where $15::bigint = 0
    on conflict (tenant_id, env, project_id) do nothing
    returning version, update_time
  ), moved as (
    update project_profiles p set version = p.version + 1, update_time = greatest(p.update_time, clock_timestamp()), updated_by = $3
    where p.tenant_id = $1 and p.env = $2 and p.project_id = $11 and p.version = $15 and ($16::boolean or not exists (
      select from project_profile_versions v
      where v.tenant_id = $1 and v.env = $2 and v.project_id = $11 and v.version = $15 and v.lock_time is not null))
    returning p.version, p.update_time
  ), content as (
    insert into project_profile_versions (tenant_id, env, project_id, version, yaml, base_version, merged, create_time, created_by)
    select $1, $2, $11, version, $12::text, $13::bigint, $14::boolean, update_time, $3
    from (select * from made union all select * from moved) put
    returning version, true as created
  ), ${queuedProfiles(
    `(select $11::text as project_id, version, update_time as create_time from (select * from made union all select * from moved) p)`,
    't.version',
  )}, ${audited('profiles.put', 'content', {
    resource: `'projects/' || $11 || '/profile'`,
    metadata: `jsonb_build_object('version', version, 'base_version', $13, 'merged', $14)`,
  })}, ${requested('content')}
  select * from content`);

/** Makes the version after `newest`. Refuses as `Outdated` if there is one already, or `newest` was locked meanwhile. */
export async function putProfile(tx: TenantTx, put: PutProfile): Promise<PutRow[]> {
  const { projectId, yaml, baseVersion, merged, newest, reopen } = put;
  const [, rows] = await together([
    holdProfile(tx, projectId),
    tx.final(PUT, [projectId, yaml, baseVersion, merged, newest, reopen]),
  ]);
  if (rows.length === 0) throw new Outdated('the profile has changed');
  return rows;
}

const KEEP = change<PutRow>(`
  with kept as (select $11::bigint as version, false as created), ${requested('kept')}
  select * from kept`);

/** Notes that a put changed nothing, as the document says what this version says. */
export async function keepProfile(tx: TenantTx, version: number): Promise<PutRow[]> {
  return tx.final(KEEP, [version]);
}

export interface ProfileState {
  newest: number;
  yaml: string;
  locked: boolean;
  stub: boolean;
  /** Null if there is no such version. */
  baseYaml: string | null;
}

const STATE = query<ProfileState>(`
  select v.version as newest, v.yaml, v.lock_time is not null as locked, v.stub, (
    select b.yaml from project_profile_versions b
    where b.tenant_id = $1 and b.env = $2 and b.project_id = $4 and b.version = $5::bigint
  ) as base_yaml
  from project_profile_versions v
  where v.tenant_id = $1 and v.env = $2 and v.project_id = $4 and v.version = ${NEWEST}`);

/** What a put has to be merged with: the newest version, and the one that it is based on. */
export async function profileState(db: TenantDb, projectId: string, base: number): Promise<ProfileState | undefined> {
  const [state] = await db.query(STATE, [projectId, base]);
  return state;
}

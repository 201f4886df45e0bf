import type pg from 'pg';
import { v7 as uuidv7 } from 'uuid';
import { type Kept, RECORDS, type RecordKind, recordsOf } from '../artifacts/records.ts';
import { audited, commandStamp } from '../db/change.ts';
import { sqlState } from '../db/failure.ts';
import type { Database } from '../db/pool.ts';
import { change } from '../db/statement.ts';
import { type Scope, type TenantTx, transaction } from '../db/transaction.ts';
import { UserError } from '../errors.ts';
import { Snapshot_Kind, Snapshot_UploadState } from '../gen/memory/v1/artifact.ts';
import { BadSnapshot, folderOf, isSnapshot, type Subject, unpack } from '../snapshots/archive.ts';
import { type Store, StoreError } from '../snapshots/store.ts';
import { readTables } from './catalog.ts';
import { CALL_MS, type Statements, statementsOf } from './rows.ts';

/** What a project's snapshots are put into. */
export interface Place {
  database: Database;
  tenant: string;
  env: string;
  projectId: string;
}

export interface Rehydrated {
  /** Files from which something was restored, and those of which all was there. */
  restored: number;
  there: number;
  /** Versions between others that the store does not have. */
  missing: string[];
  /** Names of files that are no snapshots. */
  strangers: string[];
}

interface Read {
  subject: Subject;
  records: Kept[];
  sha256: string;
  bytes: number;
}

// $11 is an array of lines with the rows of revisions. Fencing tokens go on from the clock: none from before the loss, which
// somebody may still hold, comes again.
const SECTIONS = change(`
  insert into drafts as d (tenant_id, env, project_id, section_id, revision, create_time, update_time, created_by, updated_by, fencing_token)
  select $1, $2, r.project_id, r.section_id, r.revision, (e.line -> 'row' ->> 'draft_create_time')::timestamptz, r.create_time,
    e.line -> 'row' ->> 'draft_created_by', r.created_by, extract(epoch from now())::bigint
  from json_array_elements($11::json) e (line), json_populate_record(null::draft_revisions, e.line -> 'row') r
  on conflict (tenant_id, env, project_id, section_id) do update set
    revision = excluded.revision, update_time = excluded.update_time, updated_by = excluded.updated_by
  where d.revision < excluded.revision
  returning 1`);

const PROFILES = change(`
  insert into project_profiles as p (tenant_id, env, project_id, version, create_time, update_time, created_by, updated_by)
  select $1, $2, r.project_id, r.version, r.create_time, r.create_time, r.created_by, r.created_by
  from json_array_elements($11::json) e (line), json_populate_record(null::project_profile_versions, e.line -> 'row') r
  on conflict (tenant_id, env, project_id) do update set
    version = greatest(p.version, excluded.version),
    update_time = case when excluded.version > p.version then excluded.update_time else p.update_time end,
    updated_by = case when excluded.version > p.version then excluded.updated_by else p.updated_by end,
    create_time = least(p.create_time, excluded.create_time),
    created_by = case when excluded.create_time < p.create_time then excluded.created_by else p.created_by end
  returning 1`);

/** What has to be there before the rows of a kind: what follows from them. */
const BEFORE: Partial<Record<RecordKind, typeof SECTIONS>> = { sections: SECTIONS, profiles: PROFILES };

// What an artifact names is locked, since the first that did.
const LOCK = change(`
  with artifact as (
    select r.* from json_array_elements($11::json) e (line), json_populate_record(null::artifacts, e.line -> 'row') r
  ), revisions as (
    update draft_revisions r set lock_time = a.create_time from artifact a, jsonb_array_elements(a.sections) s
    where r.tenant_id = $1 and r.env = $2 and r.project_id = a.project_id and r.section_id = s ->> 'sectionId'
      and r.revision = (s ->> 'revision')::bigint and coalesce(r.lock_time > a.create_time, true)
    returning 1
  )
  update project_profile_versions v set lock_time = a.create_time from artifact a
  where v.tenant_id = $1 and v.env = $2 and v.project_id = a.project_id and v.version = a.profile_version
    and coalesce(v.lock_time > a.create_time, true)
  returning 1`);

const STORED = change<{ id: string }>(`
  with restored as (
    insert into snapshots (tenant_id, env, id, project_id, kind, artifact_key, version, upload_state, queue_time, due_time, link, sha256,
      size_bytes, create_time, store_time, created_by)
    select $1, $2, $12::uuid, $13::text, $14::smallint, $15::text, $16::bigint, ${Snapshot_UploadState.STORED}, c.at, c.at, $17::text,
      $18::text, $19::bigint, r.create_time, c.at, r.created_by
    from json_array_elements($11::json) e (line), json_populate_record(null::artifacts, e.line -> 'row') r,
      (select clock_timestamp() as at) c
    on conflict (tenant_id, env, project_id, kind, artifact_key, version) do nothing
    returning id, project_id
  ), ${audited('snapshots.restore', 'restored', { resource: `'projects/' || project_id || '/snapshots/' || id` })}
  select id from restored`);

/**
 * Rebuilds what was committed of a project from its snapshots. First all of them are read: if one is damaged, nothing is
 * stored. Then each is stored whole or not at all. What is there already is left alone, so that it can be run again.
 */
export async function rehydrate(
  place: Place,
  client: pg.Client,
  store: Store,
  tell: (file: string) => void,
): Promise<Rehydrated> {
  const folder = folderOf(place);
  const files = await asked('list', () => store.list(folder));
  const names = [...files.keys()].filter(isSnapshot);
  if (names.length === 0) throw new UserError(`the store has no snapshots of ${folder}`);
  const read = async (name: string): Promise<Read> => {
    tell(name);
    const bytes = await asked(`${folder}/${name}`, () => store.get(folder, name));
    return opened(place, `${folder}/${name}`, name, bytes);
  };

  // Inputs may have been added to between two snapshots: what the newest has is stored first, and stays.
  const order: { name: string; subject: Subject; time: string }[] = [];
  for (const name of names) {
    const { subject, records } = await read(name);
    order.push({ name, subject, time: JSON.parse(records.at(-1)!.row).create_time });
  }
  order.sort((a, b) => Date.parse(b.time) - Date.parse(a.time));

  const statements = await statementsOfAll(client);
  const result: Rehydrated = {
    restored: 0,
    there: 0,
    missing: missing(order.map(({ subject }) => subject)),
    strangers: [...files.keys()].filter((name) => !isSnapshot(name)),
  };
  for (const { name } of order) {
    const { link } = files.get(name)!;
    if (await storeAll(place, `${folder}/${name}`, statements, await read(name), link)) result.restored++;
    else result.there++;
  }
  return result;
}

async function asked<T>(what: string, work: () => Promise<T>): Promise<T> {
  return work().catch((error) => {
    throw error instanceof StoreError ? new UserError(`${what}: ${error.message}`) : error;
  });
}

function opened(place: Place, file: string, name: string, bytes: Buffer): Read {
  try {
    const { subject, parts, sha256 } = unpack(name, bytes);
    const { tenant, env, projectId } = subject;
    if (tenant !== place.tenant || env !== place.env || projectId !== place.projectId) {
      throw new BadSnapshot('it is of another project');
    }
    return { subject, records: recordsOf(parts), sha256, bytes: bytes.length };
  } catch (error) {
    if (error instanceof BadSnapshot) throw new UserError(`${file}: ${error.message}. Nothing was restored`);
    throw error;
  }
}

async function statementsOfAll(client: pg.Client): Promise<Map<RecordKind, Statements>> {
  const tables = await readTables((sql) => client.query(sql));
  return new Map(
    Object.entries(RECORDS).map(([kind, { table, columns, text }]) => [
      kind as RecordKind,
      statementsOf(tables.find(({ name }) => name === table)!, [...columns, text]),
    ]),
  );
}

/** The rows as lines, each with its text among its columns. Postgres reads them as it wrote them. */
function linesOf(records: Kept[], kind: RecordKind): string {
  const lines = records
    .filter((record) => record.kind === kind)
    .map(({ row, text }) => {
      const open = row.trimEnd().slice(0, -1);
      return `{"row": ${open}, "${RECORDS[kind].text}": ${JSON.stringify(text)}}}`;
    });
  return `[${lines.join(',')}]`;
}

/** Stores what a snapshot holds, and that it is stored. False if all of it was there. */
async function storeAll(
  { database, tenant, env }: Place,
  file: string,
  statements: Map<RecordKind, Statements>,
  { subject, records, sha256, bytes }: Read,
  link: string,
): Promise<boolean> {
  const scope: Scope = { tenant, env, user: '' };
  const limits = { deadline: Date.now() + CALL_MS };
  const work = async (tx: TenantTx): Promise<boolean> => {
    let stored = 0;
    for (const [kind, { store }] of statements) {
      const lines = linesOf(records, kind);
      const before = BEFORE[kind];
      if (before) await tx.query(before, [lines]);
      const [row] = await tx.query(store, [lines]);
      stored += row!.stored;
      if (row!.differing && kind !== 'inputs') throw new Differs(`${RECORDS[kind].table} ${row!.differing.join(', ')}`);
    }
    const { kind, projectId, artifactKey, version } = subject;
    if (kind === 'artifact') await tx.query(LOCK, [linesOf(records, 'artifacts')]);
    const of = kind === 'artifact' ? Snapshot_Kind.ARTIFACT : Snapshot_Kind.PROFILE;
    const itself = linesOf(records, kind === 'artifact' ? 'artifacts' : 'profiles');
    const values = [itself, uuidv7(), projectId, of, artifactKey, version, link, sha256, bytes];
    return (await tx.final(STORED, values)).length + stored > 0;
  };
  try {
    return await transaction(database, scope, commandStamp('Rehydrate'), limits, { repeatable: true }, work);
  } catch (error) {
    const why = error instanceof Differs ? error.message : /^2[23]/.test(sqlState(error)) && sqlState(error);
    if (!why) throw error;
    throw new UserError(`${file}: ${why} is there already, but not as in the snapshot. Nothing of it was restored`);
  }
}

/** Rows are there with the same keys and other values. */
class Differs extends Error {}

/** Versions below the newest of an artifact, or of the profile, that have no snapshot. */
function missing(subjects: Subject[]): string[] {
  const versions = new Map<string, Set<number>>();
  for (const { kind, artifactKey, version } of subjects) {
    const name = artifactKey ? `${kind} ${artifactKey}` : kind;
    versions.set(name, (versions.get(name) ?? new Set()).add(version));
  }
  return [...versions].flatMap(([name, found]) =>
    Array.from({ length: Math.max(...found) }, (_, i) => i + 1)
      .filter((version) => !found.has(version))
      .map((version) => `${name}, version ${version}`),
  );
}

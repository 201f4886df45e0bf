import { v7 as uuidv7 } from 'uuid';
import { audited, requested } from '../db/change.ts';
import { Overtaken } from '../db/failure.ts';
import { change, json, pointRead, query } from '../db/statement.ts';
import type { TenantDb, TenantTx } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { Memory, MemoryVersion } from '../gen/memory/v1/project_memory.ts';
import { deleted, etagMismatch, notFound, type RpcError } from '../rpc/errors.ts';
import type { JsonObject } from '../wire/struct.ts';
import { admitEmbedding, WITH_EMBEDDING, WITHOUT_EMBEDDING } from './embeddings.ts';
import { indexed } from './texts.ts';

const KEPT_VERSIONS = 100;
/** So many memories are sorted rather than looked for in order. */
const FEW = 1000;

/** A memory that was neither deleted nor has expired. */
export const live = (row: string) =>
  `${row}.delete_time is null and (${row}.expire_time is null or ${row}.expire_time > now())`;

const COLUMNS = 'id, project_id, key, version, create_time, update_time, expire_time, created_by, updated_by';
const COLUMNS_OF_M = COLUMNS.replace(/\b(?=\w+(,|$))/g, 'm.');

/** What the server makes of a memory: all but the value and the metadata. */
export interface SavedRow {
  id: string;
  projectId: string;
  key: string;
  version: number;
  createTime: Timestamp;
  updateTime: Timestamp;
  expireTime: Timestamp | null;
  createdBy: string;
  updatedBy: string;
  lastAccessTime: Timestamp | null;
  accessCount: number;
}

export interface MemoryRow extends SavedRow {
  value: string;
  metadata: JsonObject;
  useTime: Timestamp;
  byteSize: number;
}

type Content = Pick<MemoryRow, 'value' | 'metadata'>;

/** The key may be another memory's later, with the same versions. */
const etagOf = ({ id, version }: { id: string; version: number }): string => `"${id}.${version}"`;
const etag = (row: string) => `'"' || ${row}.id || '.' || ${row}.version || '"'`;

export function memoryFromRow(row: SavedRow & Content): Memory {
  const { expireTime, lastAccessTime, ...rest } = row;
  return Memory.fromPartial({
    ...rest,
    expireTime: expireTime ?? undefined,
    lastAccessTime: lastAccessTime ?? undefined,
    etag: etagOf(row),
  } as object);
}

/**
 * The CTEs that go with `saved` and `content`, a new version of a memory and its row: the oldest version is forgotten, the use
 * noted, and what is searched replaced.
 */
const VERSIONED = `pruned as (
    delete from memory_versions v using saved
    where v.tenant_id = $1 and v.env = $2 and v.memory_id = saved.id and v.version <= saved.version - ${KEPT_VERSIONS}
    returning 1
  ), used as (
    insert into memory_uses as u (tenant_id, env, memory_id, project_id, use_time)
    select $1, $2, id, project_id, update_time from saved
    on conflict (tenant_id, env, memory_id) do update set use_time = greatest(u.use_time, excluded.use_time)
    returning last_access_time, access_count
  ), result as (
    select saved.*, used.last_access_time, used.access_count from saved, used
  ), searched as (
    select saved.id, saved.project_id, saved.key, saved.version, content.value from saved, content
  ), ${indexed('searched')}`;

const about = {
  resource: `'projects/' || project_id || '/memories/' || id`,
  metadata: `jsonb_build_object('version', version)`,
};

// One that has expired has the key until it is swept: it goes in a statement before, which goes by the same instant.
const RETIRE = query(`
  delete from memories
  where tenant_id = $1 and env = $2 and project_id = $4 and key = $5 and delete_time is null and expire_time <= now()`);

const put = (embedding: string) =>
  change<SavedRow & { created: boolean }>(`
  with saved as (
    insert into memories as m (tenant_id, env, id, project_id, key, version, create_time, update_time, expire_time, created_by, updated_by)
    select $1, $2, $11::uuid, $12::text, $13::text, 1, c.at, c.at, coalesce($16::timestamptz, c.at + make_interval(secs => $17::float8)), $3, $3
    from (select now() as at) c
    where $18::text is null or exists (
      select from memories m where m.tenant_id = $1 and m.env = $2 and m.project_id = $12 and m.key = $13 and ${live('m')})
    on conflict (tenant_id, env, project_id, key) where delete_time is null
    do update set version = m.version + 1, update_time = greatest(m.update_time, excluded.update_time),
      expire_time = excluded.expire_time, updated_by = excluded.updated_by
    where (m.expire_time is null or m.expire_time > excluded.update_time) and ($18 is null or ${etag('m')} = $18)
    returning ${COLUMNS_OF_M}, m.version = 1 as created
  ), content as (
    insert into memory_versions (tenant_id, env, memory_id, version, value, metadata, create_time, created_by)
    select $1, $2, id, version, $14::text, $15::jsonb, update_time, $3 from saved
    returning value
  ), ${VERSIONED}, ${embedding}, ${audited('memories.put', 'saved', about)}, ${requested('result')}
  select * from result`);

export interface Put {
  projectId: string;
  key: string;
  value: string;
  metadata: JsonObject;
  expireTime?: string | undefined;
  ttlSeconds?: number | undefined;
  /** That of the stored memory, or '' for whatever is stored. */
  etag: string;
  embedding: number[];
}

const PUT = put(WITHOUT_EMBEDDING);
const PUT_EMBEDDED = put(WITH_EMBEDDING);

/** Gives no rows if it refused: see {@link whyNotSaved}. */
export async function putMemory(tx: TenantTx, put: Put): Promise<(SavedRow & { created: boolean })[]> {
  const { projectId, key, value, metadata, expireTime, ttlSeconds, etag, embedding } = put;
  await tx.query(RETIRE, [projectId, key]);
  const values = [uuidv7(), projectId, key, value, json(metadata), expireTime, ttlSeconds, etag || null];
  if (embedding.length > 0) await admitEmbedding(tx, projectId, embedding);
  const saved =
    embedding.length > 0
      ? await tx.final(PUT_EMBEDDED, [...values, embedding.length, json(embedding)])
      : await tx.final(PUT, values);
  if (saved.length === 0 && !etag) throw new Overtaken('a memory came and expired meanwhile');
  return saved;
}

const RESTORE = change<SavedRow & { restored: number }>(`
  with wanted as (
    select v.memory_id, v.value, v.metadata, v.version from memories m
    join memory_versions v on v.tenant_id = $1 and v.env = $2 and v.memory_id = m.id and v.version = $13::bigint
    where m.tenant_id = $1 and m.env = $2 and m.project_id = $11 and m.key = $12 and ${live('m')}
  ), saved as (
    update memories m set version = m.version + 1, update_time = greatest(m.update_time, clock_timestamp()), updated_by = $3
    from wanted
    where m.tenant_id = $1 and m.env = $2 and m.id = wanted.memory_id and ${live('m')} and ($14::text is null or ${etag('m')} = $14)
    returning ${COLUMNS_OF_M}
  ), content as (
    insert into memory_versions (tenant_id, env, memory_id, version, value, metadata, restored_version, create_time, created_by)
    select $1, $2, saved.id, saved.version, wanted.value, wanted.metadata, wanted.version, saved.update_time, $3 from saved, wanted
    returning value
  ), ${VERSIONED}, ${WITHOUT_EMBEDDING}, ${audited('memories.restore', 'saved', about)}, ${requested('result')}
  select * from result`);

/** Gives no rows if it refused: see {@link whyNotSaved}. */
export async function restoreMemory(
  tx: TenantTx,
  { projectId, key }: Key,
  from: number,
  etag: string,
): Promise<SavedRow[]> {
  return tx.final(RESTORE, [projectId, key, from, etag || null]);
}

const DELETE = change<{ id: string }>(`
  with gone as (
    update memories m set delete_time = clock_timestamp()
    where m.tenant_id = $1 and m.env = $2 and m.project_id = $11 and m.key = $12 and ${live('m')}
      and ($13::text is null or ${etag('m')} = $13)
    returning m.id, m.project_id, m.version
  ), emptied as (
    delete from memory_versions v using gone where v.tenant_id = $1 and v.env = $2 and v.memory_id = gone.id
    returning 1
  ), ${['memory_uses', 'memory_texts', 'memory_embeddings']
    .map(
      (table) => `gone_${table} as (
    delete from ${table} t using gone where t.tenant_id = $1 and t.env = $2 and t.memory_id = gone.id
    returning 1
  )`,
    )
    .join(', ')}, ${audited('memories.delete', 'gone', about)}, ${requested('gone')}
  select id from gone`);

export interface Key {
  projectId: string;
  key: string;
}

/** Gives no rows if it refused: see {@link whyNotSaved}. */
export async function deleteMemory(tx: TenantTx, { projectId, key }: Key, etag: string) {
  return tx.final(DELETE, [projectId, key, etag || null]);
}

const STATE = pointRead<{ id: string; version: number; deleted: boolean; there: boolean }>(`
  select m.id, m.version, m.delete_time is not null as deleted, ${live('m')} as there from memories m
  where m.tenant_id = $1 and m.env = $2 and m.project_id = $4 and m.key = $5
  order by m.delete_time desc nulls first limit 1`);

/** Why nothing was put: only an etag can be in the way, that of a memory which is not there, too. */
export async function whyNotPut(db: TenantDb, { projectId, key }: Key): Promise<RpcError> {
  const [state] = await db.query(STATE, [projectId, key]);
  return etagMismatch(state?.there ? etagOf(state) : '');
}

/** Why a write found no memory to change. */
export async function whyNotSaved(db: TenantDb, { projectId, key }: Key, etag: string): Promise<RpcError> {
  const [state] = await db.query(STATE, [projectId, key]);
  if (state?.there && etag && etag !== etagOf(state)) return etagMismatch(etagOf(state));
  return state?.there ? notFound('version') : missing(state);
}

const missing = (state: { deleted: boolean } | undefined) => (state?.deleted ? deleted('memory') : notFound('memory'));

/** Columns of a {@link MemoryRow}, of m (memories), v ({@link JOINED}) and u (memory_uses). */
export const READ = `select ${COLUMNS_OF_M}, v.value, v.metadata, v.byte_size, u.use_time, u.last_access_time, u.access_count`;
export const JOINED = `join memory_versions v on v.tenant_id = $1 and v.env = $2 and v.memory_id = m.id and v.version = m.version`;

const GET = pointRead<MemoryRow>(`
  ${READ} from memories m ${JOINED}
  join memory_uses u on u.tenant_id = $1 and u.env = $2 and u.memory_id = m.id
  where m.tenant_id = $1 and m.env = $2 and m.project_id = $4 and m.key = $5 and ${live('m')}`);

export async function getMemory(db: TenantDb, { projectId, key }: Key): Promise<MemoryRow> {
  const [row] = await db.query(GET, [projectId, key]);
  if (row) return row;
  const [state] = await db.query(STATE, [projectId, key]);
  throw missing(state);
}

const MATCHING = `($6::jsonb is null or exists (
          select from memory_versions v
          where v.tenant_id = $1 and v.env = $2 and v.memory_id = m.id and v.version = m.version and v.metadata @> $6))
        and ($7::timestamptz is null or (u.use_time, u.memory_id) < ($7, $8::uuid))
      order by u.use_time desc, u.memory_id desc limit $9::int`;

const walk = (condition: string) => `
      select u.* from memory_uses u
      join memories m on m.tenant_id = $1 and m.env = $2 and m.id = u.memory_id and ${live('m')} and starts_with(m.key, $5)
      where u.tenant_id = $1 and u.env = $2 and u.project_id = $4 and ${condition} and ${MATCHING}`;

// Past 1 MiB the values are not read; what a row adds is told without them.
const list = (named: string, found: string) =>
  query<MemoryRow>(`
  ${named}${READ} from (
    select u.*, sum(v.byte_size) over (order by u.use_time desc, u.memory_id desc rows unbounded preceding) as running
    from (${found}
    ) u
    join memories m on m.tenant_id = $1 and m.env = $2 and m.id = u.memory_id ${JOINED}
  ) u
  join memories m on m.tenant_id = $1 and m.env = $2 and m.id = u.memory_id ${JOINED}
  where u.running - v.byte_size <= 1048576
  order by u.use_time desc, u.memory_id desc`);

const LIST = list('', walk('true'));

// Few that have a prefix are found by their keys, of which none is longer than 256 characters: on the way along those used
// last, a rare prefix among 100,000 took 130 ms in place of 1. Many are met soon on that way, and would all have to be sorted.
const LIST_PREFIX = list(
  `with named as materialized (
    select m.id, m.version from memories m
    where m.tenant_id = $1 and m.env = $2 and m.project_id = $4 and ${live('m')} and starts_with(m.key, $5)
      and m.key ~>=~ $5 and m.key ~<=~ ($5 || repeat(chr(1114111), 256))
    limit ${FEW + 1}
  )
  `,
  `
      (${walk(`(select count(*) from named) > ${FEW}`)})
      union all (
      select u.* from named m
      join memory_uses u on u.tenant_id = $1 and u.env = $2 and u.memory_id = m.id
      where (select count(*) from named) <= ${FEW} and ${MATCHING})`,
);

export async function listMemories(
  db: TenantDb,
  filter: { projectId: string; keyPrefix: string; metadataFilter: JsonObject | undefined },
  after: string[] | undefined,
  limit: number,
): Promise<MemoryRow[]> {
  const { projectId, keyPrefix, metadataFilter } = filter;
  return db.query(keyPrefix ? LIST_PREFIX : LIST, [
    projectId,
    keyPrefix,
    json(metadataFilter),
    after?.[0],
    after?.[1],
    limit,
  ]);
}

export interface VersionRow extends Content {
  version: number;
  restoredVersion: number;
  createTime: Timestamp;
  createdBy: string;
  byteSize: number;
}

const LIST_VERSIONS = pointRead<VersionRow>(`
  select version, value, metadata, restored_version, create_time, created_by, byte_size from (
    select v.*, sum(v.byte_size) over (order by v.version desc rows unbounded preceding) as running
    from (
      select v.* from memory_versions v
      where v.tenant_id = $1 and v.env = $2 and v.version < coalesce($6::bigint, 9223372036854775807) and v.memory_id = (
        select m.id from memories m where m.tenant_id = $1 and m.env = $2 and m.project_id = $4 and m.key = $5 and ${live('m')})
      order by v.version desc limit $7::int
    ) v
  ) v
  where running - byte_size <= 1048576
  order by version desc`);

export async function listVersions(
  db: TenantDb,
  { projectId, key }: Key,
  after: string | undefined,
  limit: number,
): Promise<VersionRow[]> {
  return db.query(LIST_VERSIONS, [projectId, key, after, limit]);
}

const CONTENT = pointRead<Content>(`
  select value, metadata from memory_versions where tenant_id = $1 and env = $2 and memory_id = $4::uuid and version = $5::bigint`);

/** What a memory held at a version. */
export async function contentAt(db: TenantDb, { id, version }: SavedRow): Promise<Content> {
  const [content] = await db.query(CONTENT, [id, version]);
  if (!content) throw deleted('memory'); // since, or it is a replay after a hundred other versions
  return content;
}

export const versionFromRow = (row: VersionRow): MemoryVersion => MemoryVersion.fromPartial(row as object);

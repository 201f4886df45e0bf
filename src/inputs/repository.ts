import { v7 as uuidv7 } from 'uuid';
import { audited, requested } from '../db/change.ts';
import { change, json, pointRead, query } from '../db/statement.ts';
import type { TenantDb, TenantTx } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { Input } from '../gen/memory/v1/input.ts';
import { notFound } from '../rpc/errors.ts';
import { READABLE } from '../sessions/repository.ts';
import type { JsonObject } from '../wire/struct.ts';

const COLUMNS = `i.id, i.project_id, i.session_id, i.file_name, i.media_type, i.size_bytes, i.sha256, i.uri, i.content_bytes, i.metadata,
    i.sections, i.create_time, i.update_time, i.created_by, i.updated_by`;

export interface InputRow {
  id: string;
  projectId: string;
  sessionId: string | null;
  fileName: string;
  mediaType: string;
  sizeBytes: number;
  sha256: string;
  uri: string;
  contentBytes: number;
  metadata: JsonObject;
  sections: string[];
  createTime: Timestamp;
  updateTime: Timestamp;
  createdBy: string;
  updatedBy: string;
  byteSize: number;
  content?: string;
}

export function inputFromRow({ sections, byteSize: _, ...row }: InputRow): Input {
  return Input.fromPartial({ ...row, sessionId: row.sessionId ?? '', sectionIds: sections });
}

export interface NewInput {
  projectId: string;
  sessionId: string;
  fileName: string;
  mediaType: string;
  sizeBytes: number;
  sha256: string;
  uri: string;
  content: string;
  metadata: JsonObject;
  sectionIds: string[];
}

// The same file again adds to what there is, and takes nothing away. A session has to be the caller's.
const REGISTER = change<{ id: string; created: boolean }>(`
  with saved as (
    insert into project_inputs as i (tenant_id, env, id, project_id, session_id, file_name, media_type, size_bytes, sha256, uri, content,
      metadata, sections, create_time, update_time, created_by, updated_by)
    select $1, $2, $11::uuid, $12::text, $13::uuid, $14::text, $15::text, $16::bigint, $17::text, $18::text, $19::text,
      $20::jsonb, union_texts('{}', $21::text[]), c.at, c.at, $3, $3
    from (select clock_timestamp() as at) c
    where $13 is null or exists (
      select from sessions s where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $13 and ${READABLE})
    on conflict (tenant_id, env, project_id, sha256) do update set
      session_id = coalesce(i.session_id, excluded.session_id),
      media_type = coalesce(nullif(i.media_type, ''), excluded.media_type),
      size_bytes = case when i.size_bytes = 0 then excluded.size_bytes else i.size_bytes end,
      uri = coalesce(nullif(i.uri, ''), excluded.uri),
      content = coalesce(nullif(i.content, ''), excluded.content),
      metadata = case when i.metadata = '{}' then excluded.metadata else i.metadata end,
      sections = union_texts(i.sections, excluded.sections),
      update_time = greatest(i.update_time, excluded.update_time),
      updated_by = excluded.updated_by
    returning i.id, i.id = $11 as created, i.project_id, i.session_id
  ), ${audited('inputs.register', 'saved', {
    resource: `'projects/' || project_id || '/inputs/' || id`,
    session: 'session_id',
    metadata: `jsonb_build_object('created', created)`,
  })}, ${requested('saved')}
  select id, created from saved`);

/** Registers an input. Gives no rows if its session is not the caller's. */
export async function registerInput(tx: TenantTx, input: NewInput): Promise<{ id: string; created: boolean }[]> {
  const { projectId, sessionId, fileName, mediaType, sizeBytes, sha256, uri, content, metadata, sectionIds } = input;
  const file = [fileName, mediaType, sizeBytes, sha256, uri, content];
  return tx.final(REGISTER, [uuidv7(), projectId, sessionId || null, ...file, json(metadata), sectionIds]);
}

const find = (content: string) => `
  select ${COLUMNS}${content}, i.byte_size from project_inputs i where i.tenant_id = $1 and i.env = $2 and i.id = $4::uuid`;
const FIND = pointRead<InputRow>(find(''));
const GET = query<InputRow>(find(', i.content'));

/** An input, with its content or without. */
export async function getInput(db: TenantDb, id: string, withContent: boolean): Promise<InputRow> {
  const [row] = await db.query(withContent ? GET : FIND, [id]);
  if (!row) throw notFound('input');
  return row;
}

// Past 1 MiB the rows are not read.
const LIST = query<InputRow>(`
  select ${COLUMNS}, i.byte_size from (
    select i.id, sum(i.byte_size) over (order by i.id desc rows unbounded preceding) - i.byte_size as before
    from (
      select i.id, i.byte_size from project_inputs i
      where i.tenant_id = $1 and i.env = $2 and i.project_id = $4 and ($5::text = '' or $5 = any (i.sections))
        and i.id < coalesce($6::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
      order by i.id desc limit $7::int
    ) i
  ) page
  join project_inputs i on i.tenant_id = $1 and i.env = $2 and i.id = page.id
  where page.before <= 1048576
  order by i.id desc`);

export async function listInputs(
  db: TenantDb,
  { projectId, sectionId }: { projectId: string; sectionId: string },
  after: string | undefined,
  limit: number,
): Promise<InputRow[]> {
  return db.query(LIST, [projectId, sectionId, after, limit]);
}

const MISSING = pointRead<{ id: string }>(`
  select w.id from unnest($5::uuid[]) w (id)
  where not exists (
    select from project_inputs i where i.tenant_id = $1 and i.env = $2 and i.id = w.id and i.project_id = $4)
  limit 1`);

/** Whether a project has all of these inputs. */
export async function hasInputs(db: TenantDb, projectId: string, ids: string[]): Promise<boolean> {
  return ids.length === 0 || (await db.query(MISSING, [projectId, ids])).length === 0;
}

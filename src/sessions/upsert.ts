import { v7 as uuidv7 } from 'uuid';
import { audited, requested } from '../db/change.ts';
import { change, json } from '../db/statement.ts';

import { type FinalTx, type TenantTx, together } from '../db/transaction.ts';
import { noteEmail } from '../profiles/email-matches.ts';
import { STUBBED } from '../projects/stub.ts';
import { added } from '../quotas/sessions.ts';

import type { SessionChange } from './change.ts';
import { MINTED } from './owner.ts';
import { COLUMNS_OF_S, LAST_SEQ, LIVE, type SavedRow } from './repository.ts';

// The function is called only for refs that change: it takes 20 µs to do nothing.
const refs = (stored: string, field: string, stamp: string, at: string) => `
      case when $16::jsonb ?| '{${field},remove_ref_ids}'
        then merge_refs(${stored}, $16, '${field}', '${stamp}', ${at}) else ${stored} end`;

// $16 holds the changed fields, $17 to $20 the expiry: an instant, or seconds from now and whether these slide, or never.
const changed = (at: string) => `
      title = coalesce($16::jsonb ->> 'title', s.title),
      preferences = merge_struct(s.preferences, $16, 'preferences'),
      pinned_refs = ${refs('s.pinned_refs', 'pinned_refs', 'pin_time', at)},
      summary_refs = ${refs('s.summary_refs', 'summary_refs', 'create_time', at)},
      state = merge_struct(s.state, $16, 'state'),
      metadata = merge_struct(s.metadata, $16, 'metadata'),
      metrics = merge_struct(s.metrics, $16, 'metrics'),
      tool_id = coalesce($16 ->> 'tool_id', s.tool_id),
      workspace_path = coalesce($16 ->> 'workspace_path', s.workspace_path),
      process_id = coalesce($16 ->> 'process_id', s.process_id),
      email = coalesce($16 ->> 'email', s.email),
      email_key = coalesce($16 ->> 'email_key', s.email_key),
      anonymous = s.anonymous and coalesce($16 ->> 'email', s.email) = '',
      pinned = coalesce(($16 ->> 'pinned')::boolean, s.pinned),
      archived = coalesce(($16 ->> 'archived')::boolean, s.archived),
      update_time = greatest(s.update_time, ${at}),
      last_activity_time = greatest(s.last_activity_time, ${at}),
      expire_time = case
        when $20::boolean then null
        when $17::timestamptz is not null then $17
        when $18::float8 is not null then ${at} + make_interval(secs => $18)
        when s.sliding_ttl is not null then ${at} + s.sliding_ttl
        else s.expire_time
      end,
      sliding_ttl = case
        when $20 or $17 is not null then null
        when $18 is not null then case when $19::boolean then make_interval(secs => $18) end
        else s.sliding_ttl
      end,
      revision = s.revision + 1`;

// $22 is the hash of a new session key, $23 its life in seconds, $24 the key sealed for a replay, $25 revokes the others.
const KEYS = `revoked as (
    delete from session_keys k using saved
    where k.tenant_id = $1 and k.env = $2 and k.session_id = saved.id and $25::boolean
    returning 1
  ), issued as (
    insert into session_keys (tenant_id, env, key_hash, session_id, user_id, expire_time)
    select $1, $2, $22::bytea, saved.id, $3, now() + make_interval(secs => $23::float8) from saved where $22 is not null
    returning 1
  )`;

const AUDIT = audited('sessions.upsert', 'saved', {
  resource: `'sessions/' || id`,
  session: 'id',
  metadata: `jsonb_build_object('created', created, 'revision', revision)`,
});

// A further session of a user whom the service minted, and of whom it still knows no e-mail address.
const UNKNOWN = `case when starts_with($3, '${MINTED}') then exists (
        select from tenant_members m where m.tenant_id = $1 and m.env = $2 and m.user_id = $3 and m.anonymous)
        and not exists (select from profiles p where p.tenant_id = $1 and p.env = $2 and p.user_id = $3 and p.email_key <> '') else false end`;

// `key`: a thread that the service named counts as left out, so that a caller may send back what it got.
// A row that has expired makes way: ended, it leaves the unique index before the insert, which waits for it. A new session
// writes the row of a thread that is there, deleted or not: so it waits for a delete under way, and sees what that did.
// $29 is the state that a new session starts with, $30 the session that left it, $31 how many the tenant may have.
const UPSERT_BY_KEY = change<SavedRow>(`
  with key as materialized (
    select coalesce((
      select s.key_thread_id from sessions s
      where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.thread_id = $14 and s.surface_id = $12 and s.project_id = $13
        and s.key_thread_id = '' and ${LIVE}
      limit 1), $14::text) as thread
  ), retired as (
    update sessions s set end_time = expire_time
    where tenant_id = $1 and env = $2 and user_id = $3 and surface_id = $12 and project_id = $13
      and key_thread_id = (select thread from key)
      and end_time is null and delete_time is null and expire_time <= now()
    returning 1
  ), saved as (
    insert into sessions as s (tenant_id, env, id, user_id, surface_id, project_id, key_thread_id, thread_id, title, preferences,
      pinned_refs, summary_refs, state, metadata, metrics, tool_id, workspace_path, process_id, email, email_key, anonymous, pinned, archived,
      create_time, update_time, last_activity_time, expire_time, sliding_ttl)
    select $1, $2, $11::uuid, $3, $12, $13, (select thread from key), $15, coalesce($16::jsonb ->> 'title', ''), merge_struct('{}', $16, 'preferences'),
      ${refs(`'[]'`, 'pinned_refs', 'pin_time', 'c.at')}, ${refs(`'[]'`, 'summary_refs', 'create_time', 'c.at')},
      merge_struct(coalesce($29::jsonb, '{}'), $16, 'state'), merge_struct('{}', $16, 'metadata'), merge_struct('{}', $16, 'metrics'),
      coalesce($16 ->> 'tool_id', ''), coalesce($16 ->> 'workspace_path', ''), coalesce($16 ->> 'process_id', ''),
      coalesce($16 ->> 'email', ''), coalesce($16 ->> 'email_key', ''), ($27::boolean or ${UNKNOWN}) and coalesce($16 ->> 'email', '') = '',
      coalesce(($16 ->> 'pinned')::boolean, false), coalesce(($16 ->> 'archived')::boolean, false), c.at, c.at, c.at,
      case when $20::boolean then null else coalesce($17::timestamptz, c.at + make_interval(secs => $18::float8)) end,
      case when $19::boolean then make_interval(secs => $18) end
    from (select clock_timestamp() as at, count(*) from retired) c
    where $21::bigint is null or exists (
      select from sessions s
      where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.surface_id = $12 and s.project_id = $13
        and s.key_thread_id = (select thread from key) and ${LIVE})
    on conflict (tenant_id, env, user_id, surface_id, project_id, key_thread_id) where end_time is null and delete_time is null
    do update set ${changed('excluded.update_time')}
    where $21 is null or s.revision = $21
    returning ${COLUMNS_OF_S}, s.id = $11 as created, $24::text as sealed_key, case when $28::boolean then ${LAST_SEQ} end as last_seq,
      case when s.id = $11 then $30::uuid end as recovered_from
  ), revived as (
    update threads t
    set thread_uid = case when t.delete_time is null then t.thread_uid else $26::uuid end,
      last_seq = case when t.delete_time is null then t.last_seq else 0 end,
      revision = t.revision + (t.delete_time is not null)::int,
      base_revision = case when t.delete_time is null then t.base_revision else t.revision + 1 end,
      base_seq = case when t.delete_time is null then t.base_seq else 0 end,
      create_time = case when t.delete_time is null then t.create_time else saved.create_time end,
      update_time = case when t.delete_time is null then t.update_time else saved.create_time end,
      delete_time = null
    from saved
    where saved.created and t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_id = saved.thread_id
    returning 1
  ), member as (
    insert into tenant_members (tenant_id, env, user_id, role, anonymous)
    select $1, $2, $3, 1, true from saved where $27
    on conflict do nothing
    returning 1
  ), ${added('$31')}, ${STUBBED}, ${KEYS}, ${AUDIT}, ${requested('saved')}
  select * from saved`);

const UPDATE_BY_ID = change<SavedRow>(`
  with saved as (
    update sessions s set ${changed('c.at')}
    from (select clock_timestamp() as at) c
    where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $11::uuid and ${LIVE}
      and $12 in ('', s.surface_id) and $13 in ('', s.project_id) and $14 in ('', s.thread_id) and $15::text is null
      and ($21::bigint is null or s.revision = $21) and $26::uuid is null and not $27::boolean
      and not $28::boolean
    returning ${COLUMNS_OF_S}, false as created, $24::text as sealed_key
  ), ${KEYS}, ${AUDIT}, ${requested('saved')}
  select * from saved`);

export interface Upsert {
  /** '' to find the session by its key. */
  id: string;
  surfaceId: string;
  projectId: string;
  threadId: string;
  change: SessionChange;
  expiry: { expireTime?: string; ttlSeconds?: number; sliding?: boolean; never?: boolean };
  /** The revision that the stored session must have. */
  revision?: number | undefined;
  anonymous: boolean;
  key?: { hash: Buffer; lifeSeconds: number; sealed: string } | undefined;
  revokeKeys: boolean;
  /** Also tells where the thread stands. Only without an id. */
  withLastSeq?: boolean;
  /** The state that a new session starts with. Only without an id. */
  recovered?: { sessionId: string; state: object } | undefined;
  /** How many live sessions the tenant may have: see `withinSessions`. */
  sessionLimit: number | undefined;
}

/** Creates or changes a session. Gives no rows if it refused: see {@link whyNotSaved}. */
export async function upsertSession(tx: FinalTx, upsert: Upsert): Promise<SavedRow[]> {
  const { id, surfaceId, projectId, threadId, change: fields, expiry, revision, anonymous, key, revokeKeys } = upsert;
  const { withLastSeq = false, recovered, sessionLimit } = upsert;
  const values = [
    id || uuidv7(),
    surfaceId,
    projectId,
    threadId,
    id ? null : threadId || uuidv7(),
    json(fields),
    expiry.expireTime,
    expiry.ttlSeconds,
    expiry.sliding ?? false,
    expiry.never ?? false,
    revision,
    key?.hash,
    key?.lifeSeconds ?? 0,
    key?.sealed,
    revokeKeys,
    id ? null : uuidv7(),
    anonymous,
    withLastSeq,
  ];
  if (id) return tx.final(UPDATE_BY_ID, values);
  return tx.final(UPSERT_BY_KEY, [...values, json(recovered?.state), recovered?.sessionId, sessionLimit]);
}

/** Whether the session gets an e-mail address, so that others who have it are looked for. */
export const namesEmail = ({ change: { email_key: key } }: Upsert): boolean => Boolean(key);

/** The same, with an e-mail address or without. */
export async function saveSession(tx: TenantTx, upsert: Upsert): Promise<SavedRow[]> {
  if (!namesEmail(upsert)) return upsertSession(tx, upsert);
  const saving = upsertSession({ scope: tx.scope, final: tx.query }, upsert);
  const [saved] = await together([saving, noteEmail(tx, upsert.change.email_key as string)]);
  return saved;
}

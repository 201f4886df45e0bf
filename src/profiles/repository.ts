import { audited, requested } from '../db/change.ts';
import { change, json, pointRead, query, timestampText } from '../db/statement.ts';
import { type TenantDb, type TenantTx, together } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { ProfileValueChange_Kind } from '../gen/memory/v1/profile.ts';
import { deleted, etagMismatch, invalid, notFound } from '../rpc/errors.ts';
import { etagOf } from '../rpc/validate.ts';
import { MINTED } from '../sessions/owner.ts';
import { type Change, type Entry, overLimit, textOf } from './accumulate.ts';
import { emailKey } from './contact.ts';
import { noteEmail } from './email-matches.ts';

const KEPT_CHANGES = 200;

export interface ProfileRow {
  entries: Entry[];
  createTime: Timestamp;
  updateTime: Timestamp;
  revision: number;
}

export type ChangedRow = Change & { revision: number; change_time: string };

interface GotRow extends ProfileRow {
  there: boolean;
  deleted: boolean;
}

const OF_SESSION = `left join sessions s on s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $4::uuid
    and (s.expire_time is null or s.expire_time > now())`;

const GET = pointRead<GotRow>(`
  select p.entries, p.create_time, p.update_time, coalesce(p.revision, 0) as revision,
    $4 is null or s.id is not null as there, s.delete_time is not null as deleted
  from (select) one
  left join profiles p on p.tenant_id = $1 and p.env = $2 and p.user_id = $3
  ${OF_SESSION}`);

function requireSession({ there, deleted: gone }: { there: boolean; deleted: boolean }): void {
  if (!there) throw notFound('session');
  if (gone) throw deleted('session');
}

/** The profile of the user, who must have the session, if one is named. */
export async function getProfile(db: TenantDb, sessionId: string): Promise<ProfileRow> {
  const [row] = await db.query(GET, [sessionId || null]);
  requireSession(row!);
  return row!;
}

// The row is made first, so that there is one to lock.
const ENSURE = query(`
  insert into profiles (tenant_id, env, user_id, create_time, update_time)
  select $1, $2, $3, c.at, c.at from (select clock_timestamp() as at) c
  on conflict (tenant_id, env, user_id) do nothing`);

export interface LockedRow extends ProfileRow {
  there: boolean;
  deleted: boolean;
  threadId: string | null;
  at: Timestamp;
}

const LOCK = query<LockedRow>(`
  select p.entries, p.create_time, p.update_time, p.revision, clock_timestamp() as at,
    $4::uuid is null or s.id is not null as there, s.delete_time is not null as deleted, s.thread_id
  from profiles p
  ${OF_SESSION}
  where p.tenant_id = $1 and p.env = $2 and p.user_id = $3
  for update of p`);

/** The profile of the user, locked against all other writers, with the thread of the session, if one is named. */
export async function lockProfile(tx: TenantTx, sessionId = ''): Promise<LockedRow> {
  const [, [row]] = await together([tx.query(ENSURE), tx.query(LOCK, [sessionId || null])]);
  requireSession(row!);
  return row!;
}

/** A time as sources keep it: as Postgres writes it, and such that texts compare as times do. */
export const sourceTime = (time: Timestamp): string => timestampText(time).replace('Z', '+00:00');

export interface SavedRow extends ProfileRow {
  changes: ChangedRow[];
  /** What a result kept for a replay has left once a value was removed. */
  gone?: boolean;
}

/** A product is named by its text, which goes with it. */
const LISTED = (field: string) => `${field} in ('products', 'services')`;

/** The CTE of the sessions that are not anonymous any more, as the profile has an e-mail address: only minted users have such. */
export const known = (user: string, key: string) => `known as (
    update sessions s set anonymous = false, revision = s.revision + 1, update_time = greatest(s.update_time, clock_timestamp())
    where s.tenant_id = $1 and s.env = $2 and s.user_id = ${user} and s.anonymous and s.delete_time is null and ${key} <> ''
      and starts_with(${user}, '${MINTED}')
    returning s.id
  )`;

// $13 tells which values go: they leave the changes, and the results kept for replays, which hold whole profiles.
const save = (action: string) =>
  change<SavedRow>(`
  with saved as (
    update profiles p
    set entries = $11::jsonb, email_key = $14, merge_id = null, revision = p.revision + 1,
      update_time = greatest(p.update_time, clock_timestamp())
    where p.tenant_id = $1 and p.env = $2 and p.user_id = $3
    returning p.entries, p.create_time, p.update_time, p.revision
  ), unmerged as (
    update profile_merges m set from_entries = null, into_entries = null
    from profiles p
    where p.tenant_id = $1 and p.env = $2 and p.user_id = $3 and m.tenant_id = $1 and m.env = $2 and m.id = p.merge_id
    returning 1
  ), changes as (
    insert into profile_changes (tenant_id, env, user_id, revision, place, field, item, kind, previous, current, source, previous_source, change_time)
    select $1, $2, $3, saved.revision, e.ord, e.c ->> 'field', case when e.c -> 'current' = 'null' and ${LISTED("e.c ->> 'field'")} then '' else e.c ->> 'item' end, (e.c ->> 'kind')::smallint,
      nullif(e.c -> 'previous', 'null'), nullif(e.c -> 'current', 'null'), e.c -> 'source', nullif(e.c -> 'previous_source', 'null'), saved.update_time
    from saved, jsonb_array_elements($12::jsonb) with ordinality e (c, ord)
    returning place, revision, change_time
  ), pruned as (
    delete from profile_changes h
    where h.tenant_id = $1 and h.env = $2 and h.user_id = $3 and (h.revision, h.place) <= (
      select o.revision, o.place from profile_changes o
      where o.tenant_id = $1 and o.env = $2 and o.user_id = $3
      order by o.revision desc, o.place desc
      offset greatest(0, ${KEPT_CHANGES} - (select count(*) from changes)) limit 1)
    returning 1
  ), erased as (
    update profile_changes h set previous = null, current = null, item = case when ${LISTED('h.field')} then '' else h.item end
    from jsonb_array_elements($13::jsonb) r
    where h.tenant_id = $1 and h.env = $2 and h.user_id = $3 and h.field = r ->> 'field' and h.item = r ->> 'item'
    returning 1
  ), forgotten as (
    update requests r set result = '[{"gone": true}]'
    where r.tenant_id = $1 and r.env = $2 and r.user_id = $3 and r.method = 'ProfileService/UpdateProfile' and $13 <> '[]'
    returning 1
  ), ${known('$3', '$14')}, result as materialized (
    select saved.*, coalesce((
      select jsonb_agg($12 -> (place - 1) || jsonb_build_object('revision', c.revision, 'change_time', c.change_time) order by place) from changes c
    ), '[]') as changes from saved
  ), ${audited(action, 'result', {
    resource: `'profiles/' || $3`,
    session: '$15::uuid',
    metadata: `jsonb_build_object('revision', revision, 'fields', (select jsonb_agg(distinct c -> 'field') from jsonb_array_elements($12) c))`,
  })}, ${requested('result')}
  select * from result`);

const UPDATE = save('profiles.update');
const EXTRACT = save('profiles.extract');

// A value that is there already changes nothing.
const NOTHING = change<SavedRow>(`
  with result as materialized (
    select p.entries, p.create_time, p.update_time, p.revision, '[]'::jsonb as changes from profiles p
    where p.tenant_id = $1 and p.env = $2 and p.user_id = $3
  ), ${audited('profiles.update', 'result', {
    resource: `'profiles/' || $3`,
    session: '$11::uuid',
    metadata: `jsonb_build_object('revision', revision)`,
  })}, ${requested('result')}
  select * from result`);

/** Refuses an etag that is not the profile's: never written, it has none. */
export function requireEtag({ revision }: ProfileRow, wanted: number | undefined): void {
  if (wanted !== undefined && (wanted === 0 || wanted !== revision))
    throw etagMismatch(revision ? etagOf(revision) : '');
}

/** Stores what `accumulate` made of a profile that this transaction has locked. */
export async function saveProfile(
  tx: TenantTx,
  { entries, changes }: { entries: Entry[]; changes: Change[] },
  sessionId: string,
  by: 'caller' | 'extraction' = 'caller',
): Promise<SavedRow[]> {
  const over = overLimit(entries);
  if (over) throw invalid([{ ...over, field: `profile.${over.field}` }]);
  if (changes.length === 0) return tx.final(NOTHING, [sessionId || null]);
  const removed = changes.filter(({ kind }) => kind === ProfileValueChange_Kind.REMOVED);
  const email = emailKey(textOf(entries, 'email') ?? '');
  const values = [
    json(entries),
    json(changes),
    json(removed.map(({ field, item }) => ({ field, item }))),
    email,
    sessionId || null,
  ];
  const statement = by === 'extraction' ? EXTRACT : UPDATE;
  if (!email || !changes.some(({ field }) => field === 'email')) return tx.final(statement, values);
  const [saved] = await together([tx.query(statement, values), noteEmail(tx, email)]);
  return saved;
}

// Past 1 MiB the values are not read.
const LIST = pointRead<{ change: ChangedRow; revision: number; place: number; byteSize: number }>(`
  select to_jsonb(h) - '{tenant_id,env,user_id,place,size,running}'::text[] as change, h.revision, h.place, h.size as byte_size
  from (
    select h.*, sum(h.size) over (order by h.revision desc, h.place desc rows unbounded preceding) as running
    from (
      select h.*, octet_length(coalesce(h.previous::text, '')) + octet_length(coalesce(h.current::text, '')) + 1000 as size
      from profile_changes h
      where h.tenant_id = $1 and h.env = $2 and h.user_id = $3 and $4 in ('', h.field)
        and ($5::bigint is null or (h.revision, h.place) < ($5, $6::int))
      order by h.revision desc, h.place desc limit $7::int
    ) h
  ) h
  where h.running - h.size <= 1048576
  order by h.revision desc, h.place desc`);

export async function listChanges(db: TenantDb, field: string, after: string[] | undefined, limit: number) {
  return db.query(LIST, [field, after?.[0], after?.[1], limit]);
}

import { status } from '@grpc/grpc-js';
import { v7 as uuidv7 } from 'uuid';
import { audited, requested } from '../db/change.ts';
import { change, json, query } from '../db/statement.ts';
import { type TenantDb, type TenantTx, together } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { ProfileSource_Kind, ProfileValueChange_Kind } from '../gen/memory/v1/profile.ts';
import { invalid, notFound, RpcError } from '../rpc/errors.ts';
import { ADDRESS, type Change, type Entry, overLimit, present, type Source, saidIn, textOf } from './accumulate.ts';
import { emailKey } from './contact.ts';
import { noteEmail } from './email-matches.ts';
import { known, sourceTime } from './repository.ts';

interface Held {
  userId: string;
  entries: Entry[];
  mergeId: string | null;
  revision: number;
  at: Timestamp;
}

const columns = 'user_id, entries, merge_id, revision, clock_timestamp() as at';
const BOTH = `from profiles where tenant_id = $1 and env = $2 and user_id = any ($4::text[]) order by user_id`;
const READ = query<Held>(`select ${columns} ${BOTH}`);
const LOCK = query<Held>(`select ${columns} ${BOTH} for update`);

// Only a user who is there can take up a profile: what is merged into a slip of the pen would be out of sight.
const ENSURE = query(`
  insert into profiles (tenant_id, env, user_id, create_time, update_time)
  select $1, $2, $4, c.at, c.at from (select clock_timestamp() as at) c
  where exists (select from tenant_members m where m.tenant_id = $1 and m.env = $2 and m.user_id = $4)
  on conflict (tenant_id, env, user_id) do nothing`);
const MEMBER = query<{ there: boolean }>(`
  select exists (select from tenant_members m where m.tenant_id = $1 and m.env = $2 and m.user_id = $4) as there`);

export interface Pair {
  fromUserId: string;
  intoUserId: string;
}

/** What a merge does to a field of the profile that takes up the other. */
export interface Effect {
  field: string;
  kind: ProfileValueChange_Kind;
  count: number;
}

interface Plan {
  entries: Entry[];
  changes: Change[];
  effects: Effect[];
}

/** What comes of two profiles. What both have stays as the second has it; an address goes along whole or not at all. */
export function planOf(
  from: Entry[],
  into: Entry[],
  { actor, at, mergeId }: { actor: string; at: string; mergeId: string },
): Plan {
  const { ADDED, KEPT } = ProfileValueChange_Kind;
  const settled = present(into);
  const isAddress = (field: string) => (ADDRESS as readonly string[]).includes(field);
  const addressed = settled.some(({ field }) => isAddress(field));
  const counts = new Map<string, Effect>();
  const count = (field: string, kind: ProfileValueChange_Kind) => {
    const effect = counts.get(`${field} ${kind}`) ?? { field, kind, count: 0 };
    counts.set(`${field} ${kind}`, effect);
    effect.count++;
  };
  const entries = new Map(into.map((entry) => [`${entry.field}\0${entry.item}`, entry]));
  const changes: Change[] = [];
  for (const { field, item, value, source: before } of present(from)) {
    const key = `${field}\0${item}`;
    const kept = (entries.get(key)?.value ?? null) !== null || (addressed && isAddress(field));
    count(field, kept ? KEPT : ADDED);
    if (kept) continue;
    const source: Source = {
      kind: ProfileSource_Kind.MERGE,
      actor,
      set_time: at,
      origin: saidIn(before),
      merge_ids: [...(before.merge_ids ?? []), mergeId],
    };
    entries.set(key, { field, item, value, source });
    const shown = field === 'products' || field === 'services' ? String(value) : item;
    changes.push({ field, item: shown, kind: ADDED, previous: null, current: value, source, previous_source: null });
  }
  return { entries: [...entries.values()], changes, effects: [...counts.values()] };
}

const heldBy = (rows: Held[], userId: string) => rows.find((row) => row.userId === userId);

/** What a merge would do. */
export async function previewMerge(db: TenantDb, { fromUserId, intoUserId }: Pair): Promise<Effect[]> {
  const rows = await db.query(READ, [[fromUserId, intoUserId]]);
  const into = heldBy(rows, intoUserId);
  const [member] = into ? [{ there: true }] : await db.query(MEMBER, [intoUserId]);
  return planned(heldBy(rows, fromUserId), member!.there ? (into ?? EMPTY) : undefined, '', '').effects;
}

const EMPTY = { entries: [], at: { seconds: 0, nanos: 0 } };

function planned(
  from: Pick<Held, 'entries'> | undefined,
  into: Pick<Held, 'entries' | 'at'> | undefined,
  actor: string,
  mergeId: string,
) {
  if (!from || present(from.entries).length === 0) throw notFound('profile');
  if (!into) throw notFound('user');
  const plan = planOf(from.entries, into.entries, { actor, at: sourceTime(into.at), mergeId });
  const over = overLimit(plan.entries);
  if (over) throw invalid([{ field: 'into_user_id', description: `${over.field}: ${over.description}` }]);
  return plan;
}

// A merge of before, whose outcome this one changes, cannot be undone any more.
const MERGE = change<{ mergeId: string; effects: Effect[] }>(`
  with ${known('$13', '$15')}, merged as (
    insert into profile_merges (tenant_id, env, id, from_user_id, into_user_id, from_entries, into_entries, known_sessions, create_time)
    select $1, $2, $11::uuid, $12, $13, f.entries, i.entries, array(select id from known), clock_timestamp()
    from profiles f, profiles i
    where f.tenant_id = $1 and f.env = $2 and f.user_id = $12 and i.tenant_id = $1 and i.env = $2 and i.user_id = $13
    returning id, create_time
  ), settled as (
    update profile_merges m set from_entries = null, into_entries = null
    where m.tenant_id = $1 and m.env = $2 and m.id = any ($18::uuid[])
    returning 1
  ), changed as (
    update profiles p
    set entries = case when p.user_id = $13 then $14::jsonb else '[]' end, email_key = case when p.user_id = $13 then $15 else '' end,
      merge_id = merged.id, revision = p.revision + 1, update_time = greatest(p.update_time, merged.create_time)
    from merged
    where p.tenant_id = $1 and p.env = $2 and p.user_id in ($12, $13)
    returning p.user_id, p.revision, p.update_time
  ), changes as (
    insert into profile_changes (tenant_id, env, user_id, revision, place, field, item, kind, current, source, change_time)
    select $1, $2, c.user_id, c.revision, e.ord, e.c ->> 'field', e.c ->> 'item', (e.c ->> 'kind')::smallint, e.c -> 'current', e.c -> 'source', c.update_time
    from changed c, jsonb_array_elements($16::jsonb) with ordinality e (c, ord)
    where c.user_id = $13
    returning 1
  ), result as materialized (
    select merged.id as merge_id, $17::jsonb as effects from merged
  ), ${audited('profiles.merge', 'result', {
    resource: `'merges/' || merge_id`,
    metadata: `jsonb_build_object('from_user_id', $12::text, 'into_user_id', $13::text)`,
  })}, ${requested('result')}
  select * from result`);

export async function mergeProfiles(tx: TenantTx, { fromUserId, intoUserId }: Pair, actor: string) {
  const both = [fromUserId, intoUserId];
  const [, rows] = await together([tx.query(ENSURE, [intoUserId]), tx.query(LOCK, [both])]);
  const [from, into] = both.map((user) => heldBy(rows, user));
  const mergeId = uuidv7();
  const plan = planned(from, into, actor, mergeId);
  const key = emailKey(textOf(plan.entries, 'email') ?? '');
  const earlier = [from!, into!].flatMap(({ mergeId }) => mergeId ?? []);
  const values = [
    mergeId,
    fromUserId,
    intoUserId,
    json(plan.entries),
    key,
    json(plan.changes),
    json(plan.effects),
    earlier,
  ];
  const merged = await tx.query(MERGE, values);
  if (key) await noteEmail(tx, key);
  return merged;
}

interface MergeRow extends Pair {
  fromEntries: Entry[] | null;
  intoEntries: Entry[] | null;
  undone: boolean;
}

const MERGED = query<MergeRow>(`
  select from_user_id, into_user_id, from_entries, into_entries, undo_time is not null as undone from profile_merges
  where tenant_id = $1 and env = $2 and id = $4::uuid for update`);

const UNDO = change<Pair>(`
  with undone as (
    update profile_merges m set undo_time = clock_timestamp(), from_entries = null, into_entries = null
    where m.tenant_id = $1 and m.env = $2 and m.id = $11::uuid
    returning m.id, m.from_user_id, m.into_user_id, m.known_sessions
  ), unchanged as (
    delete from profile_changes h using undone, profiles p
    where p.tenant_id = $1 and p.env = $2 and p.user_id = undone.into_user_id
      and h.tenant_id = $1 and h.env = $2 and h.user_id = p.user_id and h.revision = p.revision
    returning 1
  ), restored as (
    update profiles p
    set entries = case when p.user_id = undone.from_user_id then $12::jsonb else $13::jsonb end,
      email_key = case when p.user_id = undone.from_user_id then $14 else $15 end, merge_id = null, revision = p.revision + 1,
      update_time = greatest(p.update_time, clock_timestamp())
    from undone
    where p.tenant_id = $1 and p.env = $2 and p.user_id in (undone.from_user_id, undone.into_user_id)
    returning 1
  ), anonymous as (
    update sessions s set anonymous = true, revision = s.revision + 1, update_time = greatest(s.update_time, clock_timestamp())
    from undone
    where s.tenant_id = $1 and s.env = $2 and s.id = any (undone.known_sessions) and s.email = '' and s.delete_time is null
    returning 1
  ), result as materialized (
    select from_user_id, into_user_id from undone
  ), ${audited('profiles.unmerge', 'result', {
    resource: `'merges/' || $11::uuid`,
    metadata: `jsonb_build_object('from_user_id', from_user_id, 'into_user_id', into_user_id)`,
  })}, ${requested('result')}
  select * from result`);

const keyOf = (entries: Entry[]) => emailKey(textOf(entries, 'email') ?? '');

export async function undoMerge(tx: TenantTx, mergeId: string): Promise<Pair[]> {
  // The profiles first, as all writers lock them before the merge that made them.
  const [pair] = await tx.query(PAIR, [mergeId]);
  if (!pair) throw notFound('merge');
  const both = [pair.fromUserId, pair.intoUserId];
  const [rows, [merge]] = await together([tx.query(LOCK, [both]), tx.query(MERGED, [mergeId])]);
  if (merge!.undone) throw new RpcError(status.FAILED_PRECONDITION, 'MERGE_UNDONE', 'the merge was undone before');
  const { fromEntries, intoEntries } = merge!;
  if (!fromEntries || !intoEntries || rows.length < 2 || rows.some((row) => row.mergeId !== mergeId))
    throw new RpcError(status.ABORTED, 'PROFILE_CHANGED', 'one of the profiles has changed since');
  const keys = [keyOf(fromEntries), keyOf(intoEntries)];
  const undone = await tx.query(UNDO, [mergeId, json(fromEntries), json(intoEntries), ...keys]);
  if (keys[0]) await noteEmail(tx, keys[0]);
  return undone;
}

const PAIR = query<Pair>(`
  select from_user_id, into_user_id from profile_merges where tenant_id = $1 and env = $2 and id = $4::uuid`);

import { audited, requested } from '../db/change.ts';
import { change, json, pointRead, rowFromJson } from '../db/statement.ts';
import type { TenantDb, TenantTx } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import {
  Member,
  Tenant,
  TenantPolicies_Membership,
  TenantPolicies_Pii,
  TenantQuotas,
  TenantRetention,
} from '../gen/memory/v1/tenant.ts';
import { uncount } from '../quotas/sessions.ts';
import { etagOf } from '../rpc/validate.ts';
import type { Aging } from './aging.ts';

/** Takes words as they are, whatever the language. */
export const DEFAULT_LANGUAGE = 'simple';

const COLUMNS =
  'tenant_id, display_name, envs, policies, search_language, extract_time is not null as extract_profile, create_time, update_time, revision';

/** Policies as they are stored: what is at its default is left out. */
export interface Policies {
  membership?: number;
  pii?: number;
  /** By name. Null, on input, takes one away. */
  quotas?: { [name: string]: number | null };
  /** Days by kind. Null, on input, takes one away. */
  retention?: { [kind in Aging as `${kind}_days`]?: number | null };
}

export interface TenantRow {
  tenantId: string;
  displayName: string;
  envs: string[];
  policies: Policies;
  searchLanguage: string;
  extractProfile: boolean;
  createTime: Timestamp;
  updateTime: Timestamp;
  revision: number;
}

export function tenantFromRow({ revision, policies, searchLanguage, extractProfile, ...row }: TenantRow): Tenant {
  const { membership = TenantPolicies_Membership.EXPLICIT, pii = TenantPolicies_Pii.REJECT } = policies;
  const { quotas = {}, retention = {} } = policies;
  const bounded = Object.keys(quotas).length > 0 ? TenantQuotas.fromPartial(rowFromJson(quotas)) : undefined;
  const kept = Object.keys(retention).length > 0 ? TenantRetention.fromPartial(rowFromJson(retention)) : undefined;
  return Tenant.fromPartial({
    ...row,
    policies: { membership, pii, searchLanguage, extractProfile, quotas: bounded, retention: kept },
    etag: etagOf(revision),
  } as object);
}

const ABOUT = { resource: `'tenants/' || tenant_id` };
/** Who had what removed or bounded can be read in the audit trail. */
const KEPT = `jsonb_strip_nulls(jsonb_build_object('retention', nullif(policies -> 'retention', '{}'),
      'quotas', nullif(policies -> 'quotas', '{}')))`;

// A change of the tenant itself runs in the tenant's scope with env '', where its event and its stored result lie.
const CREATE = change<TenantRow>(`
  with saved as (
    insert into tenants (tenant_id, display_name, envs, policies, search_language, extract_time)
    values ($1, $11, $12::text[], merge_patch('{}', $13::jsonb), coalesce($14::text, '${DEFAULT_LANGUAGE}'), case when $15::boolean then clock_timestamp() end)
    on conflict do nothing
    returning ${COLUMNS}
  ), ${audited('tenants.create', 'saved', { ...ABOUT, metadata: `nullif(${KEPT}, '{}')` })}, ${requested('saved')}
  select * from saved`);

// Messages stay in the language in which they were stored until the job has been by: it waits from `language_time` on. Sessions
// are counted anew, as none that was created without a quota is in the count.
const UPDATE = change<TenantRow>(`
  with saved as (
    update tenants t
    set display_name = coalesce($11::text, t.display_name),
      envs = t.envs || array(select e from unnest($12::text[]) e where e <> all (t.envs)),
      policies = merge_patch(t.policies, $13::jsonb), search_language = coalesce($15::text, t.search_language),
      former_languages = case when $15 <> t.search_language then array_remove(t.former_languages, $15) || t.search_language else t.former_languages end,
      extract_time = case when $16::boolean is null or ($16 and t.extract_time is not null) then t.extract_time when $16 then clock_timestamp() end,
      language_time = case when $15 <> t.search_language then clock_timestamp() else t.language_time end, update_time = now(), revision = t.revision + 1
    where tenant_id = $1 and ($14::bigint is null or revision = $14)
      and cardinality(t.envs || array(select e from unnest($12::text[]) e where e <> all (t.envs))) <= 20
    returning ${COLUMNS}
  ), uncounted as (
    ${uncount(`from saved where q.tenant_id = $1 and $13 #> '{quotas,max_sessions}' is not null`)}
    returning 1
  ), ${audited('tenants.update', 'saved', { ...ABOUT, metadata: `jsonb_build_object('revision', revision) || ${KEPT}` })},
  ${requested('saved')}
  select * from saved`);

export interface TenantFields {
  displayName: string | undefined;
  envs: string[];
  policies: Policies;
  searchLanguage: string | undefined;
  extractProfile?: boolean | undefined;
}

/** Gives no row if there is a tenant with this id. */
export async function createTenant(tx: TenantTx, fields: TenantFields): Promise<TenantRow[]> {
  const { displayName, envs, policies, searchLanguage, extractProfile } = fields;
  return tx.final(CREATE, [displayName ?? '', envs, json(policies), searchLanguage, extractProfile]);
}

/** Gives no row if there is no such tenant, its revision is another, or it would have more than 20 envs. */
export async function updateTenant(
  tx: TenantTx,
  fields: TenantFields,
  revision: number | undefined,
): Promise<TenantRow[]> {
  const { displayName, envs, policies, searchLanguage, extractProfile } = fields;
  return tx.final(UPDATE, [displayName, envs, json(policies), revision, searchLanguage, extractProfile]);
}

const GET = pointRead<TenantRow>(`select ${COLUMNS} from tenants where tenant_id = $1`);

/** The tenant of the scope. */
export async function getTenant(db: TenantDb): Promise<TenantRow | undefined> {
  const [row] = await db.query(GET);
  return row;
}

const KNOWS_LANGUAGE = pointRead<{ known: boolean }>(
  'select exists (select from pg_ts_config where cfgname = $4 and pg_ts_config_is_visible(oid)) as known',
);

export async function knowsLanguage(db: TenantDb, language: string): Promise<boolean> {
  const [row] = await db.query(KNOWS_LANGUAGE, [language]);
  return row!.known;
}

const LIST = pointRead<TenantRow>(
  `select ${COLUMNS} from tenants where tenant_id > $4 order by tenant_id limit $5::int`,
);

export async function listTenants(db: TenantDb, after: string, limit: number): Promise<TenantRow[]> {
  return db.query(LIST, [after, limit]);
}

export interface MemberRow {
  env: string;
  userId: string;
  role: number;
  anonymous: boolean;
  createTime: Timestamp;
}

export const memberFromRow = (row: MemberRow): Member => Member.fromPartial(row as object);

const PUT_MEMBER = change<MemberRow>(`
  with saved as (
    insert into tenant_members as m (tenant_id, env, user_id, role)
    select $1, $2, $11::text, $12::smallint
    where not exists (select from erasures e where e.tenant_id = $1 and e.env = $2 and e.user_id = $11)
    on conflict (tenant_id, env, user_id) do update set role = excluded.role
    returning m.env, m.user_id, m.role, m.anonymous, m.create_time
  ), ${audited('members.put', 'saved', { resource: `'members/' || user_id`, metadata: `jsonb_build_object('role', role)` })},
  ${requested('saved')}
  select * from saved`);

/** Gives no row while everything of the user is being erased. */
export async function putMember(tx: TenantTx, userId: string, role: number): Promise<MemberRow[]> {
  return tx.final(PUT_MEMBER, [userId, role]);
}

const REMOVE_MEMBER = change<MemberRow>(`
  with gone as (
    delete from tenant_members where tenant_id = $1 and env = $2 and user_id = $11
    returning env, user_id, role, anonymous, create_time
  ), ${audited('members.remove', 'gone', { resource: `'members/' || user_id` })}, ${requested('gone')}
  select * from gone`);

export async function removeMember(tx: TenantTx, userId: string): Promise<MemberRow[]> {
  return tx.final(REMOVE_MEMBER, [userId]);
}

const LIST_MEMBERS = pointRead<MemberRow>(`
  select env, user_id, role, anonymous, create_time from tenant_members
  where tenant_id = $1 and env = $2 and user_id > $4 order by user_id limit $5::int`);

export async function listMembers(db: TenantDb, after: string, limit: number): Promise<MemberRow[]> {
  return db.query(LIST_MEMBERS, [after, limit]);
}

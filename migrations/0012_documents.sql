-- Documents of projects: the profile that all sessions of a project share, what was put in, and drafts of sections.

-- The newest version of a project's profile. A put names the version that it replaces, so that of two at once only one gets in.
create table project_profiles (
  tenant_id text not null,
  env text not null,
  project_id text not null,
  version bigint not null,
  create_time timestamptz not null,
  update_time timestamptz not null,
  created_by text not null,
  updated_by text not null,
  primary key (tenant_id, env, project_id)
);

-- Every version, as it was written. Nothing changes in one but that it gets locked: an artifact was committed from it.
create table project_profile_versions (
  tenant_id text not null,
  env text not null,
  project_id text not null,
  version bigint not null,
  yaml text not null,
  base_version bigint not null,
  merged boolean not null default false,
  stub boolean not null default false,
  lock_time timestamptz,
  create_time timestamptz not null,
  created_by text not null,
  size_bytes int not null generated always as (octet_length(yaml)) stored,
  primary key (tenant_id, env, project_id, version),
  foreign key (tenant_id, env, project_id) references project_profiles on delete cascade
);

create function union_texts(one text[], other text[]) returns text[]
language sql immutable parallel safe
return array(select distinct t from unnest(one || other) t order by t);

create table project_inputs (
  tenant_id text not null,
  env text not null,
  id uuid not null,
  project_id text not null,
  session_id uuid,
  file_name text not null,
  media_type text not null,
  size_bytes bigint not null,
  sha256 text not null,
  uri text not null,
  content text not null,
  metadata jsonb not null,
  sections text[] not null constraint project_inputs_sections_count check (cardinality(sections) <= 1000),
  create_time timestamptz not null,
  update_time timestamptz not null,
  created_by text not null,
  updated_by text not null,
  content_bytes int not null generated always as (octet_length(content)) stored,
  -- What a list adds up to end its pages: without the content, which it never reads.
  byte_size int not null generated always as (
    octet_length(file_name) + octet_length(uri) + octet_length(metadata::text) + cardinality(sections) * 520 + 1000) stored,
  primary key (tenant_id, env, id)
);
create unique index project_inputs_sha256 on project_inputs (tenant_id, env, project_id, sha256);
create index project_inputs_project on project_inputs (tenant_id, env, project_id, id desc);

-- Sections of a project's document. A row is made by the first lock (src/db/lease.ts) and has revision 0 until the first save.
create table drafts (
  tenant_id text not null,
  env text not null,
  project_id text not null,
  section_id text not null,
  revision bigint not null default 0,
  create_time timestamptz not null,
  update_time timestamptz not null,
  created_by text not null,
  updated_by text not null,
  lease_holder text,
  lease_expire_time timestamptz,
  fencing_token bigint not null default 0,
  -- Who took the lease, as whom its holder named itself is free text.
  locked_by text not null default '',
  primary key (tenant_id, env, project_id, section_id)
);
create index drafts_newest on drafts (tenant_id, env, project_id, update_time desc) where revision > 0;

-- Every revision of a section, and how it differs from the one before. Large texts are compressed by Postgres.
create table draft_revisions (
  tenant_id text not null,
  env text not null,
  project_id text not null,
  section_id text not null,
  revision bigint not null,
  session_id uuid,
  content text not null,
  sources jsonb not null,
  prompts jsonb not null,
  metadata jsonb not null,
  content_diff text not null,
  sources_diff text not null,
  diff_truncated boolean not null,
  restored_revision bigint not null default 0,
  profile_version bigint not null,
  lock_time timestamptz,
  create_time timestamptz not null,
  created_by text not null,
  size_bytes int not null generated always as (octet_length(content)) stored,
  -- What a list of revisions adds up to end its pages.
  byte_size int not null generated always as (octet_length(content_diff) + octet_length(sources_diff) + 600) stored,
  primary key (tenant_id, env, project_id, section_id, revision),
  foreign key (tenant_id, env, project_id, section_id) references drafts on delete cascade
);

do $$
declare t text;
begin
  foreach t in array array['project_profiles', 'project_profile_versions', 'project_inputs', 'drafts', 'draft_revisions'] loop
    execute format('alter table %I enable row level security', t);
    execute format('alter table %I force row level security', t);
    execute format('create policy tenant on %I using (tenant_id = current_setting(''app.tenant_id'', true)
      and env = current_setting(''app.env'', true))', t);
    execute format('grant select, insert, update, delete on %I to memoryd_app', t);
  end loop;
end $$;

insert into schema_versions (version, compatible_from) values (12, 9);

-- Committed outputs of projects, and the snapshots of them, and of profiles, that are uploaded to the snapshot store.

-- Every version of every artifact. Nothing changes in one.
create table artifacts (
  tenant_id text not null,
  env text not null,
  id uuid not null,
  project_id text not null,
  artifact_key text not null,
  version bigint not null,
  session_id uuid,
  final_output text not null,
  sections jsonb not null,
  profile_version bigint not null,
  reviewers jsonb not null,
  approvals jsonb not null,
  gate_stage text not null,
  metadata jsonb not null,
  create_time timestamptz not null,
  created_by text not null,
  size_bytes int not null generated always as (octet_length(final_output)) stored,
  -- What a list adds up to end its pages: without the output, which it never reads.
  byte_size int not null generated always as (octet_length(sections::text) + octet_length(reviewers::text)
    + octet_length(approvals::text) + octet_length(metadata::text) + 1500) stored,
  primary key (tenant_id, env, id)
);
create unique index artifacts_version on artifacts (tenant_id, env, project_id, artifact_key, version);
create index artifacts_project on artifacts (tenant_id, env, project_id, id desc);
create index artifacts_key on artifacts (tenant_id, env, project_id, artifact_key, id desc);

-- What is uploaded: a version of an artifact (kind 1) or of a profile (2). The state is the truth about an upload: whoever finds
-- one due takes it, by moving its due time to when it may be taken from them again.
create table snapshots (
  tenant_id text not null,
  env text not null,
  id uuid not null,
  project_id text not null,
  kind smallint not null,
  artifact_key text not null,
  version bigint not null,
  upload_state smallint not null default 1,
  reason text not null default '',
  attempts int not null default 0,
  queue_time timestamptz not null,
  due_time timestamptz not null,
  uploader uuid,
  link text not null default '',
  sha256 text not null default '',
  size_bytes bigint not null default 0,
  create_time timestamptz not null,
  store_time timestamptz,
  created_by text not null,
  primary key (tenant_id, env, id)
);
create unique index snapshots_version on snapshots (tenant_id, env, project_id, kind, artifact_key, version);
create index snapshots_project on snapshots (tenant_id, env, project_id, id desc);
create index snapshots_due on snapshots (tenant_id, env, due_time) where upload_state = 1;
create index snapshots_failed on snapshots (tenant_id, env) where upload_state = 3;

do $$
declare t text;
begin
  foreach t in array array['artifacts', 'snapshots'] loop
    execute format('alter table %I enable row level security', t);
    execute format('alter table %I force row level security', t);
    execute format('create policy tenant on %I using (tenant_id = current_setting(''app.tenant_id'', true)
      and env = current_setting(''app.env'', true))', t);
    execute format('grant select, insert, update, delete on %I to memoryd_app', t);
  end loop;
end $$;

-- Whichever server lives finds what is due, of all tenants: where it is, and nothing else.
create policy due_uploads on snapshots for select to memoryd_jobs using (true);
grant select (tenant_id, env, upload_state, due_time) on snapshots to memoryd_jobs;

insert into schema_versions (version, compatible_from) values (13, 9);

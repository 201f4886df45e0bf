-- Memories of projects: facts that outlive sessions. A deleted one leaves its row as a tombstone, and its key to a new one.

create table memories (
  tenant_id text not null,
  env text not null,
  id uuid not null,
  project_id text not null,
  key text not null,
  version bigint not null,
  create_time timestamptz not null,
  update_time timestamptz not null,
  expire_time timestamptz,
  delete_time timestamptz,
  created_by text not null,
  updated_by text not null,
  primary key (tenant_id, env, id)
);
create unique index memories_key on memories (tenant_id, env, project_id, key) where delete_time is null;
create index memories_deleted on memories (tenant_id, env, project_id, key, delete_time desc) where delete_time is not null;
create index memories_tombstones on memories (tenant_id, env, delete_time) where delete_time is not null;
create index memories_expiry on memories (tenant_id, env, expire_time) where expire_time is not null and delete_time is null;

-- Values by version, the newest 100 of each memory: the memory's own is the newest. Large ones are compressed by Postgres.
create table memory_versions (
  tenant_id text not null,
  env text not null,
  memory_id uuid not null,
  version bigint not null,
  value text not null,
  metadata jsonb not null default '{}',
  restored_version bigint not null default 0,
  create_time timestamptz not null,
  created_by text not null,
  -- What a list adds up to end its pages, without reading the values.
  byte_size int not null generated always as (octet_length(value) + octet_length(metadata::text) + 400) stored,
  primary key (tenant_id, env, memory_id, version),
  foreign key (tenant_id, env, memory_id) references memories on delete cascade
);

-- When memories were read or changed last, apart from what they hold: each reading moves it, and must not make writers of
-- the memory wait, nor write its row and indexes anew.
create table memory_uses (
  tenant_id text not null,
  env text not null,
  memory_id uuid not null,
  project_id text not null,
  use_time timestamptz not null,
  last_access_time timestamptz,
  access_count bigint not null default 0,
  primary key (tenant_id, env, memory_id),
  foreign key (tenant_id, env, memory_id) references memories on delete cascade
);
create index memory_uses_project on memory_uses (tenant_id, env, project_id, use_time desc, memory_id desc);

do $$
declare t text;
begin
  foreach t in array array['memories', 'memory_versions', 'memory_uses'] loop
    execute format('alter table %I enable row level security', t);
    execute format('alter table %I force row level security', t);
    execute format('create policy tenant on %I using (tenant_id = current_setting(''app.tenant_id'', true)
      and env = current_setting(''app.env'', true))', t);
    execute format('grant select, insert, update, delete on %I to memoryd_app', t);
  end loop;
end $$;

insert into schema_versions (version, compatible_from) values (10, 9);

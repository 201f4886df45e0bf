-- What sessions touched. An entry's ordinal is its place in its session, from 1 without a gap, whether it is live or was
-- moved into an archive: the oldest move first, so all up to `archived_through` are archived and all after it are live.

-- One row for each session that touched something, from its first append on. Whoever writes it holds the session's row.
create table session_contexts (
  tenant_id text not null,
  env text not null,
  session_id uuid not null,
  user_id text not null,
  last_ordinal bigint not null,
  archived_through bigint not null default 0,
  archived_count bigint not null default 0,
  live_bytes int not null,
  update_time timestamptz not null,
  primary key (tenant_id, env, session_id),
  foreign key (tenant_id, env, session_id) references sessions on delete cascade
) with (fillfactor = 50);

create table context_entries (
  tenant_id text not null,
  env text not null,
  session_id uuid not null,
  ordinal bigint not null,
  user_id text not null,
  kind smallint not null,
  data jsonb not null,
  -- Of the entry's JSON as the service writes it, which is what the limit of live entries counts.
  byte_size int not null,
  create_time timestamptz not null,
  primary key (tenant_id, env, session_id, ordinal),
  foreign key (tenant_id, env, session_id) references sessions on delete cascade
);

create table context_archives (
  tenant_id text not null,
  env text not null,
  session_id uuid not null,
  first_ordinal bigint not null,
  last_ordinal bigint not null,
  user_id text not null,
  entry_count int not null generated always as (last_ordinal - first_ordinal + 1) stored,
  -- Before compression, as in a response.
  byte_size int not null,
  snapshot bytea not null,
  create_time timestamptz not null,
  primary key (tenant_id, env, session_id, first_ordinal),
  foreign key (tenant_id, env, session_id) references sessions on delete cascade
);
-- It is compressed already.
alter table context_archives alter column snapshot set storage external;

do $$
declare t text;
begin
  foreach t in array array['session_contexts', 'context_entries', 'context_archives'] loop
    execute format('alter table %I enable row level security', t);
    execute format('alter table %I force row level security', t);
    execute format('create policy tenant on %I using (tenant_id = current_setting(''app.tenant_id'', true)
      and env = current_setting(''app.env'', true))', t);
    execute format('grant select, insert, update, delete on %I to memoryd_app', t);
  end loop;
end $$;

insert into schema_versions (version, compatible_from) values (4, 4);

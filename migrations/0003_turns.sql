-- What happened in sessions, turn by turn, in the order of their ids.

create table turns (
  tenant_id text not null,
  env text not null,
  session_id uuid not null,
  id uuid not null,
  user_id text not null,
  query text not null,
  response text not null,
  intent jsonb,
  planner_reasoning text not null,
  reflection text not null,
  tasks jsonb not null,
  results jsonb not null,
  report jsonb,
  -- The names of the fields that are not whole.
  truncated jsonb not null,
  first_seq bigint not null,
  last_seq bigint not null,
  create_time timestamptz not null,
  -- What a list adds up to end its pages, without reading the values.
  byte_size int not null generated always as (octet_length(query) + octet_length(response) + coalesce(octet_length(intent::text), 0)
    + octet_length(planner_reasoning) + octet_length(reflection) + octet_length(tasks::text) + octet_length(results::text)
    + coalesce(octet_length(report::text), 0) + octet_length(truncated::text) + 200) stored,
  primary key (tenant_id, env, session_id, id),
  foreign key (tenant_id, env, session_id) references sessions on delete cascade,
  constraint turns_record_size check (coalesce(octet_length(intent::text), 0) + octet_length(planner_reasoning)
    + octet_length(reflection) + octet_length(tasks::text) + octet_length(results::text) + coalesce(octet_length(report::text), 0)
    + octet_length(truncated::text) < 16384)
);
create index turns_reports on turns (tenant_id, env, session_id, id desc) where report is not null;

-- The last result of each task of a session: of which turn it is, and its place there. The newest 200 are kept.
create table turn_results (
  tenant_id text not null,
  env text not null,
  session_id uuid not null,
  task_id text not null,
  user_id text not null,
  turn_id uuid not null,
  place int not null,
  update_time timestamptz not null,
  primary key (tenant_id, env, session_id, task_id),
  foreign key (tenant_id, env, session_id) references sessions on delete cascade
);

-- States that sessions had, the newest 50 of each. `project_id` is the session's, for who resumes by project.
create table state_checkpoints (
  tenant_id text not null,
  env text not null,
  session_id uuid not null,
  id uuid not null,
  user_id text not null,
  project_id text not null,
  turn_id uuid,
  state jsonb not null,
  create_time timestamptz not null,
  byte_size int not null generated always as (octet_length(state::text) + 200) stored,
  primary key (tenant_id, env, session_id, id),
  foreign key (tenant_id, env, session_id) references sessions on delete cascade
);
create index state_checkpoints_project on state_checkpoints (tenant_id, env, user_id, project_id, create_time desc, id desc);

do $$
declare t text;
begin
  foreach t in array array['turns', 'turn_results', 'state_checkpoints'] loop
    execute format('alter table %I enable row level security', t);
    execute format('alter table %I force row level security', t);
    execute format('create policy tenant on %I using (tenant_id = current_setting(''app.tenant_id'', true)
      and env = current_setting(''app.env'', true))', t);
    execute format('grant select, insert, update, delete on %I to memoryd_app', t);
  end loop;
end $$;

-- An older version would leave behind what turns left when it deletes their session.
insert into schema_versions (version, compatible_from) values (3, 3);

-- What turns used: calls of models, which outlive their session (they say what it cost, and hold no content), calls of
-- tools, and prompts, which go with it.

create table llm_requests (
  tenant_id text not null,
  env text not null,
  id uuid not null,
  user_id text not null,
  session_id uuid,
  turn_id uuid,
  project_id text not null default '',
  provider text not null,
  model text not null,
  prompt_tokens bigint not null,
  completion_tokens bigint not null,
  total_tokens bigint not null,
  cost numeric(30, 12) not null,
  latency_ms bigint not null,
  status text not null,
  create_time timestamptz not null,
  primary key (tenant_id, env, id)
);
create index llm_requests_session on llm_requests (tenant_id, env, session_id, id);
create index llm_requests_user on llm_requests (tenant_id, env, user_id, id);

create table tool_calls (
  tenant_id text not null,
  env text not null,
  id uuid not null,
  user_id text not null,
  session_id uuid not null,
  turn_id uuid,
  tool_name text not null,
  tool_call_id text not null,
  input jsonb,
  output jsonb,
  status text not null,
  latency_ms bigint not null,
  attempt int not null,
  error text not null,
  create_time timestamptz not null,
  primary key (tenant_id, env, id),
  foreign key (tenant_id, env, session_id) references sessions on delete cascade
);
create index tool_calls_session on tool_calls (tenant_id, env, session_id, id);

create table prompts (
  tenant_id text not null,
  env text not null,
  id uuid not null,
  user_id text not null,
  session_id uuid not null,
  turn_id uuid,
  name text not null,
  version text not null,
  text text not null,
  create_time timestamptz not null,
  primary key (tenant_id, env, id),
  foreign key (tenant_id, env, session_id) references sessions on delete cascade
);
create index prompts_session on prompts (tenant_id, env, session_id, id);

do $$
declare t text;
begin
  foreach t in array array['llm_requests', 'tool_calls', 'prompts'] loop
    execute format('alter table %I enable row level security', t);
    execute format('alter table %I force row level security', t);
    execute format('create policy tenant on %I using (tenant_id = current_setting(''app.tenant_id'', true)
      and env = current_setting(''app.env'', true))', t);
    execute format('grant select, insert, update, delete on %I to memoryd_app', t);
  end loop;
end $$;

insert into schema_versions (version, compatible_from) values (6, 6);

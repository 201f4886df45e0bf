-- Usage: calls of models in full, their sums by day, and budgets. Older versions go on beside it: what they record waits for
-- its sums as everything does.

alter table llm_requests
  add column cached_tokens bigint not null default 0,
  add column prompt_unit_cost numeric(18, 12),
  add column cached_unit_cost numeric(18, 12),
  add column completion_unit_cost numeric(18, 12),
  add column external_id text not null default '',
  -- Parameters of the request and the response, never content.
  add column request jsonb,
  add column response jsonb,
  -- Whether it is part of the sums in usage_rollups.
  add column folded boolean not null default false;
create unique index llm_requests_external on llm_requests (tenant_id, env, user_id, provider, external_id) where external_id <> '';
create index llm_requests_unfolded on llm_requests (tenant_id, env, id) where not folded;
-- What is added up leaves dead entries in that index, which is read often: they should not grow with the table.
alter table llm_requests set (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 10000);

alter table tool_calls
  add column retry_of text not null default '',
  add column byte_size int not null generated always as
    (coalesce(octet_length(input::text), 0) + coalesce(octet_length(output::text), 0) + octet_length(error) + 1000) stored;
create index tool_calls_user on tool_calls (tenant_id, env, user_id, id);
alter table prompts
  add column byte_size int not null generated always as (octet_length(text) + 1000) stored;
create index prompts_user on prompts (tenant_id, env, user_id, id);

-- Sums by UTC day in four grains: 1 of all, 2 by project, 3 by user, 4 by session. The subject is '' in 1, else the project, the
-- user or the session ('' for none). user_id is kept in grain 4, project_id in 3 and 4: what is the subject is not repeated, as
-- the key must fit into an index whatever the ids are.
create table usage_rollups (
  tenant_id text not null,
  env text not null,
  grain smallint not null,
  subject text not null,
  day date not null,
  user_id text not null,
  project_id text not null,
  provider text not null,
  model text not null,
  requests bigint not null,
  prompt_tokens bigint not null,
  cached_tokens bigint not null,
  completion_tokens bigint not null,
  total_tokens bigint not null,
  cost numeric not null,
  latency_ms bigint not null,
  primary key (tenant_id, env, grain, subject, day, user_id, project_id, provider, model)
) with (fillfactor = 80);
create index usage_rollups_user on usage_rollups (tenant_id, env, user_id, subject, day) where grain = 4;

create table budgets (
  tenant_id text not null,
  env text not null,
  -- As the grains of the sums that it is compared with.
  scope smallint not null,
  subject text not null,
  period smallint not null,
  -- The subject of scope 4.
  session_id uuid,
  cost_limit numeric(30, 12),
  token_limit bigint,
  enforce boolean not null,
  -- Set by an admin: others cannot change it.
  by_admin boolean not null,
  revision bigint not null,
  create_time timestamptz not null,
  update_time timestamptz not null,
  updated_by text not null,
  primary key (tenant_id, env, scope, subject, period),
  foreign key (tenant_id, env, session_id) references sessions on delete cascade
);
create index budgets_session on budgets (tenant_id, env, session_id) where session_id is not null;

do $$
declare t text;
begin
  foreach t in array array['usage_rollups', 'budgets'] loop
    execute format('alter table %I enable row level security', t);
    execute format('alter table %I force row level security', t);
    execute format('create policy tenant on %I using (tenant_id = current_setting(''app.tenant_id'', true)
      and env = current_setting(''app.env'', true))', t);
    execute format('grant select, insert, update, delete on %I to memoryd_app', t);
  end loop;
end $$;

insert into schema_versions (version, compatible_from) values (14, 10);

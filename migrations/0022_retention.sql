-- What a tenant keeps only for so many days: what is due is found by its age, in whatever session or thread it is.

-- Since when a thread may hold messages: of those that are there none is older. Null: since it was created. Kept by who removes
-- the oldest ones, not by appends, whose updates of the row stay in its page as the index's columns do not change. An index
-- of the messages themselves would cost each append.
alter table threads add column oldest_time timestamptz;
create index threads_age on threads (tenant_id, env, coalesce(oldest_time, create_time), thread_uid) where delete_time is null;

create index turns_age on turns (tenant_id, env, create_time);
create index turn_results_age on turn_results (tenant_id, env, update_time);
create index tool_calls_age on tool_calls (tenant_id, env, create_time);
create index prompts_age on prompts (tenant_id, env, create_time);
create index state_checkpoints_age on state_checkpoints (tenant_id, env, create_time);
create index llm_requests_age on llm_requests (tenant_id, env, create_time);
create index usage_rollups_age on usage_rollups (tenant_id, env, day);

-- Older versions go on beside it, but do not know how to tell who watches that the oldest messages of a thread were removed: a
-- policy is to be set when there are none any more.
insert into schema_versions (version, compatible_from) values (22, 10);

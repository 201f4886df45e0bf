-- What is checked of a session's Structs and refs, in columns that are worked out only when these are written: a CHECK is
-- evaluated by every update, and an append, which only moves a time, spent 0.4 ms on reading 240 KiB of Structs.
alter table sessions
  drop constraint sessions_preferences_size,
  drop constraint sessions_pinned_refs_count,
  drop constraint sessions_summary_refs_count,
  drop constraint sessions_state_size,
  drop constraint sessions_metadata_size,
  drop constraint sessions_metrics_size,
  add column preferences_fit boolean not null generated always as (json_fits(preferences, 65536)) stored
    constraint sessions_preferences_size check (preferences_fit),
  add column pinned_refs_fit boolean not null generated always as (jsonb_array_length(pinned_refs) <= 200) stored
    constraint sessions_pinned_refs_count check (pinned_refs_fit),
  add column summary_refs_fit boolean not null generated always as (jsonb_array_length(summary_refs) <= 100) stored
    constraint sessions_summary_refs_count check (summary_refs_fit),
  add column state_fit boolean not null generated always as (json_fits(state, 65536)) stored
    constraint sessions_state_size check (state_fit),
  add column metadata_fit boolean not null generated always as (json_fits(metadata, 65536)) stored
    constraint sessions_metadata_size check (metadata_fit),
  add column metrics_fit boolean not null generated always as (json_fits(metrics, 65536)) stored
    constraint sessions_metrics_size check (metrics_fit);

-- An older version is refused the same as before.
insert into schema_versions (version, compatible_from) select 8, max(compatible_from) from schema_versions;

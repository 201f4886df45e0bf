-- Where something is due is found over all tenants at once, by who sees that and nothing else: the sweep then visits those
-- only, each in its own scope. The owner, who inherits memoryd_jobs, sees nothing by that. Older versions go on beside it.
do $$
declare t text;
declare columns text;
begin
  for t, columns in
    values ('bundles', ', expire_time'), ('dropped_threads', ''), ('email_matches', ''), ('handoffs', ', ack_time'),
      ('memories', ', expire_time, delete_time'), ('profile_merges', ', create_time'), ('requests', ', create_time'),
      ('session_keys', ', expire_time'), ('sessions', ', expire_time, delete_time'), ('threads', ', delete_time')
  loop
    execute format('create policy due on %I for select to memoryd_jobs using (current_user = ''memoryd_jobs'')', t);
    execute format('grant select (tenant_id, env%s) on %I to memoryd_jobs', columns, t);
  end loop;
end $$;

insert into schema_versions (version, compatible_from) values (23, 10);

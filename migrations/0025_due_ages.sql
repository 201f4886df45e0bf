-- As in migration 23, over all tenants at once: where something is to be sealed, or has reached the age up to which it is kept.
do $$
declare t text;
declare columns text;
begin
  for t, columns in
    values ('audit_blocks', 'block_no, upto, upto_id, newest_micros, signature'), ('audit_events', 'xid, id'),
      ('llm_requests', 'create_time, folded'), ('prompts', 'create_time'), ('state_checkpoints', 'create_time'),
      ('tool_calls', 'create_time'), ('turn_results', 'update_time'), ('turns', 'create_time'), ('usage_rollups', 'day')
  loop
    execute format('create policy due on %I for select to memoryd_jobs using (current_user = ''memoryd_jobs'')', t);
    execute format('grant select (tenant_id, env, %s) on %I to memoryd_jobs', columns, t);
  end loop;
end $$;
grant select (create_time, oldest_time) on threads to memoryd_jobs;

insert into schema_versions (version, compatible_from) values (25, 10);

-- How many of the tenant's own events retention has removed is told in each of its envs, as are the events.
create policy tenant_level on expiry_stats for select
  using (tenant_id = current_setting('app.tenant_id', true) and env = '');

insert into schema_versions (version, compatible_from) values (24, 10);

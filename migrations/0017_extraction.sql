-- What people write is read for their profiles, where the tenant wants that, and after it was appended: nothing is written for
-- a message but how far its thread was read.

-- Since when. Null: nothing is read.
alter table tenants add column extract_time timestamptz;

-- How far a thread was read: all up to a seq. One that waits has a message above it that was still being streamed.
create table thread_readings (
  tenant_id text not null,
  env text not null,
  thread_uid uuid not null,
  user_id text not null,
  seq bigint not null,
  waiting boolean not null,
  primary key (tenant_id, env, thread_uid)
) with (fillfactor = 80);
create index thread_readings_waiting on thread_readings (tenant_id, env) where waiting;

-- Up to which message id a tenant and env was searched for threads that nobody has read.
create table reading_rounds (
  tenant_id text not null,
  env text not null,
  message_id uuid not null,
  primary key (tenant_id, env)
);

do $$
declare t text;
begin
  foreach t in array array['thread_readings', 'reading_rounds'] loop
    execute format('alter table %I enable row level security', t);
    execute format('alter table %I force row level security', t);
    execute format('create policy tenant on %I using (tenant_id = current_setting(''app.tenant_id'', true)
      and env = current_setting(''app.env'', true))', t);
    execute format('grant select, insert, update, delete on %I to memoryd_app', t);
  end loop;
end $$;

insert into schema_versions (version, compatible_from) values (17, 10);

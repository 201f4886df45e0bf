-- The same e-mail address with several users, and profiles that become one.

-- The address of a session as it is compared. An older version leaves it empty: what it stores is not matched.
alter table sessions add column email_key text not null default '';
alter table sessions no force row level security;
update sessions set email_key = lower(btrim(email)) where email <> '';
alter table sessions force row level security;
create index sessions_email on sessions (tenant_id, env, email_key) where email_key <> '';

-- Addresses that were seen with more than one user, and since when.
create table email_matches (
  tenant_id text not null,
  env text not null,
  id uuid not null,
  email_key text not null,
  detect_time timestamptz not null,
  primary key (tenant_id, env, id)
);
create unique index email_matches_key on email_matches (tenant_id, env, email_key);

-- Merges of one profile into another. As long as what both held before is there, a merge can be undone.
create table profile_merges (
  tenant_id text not null,
  env text not null,
  id uuid not null,
  from_user_id text not null,
  into_user_id text not null,
  from_entries jsonb,
  into_entries jsonb,
  -- Sessions that are not anonymous any more since.
  known_sessions uuid[] not null default '{}',
  create_time timestamptz not null,
  undo_time timestamptz,
  primary key (tenant_id, env, id)
);
create index profile_merges_age on profile_merges (tenant_id, env, create_time);

-- The merge that changed a profile last, as long as nothing has changed it since.
alter table profiles add column merge_id uuid;

do $$
declare t text;
begin
  foreach t in array array['email_matches', 'profile_merges'] loop
    execute format('alter table %I enable row level security', t);
    execute format('alter table %I force row level security', t);
    execute format('create policy tenant on %I using (tenant_id = current_setting(''app.tenant_id'', true)
      and env = current_setting(''app.env'', true))', t);
    execute format('grant select, insert, update, delete on %I to memoryd_app', t);
  end loop;
end $$;

insert into schema_versions (version, compatible_from) values (18, 10);

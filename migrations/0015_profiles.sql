-- What is known of people. A profile is a list of entries, each one value with where it came from: {field, item, value,
-- source}. One without a value was removed; it stays, so that messages older than that do not bring it back.

create table profiles (
  tenant_id text not null,
  env text not null,
  user_id text not null,
  entries jsonb not null default '[]',
  -- The e-mail address as it is compared, '' if there is none.
  email_key text not null default '',
  revision bigint not null default 0,
  create_time timestamptz not null,
  update_time timestamptz not null,
  primary key (tenant_id, env, user_id)
);
create index profiles_email on profiles (tenant_id, env, email_key) where email_key <> '';

-- What changed, the newest of each profile. What was removed has no values here any more.
create table profile_changes (
  tenant_id text not null,
  env text not null,
  user_id text not null,
  revision bigint not null,
  place int not null,
  field text not null,
  item text not null,
  kind smallint not null,
  previous jsonb,
  current jsonb,
  source jsonb not null,
  previous_source jsonb,
  change_time timestamptz not null,
  primary key (tenant_id, env, user_id, revision, place),
  foreign key (tenant_id, env, user_id) references profiles on delete cascade
);

do $$
declare t text;
begin
  foreach t in array array['profiles', 'profile_changes'] loop
    execute format('alter table %I enable row level security', t);
    execute format('alter table %I force row level security', t);
    execute format('create policy tenant on %I using (tenant_id = current_setting(''app.tenant_id'', true)
      and env = current_setting(''app.env'', true))', t);
    execute format('grant select, insert, update, delete on %I to memoryd_app', t);
  end loop;
end $$;

insert into schema_versions (version, compatible_from) values (15, 10);

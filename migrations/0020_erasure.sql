-- People who are erased: everything of theirs goes, and nobody can act in their name any more.

-- One row for each erasure. Whom it is of, and what stands for them in what stays, is known only until it is done. The state
-- is the truth about it: whoever finds one due takes it, by moving its due time to when it may be taken from them again.
create table erasures (
  tenant_id text not null,
  env text not null,
  id uuid not null,
  user_id text,
  pseudonym text,
  state smallint not null default 1,
  waiting_for text not null default '',
  -- Rows so far, by table: those that went, and those that name the pseudonym since.
  removed jsonb not null default '{}',
  renamed jsonb not null default '{}',
  attempts int not null default 0,
  worker uuid,
  due_time timestamptz,
  create_time timestamptz not null,
  finish_time timestamptz,
  receipt text not null default '',
  signature text not null default '',
  primary key (tenant_id, env, id)
);
create unique index erasures_user on erasures (tenant_id, env, user_id) where user_id is not null;
create index erasures_due on erasures (tenant_id, env, due_time) where due_time is not null;

-- Who was erased, as a digest that only a key of the service makes of the name: calls in that name are refused.
create table erased_users (
  tenant_id text not null,
  env text not null,
  digest text not null,
  erase_time timestamptz not null,
  primary key (tenant_id, env, digest)
);

-- Snapshots in the store that may name somebody who is erased: what they hold is stored anew, and the files of before go.
alter table snapshots add column rewrite boolean not null default false;
create index snapshots_rewrite on snapshots (tenant_id, env) where rewrite;

do $$
declare t text;
begin
  foreach t in array array['erasures', 'erased_users'] loop
    execute format('alter table %I enable row level security', t);
    execute format('alter table %I force row level security', t);
    execute format('create policy tenant on %I using (tenant_id = current_setting(''app.tenant_id'', true)
      and env = current_setting(''app.env'', true))', t);
    execute format('grant select, insert, update, delete on %I to memoryd_app', t);
  end loop;
end $$;

-- Whichever server lives finds what is due, of all tenants: where it is, and nothing else.
create policy due_erasures on erasures for select to memoryd_jobs using (true);
grant select (tenant_id, env, due_time) on erasures to memoryd_jobs;

-- JSON in which a name stands for another, wherever it is the value of one of these fields.
create function rename_in(value jsonb, fields text[], old text, new text) returns jsonb
  language plpgsql immutable parallel safe as $$
begin
  case jsonb_typeof(value)
    when 'array' then
      return coalesce((
        select jsonb_agg(rename_in(e, fields, old, new) order by n) from jsonb_array_elements(value) with ordinality a (e, n)
      ), '[]');
    when 'object' then
      return coalesce((
        select jsonb_object_agg(key, case when key = any (fields) and v = to_jsonb(old) then to_jsonb(new) else rename_in(v, fields, old, new) end)
        from jsonb_each(value) o (key, v)
      ), '{}');
    else return value;
  end case;
end $$;

-- An older server goes on beside it. It does not know who was erased, only that they are no members.
insert into schema_versions (version, compatible_from) values (20, 10);

-- Full text search in messages. Each message's vector is made when it is written, in the tenant's language of that time,
-- by the statement that writes the message: so it is found at once. A message without a vector is never found.

-- Trusted: whoever may create in the database can have it. It puts tenant, env and user into the index of the words.
create extension if not exists btree_gin;

alter table tenants
  add column search_language text not null default 'simple',
  -- Languages in which messages may still be stored, and since when these wait to be derived anew. Null: there are none.
  add column former_languages text[] not null default '{}',
  add column language_time timestamptz;
-- Messages that are there already have no vector at all: they wait as well.
update tenants set language_time = now();

alter table messages
  add column search_language text,
  add column tsv tsvector;

-- By a pending list an append costs half of what it costs without. A search reads what is pending, so that is kept short.
create index messages_search on messages using gin (tenant_id, env, user_id, tsv)
  with (fastupdate = on, gin_pending_list_limit = 1024) where tsv is not null;

-- None without content. Of a very long text as much as fits a vector in any case (1 MiB), and as its positions tell apart.
create function message_tsv(language text, content text) returns tsvector
  language sql stable parallel safe as $$
  select to_tsvector(language::regconfig, left(nullif(content, ''), 131072))
$$;

grant select (tenant_id, search_language, former_languages) on tenants to memoryd_search;
grant select (tenant_id, env, user_id, thread_uid, id, session_id, role, create_time, search_language, tsv) on messages to memoryd_search;
grant select (tenant_id, env, user_id, thread_uid, thread_id, delete_time) on threads to memoryd_search;
create policy search on messages for select to memoryd_search using (true);
create policy search on threads for select to memoryd_search using (true);

-- Under a policy of row-level security `@@` uses no index, as it is not leakproof. So this runs as a role that sees all
-- rows, looks only where the caller's own settings let it, and gives ids and ranks: the rows themselves the caller reads
-- under its policies. `words` is in the syntax of to_tsquery; what is null filters nothing.
--
-- At most the newest 10,000 matches are ranked. Ids grow with time; those after `newest` came after the first page.
create function search_messages(tenant text, environment text, member text, words text, thread text, session uuid,
    roles smallint[], since timestamptz, before timestamptz, newest uuid, last_rank real, last_id uuid, most int)
  returns table (id uuid, rank real, newest_id uuid)
  language plpgsql stable security definer rows 100
  set search_path = public, pg_temp
  set plan_cache_mode = force_custom_plan as $$
declare
  languages text[];
  queries tsquery[];
  any_language tsquery;
  query tsquery;
begin
  if tenant is distinct from current_setting('app.tenant_id', true) or environment is distinct from current_setting('app.env', true) then
    raise insufficient_privilege using message = 'another tenant or env than that of the transaction';
  end if;
  select t.search_language || t.former_languages into languages from tenants t where t.tenant_id = tenant;
  queries := array(select to_tsquery(l::regconfig, words) from unnest(languages) with ordinality u (l, n) order by n);
  foreach query in array queries loop
    any_language := coalesce(any_language || query, query);
  end loop;
  return query
    with matches as materialized (
      select m.id from messages m
      where m.tenant_id = tenant and m.env = environment and m.user_id = member and m.tsv @@ any_language
        and (cardinality(languages) = 1 or m.tsv @@ queries[array_position(languages, m.search_language)])
        and m.thread_uid in (
          select t.thread_uid from threads t
          where t.tenant_id = tenant and t.env = environment and t.user_id = member and t.delete_time is null
            and (thread is null or t.thread_id = thread))
        and (session is null or m.session_id = session) and (roles is null or m.role = any (roles))
        and (since is null or m.create_time >= since) and (before is null or m.create_time < before)
        and (newest is null or m.id <= newest)
    ), recent as materialized (
      select matches.id from matches order by matches.id desc limit 10000
    ), ranked as (
      select m.id, ts_rank_cd(m.tsv, queries[array_position(languages, m.search_language)], 1) as rank
      from recent join messages m on m.tenant_id = tenant and m.env = environment and m.id = recent.id
    )
    select r.id, r.rank, coalesce(newest, (select recent.id from recent limit 1)) from ranked r
    where last_id is null or (r.rank, r.id) < (last_rank, last_id)
    order by r.rank desc, r.id desc limit most;
end $$;

-- Only while the function changes hands: whoever inherits memoryd_search sees through its policies.
grant memoryd_search to current_user;
grant create on schema public to memoryd_search;
alter function search_messages owner to memoryd_search;
revoke create on schema public from memoryd_search;
revoke memoryd_search from current_user;
revoke execute on function search_messages from public;
grant execute on function search_messages to memoryd_app;

-- An older version would store messages that are never found.
insert into schema_versions (version, compatible_from) values (9, 9);

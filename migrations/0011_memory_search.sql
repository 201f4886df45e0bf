-- Full text search in memories, with typing errors, and their embeddings. As with messages, the statement that writes a
-- memory makes its vector of words, in the tenant's language of that time. Only the newest version is searched.

-- Trusted: whoever may create in the database can have it. It tells how alike words are.
create extension if not exists pg_trgm;

create table memory_texts (
  tenant_id text not null,
  env text not null,
  memory_id uuid not null,
  project_id text not null,
  -- That of the memory, else an older server wrote since: then the memory is not found until its words are derived anew.
  version bigint not null,
  search_language text not null,
  tsv tsvector not null,
  primary key (tenant_id, env, memory_id),
  foreign key (tenant_id, env, memory_id) references memories on delete cascade
);
create index memory_texts_search on memory_texts using gin (tenant_id, env, project_id, tsv)
  with (fastupdate = on, gin_pending_list_limit = 1024);
-- What most memories of a project match, and what none does, is met on the way from the newest on.
create index memory_texts_newest on memory_texts (tenant_id, env, project_id, memory_id);

-- The words of a project's memories, as they are written, to find those that are like a misspelt one. A word that is used no
-- more goes some days later: each is looked for again, once a week.
create table memory_words (
  tenant_id text not null,
  env text not null,
  project_id text not null,
  word text not null,
  check_time timestamptz not null,
  primary key (tenant_id, env, project_id, word)
);
create index memory_words_alike on memory_words using gin (tenant_id, env, project_id, word gin_trgm_ops);
create index memory_words_check on memory_words (tenant_id, env, check_time);

-- A row has its embedding in the column `embedding vector`, which `memoryd migrate` adds where the extension is installed.
create table memory_embeddings (
  tenant_id text not null,
  env text not null,
  memory_id uuid not null,
  project_id text not null,
  version bigint not null,
  dimension int not null,
  primary key (tenant_id, env, memory_id),
  foreign key (tenant_id, env, memory_id) references memories on delete cascade
);
create index memory_embeddings_project on memory_embeddings (tenant_id, env, project_id, dimension);

-- Byte by byte, it finds the keys with a prefix as well.
drop index memories_key;
create unique index memories_key on memories (tenant_id, env, project_id, key text_pattern_ops) where delete_time is null;

-- A key as words: `build/max_wait` and `buildMaxWait` have the words build, max and wait. It is there as it is written, too.
create function memory_key_words(key text) returns text
  language sql immutable parallel safe as $$
  select words || case when words <> key then ' ' || key else '' end
  from translate(regexp_replace(key, '([a-z0-9])([A-Z])', '\1 \2', 'g'), '_-./:', '     ') words
$$;

create function memory_tsv(language text, key text, value text) returns tsvector
  language sql stable parallel safe as $$
  select setweight(to_tsvector(language::regconfig, memory_key_words(key)), 'A') || to_tsvector(language::regconfig, value)
$$;

-- The words that can be meant by misspelt ones: of a long value the first.
create function memory_vocabulary(key text, value text) returns setof text
  language sql stable parallel safe as $$
  select lexeme from unnest(to_tsvector('simple', memory_key_words(key) || ' ' || value))
  where char_length(lexeme) between 4 and 40 and lexeme !~ '[0-9@/.:_-]'
  order by positions[1] limit 256
$$;

do $$
declare t text;
begin
  foreach t in array array['memory_texts', 'memory_words', 'memory_embeddings'] loop
    execute format('alter table %I enable row level security', t);
    execute format('alter table %I force row level security', t);
    execute format('create policy tenant on %I using (tenant_id = current_setting(''app.tenant_id'', true)
      and env = current_setting(''app.env'', true))', t);
    execute format('grant select, insert, update, delete on %I to memoryd_app', t);
  end loop;
end $$;

grant select (tenant_id, env, memory_id, project_id, version, search_language, tsv) on memory_texts to memoryd_search;
grant select (tenant_id, env, project_id, word) on memory_words to memoryd_search;
grant select (tenant_id, env, id, version, expire_time, delete_time) on memories to memoryd_search;
grant select (tenant_id, env, memory_id, version, metadata) on memory_versions to memoryd_search;
create policy search on memory_texts for select to memoryd_search using (true);
create policy search on memory_words for select to memoryd_search using (true);
create policy search on memories for select to memoryd_search using (true);
create policy search on memory_versions for select to memoryd_search using (true);

-- See search_messages: these too run as a role that sees all rows, and look only where the caller's settings let them.
create function expect_scope(tenant text, environment text) returns void
  language plpgsql stable as $$
begin
  if tenant is distinct from current_setting('app.tenant_id', true) or environment is distinct from current_setting('app.env', true) then
    raise insufficient_privilege using message = 'another tenant or env than that of the transaction';
  end if;
end $$;

-- `words` is in the syntax of to_tsquery; `likely`, if given, too: the same with words that may be meant. What holds
-- `words` scores 1 to 2, what holds only `likely` ones 0 to 1. At most the newest 10,000 matches are ranked.
create function search_memories(tenant text, environment text, project text, words text, likely text, holding jsonb,
    last_score real, last_id uuid, most int)
  returns table (id uuid, score real)
  language plpgsql stable security definer rows 100
  set search_path = public, pg_temp
  set plan_cache_mode = force_custom_plan as $$
declare
  languages text[];
  typed tsquery[];
  wanted tsquery[];
  any_language tsquery;
  query tsquery;
begin
  perform expect_scope(tenant, environment);
  select t.search_language || t.former_languages into languages from tenants t where t.tenant_id = tenant;
  typed := array(select to_tsquery(l::regconfig, words) from unnest(languages) with ordinality u (l, n) order by n);
  wanted := array(select to_tsquery(l::regconfig, coalesce(likely, words)) from unnest(languages) with ordinality u (l, n) order by n);
  foreach query in array wanted loop
    any_language := coalesce(any_language || query, query);
  end loop;
  return query
    with recent as materialized (
      select t.memory_id from memory_texts t
      where t.tenant_id = tenant and t.env = environment and t.project_id = project and t.tsv @@ any_language
        and (cardinality(languages) = 1 or t.tsv @@ wanted[array_position(languages, t.search_language)])
        and (holding is null or exists (
          select from memory_versions v
          where v.tenant_id = tenant and v.env = environment and v.memory_id = t.memory_id and v.version = t.version and v.metadata @> holding))
      order by t.memory_id desc limit 10000
    ), ranked as (
      select m.id, (case when t.tsv @@ q.typed then 1 + ts_rank_cd(t.tsv, q.typed, 33) else ts_rank_cd(t.tsv, q.wanted, 33) end)::real as score
      from recent r
      -- One by one: for many the planner would rather read the whole tables.
      cross join lateral (
        select t.version, t.search_language, t.tsv from memory_texts t
        where t.tenant_id = tenant and t.env = environment and t.memory_id = r.memory_id
        limit 1
      ) t
      cross join lateral (
        select m.id from memories m
        where m.tenant_id = tenant and m.env = environment and m.id = r.memory_id and m.version = t.version
          and m.delete_time is null and (m.expire_time is null or m.expire_time > now())
        limit 1
      ) m
      cross join lateral (select array_position(languages, t.search_language) as n) l
      cross join lateral (select typed[l.n] as typed, wanted[l.n] as wanted) q
    )
    select r.id, r.score from ranked r
    where last_id is null or (r.score, r.id) < (last_score, last_id)
    order by r.score desc, r.id desc limit most;
end $$;

-- For each word at most five of the project that are like it; only very similar ones if the project has the word itself.
create function similar_memory_words(tenant text, environment text, project text, words text[])
  returns table (word text, likely text)
  language plpgsql stable security definer rows 10
  set search_path = public, pg_temp
  set plan_cache_mode = force_custom_plan as $$
begin
  perform expect_scope(tenant, environment);
  return query
    select u.word, s.word from unnest(words) u (word) cross join lateral (
      select m.word from memory_words m
      where m.tenant_id = tenant and m.env = environment and m.project_id = project and m.word % u.word and m.word <> u.word
        and similarity(m.word, u.word) >= case when exists (
          select from memory_words k where k.tenant_id = tenant and k.env = environment and k.project_id = project and k.word = u.word
        ) then 0.5 else 0.3 end
      order by similarity(m.word, u.word) desc, m.word limit 5
    ) s;
end $$;

create function memory_word_is_used(tenant text, environment text, project text, word text) returns boolean
  language plpgsql stable security definer
  set search_path = public, pg_temp
  set plan_cache_mode = force_custom_plan as $$
declare
  l text;
begin
  perform expect_scope(tenant, environment);
  for l in select unnest(t.search_language || t.former_languages) from tenants t where t.tenant_id = tenant loop
    if exists (
      select from memory_texts t
      where t.tenant_id = tenant and t.env = environment and t.project_id = project and t.tsv @@ plainto_tsquery(l::regconfig, word)
    ) then return true;
    end if;
  end loop;
  return false;
end $$;

-- Only while the functions change hands: whoever inherits memoryd_search sees through its policies.
grant memoryd_search to current_user;
grant create on schema public to memoryd_search;
do $$
declare f text;
begin
  foreach f in array array['search_memories', 'similar_memory_words', 'memory_word_is_used'] loop
    execute format('alter function %I owner to memoryd_search', f);
    execute format('revoke execute on function %I from public', f);
    execute format('grant execute on function %I to memoryd_app', f);
  end loop;
end $$;
revoke create on schema public from memoryd_search;
revoke memoryd_search from current_user;

-- Memories that are there already wait for their words, and those that older servers go on to write for ten minutes.
alter table memories no force row level security;
update tenants t set language_time = now() + interval '10 minutes' where exists (select from memories m where m.tenant_id = t.tenant_id);
alter table memories force row level security;

insert into schema_versions (version, compatible_from) values (11, 9);

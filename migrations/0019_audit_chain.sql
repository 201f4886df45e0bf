-- The audit trail as a chain of hashed, signed blocks. A background job seals what is committed, so that who writes an event
-- does nothing for it.

-- In the order in which events can be read without missing a late commit: below the horizon of running transactions.
create index audit_events_order on audit_events (tenant_id, env, xid, id);

create table audit_blocks (
  tenant_id text not null,
  env text not null,
  block_no bigint not null,
  -- 1: it seals events. 2: what an erasure left of events that an earlier block sealed. 3: retention removed blocks.
  kind smallint not null,
  -- Of kind 2 the block that sealed the events, of kind 3 the last block that was removed.
  about bigint,
  -- Every event up to this position, in the order of (xid, id), is in this block or in one before.
  upto xid8 not null,
  upto_id uuid not null,
  -- The newest event's create_time, in microseconds since 1970. Of a block that seals none, the time when it was made.
  newest_micros bigint not null,
  ids uuid[] not null,
  -- A SHA-256 of 32 bytes for each event, over a salt and the event. An erasure destroys the salt, so that nobody can find
  -- out any more what the event said, by trying what it may have been. Of kind 3 the last removed block's hash.
  leaves bytea not null,
  salts bytea not null,
  prev bytea not null,
  hash bytea not null,
  signature text not null,
  create_time timestamptz not null default now(),
  primary key (tenant_id, env, block_no)
);
-- The block of an event, by the event's position.
create index audit_blocks_upto on audit_blocks (tenant_id, env, upto, upto_id) where kind = 1;
create index audit_blocks_about on audit_blocks (tenant_id, env, about, block_no) where kind = 2;

alter table audit_blocks enable row level security;
alter table audit_blocks force row level security;
create policy tenant on audit_blocks using (tenant_id = current_setting('app.tenant_id', true)
  and env = current_setting('app.env', true));
create policy tenant_level on audit_blocks for select
  using (tenant_id = current_setting('app.tenant_id', true) and env = '');
grant select, insert on audit_blocks to memoryd_app;

-- Events and blocks are append-only for the runtime role. What an erasure changes and retention removes goes through these
-- functions, and verifies only together with a block that is signed with a key which the database does not have.
grant select (tenant_id, env, id), update (user_id, actor, resource, session_id, request_id, trace_id, metadata), delete
  on audit_events to memoryd_audit;
grant select (tenant_id, env, block_no, kind, about, ids), update (salts), delete on audit_blocks to memoryd_audit;
create policy audit on audit_events to memoryd_audit using (true);
create policy audit on audit_blocks to memoryd_audit using (true);

-- `events` are the personal columns as they are to be, `blocks` the salts that are left of blocks, as {block_no, salts in hex}.
create function erase_from_audit(tenant text, environment text, events jsonb, blocks jsonb) returns void
  language plpgsql security definer
  set search_path = public, pg_temp as $$
begin
  perform expect_scope(tenant, environment);
  update audit_events e
  set user_id = c.user_id, actor = c.actor, resource = c.resource, session_id = c.session_id, request_id = c.request_id,
    trace_id = c.trace_id, metadata = c.metadata
  from jsonb_to_recordset(events) as c (id uuid, user_id text, actor text, resource text, session_id uuid, request_id uuid,
    trace_id text, metadata jsonb)
  where e.tenant_id = tenant and e.env = environment and e.id = c.id;
  update audit_blocks b set salts = decode(c.salts, 'hex')
  from jsonb_to_recordset(blocks) as c (block_no bigint, salts text)
  where b.tenant_id = tenant and b.env = environment and b.block_no = c.block_no;
end $$;

-- Removes the oldest blocks with their events, as far as a block of kind 3 says so: one, and more up to so many events.
create function prune_audit(tenant text, environment text, most int) returns table (blocks bigint, events bigint)
  language plpgsql security definer rows 1
  set search_path = public, pg_temp as $$
begin
  perform expect_scope(tenant, environment);
  return query
    with due as materialized (
      select o.block_no, o.kind, o.ids from (
        select b.*, sum(cardinality(b.ids)) over (order by b.block_no) - cardinality(b.ids) as before from (
          select b.block_no, b.kind, b.ids from audit_blocks b
          where b.tenant_id = tenant and b.env = environment and b.block_no <= (
            select max(c.about) from audit_blocks c where c.tenant_id = tenant and c.env = environment and c.kind = 3)
          order by b.block_no limit 200
        ) b
      ) o
      where o.before < most
    ), removed as (
      delete from audit_events e using (select unnest(d.ids) as id from due d where d.kind = 1) d
      where e.tenant_id = tenant and e.env = environment and e.id = d.id
      returning 1
    ), gone as (
      delete from audit_blocks b using due d
      where b.tenant_id = tenant and b.env = environment and b.block_no = d.block_no
      returning 1
    )
    select (select count(*) from gone), (select count(*) from removed);
end $$;

-- Only while the functions change hands: whoever inherits memoryd_audit sees through its policies.
grant memoryd_audit to current_user;
grant create on schema public to memoryd_audit;
do $$
declare f text;
begin
  foreach f in array array['erase_from_audit', 'prune_audit'] loop
    execute format('alter function %I owner to memoryd_audit', f);
    execute format('revoke execute on function %I from public', f);
    execute format('grant execute on function %I to memoryd_app', f);
  end loop;
end $$;
revoke create on schema public from memoryd_audit;
revoke memoryd_audit from current_user;

insert into schema_versions (version, compatible_from) values (19, 10);

-- What threads need to be watched, streamed into and cleaned up. Each append, and each event below, takes the next revision
-- of its thread under the row's lock. Appends leave no event: between two events, or after the base, seq and revision grow
-- together, so that the messages themselves tell their revisions, and an append costs nothing more.

-- Where the present generation of a thread begins: the revision at which it was started again or cleared, and the seq then.
alter table threads
  add column base_revision bigint not null default 0,
  add column base_seq bigint not null default 0;

alter table threads no force row level security;
update threads set base_revision = revision - last_seq where revision <> last_seq and delete_time is null;
alter table threads force row level security;

-- A deleted message keeps its place, without content. `streamed`: the content came in text events.
alter table messages
  add column state smallint not null default 1,
  add column streamed boolean not null default false,
  add column delete_time timestamptz;

-- What happened in a thread besides appends. `last_seq` is the thread's at that time. The text of a streaming message is
-- in its events until it ends; then it is in the message, and the event keeps the place in it, in bytes of UTF-8.
create table thread_events (
  tenant_id text not null,
  env text not null,
  thread_uid uuid not null,
  revision bigint not null,
  user_id text not null,
  kind smallint not null,
  seq bigint not null,
  last_seq bigint not null,
  state smallint not null default 0,
  byte_offset int not null default 0,
  byte_length int not null default 0,
  text text,
  create_time timestamptz not null,
  primary key (tenant_id, env, thread_uid, revision)
);
create index thread_events_text on thread_events (tenant_id, env, thread_uid, seq, revision) where text is not null;

-- The messages that are being streamed: by whom (each opening takes the message from the one before), how much is stored,
-- and until when the server that stores it is believed to live.
create table message_streams (
  tenant_id text not null,
  env text not null,
  message_id uuid not null,
  thread_uid uuid not null,
  seq bigint not null,
  user_id text not null,
  session_id uuid,
  writer uuid not null,
  byte_length int not null,
  expire_time timestamptz not null,
  primary key (tenant_id, env, message_id)
) with (fillfactor = 50);
create unique index message_streams_seq on message_streams (tenant_id, env, thread_uid, seq);

do $$
declare t text;
begin
  foreach t in array array['thread_events', 'message_streams'] loop
    execute format('alter table %I enable row level security', t);
    execute format('alter table %I force row level security', t);
    execute format('create policy tenant on %I using (tenant_id = current_setting(''app.tenant_id'', true)
      and env = current_setting(''app.env'', true))', t);
    execute format('grant select, insert, update, delete on %I to memoryd_app', t);
  end loop;
end $$;

-- Whichever server lives finds the streams that others left, of all tenants: where they are, and nothing else.
create policy stale_streams on message_streams for select to memoryd_jobs using (true);
grant select (tenant_id, env, expire_time) on message_streams to memoryd_jobs;

-- An older version would show the text of a streaming message as empty, and a deleted message as one.
insert into schema_versions (version, compatible_from) values (7, 7);

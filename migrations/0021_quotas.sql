-- Quotas of tenants: what is counted for them. Older versions go on beside it: what they create is counted within a minute.

-- Part of the tenant directory, as a quota is of all envs: outside row-level security, and numbers only. A row is there for a
-- tenant that has such a quota, or had one.
create table quota_counts (
  tenant_id text primary key references tenants,
  -- Live sessions. Who creates one adds it in the same transaction, with the limit that it knows.
  sessions bigint not null,
  session_limit bigint,
  session_count_time timestamptz not null default '-infinity',
  -- Bytes of content, when that was measured, and how long it took.
  stored_bytes bigint,
  stored_bytes_time timestamptz,
  measure_seconds float8 not null default 0,
  constraint quota_counts_sessions check (sessions <= session_limit)
);
grant select, insert, update, delete on quota_counts to memoryd_app;

-- The holes of a thread, which its quota of messages does not count.
create index messages_deleted on messages (tenant_id, env, thread_uid, seq) where delete_time is not null;

insert into schema_versions (version, compatible_from) values (21, 10);

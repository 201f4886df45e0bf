-- The lease of a thread's turn (src/db/lease.ts). The fencing token stays when the lease ends and when the thread is deleted
-- or starts again: for one (user, thread_id) it only grows.

alter table threads
  add column lease_holder text,
  add column lease_expire_time timestamptz,
  add column fencing_token bigint not null default 0;

insert into schema_versions (version, compatible_from) values (2, 2);

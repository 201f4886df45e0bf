-- The events of one user in the order in which watches read: members see their own only, and look at no others.
create index audit_events_user_order on audit_events (tenant_id, env, user_id, xid, id);

insert into schema_versions (version, compatible_from) values (26, 10);

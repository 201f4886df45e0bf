-- Tokens of the content, counted when a message is stored. Null: stored before they were counted.
alter table messages add column token_count int;

-- An older version just leaves it null: it can go on with whatever schema it could use before.
insert into schema_versions (version, compatible_from) select 5, max(compatible_from) from schema_versions;

import { randomBytes, randomUUID } from 'node:crypto';
import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect } from 'chai';
import { MIGRATIONS, migrate } from '../src/db/migrate.ts';
import { allTables, as, JOBS_SEE, REFUSED, refusal, tenantTables } from './fixtures/roles.ts';
import { appUrl, newTenant, ownerUrl, runSql } from './support.ts';

describe('database roles', () => {
  let protectedTables: string[];
  let tenant: string;

  before(async () => {
    protectedTables = tenantTables(await allTables());
    tenant = await newTenant();
  });

  it('runs as a role that owns nothing and cannot become more', async () => {
    const roles = await runSql(
      ownerUrl(),
      `select rolname, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication, rolinherit, rolcanlogin from pg_roles where rolname like 'memoryd\\_%' and rolname in ('memoryd_app', 'memoryd_audit', 'memoryd_jobs', 'memoryd_search') order by 1`,
    );
    const plain = {
      rolsuper: false,
      rolbypassrls: false,
      rolcreaterole: false,
      rolcreatedb: false,
      rolreplication: false,
    };
    expect(roles.map(({ rolname, rolinherit, rolcanlogin, ...rights }) => [rolname, rights])).to.deep.equal(
      ['memoryd_app', 'memoryd_audit', 'memoryd_jobs', 'memoryd_search'].map((name) => [name, plain]),
    );
    expect(roles.map(({ rolcanlogin }) => rolcanlogin)).to.deep.equal([true, false, true, false]);
    expect(roles[0].rolinherit).to.equal(false);
    const grantable = `select c.relname as name from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'
      and has_table_privilege('memoryd_app', c.oid, 'select with grant option, insert with grant option, update with grant option')`;
    expect(await runSql(ownerUrl(), grantable)).to.deep.equal([]);
    const owned = `select count(*)::int as n from pg_shdepend where refclassid = 'pg_authid'::regclass and refobjid = 'memoryd_app'::regrole and deptype = 'o'`;
    expect(await runSql(ownerUrl(), owned)).to.deep.equal([{ n: 0 }]);
    const member = `select distinct roleid::regrole::text as role from pg_auth_members where member = 'memoryd_app'::regrole`;
    expect(await runSql(ownerUrl(), member)).to.deep.equal([{ role: 'memoryd_jobs' }]);

    const [{ owner }] = await runSql(
      ownerUrl(),
      `select relowner::regrole::text as owner from pg_class where oid = 'sessions'::regclass`,
    );
    const everything = { tenant: tenant, env: 'dev' };
    for (const sql of [
      `set role ${owner}`,
      `set session authorization ${owner}`,
      'set role memoryd_search',
      'set role memoryd_audit',
      'set role pg_read_all_data',
      'alter role memoryd_app bypassrls',
      'alter role memoryd_app superuser',
      'create role more',
      `grant ${owner} to memoryd_app`,
      'create table public.mine (a int)',
      `create function public.mine() returns int language sql as 'select 1'`,
      'create schema mine',
      'create policy mine on sessions using (true)',
      'drop policy tenant on sessions',
      `copy messages to program 'cat'`,
      `select pg_read_file('postgresql.conf')`,
      'create extension file_fdw',
      'drop function merge_patch(jsonb, jsonb)',
      `alter function merge_patch(jsonb, jsonb) owner to memoryd_app`,
      'delete from tenants',
      'update schema_versions set version = 99',
      'truncate tenants',
      'drop table tenants cascade',
      ...protectedTables.flatMap((table) => [
        `alter table ${table} disable row level security`,
        `alter table ${table} no force row level security`,
        `truncate ${table}`,
        `drop table ${table} cascade`,
        `alter table ${table} add column a int`,
        `alter table ${table} owner to memoryd_app`,
        `create index on ${table} (tenant_id)`,
        `create rule r as on select to ${table} do instead select`,
      ]),
    ]) {
      expect(await refusal(as(appUrl(), everything, [sql])), sql).to.be.oneOf([REFUSED, '42809']);
    }
    for (const sql of [
      `update audit_events set action = ''`,
      'delete from audit_events',
      `update audit_blocks set signature = ''`,
      'delete from audit_blocks',
    ]) {
      expect(await refusal(as(appUrl(), everything, [sql])), sql).to.equal(REFUSED);
    }
  });

  it('shows memoryd_jobs the directory, its jobs, and of tenants where something is due and when, and nothing else', async () => {
    const rights = await runSql(
      ownerUrl(),
      `select c.oid::regclass::text as name, p.privilege from pg_class c, unnest(array['select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger']) p (privilege)
       where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm') and has_table_privilege('memoryd_jobs', c.oid, p.privilege) order by 1, 2`,
    );
    expect(rights).to.deep.equal(JOBS_SEE.map((name) => ({ name, privilege: 'select' })));
    const schemas = await runSql(
      ownerUrl(),
      `select nspname::text as name from pg_namespace where nspowner = 'memoryd_jobs'::regrole`,
    );
    expect(schemas).to.deep.equal([{ name: 'graphile_worker' }]);
    const jobs = new URL(appUrl());
    [jobs.username, jobs.password] = ['memoryd_jobs', 'jobs'];
    const settings = { tenant: tenant, env: 'dev' };
    const columns = await runSql(
      ownerUrl(),
      `select c.relname || '.' || a.attname as name from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
       where c.relname = any ($1) and c.relnamespace = 'public'::regnamespace
         and has_column_privilege('memoryd_jobs', c.oid, a.attnum, 'select, insert, update, references') order by name`,
      [protectedTables],
    );
    const shown = {
      audit_blocks: ['block_no', 'env', 'newest_micros', 'signature', 'tenant_id', 'upto', 'upto_id'],
      audit_events: ['env', 'id', 'tenant_id', 'xid'],
      bundles: ['env', 'expire_time', 'tenant_id'],
      dropped_threads: ['env', 'tenant_id'],
      email_matches: ['env', 'tenant_id'],
      erasures: ['due_time', 'env', 'tenant_id'],
      handoffs: ['ack_time', 'env', 'tenant_id'],
      llm_requests: ['create_time', 'env', 'folded', 'tenant_id'],
      memories: ['delete_time', 'env', 'expire_time', 'tenant_id'],
      message_streams: ['env', 'expire_time', 'tenant_id'],
      profile_merges: ['create_time', 'env', 'tenant_id'],
      prompts: ['create_time', 'env', 'tenant_id'],
      requests: ['create_time', 'env', 'tenant_id'],
      session_keys: ['env', 'expire_time', 'tenant_id'],
      sessions: ['delete_time', 'env', 'expire_time', 'tenant_id'],
      snapshots: ['due_time', 'env', 'tenant_id', 'upload_state'],
      state_checkpoints: ['create_time', 'env', 'tenant_id'],
      threads: ['create_time', 'delete_time', 'env', 'oldest_time', 'tenant_id'],
      tool_calls: ['create_time', 'env', 'tenant_id'],
      turn_results: ['env', 'tenant_id', 'update_time'],
      turns: ['create_time', 'env', 'tenant_id'],
      usage_rollups: ['day', 'env', 'tenant_id'],
    };
    const named = Object.entries(shown).flatMap(([table, names]) =>
      names.map((name) => ({ name: `${table}.${name}` })),
    );
    expect(columns).to.deep.equal(named);
    for (const table of protectedTables) {
      const select: [string] = [`select * from ${table}`];
      expect(await refusal(as(jobs.href, settings, select)), table).to.equal(REFUSED);
      expect(await refusal(as(appUrl(), { ...settings, role: 'memoryd_jobs' }, select)), table).to.equal(REFUSED);
    }
    expect((await as(jobs.href, {}, ['select from tenants where tenant_id = $1', [tenant]])).rowCount).to.equal(1);
    expect(await refusal(as(jobs.href, {}, ['create table public.mine (a int)']))).to.equal(REFUSED);
    expect(await refusal(as(jobs.href, {}, ['update tenants set envs = envs']))).to.equal(REFUSED);
    // Without becoming memoryd_jobs, the runtime role has nothing of it.
    expect(await refusal(as(appUrl(), {}, ['select from graphile_worker.jobs']))).to.equal(REFUSED);
  });

  it('shows memoryd_search words and where they are, metadata that it filters by, and no content', async () => {
    const rights = await runSql(
      ownerUrl(),
      `select c.relname || ': ' || string_agg(a.attname, ' ' order by a.attname) as columns
       from pg_class c join pg_attribute a on a.attrelid = c.oid and not a.attisdropped and a.attnum > 0
       where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and has_column_privilege('memoryd_search', c.oid, a.attnum, 'select')
       group by c.relname order by 1`,
    );
    expect(rights.map(({ columns }) => columns)).to.deep.equal([
      'memories: delete_time env expire_time id tenant_id version',
      'memory_texts: env memory_id project_id search_language tenant_id tsv version',
      'memory_versions: env memory_id metadata tenant_id version',
      'memory_words: env project_id tenant_id word',
      'messages: create_time env id role search_language session_id tenant_id thread_uid tsv user_id',
      'tenants: former_languages search_language tenant_id',
      'threads: delete_time env tenant_id thread_id thread_uid user_id',
    ]);
    const writable = `select c.relname from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'
      and has_any_column_privilege('memoryd_search', c.oid, 'insert, update, references')`;
    expect(await runSql(ownerUrl(), writable)).to.deep.equal([]);
    const members = `select member::regrole::text as name from pg_auth_members where roleid = 'memoryd_search'::regrole and (member = 'memoryd_app'::regrole or member = 'memoryd_jobs'::regrole)`;
    expect(await runSql(ownerUrl(), members)).to.deep.equal([]);
  });

  it('lets memoryd_audit take persons out of events, and remove events, and nothing else', async () => {
    const rights = await runSql(
      ownerUrl(),
      `select p.privilege || ' ' || c.relname || ': ' || string_agg(a.attname, ' ' order by a.attname) as columns
       from pg_class c join pg_attribute a on a.attrelid = c.oid and not a.attisdropped and a.attnum > 0,
         unnest(array['select', 'insert', 'update', 'references']) p (privilege)
       where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'
         and has_column_privilege('memoryd_audit', c.oid, a.attnum, p.privilege)
       group by c.relname, p.privilege order by 1`,
    );
    expect(rights.map(({ columns }) => columns)).to.deep.equal([
      'select audit_blocks: about block_no env ids kind tenant_id',
      'select audit_events: env id tenant_id',
      'update audit_blocks: salts',
      'update audit_events: actor metadata request_id resource session_id trace_id user_id',
    ]);
    const removes = `select c.relname as name from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'
      and has_table_privilege('memoryd_audit', c.oid, 'delete, truncate, trigger') order by 1`;
    expect((await runSql(ownerUrl(), removes)).map(({ name }) => name)).to.deep.equal(['audit_blocks', 'audit_events']);
    const members = `select from pg_auth_members where roleid = 'memoryd_audit'::regrole and member in ('memoryd_app'::regrole, 'memoryd_jobs'::regrole)`;
    expect(await runSql(ownerUrl(), members)).to.deep.equal([]);
    const elsewhere = { tenant, env: 'prod' };
    for (const sql of [`select erase_from_audit($1, 'dev', '[]', '[]')`, `select * from prune_audit($1, 'dev', 1)`])
      expect(await refusal(as(appUrl(), elsewhere, [sql, [tenant]])), sql).to.equal(REFUSED);
  });

  describe('the owner', () => {
    const name = `owner_${randomBytes(6).toString('hex')}`;
    let url: URL;
    let admin: URL;
    let folder: string;

    before(async () => {
      // As it is run for real: the owner is no superuser, who would see through every policy.
      await runSql(ownerUrl(), `create role ${name} login createrole password 'owner'`);
      await runSql(
        ownerUrl(),
        `grant memoryd_app, memoryd_audit, memoryd_jobs, memoryd_search to ${name} with admin option`,
      );
      // Nor does it inherit memoryd_search, as who makes the role has it from Postgres 16 on. Before, a migration takes it away.
      const { server_version_num: version } = (await runSql(ownerUrl(), 'show server_version_num'))[0];
      if (version >= 160_000)
        await runSql(ownerUrl(), `grant memoryd_search, memoryd_audit to ${name} with inherit false`);
      await runSql(ownerUrl(), `create database ${name} owner ${name}`);
      [url, admin] = [new URL(ownerUrl()), new URL(ownerUrl())];
      for (const each of [url, admin]) each.pathname = `/${name}`;
      [url.username, url.password] = [name, 'owner'];
      folder = await mkdtemp(join(tmpdir(), 'memoryd-migrations-'));
      await cp(MIGRATIONS, folder, { recursive: true });
      await migrate(url.href, folder);
      for (const each of ['one', 'two', 'three']) {
        const insert = `insert into threads (tenant_id, env, user_id, thread_id, thread_uid, create_time, update_time) values ($1, 'dev', 'user', 't', $2, now(), now())`;
        await as(url.href, { tenant: each, env: 'dev' }, [insert, [each, randomUUID()]], ['commit']);
      }
    });
    after(async () => {
      await runSql(ownerUrl(), `drop database ${name} with (force)`);
      await rm(folder, { recursive: true });
    });

    const revisions = async () =>
      (await runSql(admin.href, 'select revision::int from threads')).map((row) => row.revision);
    const forced = async () =>
      (await runSql(admin.href, `select relforcerowsecurity as forced from pg_class where relname = 'threads'`))[0]
        .forced;
    const migration = async (version: number, sql: string) => {
      const file = `${String(version).padStart(4, '0')}_backfill.sql`;
      await writeFile(
        join(folder, file),
        `${sql}; insert into schema_versions (version, compatible_from) values (${version}, 1);`,
      );
      return file;
    };

    it('touches no row under FORCE, and nobody says so', async () => {
      expect(await revisions()).to.deep.equal([0, 0, 0]);
      const [{ role }] = await runSql(
        url.href,
        `select current_user || ' ' || rolsuper || ' ' || rolbypassrls as role from pg_roles where rolname = current_user`,
      );
      expect(role).to.equal(`${name} false false`);
      expect((await as(url.href, {}, ['update threads set revision = 1'], ['commit'])).command).to.equal('COMMIT');
      const file = await migration(7001, 'update threads set revision = 1');
      expect(await migrate(url.href, folder)).to.deep.equal([file]);
      expect(await revisions()).to.deep.equal([0, 0, 0]);
    });

    it('backfills all tenants in a migration that switches FORCE off and on', async () => {
      const backfill =
        'alter table threads no force row level security; update threads set revision = revision + 5; alter table threads force row level security';
      const file = await migration(7002, backfill);
      expect(await migrate(url.href, folder)).to.deep.equal([file]);
      expect(await revisions()).to.deep.equal([5, 5, 5]);
      expect(await forced()).to.equal(true);
      expect(await runSql(url.href, 'select from threads')).to.deep.equal([]);
    });

    it('leaves FORCE on and no row changed when such a migration fails', async () => {
      const file = await migration(
        7003,
        'alter table threads no force row level security; update threads set revision = 99; select 1 / 0',
      );
      expect(await refusal(migrate(url.href, folder))).to.equal('22012');
      expect(await revisions()).to.deep.equal([5, 5, 5]);
      expect(await forced()).to.equal(true);
      await rm(join(folder, file));
      expect(await migrate(url.href, folder)).to.deep.equal([]);
    });
  });
});

import { randomBytes, randomUUID } from 'node:crypto';
import { expect } from 'chai';
import pg from 'pg';
import type { RunningServer } from '../src/server.ts';
import { addMembers } from './fixtures/answers.ts';
import { sealed } from './fixtures/audit.ts';
import { type Place, type Planted, plant, requestIdsOf } from './fixtures/places.ts';
import {
  allTables,
  as,
  DIRECTORY,
  OF_THE_SCHEMA,
  REFUSED,
  refusal,
  type Settings,
  type Table,
  tenantTables,
} from './fixtures/roles.ts';
import { appUrl, connect, newTenant, ownerUrl, runSql, startTestServer, until, useOwnDatabase } from './support.ts';

const APPEND_ONLY = ['audit_events', 'audit_blocks'];

describe('row-level security', () => {
  let tables: Table[];
  let protectedTables: string[];
  let mine: Place;
  let theirs: Place;
  let planted: Planted;
  /** A row of each table. */
  const rows = new Map<string, object>();

  let restore = () => {};

  before(async () => {
    restore = await useOwnDatabase();
    tables = await allTables();
    protectedTables = tenantTables(tables);
    const server: RunningServer = await startTestServer();
    const client = connect(`127.0.0.1:${server.port}`);
    const tenants = [await newTenant([], { pii: 3 }), await newTenant([], { pii: 3 })];
    const [a, b] = tenants.map((tenant) => ({
      tenant,
      env: 'dev',
      user: 'user',
      admin: 'admin',
      destination: 'maybes',
    }));
    [mine, theirs] = [a!, b!];
    for (const place of [mine, theirs]) {
      await addMembers([place, { ...place, user: 'admin', role: 2 }]);
      planted = await plant(client, place, { content: 'content', id: 'id' }, requestIdsOf());
      await sealed(server.kernel, place);
      await runSql(ownerUrl(), `insert into expiry_stats values ($1, $2, 'sessions', 1, now())`, [
        place.tenant,
        place.env,
      ]);
      // A stream is there only while it is open.
      await runSql(
        ownerUrl(),
        `insert into message_streams values ($1, $2, gen_random_uuid(), gen_random_uuid(), 1, 'user', null, gen_random_uuid(), 0, now() + interval '1 hour')`,
        [place.tenant, place.env],
      );
      // The embedding itself has a column only where its extension is installed.
      await runSql(
        ownerUrl(),
        `insert into memory_embeddings select r.* from memories m, jsonb_populate_record(null::memory_embeddings, jsonb_build_object('tenant_id', $1::text,
           'env', $2::text, 'memory_id', m.id, 'project_id', m.project_id, 'version', 1, 'dimension', 1, 'embedding', '[1]')) r
         where m.tenant_id = $1 and m.env = $2 limit 1`,
        [place.tenant, place.env],
      );
      await runSql(ownerUrl(), `insert into thread_readings values ($1, $2, gen_random_uuid(), 'user', 1, false)`, [
        place.tenant,
        place.env,
      ]);
      await runSql(ownerUrl(), 'insert into reading_rounds values ($1, $2, gen_random_uuid())', [
        place.tenant,
        place.env,
      ]);
    }
    for (const table of protectedTables) {
      const find = () =>
        runSql(ownerUrl(), `select to_jsonb(t) as row from ${table} t where tenant_id = $1 limit 1`, [theirs.tenant]);
      // The sums come a moment after the calls.
      if (table === 'usage_rollups') await until(async () => (await find()).length > 0);
      const [found] = await find();
      if (found) rows.set(table, found.row);
    }
    client.close();
    await server.stop();
  });

  after(() => restore());

  it('is enabled and forced on every table of tenants', () => {
    expect(tables.filter((t) => !t.of_tenant).map((t) => t.name)).to.deep.equal(OF_THE_SCHEMA);
    expect(tables.filter((t) => t.of_tenant && !(t.enabled && t.forced)).map((t) => t.name)).to.deep.equal(DIRECTORY);
    expect(protectedTables).to.include.members(['sessions', 'messages', 'requests', 'audit_events']);
  });

  it('finds tenant and env first in every key, index and foreign key', async () => {
    const indexes = await runSql(
      ownerUrl(),
      `select c.relname || '.' || i.indexrelid::regclass as name, i.indisprimary as main,
         (select array_agg(coalesce(a.attname::text, '') order by k.n) from unnest(i.indkey::int[]) with ordinality k (attnum, n)
          left join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum) as columns
       from pg_index i join pg_class c on c.oid = i.indrelid where c.relname = any ($1) and c.relnamespace = 'public'::regnamespace`,
      [protectedTables],
    );
    expect(indexes.filter((index) => index.main)).to.have.length(protectedTables.length);
    for (const { name, columns } of indexes) expect(columns.slice(0, 2), name).to.deep.equal(['tenant_id', 'env']);
    const foreign = await runSql(
      ownerUrl(),
      `select c.relname || '.' || k.conname as name, k.confrelid::regclass::text as target,
         (select array_agg(a.attname::text order by n) from unnest(k.conkey) with ordinality f (attnum, n)
          join pg_attribute a on a.attrelid = c.oid and a.attnum = f.attnum) as columns
       from pg_constraint k join pg_class c on c.oid = k.conrelid where k.contype = 'f' and c.relname = any ($1)`,
      [protectedTables],
    );
    expect(foreign).to.not.be.empty;
    for (const { name, columns } of foreign) expect(columns.slice(0, 2), name).to.deep.equal(['tenant_id', 'env']);
  });

  it('has no policy that lets another tenant in, and nothing around the policies', async () => {
    const policies = await runSql(
      ownerUrl(),
      `select tablename, policyname, roles::text[], qual, with_check, cmd from pg_policies where schemaname = 'public'`,
    );
    const own = policies.filter(({ roles }) => !/^memoryd_(search|jobs|audit)$/.test(roles.join()));
    expect([...new Set(own.map(({ tablename }) => tablename))].sort()).to.deep.equal(protectedTables);
    for (const { tablename, policyname, qual, with_check, cmd } of own) {
      const name = `${tablename}.${policyname}`;
      expect(qual, name).to.match(/tenant_id = current_setting\('app.tenant_id'::text, true\)/);
      expect(qual, name).to.match(cmd === 'SELECT' ? /env = / : /env = current_setting\('app.env'::text, true\)/);
      expect(qual, `${name}: Citus refuses a subquery`).to.not.match(/select| or /i);
      expect(with_check, name).to.equal(null);
    }
    const around = `select c.relname as name from pg_class c where c.relnamespace = 'public'::regnamespace
        and (c.relkind = 'm' or c.relkind = 'v' and not coalesce(c.reloptions::text like '%security_invoker=%', false))
      union all select p.oid::regprocedure::text from pg_proc p join pg_roles r on r.oid = p.proowner
        where p.pronamespace = 'public'::regnamespace and p.prosecdef and r.rolname not in ('memoryd_search', 'memoryd_jobs', 'memoryd_audit')
      union all select tgname from pg_trigger t join pg_class c on c.oid = t.tgrelid
        where c.relnamespace = 'public'::regnamespace and not t.tgisinternal`;
    expect(await runSql(ownerUrl(), around), 'views, definers and triggers see all rows').to.deep.equal([]);
  });

  it('shows no row without the right tenant and env', async () => {
    for (const table of protectedTables) {
      const count = async (settings: Settings) =>
        Number(
          (
            await as(appUrl(), settings, [
              `select count(*) as n from ${table} where tenant_id = $1 and env = 'dev'`,
              [theirs.tenant],
            ])
          ).rows[0].n,
        );
      const { tenant } = theirs;
      expect(await count({ tenant, env: 'dev' }), `plant something in ${table}`).to.be.greaterThan(0);
      for (const settings of [
        {},
        { tenant },
        { env: 'dev' },
        { tenant: '', env: '' },
        { tenant: mine.tenant, env: 'dev' },
        { tenant, env: 'prod' },
        { tenant: `${tenant} `, env: 'dev' },
        { tenant: '%', env: '%' },
      ]) {
        expect(await count(settings), `${table} with ${JSON.stringify(settings)}`).to.equal(0);
      }
      const all = await as(appUrl(), {}, [`select count(*) as n from ${table}`]);
      expect(Number(all.rows[0].n), `${table} with no tenant`).to.equal(0);
    }
  });

  it('takes no write for another tenant or env', async () => {
    for (const table of protectedTables) {
      const row = rows.get(table)!;
      expect(row, `a row of ${table}`).to.be.an('object');
      const columns = await runSql(
        ownerUrl(),
        `select column_name as name from information_schema.columns where table_schema = 'public' and table_name = $1 and is_generated = 'NEVER'`,
        [table],
      );
      const list = columns.map(({ name }) => name).join();
      const insert = `insert into ${table} (${list}) select ${list} from jsonb_populate_record(null::${table}, $1)`;
      for (const settings of [{}, { tenant: mine.tenant, env: 'dev' }, { tenant: theirs.tenant, env: 'prod' }]) {
        const what = `${table} with ${JSON.stringify(settings)}`;
        expect(await refusal(as(appUrl(), settings, [insert, [row]])), `insert into ${what}`).to.equal(REFUSED);
        for (const sql of [
          `update ${table} set tenant_id = tenant_id where tenant_id = $1`,
          `delete from ${table} where tenant_id = $1`,
        ]) {
          const touched = await as(appUrl(), settings, [sql, [theirs.tenant]]).then(
            (result) => result.rowCount,
            (error) => error.code,
          );
          expect(touched, `${sql} in ${what}`).to.equal(APPEND_ONLY.includes(table) ? REFUSED : 0);
        }
      }
      for (const move of [`tenant_id = '${theirs.tenant}'`, `env = 'prod'`]) {
        const moved = as(appUrl(), { tenant: mine.tenant, env: 'dev' }, [`update ${table} set ${move}`]);
        expect(await refusal(moved), `update ${table} set ${move}`).to.equal(REFUSED);
      }
    }
  });

  it('gives away nothing by functions in a condition, statistics or a switch', async () => {
    const client = new pg.Client({ connectionString: appUrl() });
    await client.connect();
    try {
      const notices: string[] = [];
      client.on('notice', ({ message }) => notices.push(String(message)));
      await client.query(
        `create function pg_temp.leak(text) returns boolean language plpgsql cost 0.0000001 as $$ begin raise notice 'saw %', $1; return true; end $$`,
      );
      expect((await client.query('select from messages where pg_temp.leak(content)')).rowCount).to.equal(0);
      expect((await client.query('select from sessions where pg_temp.leak(title) limit 1')).rowCount).to.equal(0);
      expect(notices).to.deep.equal([]);
      expect(
        (await client.query('select from pg_stats where tablename = any ($1)', [protectedTables])).rowCount,
      ).to.equal(0);
      await client.query('set row_security = off');
      expect(await refusal(client.query('select from messages'))).to.equal(REFUSED);
    } finally {
      await client.end();
    }
  });

  it('keeps a tenant whose name is a prefix, a pattern or another case apart', async () => {
    const base = `t-${randomBytes(6).toString('hex')}`;
    await addMembers([base, `${base}-`, `${base}0`].map((tenant) => ({ tenant, env: 'dev', user: 'user' })));
    const insert = `insert into threads (tenant_id, env, user_id, thread_id, thread_uid, create_time, update_time) values ($1, 'dev', 'user', 't', $2, now(), now())`;
    await as(appUrl(), { tenant: base, env: 'dev' }, [insert, [base, randomUUID()]], ['commit']);
    const seen = async (tenant: string) =>
      (await as(appUrl(), { tenant, env: 'dev' }, ['select from threads'])).rowCount;
    expect(await Promise.all([base, `${base}-`, `${base}0`, base.toUpperCase(), `${base}%`].map(seen))).to.deep.equal([
      1, 0, 0, 0, 0,
    ]);
    expect(planted.place).to.equal(theirs);
  });
});

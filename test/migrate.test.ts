import { randomUUID } from 'node:crypto';
import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect } from 'chai';
import pg from 'pg';
import { MIGRATIONS, migrate, schemaFault, schemaState } from '../src/db/migrate.ts';
import { ownerUrl, runSql, until } from './support.ts';

describe('migrate', () => {
  let url: string;
  let folder: string;

  beforeEach(async () => {
    const name = `migrate_${randomUUID().replaceAll('-', '')}`;
    await runSql(ownerUrl(), `create database ${name}`);
    const target = new URL(ownerUrl());
    target.pathname = `/${name}`;
    url = target.href;
    folder = await mkdtemp(join(tmpdir(), 'memoryd-migrations-'));
    await cp(MIGRATIONS, folder, { recursive: true });
  });
  afterEach(async () => {
    await runSql(ownerUrl(), `drop database ${new URL(url).pathname.slice(1)} with (force)`);
    await rm(folder, { recursive: true });
  });

  it('applies everything to an empty database, and nothing the second time', async () => {
    const applied = await migrate(url);
    expect(applied).to.include('0001_foundation.sql');
    expect(await migrate(url)).to.deep.equal([]);
    const state = await schemaState(url);
    expect(state.version).to.equal(state.known);
    expect(schemaFault(state)).to.equal(undefined);
  });

  it('lets three at once all succeed, and one of them work', async () => {
    const all = await Promise.all([migrate(url), migrate(url), migrate(url)]);
    expect(all.filter((applied) => applied.length > 0)).to.have.length(1);
  });

  it("goes on after a migrator that died with Knex's lock taken", async () => {
    await migrate(url);
    await runSql(url, 'update memoryd_migrations_lock set is_locked = 1');
    await writeFile(
      join(folder, '9998_more.sql'),
      'create table more (n int); insert into schema_versions values (9998, 1)',
    );
    expect(await migrate(url, folder)).to.deep.equal(['9998_more.sql']);
  });

  it('applies a migration whole or not at all, and sends it as it is', async () => {
    await migrate(url);
    await writeFile(join(folder, '9998_half.sql'), 'create table half (n int); select 1 / 0;');
    await migrate(url, folder).then(
      () => expect.fail('it should have failed'),
      () => {},
    );
    expect(await runSql(url, `select to_regclass('half') as half`)).to.deep.equal([{ half: null }]);
    await writeFile(
      join(folder, '9998_half.sql'),
      `create table half as select '{"a": 1}'::jsonb ? 'a' as has, '?' as mark`,
    );
    await migrate(url, folder);
    expect(await runSql(url, 'select * from half')).to.deep.equal([{ has: true, mark: '?' }]);
  });

  it('lets others pass while it waits for a table that somebody holds', async () => {
    await migrate(url);
    await writeFile(
      join(folder, '9997_before.sql'),
      'create table before (n int); insert into schema_versions values (9997, 1)',
    );
    await writeFile(
      join(folder, '9998_waits.sql'),
      'alter table messages add column waits int; insert into schema_versions values (9998, 1)',
    );
    const holder = new pg.Client({ connectionString: url });
    await holder.connect();
    await holder.query('begin; select count(*) from messages');
    const migration = migrate(url, folder);
    const waits = `select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
      and query like 'alter table messages%'`;
    await until(async () => (await runSql(url, waits)).length === 1);
    await runSql(url, 'select count(*) from messages'); // queues behind the migration, and passes before the holder ends
    await holder.end();
    expect(await migration).to.deep.equal(['9997_before.sql', '9998_waits.sql']);
  });

  it('tells a schema that is too old or too new from one that a newer version left usable', async () => {
    expect(schemaFault(await schemaState(url))).to.match(/too old .*memoryd migrate/);
    await migrate(url);
    const { known } = await schemaState(url);
    await runSql(url, 'insert into schema_versions values (9998, $1)', [known]);
    expect(schemaFault(await schemaState(url))).to.equal(undefined);
    await runSql(url, 'insert into schema_versions values (9999, $1)', [known + 1]);
    expect(schemaFault(await schemaState(url))).to.match(/too new/);
  });
});

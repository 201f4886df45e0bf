import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { addKey } from '../src/db/key-file.ts';
import { migrate } from '../src/db/migrate.ts';
import { type EmbeddedPostgres, startPostgres } from '../src/dev/postgres.ts';
import { runSql } from './support.ts';

// One Postgres for all test files; each of them starts a server of its own, and each test makes a tenant of its own.

let postgres: EmbeddedPostgres | undefined;
let folder: string;
const NAME = `memoryd_test_${process.pid}`;

export async function mochaGlobalSetup(): Promise<void> {
  folder = await mkdtemp(join(tmpdir(), 'memoryd-test-'));
  // TEST_POSTGRES_URL: a superuser of another Postgres, to run the tests on its version. TEST_TEMPLATE: a database there that
  // has been made by makeDatabase, to copy instead of migrating one.
  const given = process.env.TEST_POSTGRES_URL;
  const settings = { fsync: 'off', max_connections: '300', full_page_writes: 'off' };
  if (!given) postgres = await startPostgres({ folder, settings });
  const made = await makeDatabase(given ?? postgres!.url, NAME, process.env.TEST_TEMPLATE);
  await addKey(join(folder, 'keys'));
  // Test files run in processes of their own: the environment reaches them.
  process.env.MEMORYD_TEST_OWNER_URL = made.ownerUrl;
  process.env.MEMORYD_TEST_APP_URL = made.url;
  process.env.MEMORYD_TEST_KEY_FILE = join(folder, 'keys');
}

export async function mochaGlobalTeardown(): Promise<void> {
  if (!postgres) await runSql(process.env.TEST_POSTGRES_URL!, `drop database if exists ${NAME} with (force)`);
  await postgres?.stop();
  if (postgres) await rm(dirname(postgres.data), { recursive: true, force: true });
  await rm(folder, { recursive: true, force: true });
}

/** A migrated database, by the superuser of its Postgres: as the runtime role sees it, and as its owner. */
export async function makeDatabase(
  superuser: string,
  name: string,
  template?: string,
): Promise<{ url: string; ownerUrl: string }> {
  const owner = new URL(superuser);
  await runSql(owner.href, `create database ${name}${template ? ` template ${template}` : ''}`);
  owner.pathname = `/${name}`;
  if (!template) {
    await migrate(owner.href);
    await runSql(owner.href, `alter role memoryd_app password 'app'; alter role memoryd_jobs password 'jobs'`);
  }
  const app = new URL(owner);
  app.username = 'memoryd_app';
  app.password = 'app';
  return { url: app.href, ownerUrl: owner.href };
}

import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import knex, { type Knex } from 'knex';
import pg from 'pg';
import { sqlState } from './failure.ts';
import { connectionSettings, QUIET } from './pool.ts';
import { migrateJobs } from './queue.ts';

export const MIGRATIONS = fileURLToPath(new URL('../../migrations', import.meta.url));

/** The runtime roles, without passwords: whoever runs the database sets these, or maps logins to them. */
const ROLES = `
do $$
declare r text;
begin
  foreach r in array array['memoryd_app login noinherit', 'memoryd_jobs login', 'memoryd_search nologin', 'memoryd_audit nologin'] loop
    begin
      execute 'create role ' || r;
    exception when duplicate_object or unique_violation then null;
    end;
  end loop;
end $$;
create table if not exists schema_versions (
  version int primary key,
  compatible_from int not null,
  apply_time timestamptz not null default now()
);
do $$ begin execute format('grant memoryd_jobs to %I', current_user); end $$;
grant memoryd_jobs to memoryd_app; -- to become it for background jobs; noinherit: nothing of it otherwise
`;

// The extension `vector` needs a superuser nearly everywhere, so it may come later than the migrations, or never. There are
// no embeddings without the column: rows that are left of an extension that was dropped hold none.
const EMBEDDINGS = `
do $$ begin
  if to_regclass('memory_embeddings') is null then return; end if;
  if to_regtype('vector') is null and exists (select from pg_available_extensions where name = 'vector') then
    begin
      create extension vector;
    exception when insufficient_privilege then null;
    end;
  end if;
  if to_regtype('vector') is not null and not exists (
    select from pg_attribute where attrelid = 'memory_embeddings'::regclass and attname = 'embedding' and not attisdropped
  ) then
    truncate memory_embeddings;
    alter table memory_embeddings add column embedding vector not null;
    -- Not in parts elsewhere as long as the row fits a page: a search reads all of a project.
    alter table memory_embeddings alter column embedding set storage main;
  end if;
end $$`;

// Whoever wants a table after a migration that waits for it queues behind the migration. So it waits only briefly, lets
// them pass, and tries again: a long transaction of somebody else holds up the migration and nobody else.
const LOCK_WAIT_MS = 500;
const LOCK_PAUSE_MS = 1000;
const LOCK_NOT_AVAILABLE = '55P03';
const LOCK_PATIENCE_MS = 10 * 60_000;

const LOCK = `select pg_advisory_lock(hashtextextended('memoryd.migrate', 0))`;

async function files(folder: string): Promise<string[]> {
  return (await readdir(folder)).filter((file) => /^\d{4}_.*\.sql$/.test(file)).sort();
}

/** Plain SQL files for Knex's migrator, sent as they are: Knex would rewrite a `?`. */
function sqlFiles(folder: string) {
  return {
    getMigrations: () => files(folder),
    getMigrationName: (file: string) => file,
    async getMigration(file: string) {
      const sql = await readFile(join(folder, file), 'utf8');
      return {
        async up(trx: any) {
          const client = await trx.client.acquireConnection();
          await client.query(sql);
        },
        async down() {
          throw new Error('migrations are forward only');
        },
      };
    },
  };
}

/**
 * Applies what is missing and resolves to its files. Knex's own lock makes a second migrator fail, and outlives a killed
 * one: a session advisory lock decides instead, on a connection of its own (not through a pooler), and then frees Knex's.
 */
export async function migrate(connectionString: string | undefined, folder = MIGRATIONS): Promise<string[]> {
  const lock = new pg.Client(connectionSettings(connectionString));
  let lost: Error | undefined;
  lock.on('error', (error) => {
    lost = error;
  });
  await lock.connect();
  const db = knex({
    client: 'pg',
    connection: { ...connectionSettings(connectionString), lock_timeout: LOCK_WAIT_MS } as object,
    pool: { min: 0, max: 2 },
    log: QUIET,
    migrations: { migrationSource: sqlFiles(folder) as any, tableName: 'memoryd_migrations' },
  });
  try {
    await lock.query(LOCK);
    await lock.query(ROLES);
    await db.migrate.forceFreeMigrationsLock().catch(() => {});
    const before = await completed(db);
    await patiently(() => db.migrate.latest());
    await patiently(() => db.raw(EMBEDDINGS));
    await migrateJobs(connectionString, lock);
    if (lost) throw lost;
    return (await completed(db)).filter((file) => !before.includes(file));
  } finally {
    await db.destroy();
    await lock.end().catch(() => {});
  }
}

async function completed(db: Knex): Promise<string[]> {
  const [done] = await db.migrate.list();
  return done.map(({ name }: { name: string }) => name);
}

/** Again and again while somebody holds a table that is needed. What was applied before stays applied. */
async function patiently(apply: () => Promise<unknown>): Promise<void> {
  const deadline = Date.now() + LOCK_PATIENCE_MS;
  for (;;) {
    try {
      await apply();
      return;
    } catch (error) {
      if (sqlState(error) !== LOCK_NOT_AVAILABLE || Date.now() > deadline) throw error;
      await sleep(LOCK_PAUSE_MS * (0.5 + Math.random()));
    }
  }
}

export interface SchemaState {
  /** The newest version that the database has. 0: none. */
  version: number;
  /** The oldest version of the service that can use it. */
  compatibleFrom: number;
  /** The newest version that this service knows. */
  known: number;
}

export async function schemaState(connectionString: string | undefined, folder = MIGRATIONS): Promise<SchemaState> {
  const client = new pg.Client(connectionSettings(connectionString));
  client.on('error', () => {});
  await client.connect();
  try {
    return await readSchemaState((sql) => client.query(sql), folder);
  } finally {
    await client.end().catch(() => {});
  }
}

export async function readSchemaState(
  run: (sql: string) => Promise<{ rows: any[] }>,
  folder = MIGRATIONS,
): Promise<SchemaState> {
  const known = Number((await files(folder)).at(-1)?.slice(0, 4) ?? 0);
  const { rows: tables } = await run(`select to_regclass('schema_versions') is not null as there`);
  if (!tables[0].there) return { version: 0, compatibleFrom: 0, known };
  const { rows } = await run('select version, compatible_from from schema_versions order by version desc limit 1');
  return { version: rows[0]?.version ?? 0, compatibleFrom: rows[0]?.compatible_from ?? 0, known };
}

/** Why this service cannot run on that schema, in one line, or undefined. */
export function schemaFault({ version, compatibleFrom, known }: SchemaState): string | undefined {
  if (version < known) return `the schema is too old (version ${version}, needed ${known}): run \`memoryd migrate\``;
  if (compatibleFrom > known)
    return `the schema is too new (version ${version}, usable from ${compatibleFrom}, known ${known})`;
  return undefined;
}

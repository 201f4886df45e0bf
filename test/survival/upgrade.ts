import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { cp, mkdir, mkdtemp, readdir, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import pg from 'pg';
import { migrate } from '../../src/db/migrate.ts';
import { connect, headersOf, newTenant, runSql, until } from '../support.ts';
import { checkAftermath } from './aftermath.ts';
import { startBystander } from './bystander.ts';
import { type Load, startLoad } from './load.ts';
import type { Arena, Figures, Postgres, Scenario } from './scenario.ts';

const run = promisify(execFile);
const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const CLIENTS = 6;
/** So many changes are acknowledged before each step, and with two versions side by side twice as many. */
const STRIDE = 100;
/** The longest that a call may take meanwhile: the wait of a migration for a lock is a fraction of it. */
const BLOCKED_MS = 2500;
const WAITS = `select from pg_stat_activity where datname = current_database() and usename = current_user
  and application_name = 'memoryd' and wait_event_type = 'Lock' and wait_event = 'relation'`;

/** Another version of the service, as it lies in a folder. */
interface Version {
  readonly name: string;
  readonly folder: string;
  /** Its newest migration. */
  readonly schema: number;
}

const mainOf = ({ folder }: Version): string => join(folder, 'src/main.ts');

async function migrationsOf(folder: string): Promise<string[]> {
  return (await readdir(join(folder, 'migrations'))).filter((name) => name.endsWith('.sql')).sort();
}

async function versionIn(folder: string): Promise<Version> {
  const schema = Number.parseInt((await migrationsOf(folder)).at(-1)!, 10);
  return { name: `schema ${schema}`, folder, schema };
}

/** This tree with a migration more, that leaves the schema usable for what there is now. */
async function nextVersion(home: string): Promise<Version> {
  const folder = join(home, 'next');
  await mkdir(folder);
  for (const part of ['src', 'migrations', 'package.json']) {
    await cp(join(ROOT, part), join(folder, part), { recursive: true });
  }
  await symlink(join(ROOT, 'node_modules'), join(folder, 'node_modules'), 'junction');
  const { schema: known } = await versionIn(folder);
  const schema = known + 1;
  const sql = `alter table messages add column next_note text;
    alter table sessions add column next_count int not null default 0;
    alter table threads add column next_flag boolean;
    create index next_index on audit_events (tenant_id, env, create_time);
    insert into schema_versions (version, compatible_from) values (${schema}, ${known});`;
  await writeFile(join(folder, 'migrations', `${String(schema).padStart(4, '0')}_next.sql`), sql);
  return versionIn(folder);
}

/** The last version before this one's newest migration, out of the history; undefined where there is none. */
async function previousVersion(home: string): Promise<Version | undefined> {
  const git = async (...args: string[]) => (await run('git', ['-C', ROOT, ...args])).stdout.trim();
  const newest = (await migrationsOf(ROOT)).at(-1)!;
  try {
    const added = await git('log', '--diff-filter=A', '--format=%H', '--', `migrations/${newest}`);
    const commit = await git('rev-parse', '--verify', `${added.split('\n').at(-1)}^`);
    const folder = join(home, 'previous');
    await mkdir(folder);
    const archive = spawn('git', ['-C', ROOT, 'archive', commit, 'src', 'migrations', 'package.json']);
    const unpack = spawn('tar', ['-x', '-C', folder], { stdio: [archive.stdout, 'inherit', 'inherit'] });
    if ((await once(unpack, 'close'))[0] !== 0) return undefined;
    await symlink(join(ROOT, 'node_modules'), join(folder, 'node_modules'), 'junction');
    return await versionIn(folder);
  } catch {
    return undefined; // a copy without history, or with too little of it
  }
}

/** A database of its own that this version has migrated. */
async function databaseOf(postgres: Postgres, version: Version): Promise<Postgres> {
  const name = `upgrade_${version.schema}`;
  await runSql(postgres.ownerUrl, `create database ${name}`);
  const [url, owner] = [new URL(postgres.url), new URL(postgres.ownerUrl)];
  url.pathname = owner.pathname = `/${name}`;
  await migrate(owner.href, join(version.folder, 'migrations'));
  return { ...postgres, url: url.href, ownerUrl: owner.href };
}

/** Migrates, held up by somebody who reads a table in a transaction that ends only when the migration has let others pass. */
async function migrateUnderLoad(postgres: Postgres, version: Version): Promise<void> {
  const holder = new pg.Client({ connectionString: postgres.ownerUrl });
  await holder.connect();
  await holder.query('begin; select count(*) from messages');
  const env = { ...process.env, DATABASE_URL: postgres.ownerUrl };
  let over = false;
  const migration = run(process.execPath, [mainOf(version), 'migrate', 'up'], { env }).finally(() => {
    over = true;
  });
  const waits = async () => (await runSql(postgres.ownerUrl, WAITS)).length > 0;
  // It may want other tables only.
  await until(async () => over || (await waits()));
  await until(async () => over || !(await waits()));
  await holder.end();
  await migration;
}

/**
 * Two servers of the old version under load; the schema moves on; one of the new version beside one of the old; then two.
 * An old server that the new schema does not let go on tells that it is not ready, so that no calls are sent to it.
 */
async function change(arena: Arena, postgres: Postgres, from: Version, to: Version, goesOn: boolean): Promise<Figures> {
  const start = (version: Version, port?: number) => {
    const flags = version === to ? arena.storeFlags : [];
    return arena.startServer({ postgres, main: mainOf(version), port, flags });
  };
  const [first, second] = await Promise.all([start(from), start(from)]);
  const load = await startLoad(arena, postgres, [first.address, second.address], CLIENTS);
  // In a tenant of its own: what it appends is in nobody's ledger.
  const bystander = startBystander(second.address, headersOf(await newTenant(['user'], {}, postgres.ownerUrl)), true);
  await load.progress(STRIDE);
  const refused = await start(to).then(
    () => 'nothing',
    (error: Error) => error.message,
  );
  if (!/too old/.test(refused)) throw new Error(`a new server on the old schema said ${refused}`);

  await migrateUnderLoad(postgres, to);
  await load.progress(STRIDE);
  const blocked = bystander.longest();
  if (blocked > BLOCKED_MS) throw new Error(`a call took ${blocked} ms while the schema moved on`);
  if (!goesOn) await until(() => notReady(second.logLines));
  else if (second.logLines.some((line) => line.includes('not ready')))
    throw new Error('an old server that may go on is not ready');

  await first.stop();
  const third = await start(to, first.port);
  await load.progress(2 * STRIDE);
  await bystander.end();
  await second.stop();
  const fourth = await start(to, second.port);
  await load.progress(STRIDE);
  const figures = await finish(arena, postgres, load, third.address);
  await Promise.all([third.stop(), fourth.stop()]);
  return { ...figures, 'longest call meanwhile, ms': Math.round(blocked) };
}

const notReady = async (lines: string[]) => lines.some((line) => /"fault":"the schema is too new/.test(line));

async function finish(arena: Arena, postgres: Postgres, load: Load, address: string): Promise<Figures> {
  await load.end();
  const others = [...load.ledger.failures.keys()].filter((told) => !/^UNAVAILABLE|^ABORTED CONFLICT$/.test(told));
  if (others.length > 0) throw new Error(`calls failed with ${others}`);
  const clients = connect(address, headersOf(load.tenant));
  arena.cleanup(clients.close);
  const { acknowledged = 0 } = await checkAftermath(load.ledger, load.tenant, clients, postgres.ownerUrl);
  const away = [...load.ledger.failures].filter(([told]) => told.startsWith('UNAVAILABLE'));
  return { acknowledged, UNAVAILABLE: away.reduce((sum, [, count]) => sum + count, 0) };
}

export const upgrade: Scenario = {
  name: 'upgrade',
  about: 'old and new version side by side while the schema moves on under load: no call fails but with UNAVAILABLE',
  weight: 3,
  async run(arena) {
    const home = await mkdtemp(join(tmpdir(), 'memoryd-upgrade-'));
    arena.cleanup(() => rm(home, { recursive: true, force: true }));
    const postgres = await arena.startPostgres();
    const now = await versionIn(ROOT);
    const next = await nextVersion(home);
    arena.tell(`from ${now.name} to ${next.name}, which lets the older one go on`);
    const figures = await change(arena, postgres, now, next, true);

    const previous = await previousVersion(home);
    if (!previous) {
      arena.tell('the version before is not in the history of this copy: skipped');
      return { ...figures, 'from the version before': 'skipped: no history' };
    }
    const old = await databaseOf(postgres, previous);
    // As this version's newest migration says, which was applied here.
    const [{ compatible }] = await runSql(
      postgres.ownerUrl,
      'select compatible_from as compatible from schema_versions where version = $1',
      [now.schema],
    );
    arena.tell(`from ${previous.name} to ${now.name}, usable from ${compatible}`);
    const before = await change(arena, old, previous, now, compatible <= previous.schema);
    const named = Object.entries(before).map(([figure, value]) => [`from ${previous.name}: ${figure}`, value]);
    return { ...figures, ...Object.fromEntries(named) };
  },
};

import { readdirSync, readFileSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { addKey } from '../src/db/key-file.ts';
import { migrate } from '../src/db/migrate.ts';
import type { Scope } from '../src/db/transaction.ts';
import { startPostgres } from '../src/dev/postgres.ts';
import { withClient } from '../src/preflight.ts';
import type { PostgresCpu } from './rounds.ts';

/** A Postgres of the bench's own, in a temporary folder. */
export interface World {
  readonly folder: string;
  readonly keyFile: string;
  /** Makes a database, and gives its owner's URL. */
  createDatabase(name: string): Promise<string>;
  postgresCpu: PostgresCpu;
  close(): Promise<void>;
}

export async function makeWorld(): Promise<World> {
  const folder = await mkdtemp(join(tmpdir(), 'memoryd-bench-'));
  // Postgres's own settings but for the number of connections: every commit reaches the disk.
  const postgres = await startPostgres({ folder, settings: { max_connections: '200' } });
  async function close(): Promise<void> {
    await postgres.stop();
    await rm(dirname(postgres.data), { recursive: true, force: true }); // as root the data lie elsewhere
    await rm(folder, { recursive: true, force: true });
  }
  async function createDatabase(name: string): Promise<string> {
    await withClient(postgres.url, (client) => client.query(`create database ${name}`));
    const url = new URL(postgres.url);
    url.pathname = `/${name}`;
    return url.href;
  }
  try {
    const keyFile = join(folder, 'keys');
    await addKey(keyFile);
    const postmaster = Number.parseInt(await readFile(join(postgres.data, 'postmaster.pid'), 'utf8'), 10);
    return { folder, keyFile, createDatabase, postgresCpu: () => cpuOfTree(postmaster), close };
  } catch (error) {
    await close();
    throw error;
  }
}

/** A database of the service's, migrated, with one tenant. */
export interface Database {
  readonly ownerUrl: string;
  /** For the service. */
  readonly databaseUrl: string;
  readonly scope: Scope;
}

export async function makeDatabase(world: World, name: string): Promise<Database> {
  const ownerUrl = await world.createDatabase(name);
  await migrate(ownerUrl);
  const scope = { tenant: 'bench', env: 'dev', user: 'user' };
  await withClient(ownerUrl, async (client) => {
    await client.query(`alter role memoryd_app password 'app'; alter role memoryd_jobs password 'jobs'`);
  });
  await makeTenant(ownerUrl, scope);
  const app = new URL(ownerUrl);
  app.username = 'memoryd_app';
  app.password = 'app';
  return { ownerUrl, databaseUrl: app.href, scope };
}

/** A tenant with one member, with these quotas, whose messages are read for the profile or not. */
export const makeTenant = (
  ownerUrl: string,
  { tenant, env, user }: Scope,
  { reading = false, quotas = {} } = {},
): Promise<void> =>
  withClient(ownerUrl, async (client) => {
    await client.query('insert into tenants (tenant_id, envs, extract_time, policies) values ($1, $2, $3, $4)', [
      tenant,
      [env],
      reading ? new Date() : null,
      { quotas },
    ]);
    await client.query('insert into tenant_members (tenant_id, env, user_id, role) values ($1, $2, $3, 1)', [
      tenant,
      env,
      user,
    ]);
  });

// Linux counts these in hundredths of a second whatever the kernel's own clock.
const TICK_MS = 10;

/** Of a process, its children, and the children that it has waited for. */
function cpuOfTree(parent: number): number | undefined {
  try {
    let ticks = 0;
    for (const pid of readdirSync('/proc')) {
      if (!/^\d+$/.test(pid)) continue;
      const stat = statOf(pid);
      // After the name: state, parent, … user and system time, those of children that have ended.
      if (Number(pid) === parent) ticks += stat[11]! + stat[12]! + stat[13]! + stat[14]!;
      else if (stat[1] === parent) ticks += stat[11]! + stat[12]!;
    }
    return ticks * TICK_MS;
  } catch {
    return undefined;
  }
}

function statOf(pid: string): number[] {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return text
      .slice(text.lastIndexOf(')') + 2)
      .split(' ')
      .map(Number);
  } catch {
    return []; // it has just ended
  }
}

import { readdirSync, readFileSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { addKey } from '../src/db/keyring.ts';
import { migrate } from '../src/db/migrate.ts';
import type { Scope } from '../src/db/transaction.ts';
import { startPostgres } from '../src/dev/postgres.ts';
import { withClient } from '../src/preflight.ts';

/** A Postgres of the bench's own with a migrated database and one tenant, in a temporary folder. */
export interface World {
  readonly folder: string;
  readonly databaseUrl: string;
  readonly keyFile: string;
  readonly scope: Scope;
  /** CPU milliseconds that Postgres has used in all its processes, undefined where the system does not tell. */
  postgresCpu(): number | undefined;
  close(): Promise<void>;
}

const DATABASE = 'memoryd_bench';

export async function makeWorld(): Promise<World> {
  const folder = await mkdtemp(join(tmpdir(), 'memoryd-bench-'));
  // Postgres's own settings but for the number of connections: every commit reaches the disk.
  const postgres = await startPostgres({ folder, settings: { max_connections: '200' } });
  async function close(): Promise<void> {
    await postgres.stop();
    await rm(dirname(postgres.data), { recursive: true, force: true }); // as root the data lie elsewhere
    await rm(folder, { recursive: true, force: true });
  }
  try {
    const owner = new URL(postgres.url);
    await withClient(owner.href, (client) => client.query(`create database ${DATABASE}`));
    owner.pathname = `/${DATABASE}`;
    await migrate(owner.href);
    const scope = { tenant: 'bench', env: 'dev', user: 'user' };
    await withClient(owner.href, async (client) => {
      await client.query(`alter role memoryd_app password 'app'; alter role memoryd_jobs password 'jobs'`);
      await client.query('insert into tenants (tenant_id, envs) values ($1, $2)', [scope.tenant, [scope.env]]);
      await client.query('insert into tenant_members (tenant_id, env, user_id, role) values ($1, $2, $3, 1)', [
        scope.tenant,
        scope.env,
        scope.user,
      ]);
    });
    const app = new URL(owner);
    app.username = 'memoryd_app';
    app.password = 'app';
    const keyFile = join(folder, 'keys');
    await addKey(keyFile);
    const postmaster = Number.parseInt(await readFile(join(postgres.data, 'postmaster.pid'), 'utf8'), 10);
    return { folder, databaseUrl: app.href, keyFile, scope, postgresCpu: () => cpuOfTree(postmaster), close };
  } catch (error) {
    await close();
    throw error;
  }
}

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

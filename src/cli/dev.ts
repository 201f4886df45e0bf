import { randomBytes } from 'node:crypto';
import { access, readFile, rm, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import type pg from 'pg';
import { type Config, devStandards, makeConfig } from '../config.ts';
import { addKey } from '../db/key-file.ts';
import { migrate } from '../db/migrate.ts';
import { startPostgres } from '../dev/postgres.ts';
import { features } from '../features.ts';
import { createLog, stdout } from '../log.ts';
import { withClient } from '../preflight.ts';
import { startServer } from '../server.ts';
import { endOnUncaught, untilSignal } from './run.ts';

const DATABASE = 'memoryd';

/** Postgres, schema, keys, tenants and service, all on this machine. */
export async function dev(data: string, options: Parameters<typeof makeConfig>[1]): Promise<void> {
  const folder = resolve(data);
  const standards = devStandards(pathToFileURL(folder).pathname);
  const { logLevel } = makeConfig(undefined, options, standards); // refuses what cannot be before anything is started
  const say = (line: string) => console.log(line);
  const log = createLog(logLevel, stdout({ sync: true }));
  endOnUncaught(log);

  const postgres = await startPostgres({ folder, say });
  try {
    const owner = new URL(postgres.url);
    await withClient(owner.href, createDatabase);
    owner.pathname = `/${DATABASE}`;
    await migrate(owner.href);

    const password = await keptSecret(join(folder, 'app-password'));
    await withClient(owner.href, async (client) => {
      for (const role of ['memoryd_app', 'memoryd_jobs']) {
        await client.query(`alter role ${role} password ${client.escapeLiteral(password)}`);
      }
      await seed(client);
    });
    const keyFile = join(folder, 'keys');
    await access(keyFile).catch(() => addKey(keyFile));

    const app = new URL(owner);
    app.username = 'memoryd_app';
    app.password = password;
    const config = makeConfig(app.href, { ...options, keyFile, directDatabaseUrl: app.href }, standards);
    const server = await startServer(config, features, log);
    // For the commands that talk to the database. It is another one at each start.
    const urlFile = join(folder, 'database-url');
    await rm(urlFile, { force: true });
    await writeFile(urlFile, `${app.href}\n`, { mode: 0o600 });
    say(greeting(config, server.port, urlFile));
    await untilSignal(log, server.stop);
  } finally {
    await postgres.stop();
  }
  say('Stopped.');
  process.exit(0);
}

async function createDatabase(client: pg.Client): Promise<void> {
  const { rows } = await client.query('select from pg_database where datname = $1', [DATABASE]);
  if (rows.length === 0) await client.query(`create database ${DATABASE}`);
}

/** A secret that only this folder knows, made at the first use. */
async function keptSecret(file: string): Promise<string> {
  const kept = await readFile(file, 'utf8').catch(() => '');
  if (kept) return kept.trim();
  const secret = randomBytes(24).toString('base64url');
  await writeFile(file, `${secret}\n`, { mode: 0o600 });
  return secret;
}

/** Tenants to try, as they were at the first start: what was changed since stays. */
async function seed(client: pg.Client): Promise<void> {
  await client.query(`
    with made as (
      insert into tenants (tenant_id, display_name, envs) values ('acme', 'Acme', '{dev}'), ('globex', 'Globex', '{dev}')
      on conflict do nothing
      returning tenant_id
    )
    insert into tenant_members (tenant_id, env, user_id, role)
    select tenant_id, 'dev', user_id, role
    from (values ('acme', 'owner', 2), ('acme', 'member', 1), ('globex', 'outsider', 2)) as seeds (tenant_id, user_id, role)
    where tenant_id in (select tenant_id from made)`);
}

const HEADERS = ['x-tenant-id: acme', 'x-env: dev', 'x-user-id: owner'].map((header) => `-H '${header}'`).join(' ');
const REQUEST = `-d '{"session": {"surface_id": "web", "title": "Hello"}}'`;
const METHOD = 'memory.v1.MemoryService/UpsertSession';

/** Where it listens, and calls to paste into a terminal. */
function greeting({ host, auth, tlsCert }: Config, port: number, urlFile: string): string {
  const at = `${host.includes(':') && !host.startsWith('[') ? `[${host}]` : host}:${port}`;
  const calls = `
Try it from another terminal:

grpcurl -plaintext ${HEADERS} ${REQUEST} ${at} ${METHOD}

npx buf curl --protocol grpc --http2-prior-knowledge --reflect ${HEADERS} ${REQUEST} http://${at}/${METHOD}
`;
  const rule = '-'.repeat(72);
  return `
${rule}
memoryd is ready on ${at}, with tenants acme (owner, member) and globex (outsider), env dev. Ctrl-C stops it.
${auth === 'trusted' && !tlsCert ? calls : ''}
Commands find its database by DATABASE_URL=$(cat ${urlFile})
${rule}
`;
}

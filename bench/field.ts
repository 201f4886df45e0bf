import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { beside } from './beside.ts';
import { type Child, startChild } from './child.ts';
import { grow, settle } from './grow.ts';
import type { Setup } from './load.ts';
import { seed } from './operations.ts';
import type { Threads } from './peer.ts';
import { hasPgbench } from './pgbench.ts';
import { BESIDE_NOISE, BESIDE_QUOTAS, LARGE, MOST, PEERS, READING } from './plan.ts';
import type { Contestant } from './rounds.ts';
import { type Database, makeDatabase, makeTenant, type World } from './world.ts';

export interface FieldOptions {
  /** Sessions, and messages of a thread, of the large database. */
  large: number;
  /** For which the peers take part. */
  threads: Threads[];
}

/** Those who take part, by their name. */
export type Field = Map<string, Contestant>;

/** Starts those who take part, each in a process of its own that is noted among the children. */
export async function startField(
  children: Child[],
  world: World,
  database: Database,
  { large, threads }: FieldOptions,
  progress: (line: string) => void,
): Promise<Field> {
  const child = (file: string): Child => {
    const started = startChild(file);
    children.push(started);
    return started;
  };
  const serve = async (server: Child, options: unknown): Promise<string> =>
    `127.0.0.1:${await server.ask<number>('start', options)}`;

  const [server, largeServer, echo, load] = ['server.ts', 'server.ts', 'echo.ts', 'load.ts'].map(child) as Four<Child>;
  const { keyFile } = world;
  const { databaseUrl, ownerUrl, scope } = database;
  const address = await serve(server, { databaseUrl, keyFile });
  const subjects = await seed(address, scope, MOST);
  const echoAddress = await serve(echo, { address, scope });

  progress(`${large.toLocaleString('en')} sessions and messages`);
  const largeDatabase = await makeDatabase(world, 'memoryd_bench_large');
  const largeAddress = await serve(largeServer, { databaseUrl: largeDatabase.databaseUrl, keyFile });
  const largeSubjects = await grow(largeDatabase, await seed(largeAddress, scope, 1), large);
  await settle(largeDatabase);

  const field: Field = new Map();
  const add = async (setup: Setup, server: Child | undefined, usesPostgres = true): Promise<void> => {
    await load.ask('setUp', setup);
    field.set(setup.name, { name: setup.name, load, server, usesPostgres });
  };
  const none = { ownerUrl, threads: [] };
  await add({ name: 'echo', by: 'rpc', address: echoAddress, subjects, ...none }, echo, false);
  await add({ name: 'memoryd', by: 'rpc', address, subjects, ownerUrl, threads }, server);
  const readScope = { ...scope, tenant: 'bench-read' };
  await makeTenant(ownerUrl, readScope, { reading: true });
  const readSubjects = await seed(address, readScope, MOST);
  await add({ name: READING, by: 'rpc', address, subjects: readSubjects, ...none }, server);
  for (const [name, quotas] of Object.entries(NOISY)) {
    const noisy = { ...scope, tenant: `bench-noise-${Object.keys(quotas).length}` };
    await makeTenant(ownerUrl, noisy, { quotas });
    const quiet = field.get('memoryd')!;
    const noise = { address, scope: noisy, callers: MOST };
    // What it costs the server is not told apart from what the noise does.
    const load = beside(quiet, child('noise.ts'), noise);
    field.set(name, { name, load, server: undefined, usesPostgres: false });
  }
  await add({ name: 'single calls', by: 'single calls', address, subjects }, server);
  await add({ name: 'pg', by: 'pg', databaseUrl, subjects }, load);
  await add({ name: LARGE, by: 'rpc', address: largeAddress, subjects: largeSubjects, ...none }, largeServer);
  if (await hasPgbench()) await add({ name: 'pgbench', by: 'pgbench', databaseUrl, subjects }, undefined);
  else progress('no pgbench is installed: it is left out');
  for (const name of threads.length > 0 ? PEERS : []) {
    progress(`threads of ${name}`);
    const peer = child(`peers/${name}.ts`);
    await peer.ask('setUp', { databaseUrl: await world.createDatabase(name), threads });
    field.set(name, { name, load: peer, server: peer, usesPostgres: true, cutOffMs: CUT_OFF_MS });
  }
  await settle(database);
  return field;
}

type Four<Item> = [Item, Item, Item, Item];

/** The quotas of those who make noise. */
const NOISY = { [BESIDE_QUOTAS]: { max_calls_per_second: 200, max_concurrent_calls: 8 }, [BESIDE_NOISE]: {} };

/** How long a peer's round may take. */
const CUT_OFF_MS = 20_000;

export const hasPeers = (): boolean => existsSync(fileURLToPath(new URL('peers/node_modules', import.meta.url)));

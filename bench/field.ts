import { type Child, startChild } from './child.ts';
import { grow } from './grow.ts';
import type { Setup } from './load.ts';
import { seed } from './operations.ts';
import { LARGE, MOST } from './plan.ts';
import type { Contestant } from './rounds.ts';
import { type Database, makeDatabase, type World } from './world.ts';

/** Starts what takes part, each in a process of its own that is noted among the children: contestants by their name. */
export async function startField(
  children: Child[],
  world: World,
  database: Database,
  largeSize: number,
): Promise<Map<string, Contestant>> {
  const child = (file: string): Child => {
    const started = startChild(file);
    children.push(started);
    return started;
  };
  const start = async (server: Child, options: unknown): Promise<string> =>
    `127.0.0.1:${await server.ask<number>('start', options)}`;

  const [server, largeServer, echo, load] = [
    child('server.ts'),
    child('server.ts'),
    child('echo.ts'),
    child('load.ts'),
  ];
  const { keyFile } = world;
  const { databaseUrl, scope } = database;
  const address = await start(server, { databaseUrl, keyFile });
  const subjects = await seed(address, scope, MOST);
  const echoAddress = await start(echo, { address, scope });

  const large = await makeDatabase(world, 'memoryd_bench_large');
  const largeAddress = await start(largeServer, { databaseUrl: large.databaseUrl, keyFile });
  const largeSubjects = await grow(large, await seed(largeAddress, large.scope, 1), largeSize);

  const field: [Setup, Child][] = [
    [{ name: 'echo', by: 'rpc', address: echoAddress, subjects }, echo],
    [{ name: 'memoryd', by: 'rpc', address, subjects }, server],
    [{ name: 'single calls', by: 'single calls', address, subjects }, server],
    [{ name: 'pg', by: 'pg', databaseUrl, subjects }, load],
    [{ name: LARGE, by: 'rpc', address: largeAddress, subjects: largeSubjects }, largeServer],
  ];
  await load.ask(
    'setUp',
    field.map(([setup]) => setup),
  );
  return new Map(field.map(([{ name }, server]) => [name, { name, load, server, usesPostgres: server !== echo }]));
}

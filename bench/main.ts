import { writeFile } from 'node:fs/promises';
import { Command } from 'commander';
import { seed } from './calls.ts';
import { type Child, startChild } from './child.ts';
import type { LoadSetup } from './load.ts';
import { atMost, type Bar, barTable, roundedRow, table } from './report.ts';
import { type Contestant, cpuRatio, type Field, type Row, runGroup, summarise } from './rounds.ts';
import { measureDev, measureServe } from './startup.ts';
import { OPERATIONS } from './subjects.ts';
import { makeWorld, type World } from './world.ts';

const CALLERS = [1, 16, 64];
const MOST = Math.max(...CALLERS);

interface Size {
  /** Rounds of each group, and of the one that the bar is about. */
  rounds: number;
  barRounds: number;
  ms: number;
  starts: number;
}
const QUICK: Size = { rounds: 3, barRounds: 9, ms: 300, starts: 3 };
const FULL: Size = { rounds: 7, barRounds: 21, ms: 1000, starts: 5 };

interface Options {
  quick?: boolean;
  json?: string;
  profile?: string;
}

const program = new Command('bench')
  .description('What calls cost, beside an echo server and plain prepared queries, on a Postgres of its own.')
  .option('--quick', 'Shorter rounds, for a minute and a half.')
  .option('--json <file>', 'Writes the bars and rows to the file.')
  .option('--profile <file>', 'Only profiles the server under GetSession, as a .cpuprofile.')
  .action(bench);

const progress = (line: string) =>
  process.stderr.write(`${((performance.now() / 1000) | 0).toString().padStart(4)} s  ${line}\n`);

async function bench({ quick, json, profile }: Options): Promise<void> {
  const size = quick ? QUICK : FULL;
  progress('making a database');
  const world = await makeWorld();
  const children: Child[] = [];
  const undo = async () => {
    for (const child of children) child.stop();
    await world.close();
  };
  // Postgres is in a session of its own, where Ctrl-C does not reach it.
  for (const signal of ['SIGINT', 'SIGTERM'] as const)
    process.once(signal, () => undo().finally(() => process.exit(1)));
  try {
    const { field, echo, ours, pg } = await startField(world, children);
    if (profile) return await profileGetSession(field, ours, profile);

    const { rows, ratio } = await compareAll(field, [echo, ours, pg], size);
    for (const child of children) child.stop();
    const bars = [atMost('GetSession server CPU per call vs echo, 64 callers', ratio, 3.5)];
    bars.push(...(await startBars(world, size)));

    console.log(`${table(rows)}\n\n${barTable(bars)}`);
    if (json) await writeFile(json, `${JSON.stringify({ bars, rows: rows.map(roundedRow) }, null, 2)}\n`);
  } finally {
    await undo();
  }
}

/** Everything that takes part: server under test, echo and load generator, each in a process of its own. */
async function startField(world: World, children: Child[]) {
  const child = (file: string) => {
    const started = startChild(file);
    children.push(started);
    return started;
  };
  const [server, echoServer, load] = [child('server.ts'), child('echo.ts'), child('load.ts')];
  const { databaseUrl, keyFile, scope } = world;
  const address = `127.0.0.1:${await server.ask<number>('start', { databaseUrl, keyFile })}`;
  const subjects = await seed(address, scope, MOST);
  const echoAddress = `127.0.0.1:${await echoServer.ask<number>('start', { address, subjects })}`;
  const setup: LoadSetup = { addresses: { memoryd: address, echo: echoAddress }, databaseUrl, subjects };
  await load.ask('setUp', setup);

  const field: Field = { load, postgresCpu: world.postgresCpu };
  const echo: Contestant = { name: 'echo', process: echoServer, usesPostgres: false };
  const ours: Contestant = { name: 'memoryd', process: server, usesPostgres: true };
  const pg: Contestant = { name: 'pg', process: load, usesPostgres: true };
  return { field, echo, ours, pg };
}

/** All groups, and for the bar what GetSession costs as a multiple of the echo beside it. */
async function compareAll(
  field: Field,
  contestants: Contestant[],
  size: Size,
): Promise<{ rows: Row[]; ratio: number }> {
  const rows: Row[] = [];
  let ratio = Number.NaN;
  progress('warming up');
  for (const operation of OPERATIONS) {
    await runGroup(field, { operation, callers: MOST, contestants, rounds: 0, ms: 1000 });
  }
  for (const operation of OPERATIONS) {
    for (const callers of CALLERS) {
      progress(`${operation}, ${callers} callers`);
      const isBar = operation === 'GetSession' && callers === 64;
      const group = { operation, callers, contestants, rounds: isBar ? size.barRounds : size.rounds, ms: size.ms };
      const results = await runGroup(field, group);
      for (const { name } of contestants) rows.push(summarise(group, name, results.get(name)!));
      if (isBar) ratio = cpuRatio(results.get('memoryd')!, results.get('echo')!);
    }
  }
  return { rows, ratio };
}

async function startBars(world: World, size: Size): Promise<Bar[]> {
  progress('starts of `serve`');
  const { readyMs, idleMb } = await measureServe(world, size.starts);
  progress('first start of `dev`');
  const devMs = await measureDev(world);
  return [
    atMost('serve ready ms', readyMs, 1500),
    ...(idleMb === undefined ? [] : [atMost('serve idle RSS MB', idleMb, 160)]),
    atMost('dev first start ms', devMs, 10_000),
  ];
}

async function profileGetSession(field: Field, ours: Contestant, file: string): Promise<void> {
  const group = { operation: 'GetSession' as const, callers: 64, contestants: [ours], ms: 5000 };
  progress('warming up');
  await runGroup(field, { ...group, rounds: 0 });
  progress('profiling');
  await ours.process.ask('startProfile');
  await runGroup(field, { ...group, rounds: 1 });
  await ours.process.ask('endProfile', file);
}

await program.parseAsync();

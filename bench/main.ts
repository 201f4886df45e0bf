import { writeFile } from 'node:fs/promises';
import { Command } from 'commander';
import type { Child } from './child.ts';
import { compareAll } from './compare.ts';
import { hasPeers, startField } from './field.ts';
import { idleLine, measureIdleWatches } from './idle.ts';
import { measureMemory } from './memory.ts';
import { barsOf, COMPARISONS, GROWING, LARGE, MOST, peerBars, peerComparisons, SINGLE } from './plan.ts';
import { drawing } from './plot.ts';
import { type Bar, barOf, barTable, roundedRow, table } from './report.ts';
import { type Contestant, runGroup } from './rounds.ts';
import { measureDev, measureServe } from './startup.ts';
import { measureSweep } from './sweep.ts';
import { measureUsage, type UsageRow } from './usage.ts';
import { makeDatabase, makeWorld, type World } from './world.ts';

const QUICK = { rounds: 3, barRounds: 9, ms: 300, starts: 3 };
const PATIENT = { rounds: 7, barRounds: 21, ms: 1000, starts: 5 };

/** Sessions and messages of the large database, calls between looks at memory, and threads to compare with the peers. */
const USUAL = {
  large: 100_000,
  calls: 50_000,
  threads: [
    { size: 100, workers: 16 },
    { size: 10_000, workers: 16 },
  ],
};
/** Threads that are watched while nothing happens. */
const IDLE_WATCHES = 5000;
/** Tenants that are swept while nothing of theirs is due. */
const SWEPT = 10_000;
const FULL = { large: 1_000_000, calls: 1_000_000, threads: [...USUAL.threads, { size: 1_000_000, workers: 1 }] };

interface Options {
  quick?: boolean;
  full?: boolean;
  peers?: boolean;
  json?: string;
  svg?: string;
  profile?: string;
  usage?: string;
}

const program = new Command('bench')
  .description('What calls cost, beside an echo server and plain prepared queries, on a Postgres of its own.')
  .option('--quick', 'Shorter rounds: less than five minutes.')
  .option('--full', 'A million sessions, messages and calls.')
  .option('--peers', 'Compares with other memories too, which are installed by: npm ci --prefix bench/peers')
  .option('--json <file>', 'Writes the bars and rows to the file.')
  .option('--svg <file>', 'Draws the rows into the file.')
  .option('--profile <file>', 'Only profiles the server under GetSession, as a .cpuprofile.')
  .option('--usage <calls>', 'Only tells usage of so many calls of models, which it makes: 10000000 take half an hour.')
  .action(bench);

const progress = (line: string) =>
  process.stderr.write(`${((performance.now() / 1000) | 0).toString().padStart(4)} s  ${line}\n`);

async function bench({ quick, full, peers, json, svg, profile, usage }: Options): Promise<void> {
  if (peers && !hasPeers())
    program.error('The peers are not installed. Install them with: npm ci --prefix bench/peers');
  const effort = quick ? QUICK : PATIENT;
  const { large, calls, ...sizes } = full ? FULL : USUAL;
  const threads = peers ? sizes.threads : [];
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
    const database = await makeDatabase(world, 'memoryd_bench');
    if (usage) return console.log(usageTable(await measureUsage(database, Number(usage), progress)));
    const field = await startField(children, world, database, { large, threads }, progress);
    const ours = field.get('memoryd')!;
    if (profile) return await profileGetSession(world, ours, profile);

    progress('warming up');
    await warmUp(world, ours, SINGLE, 1000);
    await warmUp(world, field.get(LARGE)!, GROWING, 2000);
    const comparisons = [...COMPARISONS, ...peerComparisons(threads)];
    const wanted = [...barsOf(large), ...peerBars(threads)];
    const { rows, bars } = await compareAll(world.postgresCpu, field, comparisons, wanted, effort, progress);
    progress(`memory over ${calls.toLocaleString('en')} calls`);
    bars.push(await measureMemory(ours, calls));
    for (const child of children) child.stop();
    progress(`${IDLE_WATCHES.toLocaleString('en')} idle watches`);
    const idle = await measureIdleWatches(world, database, IDLE_WATCHES);
    bars.push(...(await startBars(world, effort.starts)));
    progress(`a sweep of ${SWEPT.toLocaleString('en')} tenants`);
    const sweepMs = await measureSweep(database, SWEPT, effort.starts);
    bars.push(barOf(`sweep of ${SWEPT.toLocaleString('en')} tenants ms`, sweepMs, 'at most', 1000));

    console.log(`${table(rows)}\n\n${idleLine(idle)}\n\n${barTable(bars)}`);
    if (json) await writeFile(json, `${JSON.stringify({ bars, rows: rows.map(roundedRow), idle }, null, 2)}\n`);
    if (svg) await writeFile(svg, drawing(rows));
  } finally {
    await undo();
  }
}

const usageTable = (rows: UsageRow[]): string =>
  rows.map(({ told, rows: count, ms }) => `| ${told} | ${count} | ${ms.toFixed(ms < 10 ? 1 : 0)} ms |`).join('\n');

/** So that V8 has compiled what is called much, in each of the processes that are compared. */
async function warmUp({ postgresCpu }: World, ours: Contestant, operations: string[], ms: number): Promise<void> {
  for (const operation of operations) {
    await runGroup(postgresCpu, { operation, callers: MOST, contestants: [ours], rounds: 0, ms });
  }
}

async function startBars(world: World, times: number): Promise<Bar[]> {
  progress('starts of `serve`');
  // In which the jobs have nothing left to do of all that was stored here.
  const idle = await makeDatabase(world, 'memoryd_bench_idle');
  const { readyMs, idleMb } = await measureServe(world, idle, times);
  progress('first start of `dev`');
  const devMs = await measureDev(world);
  return [
    barOf('serve ready ms', readyMs, 'at most', 1500),
    ...(idleMb === undefined ? [] : [barOf('serve idle RSS MB', idleMb, 'at most', 160)]),
    barOf('dev first start ms', devMs, 'at most', 10_000),
  ];
}

async function profileGetSession({ postgresCpu }: World, ours: Contestant, file: string): Promise<void> {
  const group = { operation: 'GetSession', callers: MOST, contestants: [ours], ms: 5000 };
  progress('warming up');
  await runGroup(postgresCpu, { ...group, rounds: 0 });
  progress('profiling');
  await ours.server!.ask('startProfile');
  await runGroup(postgresCpu, { ...group, rounds: 1 });
  await ours.server!.ask('endProfile', file);
}

await program.parseAsync();

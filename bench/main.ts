import { writeFile } from 'node:fs/promises';
import { Command } from 'commander';
import type { Child } from './child.ts';
import { startField } from './field.ts';
import { barsOf, COMPARISONS, MOST, type RatioBar } from './plan.ts';
import { type Bar, barOf, barTable, roundedRow, table } from './report.ts';
import { type Contestant, type Round, type Row, ratio, runGroup, summarise } from './rounds.ts';
import { measureDev, measureServe } from './startup.ts';
import { type Database, makeDatabase, makeWorld, type World } from './world.ts';

interface Size {
  /** Rounds of each group, and of those that a bar is about. */
  rounds: number;
  barRounds: number;
  ms: number;
  /** Sessions, and messages of a thread, of the large database. */
  large: number;
  starts: number;
}
const QUICK: Size = { rounds: 3, barRounds: 9, ms: 300, large: 100_000, starts: 3 };
const FULL: Size = { rounds: 7, barRounds: 21, ms: 1000, large: 1_000_000, starts: 5 };

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
    const database = await makeDatabase(world, 'memoryd_bench');
    const field = await startField(children, world, database, size.large);
    if (profile) return await profileGetSession(world, field.get('memoryd')!, profile);

    const { rows, bars } = await compareAll(world, field, size);
    for (const child of children) child.stop();
    bars.push(...(await startBars(world, database, size)));

    console.log(`${table(rows)}\n\n${barTable(bars)}`);
    if (json) await writeFile(json, `${JSON.stringify({ bars, rows: rows.map(roundedRow) }, null, 2)}\n`);
  } finally {
    await undo();
  }
}

async function compareAll(
  { postgresCpu }: World,
  field: Map<string, Contestant>,
  size: Size,
): Promise<{ rows: Row[]; bars: Bar[] }> {
  const rows: Row[] = [];
  const bars: Bar[] = [];
  const groups = COMPARISONS.map(({ operation, callers, contestants }) => {
    const bars = barsOf(size.large).filter((bar) => bar.operation === operation && bar.callers === callers);
    const rounds = bars.length > 0 ? size.barRounds : size.rounds;
    const taking = contestants.map((name) => field.get(name)!);
    return { bars, group: { operation, callers, contestants: taking, rounds, ms: size.ms } };
  });
  progress('warming up');
  for (const { group } of groups) {
    if (group.callers === MOST) await runGroup(postgresCpu, { ...group, rounds: 0, ms: 1000 });
  }
  for (const { group, bars: wanted } of groups) {
    progress(`${group.operation}, ${group.callers} callers`);
    const results = await runGroup(postgresCpu, group);
    for (const { name } of group.contestants) rows.push(summarise(group, name, results.get(name)!));
    bars.push(...wanted.map((bar) => judge(bar, results)));
  }
  return { rows, bars };
}

function judge(wanted: RatioBar, results: Map<string, Round[]>): Bar {
  const { name, callers, of, figure, to, toFigure, sense, bar } = wanted;
  const ratios = to.map((other) => ratio(results.get(of)!, figure, results.get(other)!, toFigure));
  const worst = sense === 'at most' ? Math.max(...ratios) : Math.min(...ratios);
  return barOf(`${name}, ${callers} callers`, worst, sense, bar);
}

async function startBars(world: World, database: Database, size: Size): Promise<Bar[]> {
  progress('starts of `serve`');
  const { readyMs, idleMb } = await measureServe(world, database, size.starts);
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
  await ours.server.ask('startProfile');
  await runGroup(postgresCpu, { ...group, rounds: 1 });
  await ours.server.ask('endProfile', file);
}

await program.parseAsync();

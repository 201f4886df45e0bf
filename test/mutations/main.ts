import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { cp, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type EmbeddedPostgres, startPostgres } from '../../src/dev/postgres.ts';
import { makeDatabase } from '../database.ts';
import { ARTIFACTS } from './artifacts.ts';
import { AUDIT } from './audit.ts';
import { DOCUMENTS } from './documents.ts';
import { DURABILITY } from './durability.ts';
import { ERASURE } from './erasure.ts';
import { ISOLATION } from './isolation.ts';
import { LIVE } from './live.ts';
import { MEMORIES } from './memories.ts';
import type { Mutant } from './mutant.ts';
import { PEOPLE } from './people.ts';
import { QUOTAS } from './quotas.ts';
import { RETENTION } from './retention.ts';
import { RULES } from './rules.ts';
import { TRANSFER } from './transfer.ts';
import { USAGE } from './usage.ts';

// Puts known bugs into a copy of the service, one at a time, and runs the tests that are there to catch them. Words on the
// command line choose the mutants that have one of them in their name; `--tested` says that the tests have just passed without.

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const COPIED = ['src', 'test', 'migrations', 'package.json', 'tsconfig.json'];
// Each has a Postgres of its own, as migrations change what databases share. Most of the time they wait.
const WORKERS = 6;
const LIMIT_MS = 120_000;
const ALL_LIMIT_MS = 900_000;

/** Migrated once in each workplace, and copied for the tests of each bug that is not in the migrations. */
const TEMPLATE = 'memoryd_unchanged';

/** A copy of the service to put bugs into, and where its tests store. */
interface Workplace {
  folder: string;
  postgres: EmbeddedPostgres;
}

async function openWorkplace(): Promise<Workplace> {
  const folder = await mkdtemp(join(tmpdir(), 'memoryd-mutant-'));
  for (const name of COPIED) await cp(join(ROOT, name), join(folder, name), { recursive: true });
  await symlink(join(ROOT, 'node_modules'), join(folder, 'node_modules'));
  const settings = { fsync: 'off', max_connections: '300', full_page_writes: 'off' };
  const postgres = await startPostgres({ folder, settings });
  await makeDatabase(postgres.url, TEMPLATE);
  return { folder, postgres };
}

async function closeWorkplace({ folder, postgres }: Workplace): Promise<void> {
  await postgres.stop();
  await rm(dirname(postgres.data), { recursive: true, force: true });
  await rm(folder, { recursive: true, force: true });
}

interface Failed {
  title: string;
  message: string;
}

interface Run {
  passes: number;
  failures: Failed[];
  /** Why there is no result. */
  fault: string;
}

const fileOf = (name: string) => name.split(': ')[0]!;

/** What mocha runs only: of all files, or, where they are named, of one. */
function onlyOf(names: string[]): string[] {
  const [title] = names.map((name) => name.slice(fileOf(name).length + 2));
  return names.length === 1 && title ? ['--fgrep', title] : [];
}

/** Runs tests of a workplace, up to the first failure. */
async function runTests(
  { folder, postgres }: Workplace,
  names: string[],
  { limitMs = LIMIT_MS, migrated = true } = {},
): Promise<Run> {
  const files = names.map((name) => `test/${fileOf(name)}.test.ts`);
  const report = join(folder, 'report.json');
  const options = [
    '--no-config',
    '--extension',
    'ts',
    '--timeout',
    limitMs === LIMIT_MS ? '20000' : '60000',
    '--require',
    'test/database.ts',
  ];
  const reporter = ['--reporter', 'json', '--reporter-option', `output=${report}`];
  await rm(report, { force: true });
  const child = spawn(
    process.execPath,
    ['node_modules/mocha/bin/mocha.js', ...options, ...reporter, ...onlyOf(names), '--bail', '--exit', ...files],
    {
      cwd: folder,
      env: {
        ...process.env,
        TEST_POSTGRES_URL: postgres.url,
        TEST_TEMPLATE: migrated ? TEMPLATE : '',
        TEST_LOG: '',
        // Of each mutant, only what it changes is stripped of its types and compiled anew.
        NODE_COMPILE_CACHE: join(folder, 'compiled'),
      },
      stdio: ['ignore', 'ignore', 'pipe'],
    },
  );
  let said = '';
  child.stderr.on('data', (text) => {
    said += text;
  });
  const timer = setTimeout(() => child.kill('SIGKILL'), limitMs);
  await once(child, 'close');
  clearTimeout(timer);
  const text = await readFile(report, 'utf8').catch(() => '');
  if (!text) return { passes: 0, failures: [], fault: said.trim().split('\n').at(-1) || 'the tests never ended' };
  const { passes, failures } = JSON.parse(text) as { passes: unknown[]; failures: { fullTitle: string; err: Error }[] };
  return {
    passes: passes.length,
    failures: failures.map(({ fullTitle, err }) => ({
      title: fullTitle,
      message: String(err.message).split('\n')[0]!,
    })),
    fault: '',
  };
}

interface Verdict {
  mutant: Mutant;
  caught: boolean;
  how: string;
  ms: number;
}

// What lets no test begin, or only makes a statement or a program malformed, is no bug that could go unnoticed.
const INVALID = /"before (all|each)" hook|13 INTERNAL|code: 1[34]\b|is not a function|is not defined/;

/** Whether the tests catch a bug. */
async function judge(place: Workplace, { edits, caughtBy }: Mutant): Promise<{ caught: boolean; how: string }> {
  const originals = new Map<string, string>();
  try {
    for (const { file, find, replace } of edits) {
      const path = join(place.folder, file);
      const text = await readFile(path, 'utf8');
      if (!originals.has(path)) originals.set(path, text);
      const places = text.split(find).length - 1;
      if (places !== 1) return { caught: false, how: `STALE: its text is ${places} times in ${file}` };
      await writeFile(
        path,
        text.replace(find, () => replace),
      );
    }
    const migrated = !edits.some(({ file }) => /^migrations\/|migrate/.test(file));
    let broken = '';
    // Where no test could begin, that may have been the machine.
    for (let tries = 0; tries < 2; tries++) {
      const { failures, fault } = await runTests(place, caughtBy, { migrated });
      const [first] = failures;
      if (!fault && !first) return { caught: false, how: `SURVIVED: ${caughtBy.join(', ')} pass` };
      broken = fault || (INVALID.test(`${first!.title} ${first!.message}`) ? first!.message : '');
      if (!broken) return { caught: true, how: `${first!.title}: ${first!.message}` };
    }
    return { caught: false, how: `BROKEN: ${broken}` };
  } finally {
    for (const [path, text] of originals) await writeFile(path, text);
  }
}

/** What is wrong with the tests when there is no bug in the service, or ''. */
async function faultWithoutMutants(places: Workplace[], mutants: Mutant[]): Promise<string> {
  const files = [...new Set(mutants.flatMap((mutant) => mutant.caughtBy.map(fileOf)))];
  const shares = places
    .map((place, i) => ({ place, names: files.filter((_file, n) => n % places.length === i) }))
    .filter(({ names }) => names.length > 0);
  const first = await Promise.all(shares.map(({ place, names }) => runTests(place, names, { limitMs: ALL_LIMIT_MS })));
  const runs = [];
  for (const [i, run] of first.entries()) {
    const good = run.failures.length === 0 && !run.fault;
    // Side by side they may be too slow for what a test waits for; alone they have no excuse.
    runs.push(good ? run : await runTests(shares[i]!.place, shares[i]!.names, { limitMs: ALL_LIMIT_MS }));
  }
  const broken = runs.flatMap(({ failures, fault }) => [
    ...failures.map(({ title }) => title),
    ...(fault ? [fault] : []),
  ]);
  return broken.join('; ');
}

const shorten = (text: string, length: number) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

function show({ mutant, caught, how, ms }: Verdict): void {
  const seconds = `${(ms / 1000).toFixed(1)} s`.padStart(7);
  console.log(`${caught ? 'caught' : 'MISSED'} ${seconds}  ${mutant.bug}\n                ${shorten(how, 150)}`);
}

const given = process.argv.slice(2);
const tested = given.includes('--tested');
const words = given.filter((word) => word !== '--tested');
const all = [
  ...ISOLATION,
  ...DURABILITY,
  ...RULES,
  ...LIVE,
  ...ARTIFACTS,
  ...AUDIT,
  ...DOCUMENTS,
  ...MEMORIES,
  ...PEOPLE,
  ...RETENTION,
  ...QUOTAS,
  ...TRANSFER,
  ...USAGE,
  ...ERASURE,
];
const chosen = all.filter(({ bug }) => words.length === 0 || words.some((word) => bug.includes(word)));
const places = await Promise.all(Array.from({ length: WORKERS }, openWorkplace));
const verdicts: Verdict[] = [];
const waiting = [...chosen];
// Told to end, it still stops its databases. The mutants under way end as broken.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => waiting.splice(0));
try {
  const fault = tested ? '' : await faultWithoutMutants(places, chosen);
  if (fault) throw new Error(`the tests fail without any mutant: ${fault}`);
  await Promise.all(
    places.map(async (place) => {
      for (let mutant = waiting.shift(); mutant; mutant = waiting.shift()) {
        const start = performance.now();
        const verdict = { mutant, ...(await judge(place, mutant)), ms: performance.now() - start };
        verdicts.push(verdict);
        show(verdict);
      }
    }),
  );
} finally {
  await Promise.all(places.map(closeWorkplace));
}
const missed = verdicts.filter(({ caught }) => !caught).length;
console.log(`${verdicts.length - missed} passed, ${missed} failed`);
process.exitCode = missed > 0 ? 1 : 0;

import { randomInt } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { Command } from 'commander';
import { openArena } from './arena.ts';
import { crash } from './crash.ts';
import { history } from './history.ts';
import { hostile } from './hostile.ts';
import { leaks } from './leaks.ts';
import { live } from './live.ts';
import { network } from './network.ts';
import { overload } from './overload.ts';
import { rolling } from './rolling.ts';
import type { Figures, Scenario } from './scenario.ts';
import { upgrade } from './upgrade.ts';

const SCENARIOS: Scenario[] = [crash, network, history, live, hostile, overload, leaks, upgrade, rolling];

/** How much longer than its time a scenario may take before it counts as hung: some have steps that take what they take. */
const GRACE_MS = 180_000;

const SHOWN_ERRORS = 5;

interface Options {
  minutes: number;
  seed: number;
  only?: string[];
  json?: string;
}

interface Outcome extends Pick<Scenario, 'name' | 'about'> {
  passed: boolean;
  seconds: number;
  figures: Figures;
  error?: string;
}

const number = (text: string): number => {
  const value = Number(text);
  if (!(value >= 0)) throw new Error(`not a number: ${text}`);
  return value;
};

const program = new Command('survival')
  .description(
    'What the service must survive, for real: servers and databases are killed, networks cut, clients hostile.',
  )
  .option('--minutes <number>', 'How long it may take, all scenarios together.', number, 5)
  .option('--seed <number>', 'The seed of all choices; a failure tells its own.', number, randomInt(2 ** 31))
  .option('--only <names>', 'Only these scenarios, separated by commas.', (text) => text.split(','))
  .option('--json <file>', 'Writes the outcomes to the file.')
  .action(survive);

const progress = (line: string) =>
  process.stderr.write(`${((performance.now() / 1000) | 0).toString().padStart(4)} s  ${line}\n`);

let closing: (() => Promise<void>) | undefined;
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  // Postgres is in a session of its own, where Ctrl-C does not reach it.
  process.once(signal, () => Promise.resolve(closing?.()).finally(() => process.exit(1)));
}

async function survive({ minutes, seed, only, json }: Options): Promise<void> {
  const unknown = only?.filter((name) => !SCENARIOS.some((scenario) => scenario.name === name)) ?? [];
  if (unknown.length > 0) program.error(`there is no scenario ${unknown.join(', ')}`);
  const chosen = SCENARIOS.filter(({ name }) => only?.includes(name) ?? true);
  const end = Date.now() + minutes * 60_000;
  progress(`seed ${seed}: npm run test:survival -- --seed ${seed} --minutes ${minutes} does the same`);

  const outcomes: Outcome[] = [];
  for (const [i, scenario] of chosen.entries()) {
    const weights = chosen.slice(i).reduce((sum, { weight }) => sum + weight, 0);
    outcomes.push(await play(scenario, seed, Date.now() + ((end - Date.now()) * scenario.weight) / weights));
  }
  const failed = outcomes.filter(({ passed }) => !passed).length;
  console.log(report(outcomes));
  if (json) await writeFile(json, `${JSON.stringify({ seed, minutes, outcomes }, null, 2)}\n`);
  console.log(`${outcomes.length - failed} passed, ${failed} failed`);
  process.exit(failed ? 1 : 0);
}

async function play(scenario: Scenario, seed: number, deadline: number): Promise<Outcome> {
  const { name, about } = scenario;
  const start = Date.now();
  progress(`${name}: ${about}`);
  const { arena, errors, close } = await openArena(name, seed, deadline, (line) => progress(`${name}: ${line}`));
  closing = close;
  let timer: NodeJS.Timeout | undefined;
  const hung = new Promise<never>((_, reject) => {
    const end = () => reject(new Error(`it has not ended ${GRACE_MS / 1000} s after its time`));
    timer = setTimeout(end, Math.max(0, deadline - Date.now()) + GRACE_MS);
  });
  const outcome = await Promise.race([scenario.run(arena), hung]).then(
    (figures): Outcome => ({ name, about, passed: true, seconds: 0, figures }),
    (error: Error): Outcome => {
      progress(`${name} FAILED: ${error.stack}`);
      for (const line of errors().slice(-SHOWN_ERRORS)) progress(`a server logged: ${line}`);
      return { name, about, passed: false, seconds: 0, figures: {}, error: `seed ${seed}: ${error.message}` };
    },
  );
  clearTimeout(timer);
  await close();
  return { ...outcome, seconds: Math.round((Date.now() - start) / 100) / 10 };
}

function report(outcomes: Outcome[]): string {
  const lines = outcomes.map(({ name, passed, seconds, figures, error }) => {
    const told = Object.entries(figures).map(([figure, value]) => `${figure} ${value}`);
    return `${name.padEnd(10)} ${passed ? 'ok    ' : 'FAILED'} ${seconds.toFixed(0).padStart(4)} s  ${error ?? told.join(', ')}`;
  });
  return lines.join('\n');
}

await program.parseAsync();

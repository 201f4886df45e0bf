import { setTimeout as sleep } from 'node:timers/promises';
import { parentPort, workerData } from 'node:worker_threads';
import { makeRandom } from '../random.ts';
import { CALLS } from './calls.ts';
import { CONNECTIONS, slowLoris } from './connections.ts';
import type { Tally, Target } from './target.ts';

// Runs beside the scenario, so that what it measures is not slowed by what attacks.

export interface Order {
  target: Target;
  seed: number;
  /** How many slow connections stand open all the while. */
  slow: number;
  /** Milliseconds, and how many inputs at most, spread over them. */
  ms: number;
  inputs: number;
}

export interface Report {
  inputs: number;
  /** By kind, how the inputs were answered. */
  tallies: Record<string, Tally>;
}

async function attack({ target, seed, slow, ms, inputs }: Order): Promise<Report> {
  const random = makeRandom(seed, 'attacker');
  const kinds = Object.entries({ ...CALLS, ...CONNECTIONS });
  const report: Report = { inputs: 0, tallies: {} };
  const loris = await slowLoris(target, slow);
  report.inputs += slow;
  report.tallies['slow connections'] = { left: slow };
  const start = Date.now();
  try {
    // Each kind in turn, so that a short attack has them all.
    for (let turn = 0; Date.now() < start + ms && report.inputs < inputs; turn++) {
      const [kind, send] = kinds[turn % kinds.length]!;
      const tally = await send(target, random).catch((error: Error) => {
        throw new Error(`${kind}, seed ${seed}, turn ${turn}: ${error.message}`);
      });
      report.tallies[kind] ??= {};
      const total = report.tallies[kind];
      for (const [answer, count] of Object.entries(tally)) {
        total[answer] = (total[answer] ?? 0) + count;
        report.inputs += count;
      }
      // Not sooner than its share of the time: what is to be shown is that bytes do no harm, not how many fit.
      const due = start + (report.inputs / inputs) * ms;
      if (due > Date.now()) await sleep(due - Date.now());
    }
  } finally {
    loris.end();
  }
  return report;
}

parentPort!.postMessage(await attack(workerData as Order));

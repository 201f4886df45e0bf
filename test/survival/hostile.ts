import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { headersOf, newTenant } from '../support.ts';
import { startBystander } from './bystander.ts';
import { startWatched } from './footprint.ts';
import type { Order, Report } from './hostile/attacker.ts';
import type { Arena, Scenario } from './scenario.ts';

const INPUTS = 100_000;
const SLOW = 100;
// A generous bound, as the machine is shared: what was measured is in the figures.
const HARMED = 25;

/** Attacks from a thread of its own and gives what it reports. */
async function attack(order: Order): Promise<Report> {
  const worker = new Worker(new URL('./hostile/attacker.ts', import.meta.url), { workerData: order });
  const ended = once(worker, 'exit').then(([code]) => {
    throw new Error(`the attacker ended with ${code}`);
  });
  const [report] = await Promise.race([once(worker, 'message'), ended]);
  return report;
}

async function run(arena: Arena) {
  const postgres = await arena.startPostgres();
  const server = await startWatched(arena, postgres);
  const headers = headersOf(await newTenant(['admin'], {}, postgres.ownerUrl), 'admin');
  const [host = '', port] = server.address.split(':');
  // With every right, so that as much as possible gets past the first checks.
  const identity = { ...headers, 'x-scopes': 'memory:handoff memory:operator' };
  const target = { host, port: Number(port), identity };
  const order = { target, seed: arena.seed, slow: SLOW };

  // Once over every kind, so that what is made once is made before the first look.
  await attack({ ...order, ms: Math.min(20_000, arena.timeLeft() / 5), inputs: 5000 });
  const calmMs = Math.min(15_000, arena.timeLeft() / 6);
  const wellBehaved = startBystander(server.address, headers);
  await sleep(calmMs / 3);
  wellBehaved.p99();
  await sleep(calmMs);
  const calm = wellBehaved.p99();
  const before = await server.footprint();
  arena.tell(`before: ${JSON.stringify(before)}, p99 ${calm.toFixed(1)} ms`);

  wellBehaved.p99();
  const report = await attack({ ...order, seed: arena.seed + 1, ms: arena.timeLeft() * 0.75, inputs: INPUTS });
  const during = wellBehaved.p99();
  for (const [kind, tally] of Object.entries(report.tallies)) arena.tell(`${kind}: ${JSON.stringify(tally)}`);
  const after = await server.recovered(before, 40_000);
  await wellBehaved.end();

  const faults = server.logLines.filter((line) => /"level":"(error|fatal)"/.test(line));
  for (const line of faults.slice(0, 20)) arena.tell(line);
  if (faults.length > 0) throw new Error(`seed ${arena.seed}: ${faults.length} errors of the server's own`);
  process.kill(server.pid, 0); // throws if there is no such process any more
  if (during > calm * HARMED + 250) throw new Error(`p99 of others went from ${calm} to ${during} ms`);
  return {
    inputs: report.inputs,
    kinds: Object.keys(report.tallies).length,
    'others p99 before, ms': calm.toFixed(1),
    'others p99 during, ms': during.toFixed(1),
    'heap before, MB': before.heapMb,
    'heap after, MB': after.heapMb,
  };
}

export const hostile: Scenario = {
  name: 'hostile',
  about: 'bytes that no client sends: the process lives, forgets them, and serves others as before',
  weight: 3,
  run,
};

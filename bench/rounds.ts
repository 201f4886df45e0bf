import { cpus } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Child, Usage } from './child.ts';
import type { RunOrder, RunResult } from './loop.ts';

/** One of those that do the same work side by side. */
export interface Contestant {
  name: string;
  /** The process that makes the calls. */
  load: Child;
  /** The process whose CPU and memory they cost, if it can be asked. */
  server: Child | undefined;
  usesPostgres: boolean;
  /** A round that takes longer, or fails, ends what this one takes part in. Without it, it ends the bench. */
  cutOffMs?: number;
}

export interface Group {
  operation: string;
  callers: number;
  contestants: readonly Contestant[];
  rounds: number;
  ms: number;
}

export interface Round {
  ms: number;
  perSecond: number;
  /** Microseconds per call. */
  cpu: number;
  postgresCpu: number | undefined;
  p50: number;
  p99: number;
  /** Resident memory at the end. */
  rssMb: number;
  /** The part of the machine's CPU time that programs took which are not of the bench. */
  others: number;
  latencies: Float64Array;
}

export type Figure = 'perSecond' | 'cpu' | 'p50' | 'p99';

/** A round that took so many times as long as it should, as it waits for the last call, is the only one. */
const SLOW = 5;

/** CPU milliseconds that Postgres has used, undefined where the system does not tell. */
export type PostgresCpu = () => number | undefined;

/**
 * Runs the contestants of a group in turns, A B C A B C …, so that what else the machine does meanwhile hits all of them.
 * The first round only warms up, but for one whose calls take so long that once must do. Gives each contestant's rounds by its
 * name: none of one that was cut off.
 */
export async function runGroup(
  postgresCpu: PostgresCpu,
  { contestants, rounds, ...order }: Group,
): Promise<Map<string, Round[]>> {
  const results = new Map<string, Round[]>(contestants.map(({ name }) => [name, []]));
  const finished = new Set<string>();
  for (let round = -1; round < rounds; round++) {
    for (const contestant of contestants) {
      const { name, load, cutOffMs } = contestant;
      const done = results.get(name);
      if (!done || finished.has(name)) continue;
      try {
        const result = await Promise.race([runOnce(postgresCpu, contestant, order), ...limit(cutOffMs)]);
        const slow = result.ms > SLOW * order.ms;
        if (round >= 0 || slow) done.push(result);
        if (slow) finished.add(name);
      } catch (error) {
        if (!cutOffMs) throw error;
        console.error(`${name} is cut off in ${order.operation}: ${(error as Error).message.split('\n')[0]}`);
        results.delete(name);
        load.stop();
      }
    }
  }
  return results;
}

const limit = (ms: number | undefined): Promise<never>[] =>
  ms
    ? [
        sleep(ms, undefined, { ref: false }).then(() => {
          throw new Error(`a round took more than ${ms / 1000} s`);
        }),
      ]
    : [];

const UNKNOWN: Usage = { cpuMs: Number.NaN, rssMb: Number.NaN };

async function runOnce(
  postgresCpu: PostgresCpu,
  { name, load, server, usesPostgres }: Contestant,
  order: Omit<RunOrder, 'contestant'>,
): Promise<Round> {
  const look = async () => ({
    server: (await server?.ask<Usage>('usage')) ?? UNKNOWN,
    client: server === load ? 0 : (await load.ask<Usage>('usage')).cpuMs,
    postgres: postgresCpu() ?? 0,
    machine: cpus().reduce((sum, { times }) => sum + times.user + times.nice + times.sys + times.irq, 0),
  });
  const before = await look();
  const { ms, latencies } = await load.ask<RunResult>('run', { ...order, contestant: name });
  const after = await look();

  const calls = latencies.length;
  const cpuMs = after.server.cpuMs - before.server.cpuMs;
  const postgres = after.postgres - before.postgres;
  const others = after.machine - before.machine - cpuMs - (after.client - before.client) - postgres;
  const sorted = latencies.toSorted();
  return {
    ms,
    perSecond: (calls / ms) * 1000,
    cpu: (cpuMs * 1000) / calls,
    postgresCpu: usesPostgres && after.postgres > 0 ? (postgres * 1000) / calls : undefined,
    p50: percentile(sorted, 0.5),
    p99: percentile(sorted, 0.99),
    rssMb: after.server.rssMb,
    others: Math.max(0, others || 0) / (ms * cpus().length),
    latencies,
  };
}

/**
 * The median of what one comes to as a multiple of what the other comes to beside it, over the half of the rounds in which
 * other programs took least: on a machine that is not ours alone, they make every call dearer, and not both alike.
 */
export function ratio(ours: Round[], figure: Figure, theirs: Round[], theirFigure: Figure = figure): number {
  const pairs = theirs.map((their, i) => ({
    ratio: ours[i]![figure] / their[theirFigure],
    others: Math.max(ours[i]!.others, their.others),
  }));
  const quiet = pairs.sort((a, b) => a.others - b.others).slice(0, Math.ceil(pairs.length / 2));
  return median(quiet.map(({ ratio }) => ratio));
}

export function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  if (sorted.length === 0) return Number.NaN;
  return sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

const percentile = (sorted: Float64Array, p: number): number =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * p))] ?? Number.NaN;

export interface Row {
  operation: string;
  callers: number;
  contestant: string;
  perSecond: number;
  p50Ms: number;
  p95Ms: number;
  p99Ms: number;
  /** Of the process that serves the call, or, of what is in-process, that makes it. */
  cpuMicros: number;
  /** Of the same process. */
  rssMb: number;
  postgresCpuMicros: number | undefined;
  /** What programs that are not of the bench took of the machine's CPU time meanwhile. */
  othersPercent: number;
}

/** What a contestant's rounds come to: medians over the rounds, and percentiles over all their calls. No number if it has none. */
export function summarise({ operation, callers }: Group, contestant: string, rounds: Round[] = []): Row {
  const latencies = Float64Array.from(rounds.flatMap((round) => [...round.latencies])).sort();
  const postgres = rounds.map((round) => round.postgresCpu).filter((cpu) => cpu !== undefined);
  return {
    operation,
    callers,
    contestant,
    perSecond: median(rounds.map((round) => round.perSecond)),
    p50Ms: percentile(latencies, 0.5),
    p95Ms: percentile(latencies, 0.95),
    p99Ms: percentile(latencies, 0.99),
    cpuMicros: median(rounds.map((round) => round.cpu)),
    rssMb: median(rounds.map((round) => round.rssMb)),
    postgresCpuMicros: postgres.length > 0 ? median(postgres) : undefined,
    othersPercent: median(rounds.map((round) => round.others)) * 100,
  };
}

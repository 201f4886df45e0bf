import { cpus } from 'node:os';
import type { Child } from './child.ts';
import type { RunOrder, RunResult } from './load.ts';
import type { Operation } from './subjects.ts';

/** One of those that do the same work side by side. */
export interface Contestant {
  name: string;
  /** The process whose CPU its calls cost. */
  process: Child;
  usesPostgres: boolean;
}

export interface Field {
  load: Child;
  postgresCpu(): number | undefined;
}

export interface Group {
  operation: Operation;
  callers: number;
  contestants: readonly Contestant[];
  rounds: number;
  ms: number;
}

export interface Round {
  perSecond: number;
  /** Microseconds per call. */
  cpu: number;
  postgresCpu: number | undefined;
  /** The part of the machine's CPU time that programs took which are not of the bench. */
  others: number;
  latencies: Float64Array;
}

/**
 * Runs the contestants of a group in turns, A B C A B C …, so that what else the machine does meanwhile hits all of them.
 * The first round only warms up. Gives each contestant's rounds by its name.
 */
export async function runGroup(field: Field, { contestants, rounds, ...order }: Group): Promise<Map<string, Round[]>> {
  const results = new Map<string, Round[]>(contestants.map(({ name }) => [name, []]));
  for (let round = -1; round < rounds; round++) {
    for (const contestant of contestants) {
      const result = await runOnce(field, contestant, order);
      if (round >= 0) results.get(contestant.name)!.push(result);
    }
  }
  return results;
}

async function runOnce(
  { load, postgresCpu }: Field,
  { name, process, usesPostgres }: Contestant,
  order: Omit<RunOrder, 'contestant'>,
): Promise<Round> {
  const look = async () => ({
    server: await cpuMs(process),
    client: process === load ? 0 : await cpuMs(load),
    postgres: postgresCpu() ?? 0,
    machine: cpus().reduce((sum, { times }) => sum + times.user + times.nice + times.sys + times.irq, 0),
  });
  const before = await look();
  const { ms, latencies } = await load.ask<RunResult>('run', { ...order, contestant: name });
  const after = await look();

  const calls = latencies.length;
  const server = after.server - before.server;
  const postgres = after.postgres - before.postgres;
  const others = after.machine - before.machine - server - (after.client - before.client) - postgres;
  return {
    perSecond: (calls / ms) * 1000,
    cpu: (server * 1000) / calls,
    postgresCpu: usesPostgres && after.postgres > 0 ? (postgres * 1000) / calls : undefined,
    others: Math.max(0, others) / (ms * cpus().length),
    latencies,
  };
}

async function cpuMs(process: Child): Promise<number> {
  const { user, system } = await process.ask<NodeJS.CpuUsage>('cpu');
  return (user + system) / 1000;
}

/**
 * The median of what one costs in CPU as a multiple of what the other costs beside it, over the half of the rounds in which
 * other programs took least: on a machine that is not ours alone, they make every call dearer, and not both alike.
 */
export function cpuRatio(ours: Round[], theirs: Round[]): number {
  const pairs = ours.map((round, i) => ({
    ratio: round.cpu / theirs[i]!.cpu,
    others: Math.max(round.others, theirs[i]!.others),
  }));
  const quiet = pairs.sort((a, b) => a.others - b.others).slice(0, Math.ceil(pairs.length / 2));
  return median(quiet.map(({ ratio }) => ratio));
}

export function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

export interface Row {
  operation: Operation;
  callers: number;
  contestant: string;
  perSecond: number;
  p50Ms: number;
  p95Ms: number;
  p99Ms: number;
  /** Of the process that serves the call, or, of plain pg, that makes it. */
  cpuMicros: number;
  postgresCpuMicros: number | undefined;
  /** What programs that are not of the bench took of the machine's CPU time meanwhile. */
  othersPercent: number;
}

/** What a contestant's rounds come to: medians over the rounds, and percentiles over all their calls. */
export function summarise({ operation, callers }: Group, contestant: string, rounds: Round[]): Row {
  const latencies = Float64Array.from(rounds.flatMap((round) => [...round.latencies])).sort();
  const percentile = (p: number) => latencies[Math.min(latencies.length - 1, Math.floor(latencies.length * p))]!;
  const postgres = rounds.map((round) => round.postgresCpu).filter((cpu) => cpu !== undefined);
  return {
    operation,
    callers,
    contestant,
    perSecond: median(rounds.map((round) => round.perSecond)),
    p50Ms: percentile(0.5),
    p95Ms: percentile(0.95),
    p99Ms: percentile(0.99),
    cpuMicros: median(rounds.map((round) => round.cpu)),
    postgresCpuMicros: postgres.length > 0 ? median(postgres) : undefined,
    othersPercent: median(rounds.map((round) => round.others)) * 100,
  };
}

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
  const postgresBefore = usesPostgres ? postgresCpu() : undefined;
  const before = await process.ask<NodeJS.CpuUsage>('cpu');
  const { ms, latencies } = await load.ask<RunResult>('run', { ...order, contestant: name });
  const after = await process.ask<NodeJS.CpuUsage>('cpu');
  const postgresAfter = usesPostgres ? postgresCpu() : undefined;

  const calls = latencies.length;
  const spent = after.user - before.user + after.system - before.system;
  const postgresMs = postgresAfter !== undefined && postgresBefore !== undefined && postgresAfter - postgresBefore;
  return {
    perSecond: (calls / ms) * 1000,
    cpu: spent / calls,
    postgresCpu: postgresMs === false ? undefined : (postgresMs * 1000) / calls,
    latencies,
  };
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
  };
}

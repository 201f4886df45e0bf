import { type Work, workOverRpc } from './calls.ts';
import { answer } from './child.ts';
import { workOverPg } from './raw.ts';
import type { Operation, Subjects } from './subjects.ts';

// The load generator: so many callers, each with its next call as soon as its last one is answered.

export interface LoadSetup {
  /** Servers by name. */
  addresses: Record<string, string>;
  databaseUrl: string;
  subjects: Subjects;
}

export interface RunOrder {
  contestant: string;
  operation: Operation;
  callers: number;
  ms: number;
}

export interface RunResult {
  ms: number;
  /** Milliseconds of each call. */
  latencies: Float64Array;
}

const contestants: Record<string, Work> = {};

function setUp({ addresses, databaseUrl, subjects }: LoadSetup): void {
  for (const [name, address] of Object.entries(addresses)) contestants[name] = workOverRpc(address, subjects);
  contestants.pg = workOverPg(databaseUrl, subjects);
}

/** Ends when the last call is answered, so that what is counted is all that was done. */
async function run({ contestant, operation, callers, ms }: RunOrder): Promise<RunResult> {
  const work = contestants[contestant]![operation];
  const latencies: number[] = [];
  const start = performance.now();
  const end = start + ms;
  async function call(caller: number): Promise<void> {
    for (let before = performance.now(); before < end; ) {
      await work(caller);
      const after = performance.now();
      latencies.push(after - before);
      before = after;
    }
  }
  await Promise.all(Array.from({ length: callers }, (_, caller) => call(caller)));
  return { ms: performance.now() - start, latencies: Float64Array.from(latencies) };
}

answer({ setUp, run });

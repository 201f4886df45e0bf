import { answer } from './child.ts';
import { connect } from './client.ts';
import { drive, type RunOrder, type RunResult, type Work } from './loop.ts';
import { rpcWork } from './operations.ts';
import { ourMemory } from './ours.ts';
import { createThreads, memoryWork, type Threads } from './peer.ts';
import { pgbenchRunner } from './pgbench.ts';
import { pgWork } from './raw.ts';
import type { Subjects } from './subjects.ts';
import { singleCallWork } from './turns.ts';

/** How to make the calls of a contestant. */
export type Setup = { name: string; subjects: Subjects } & (
  | { by: 'rpc'; address: string; ownerUrl: string; threads: Threads[] }
  | { by: 'single calls'; address: string }
  | { by: 'pg'; databaseUrl: string }
  | { by: 'pgbench'; databaseUrl: string }
);

type Runner = (order: RunOrder) => Promise<RunResult>;

const runners = new Map<string, Runner>();

async function runnerOf(setup: Setup): Promise<Runner> {
  if (setup.by === 'pgbench') return pgbenchRunner(setup.databaseUrl, setup.subjects);
  const work = await workOf(setup);
  return ({ operation, callers, ms }) => drive(work[operation]!, callers, ms);
}

async function workOf(setup: Exclude<Setup, { by: 'pgbench' }>): Promise<Work> {
  const { subjects } = setup;
  if (setup.by === 'pg') return pgWork(setup.databaseUrl, subjects);
  const connection = connect(setup.address, subjects.scope);
  const { call } = connection;
  if (setup.by === 'single calls') return singleCallWork(call, subjects);
  const memory = ourMemory(call, setup.ownerUrl);
  await createThreads(memory, setup.threads);
  return { ...rpcWork(connection, subjects), ...memoryWork(memory, setup.threads) };
}

answer({
  setUp: async (setup: Setup) => {
    runners.set(setup.name, await runnerOf(setup));
  },
  run: (order: RunOrder) => runners.get(order.contestant)!(order),
});

import { answer } from './child.ts';
import { connect } from './client.ts';
import { drive, type RunOrder, type RunResult, type Work } from './loop.ts';
import { rpcWork } from './operations.ts';
import { pgWork } from './raw.ts';
import type { Subjects } from './subjects.ts';
import { singleCallWork } from './turns.ts';

/** How to make the calls of a contestant. */
export type Setup = { name: string; subjects: Subjects } & (
  | { by: 'rpc' | 'single calls'; address: string }
  | { by: 'pg'; databaseUrl: string }
);

const works: Record<string, Work> = {};

function workOf(setup: Setup): Work {
  if (setup.by === 'pg') return pgWork(setup.databaseUrl, setup.subjects);
  const { call } = connect(setup.address, setup.subjects.scope);
  return setup.by === 'rpc' ? rpcWork(call, setup.subjects) : singleCallWork(call, setup.subjects);
}

answer({
  setUp: (setups: Setup[]) => {
    for (const setup of setups) works[setup.name] = workOf(setup);
  },
  run: ({ contestant, operation, callers, ms }: RunOrder): Promise<RunResult> =>
    drive(works[contestant]![operation]!, callers, ms),
});

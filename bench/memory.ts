import type { Usage } from './child.ts';
import type { RunResult } from './loop.ts';
import { MOST, SINGLE } from './plan.ts';
import { type Bar, barOf } from './report.ts';
import { type Contestant, median } from './rounds.ts';

/**
 * Whether memory grows with the calls that are made: what the server has resident in the last fifth of so many calls of all
 * kinds, as a multiple of what it had in the second fifth, by when all that is loaded once is.
 */
export async function measureMemory({ name, load, server }: Contestant, calls: number): Promise<Bar> {
  const looks: { fifth: number; rssMb: number }[] = [];
  for (let made = 0; made < calls; ) {
    for (const operation of SINGLE) {
      const order = { contestant: name, operation, callers: MOST, ms: 250 };
      made += (await load.ask<RunResult>('run', order)).latencies.length;
      const { rssMb } = await server!.ask<Usage>('usage');
      looks.push({ fifth: Math.ceil((made / calls) * 5), rssMb });
    }
  }
  const residentIn = (from: number, to = from) =>
    median(looks.filter(({ fifth }) => fifth >= from && fifth <= to).map(({ rssMb }) => rssMb));
  const value = residentIn(5, Number.POSITIVE_INFINITY) / residentIn(2);
  return barOf(
    `server memory, last fifth of ${calls.toLocaleString('en')} calls vs second fifth`,
    value,
    'at most',
    1.1,
  );
}

import { type Interposed, startProxy } from '../proxy.ts';
import { connect, headersOf } from '../support.ts';
import { checkAftermath } from './aftermath.ts';
import { startSealing } from './chain.ts';
import { QUOTAS, startLoad } from './load.ts';
import type { Random, Scenario } from './scenario.ts';
import { CALM, type Trouble, troubles } from './troubles.ts';

const CLIENTS = 8;
const CHECKS = 0.15;
/** The contract, and how often longer a busy machine may take. */
const RECOVERY_MS = 2000;
const BUSY = 5;

export const network: Scenario = {
  name: 'network',
  about: 'networks that delay, cut, swallow and stall, between clients and server and between server and database',
  weight: 2,
  async run(arena) {
    const postgres = await arena.startPostgres();
    const server = await arena.startServer({ postgres });
    const front = await startProxy(`tcp://${server.address}`);
    arena.cleanup(front.close);
    const load = await startLoad(arena, postgres, [new URL(front.url).host], CLIENTS, { quotas: QUOTAS });
    const chain = await startSealing(arena, postgres, load.tenant);
    const until = Date.now() + arena.timeLeft() * (1 - CHECKS);
    const counts: Record<string, number> = {};
    const recoveries: number[] = [];
    // Every trouble on each link in turn, in another order each time.
    let plan: [Trouble, Interposed][] = [];
    while (Date.now() < until && load.ledger.faults.length === 0) {
      if (plan.length === 0) plan = shuffled(arena.random, troubles(front, postgres.link));
      const [trouble, link] = plan.pop()!;
      await load.progress(1 + arena.random.int(100));
      await trouble.strike(link, arena);
      Object.assign(link, CALM);
      const start = performance.now();
      await load.allAnswered();
      recoveries.push(performance.now() - start);
      counts[trouble.name] = (counts[trouble.name] ?? 0) + 1;
      arena.tell(
        `${trouble.name} ${link === front ? 'before' : 'behind'} the server: back in ${recoveries.at(-1)! | 0} ms`,
      );
    }
    await load.end();
    await postgres.stop();
    await postgres.start();
    const clients = connect(server.address, headersOf(load.tenant));
    arena.cleanup(clients.close);
    const figures = {
      ...(await checkAftermath(load.ledger, load.tenant, clients, postgres.ownerUrl)),
      ...(await chain.verified()),
    };
    recoveries.sort((a, b) => a - b);
    const slowest = Math.round(recoveries.at(-1) ?? 0);
    if (slowest > RECOVERY_MS * BUSY) throw new Error(`it took ${slowest} ms until all clients were served again`);
    const median = Math.round(recoveries[recoveries.length >> 1] ?? 0);
    const over = recoveries.filter((ms) => ms > RECOVERY_MS).length;
    return { ...counts, 'recovery ms p50': median, 'slowest ms': slowest, 'over 2 s': over, ...figures };
  },
};

function shuffled<T>(random: Random, list: T[]): T[] {
  return list
    .map((item) => ({ item, at: random.int(1_000_000) }))
    .sort((a, b) => a.at - b.at)
    .map(({ item }) => item);
}

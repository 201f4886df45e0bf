import type { ServerProcess } from '../fixtures/process.ts';
import { connect, headersOf } from '../support.ts';
import { checkAftermath } from './aftermath.ts';
import { startSealing } from './chain.ts';
import { checkErasure } from './erasure.ts';
import { QUOTAS, startLoad } from './load.ts';
import type { Arena, Postgres, Scenario } from './scenario.ts';

const CLIENTS = 8;
const KILLS = 100;
/** What the checks in the end take, as a part of all. */
const CHECKS = 0.2;

export const crash: Scenario = {
  name: 'crash',
  about: 'kill -9 of servers, of Postgres and of both, under load by clients that retry',
  weight: 3,
  async run(arena) {
    const postgres = await arena.startPostgres();
    const servers = await Promise.all([arena.startServer({ postgres }), arena.startServer({ postgres })]);
    const addresses = servers.map((server) => server.address);
    const load = await startLoad(arena, postgres, addresses, CLIENTS, { quotas: QUOTAS });
    const chain = await startSealing(arena, postgres, load.tenant);
    const until = Date.now() + arena.timeLeft() * (1 - CHECKS);
    const kills = { server: 0, Postgres: 0, both: 0 };
    let count = 0;
    for (; count < KILLS && Date.now() < until && load.ledger.faults.length === 0; count++) {
      await load.progress(1 + arena.random.int(200));
      const victim = arena.random.pick(['server', 'Postgres', 'both'] as const);
      kills[victim]++;
      await kill(arena, postgres, servers, victim);
      if (count % 10 === 9) arena.tell(`${count + 1} kills, ${load.ledger.acknowledged} changes acknowledged`);
    }
    await load.end();
    // What nobody waits for any more ends with its connection.
    await postgres.stop();
    await postgres.start();
    const clients = connect(servers[0]!.address, headersOf(load.tenant));
    arena.cleanup(clients.close);
    const figures = {
      ...(await checkAftermath(load.ledger, load.tenant, clients, postgres.ownerUrl)),
      ...(await chain.verified()),
    };
    const victim = arena.random.pick(['server', 'Postgres', 'both'] as const);
    const strike = () => kill(arena, postgres, servers, victim);
    const erased = await checkErasure(load.tenant, servers[0]!.address, postgres.ownerUrl, strike);
    await chain.verified(); // still, after the erasure
    return { kills: count, ...kills, ...figures, ...erased };
  },
};

/** Kills, and starts again what was killed. */
export async function kill(
  arena: Arena,
  postgres: Postgres,
  servers: ServerProcess[],
  victim: 'server' | 'Postgres' | 'both',
): Promise<void> {
  const i = arena.random.int(servers.length);
  const what = arena.random.pick(['all', 'postmaster', 'backend'] as const);
  const killed = servers[i]!;
  if (victim !== 'Postgres') {
    killed.kill('SIGKILL');
    if (victim === 'server') await killed.exited;
  }
  if (victim !== 'server') {
    await postgres.kill(what);
    if (what !== 'backend') await postgres.start();
  }
  if (victim === 'Postgres') return;
  await killed.exited;
  servers[i] = await restarted(arena, postgres, killed.port);
}

/** A server refuses to start without its database, which may still be recovering, and on a port that an outgoing connection has just got. */
export async function restarted(arena: Arena, postgres: Postgres, port: number): Promise<ServerProcess> {
  for (;;) {
    try {
      return await arena.startServer({ postgres, port });
    } catch (error) {
      if (!/cannot be reached|EADDRINUSE/.test((error as Error).message)) throw error;
    }
  }
}

import { readFile } from 'node:fs/promises';
import { connect, headersOf } from '../support.ts';
import { checkAftermath } from './aftermath.ts';
import { CHANNEL } from './ledger.ts';
import { startLoad } from './load.ts';
import type { Scenario } from './scenario.ts';

const SERVERS = 3;
const CLIENTS = 8;
/** What the checks in the end take, as a part of all. */
const CHECKS = 0.2;
const SERVICE_CONFIG = new URL('../../proto/memory/service_config.json', import.meta.url);

export const rolling: Scenario = {
  name: 'rolling',
  about: `${SERVERS} servers restarted one after the other: the published service config hides it from clients`,
  weight: 2,
  async run(arena) {
    const postgres = await arena.startPostgres();
    const flags = ['--drain-wait', '1s'];
    const start = (port?: number) => arena.startServer({ postgres, flags, port });
    const servers = await Promise.all(Array.from({ length: SERVERS }, () => start()));
    const all = `ipv4:${servers.map(({ address }) => address).join(',')}`;
    const channel = { ...CHANNEL, 'grpc.service_config': await readFile(SERVICE_CONFIG, 'utf8') };
    const load = await startLoad(arena, postgres, [all], CLIENTS, { channel });

    let restarts = 0;
    const end = Date.now() + arena.timeLeft() * (1 - CHECKS);
    // Each of them at least once.
    while ((restarts < SERVERS || Date.now() < end) && load.ledger.faults.length === 0) {
      const place = restarts++ % SERVERS;
      const { port, stop } = servers[place]!;
      await load.progress(200);
      await stop();
      servers[place] = await start(port);
      await load.progress(200);
    }
    await load.end();
    arena.tell(`${restarts} restarts, ${load.ledger.acknowledged} changes acknowledged`);

    // Of the same row at the same time: nothing of it comes from restarts.
    load.ledger.failures.delete('ABORTED CONFLICT');
    const seen = [...load.ledger.failures].map(([failure, count]) => `${count} × ${failure}`);
    if (seen.length > 0) throw new Error(`clients saw ${seen.join(', ')}`);
    const clients = connect(servers[0]!.address, headersOf(load.tenant));
    arena.cleanup(clients.close);
    const figures = await checkAftermath(load.ledger, load.tenant, clients, postgres.ownerUrl);
    return { restarts, 'failures seen': seen.length, ...figures };
  },
};

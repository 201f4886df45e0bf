import pg from 'pg';
import { answer } from '../child.ts';
import { drive, type RunOrder, type Work } from '../loop.ts';
import { createThreads, type Memory, memoryWork, type Threads } from '../peer.ts';

/** As many connections as the server under test has. */
export const MAX_CONNECTIONS = 20;

/** A peer in its own process, as its users run it. It is given a pool for what must go round the peer to be made in time. */
export function servePeer(open: (databaseUrl: string, pool: pg.Pool) => Promise<Memory>): void {
  let work: Work;
  answer({
    async setUp({ databaseUrl, threads }: { databaseUrl: string; threads: Threads[] }) {
      const pool = new pg.Pool({ connectionString: databaseUrl });
      const memory = await open(databaseUrl, pool);
      await createThreads(memory, threads);
      await pool.query('vacuum analyze');
      await pool.end();
      work = memoryWork(memory, threads);
    },
    async run({ operation, callers, ms }: RunOrder) {
      if (!work[operation]) throw new Error('its threads cannot be as long');
      return drive(work[operation], callers, ms);
    },
  });
}

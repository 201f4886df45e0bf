import { setTimeout as sleep } from 'node:timers/promises';
import { sealPlace } from '../../src/audit/seal.ts';
import { verifyPlace } from '../../src/audit/verify.ts';
import { readKeyring } from '../../src/db/keyring.ts';
import { openDatabase } from '../../src/db/pool.ts';
import { runSql, until } from '../support.ts';
import type { Arena, Figures, Postgres } from './scenario.ts';

const PACE_MS = 100;
const COUNT = `select count(*)::int as n from audit_events where tenant_id = $1 and env = 'dev'`;

/** Seals the audit trail of a tenant all the while, as the service does each minute, whatever is killed. */
export async function startSealing(
  { keyFile, cleanup }: Arena,
  { url, ownerUrl }: Postgres,
  tenant: string,
): Promise<{ verified(): Promise<Figures> }> {
  const keyring = await readKeyring(keyFile);
  const [poolSize, poolWaitMs] = [2, 1000];
  const settings = { connectionString: url, poolSize, poolWaitMs, sharedConnections: 0, preparedStatements: true };
  const database = openDatabase(settings);
  cleanup(() => database.close());
  const ending = new AbortController();
  cleanup(() => ending.abort());
  const chaining = { database, keyring };
  const scope = { tenant, env: 'dev' };
  let sealed = 0;
  const sealing = (async () => {
    while (!ending.signal.aborted) {
      sealed += await sealPlace(chaining, scope).catch(() => 0); // the database is away now and then
      await sleep(PACE_MS, undefined, { signal: ending.signal }).catch(() => {});
    }
  })();
  return {
    /** When nothing is under way any more: all events are in the chain, once, and it verifies. */
    async verified() {
      ending.abort();
      await sealing;
      // A background job may still leave an event.
      const blocks = await until(async () => {
        await sealPlace(chaining, scope);
        const findings: string[] = [];
        const limits = { deadline: Date.now() + 60_000 };
        const verified = await verifyPlace(chaining, scope, limits, undefined, ({ blockNo, eventId, what }) => {
          findings.push(`block ${blockNo} ${eventId}: ${what}`);
        });
        if (findings.length > 0) throw new Error(`the chain of the audit trail: ${findings.slice(0, 10).join(', ')}`);
        const [{ n }] = await runSql(ownerUrl, COUNT, [tenant]);
        return verified.waiting === 0 && verified.events === n && verified.blocks;
      });
      return { blocks, 'sealed before the end': sealed };
    },
  };
}

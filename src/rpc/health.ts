import { HealthImplementation } from 'grpc-health-check';
import type { Logger } from 'pino';
import { Interrupted, PoolExhausted } from '../db/failure.ts';
import { schemaFault } from '../db/migrate.ts';
import type { Database } from '../db/pool.ts';
import { pointRead } from '../db/statement.ts';
import { reader } from '../db/transaction.ts';
import type { Service } from './implement.ts';

/**
 * Whether calls can be served, asked of the database again and again: `grpc.health.v1` for "" and each service, and
 * `/readyz`. Liveness is told apart and never touches the database, so that nobody restarts a process because its
 * database is away: the service name `liveness` is SERVING as long as the process answers, and so is `/livez`.
 */
export interface Health {
  readonly service: Service;
  /** Why calls cannot be served, or undefined. */
  readonly fault: string | undefined;
  /** Tells everyone that this process is about to stop. */
  drain(): void;
  close(): void;
}

const LIVENESS = 'liveness';
const WELL_MS = 5000;
const WRONG_MS = 1000;
// Longer than a connection attempt may take: a database that answers nothing shows by that.
const CHECK_MS = 7000;
const NOBODY = { tenant: '', env: '', user: '' };

const VERSION = pointRead<{ version: number; compatibleFrom: number }>(`
  select version, compatible_from from schema_versions order by version desc limit 1`);

export interface HealthOptions {
  database: Database;
  log: Logger;
  /** Full names, as `memory.v1.MemoryService`. */
  services: string[];
  /** The newest schema version that this process knows. */
  schema: number;
}

export function watchHealth({ database, log, services, schema }: HealthOptions): Health {
  const names = ['', ...services];
  const initial = Object.fromEntries(names.map((name) => [name, 'SERVING' as const]));
  const health = new HealthImplementation({ ...initial, [LIVENESS]: 'SERVING' });
  let fault: string | undefined;
  let ended = false;
  let timer = setTimeout(watch, WELL_MS).unref();

  function tell(now: string | undefined): void {
    if (ended || now === fault) return;
    if (!now || !fault) for (const name of names) health.setStatus(name, now ? 'NOT_SERVING' : 'SERVING');
    if (now) log.error({ fault: now }, 'not ready');
    else log.info('ready again');
    fault = now;
  }

  async function watch(): Promise<void> {
    try {
      tell(await check());
    } finally {
      if (!ended) timer = setTimeout(watch, fault ? WRONG_MS : WELL_MS).unref();
    }
  }

  async function check(): Promise<string | undefined> {
    try {
      const [row] = await reader(database, NOBODY, { deadline: Date.now() + CHECK_MS }).query(VERSION);
      return schemaFault({ version: row?.version ?? 0, compatibleFrom: row?.compatibleFrom ?? 0, known: schema });
    } catch (error) {
      // Overload is no reason to send the calls elsewhere, where they would be one too many as well.
      if (error instanceof PoolExhausted || error instanceof Interrupted) return fault;
      const { cause, message } = error as Error;
      return `the database cannot be used: ${cause instanceof Error && cause.message ? cause.message : message}`;
    }
  }

  // The package binds itself to a server. What it binds goes through ours instead, which also ends its Watch streams.
  const bound: Service[] = [];
  health.addToServer({
    addService(definition, implementation) {
      bound.push({ definition, implementation } as unknown as Service);
    },
  });

  return {
    service: bound[0]!,
    get fault() {
      return fault;
    },
    drain() {
      fault = 'draining';
      for (const name of names) health.setStatus(name, 'NOT_SERVING');
      ended = true;
      clearTimeout(timer);
    },
    close() {
      ended = true;
      clearTimeout(timer);
    },
  };
}

import type { ProcessOptions, ServerProcess } from '../fixtures/process.ts';
import type { Interposed } from '../proxy.ts';

/** Something that the service must survive. */
export interface Scenario {
  readonly name: string;
  /** One line for the reader of the report. */
  readonly about: string;
  /** Its part of the time, in relation to the others. */
  readonly weight: number;
  /** Figures for the report. Throws, saying what differs, if the service did not survive. */
  run(arena: Arena): Promise<Figures>;
}

export type Figures = Record<string, number | string>;

/** Choices that the seed decides. */
export interface Random {
  /** From 0 to n - 1. */
  int(n: number): number;
  pick<T>(list: readonly T[]): T;
  /** True with the probability p. */
  chance(p: number): boolean;
}

/** What a scenario runs in. */
export interface Arena {
  readonly seed: number;
  readonly random: Random;
  /** When the scenario should have ended, as Date.now() has it. */
  readonly deadline: number;
  /** Milliseconds until then, at least 0. */
  timeLeft(): number;
  /** Shows progress. */
  tell(line: string): void;
  /** An embedded Postgres with a migrated database, behind a proxy, so that its address stays the same. */
  startPostgres(options?: { settings?: Record<string, string> }): Promise<Postgres>;
  /** A server in a process of its own, that is ready. */
  startServer(options: ServerOptions): Promise<ServerProcess>;
  /** The keys of all servers. */
  readonly keyFile: string;
  /** What names the snapshot store to servers of this version, which all have it. */
  readonly storeFlags: string[];
  /** Done when the scenario has ended, however it did; the last one first. */
  cleanup(work: () => unknown): void;
}

export interface ServerOptions extends Omit<ProcessOptions, 'databaseUrl' | 'keyFile'> {
  postgres: Postgres;
}

export interface Postgres {
  /** The database as the runtime role sees it. */
  readonly url: string;
  /** The database as its owner sees it. */
  readonly ownerUrl: string;
  /** Both are reached through this proxy. */
  readonly link: Interposed;
  /** Ends all of its processes by SIGKILL, or only its first one, or one of those that serve a connection. */
  kill(what?: 'all' | 'postmaster' | 'backend'): Promise<void>;
  /** Starts it again after it was killed or stopped. */
  start(): Promise<void>;
  stop(): Promise<void>;
}

import { setTimeout as sleep } from 'node:timers/promises';
import { type ServiceError, status } from '@grpc/grpc-js';
import { type Clients, connect, failureOf, headersOf, newTenant } from '../support.ts';
import { direct } from './footprint.ts';
import { quantile } from './quantile.ts';
import type { Arena, Scenario } from './scenario.ts';

/** Calls under way at most, and of these of one tenant: so many callers the server can serve. */
const LIMIT = 84;
const SERVED = 64;
const TIMES = 10;
const CONNECTIONS = 10;
const KEEPS = 0.8;
const LEAST_ROUNDS = 5;

interface Measured {
  /** Calls that went well, each second. */
  perSecond: number;
  /** Of those, in milliseconds, from their first attempt on. */
  p99: number;
  shed: number;
}

/** So many callers, each with its next call as soon as the last one is done; who is shed comes again when it was told to. */
async function load(clients: Clients[], callers: number, ms: number): Promise<Measured> {
  const latencies: number[] = [];
  let shed = 0;
  let calls = 0;
  const start = performance.now();
  const end = start + ms;
  async function call(caller: number): Promise<void> {
    const { conversation } = clients[caller % clients.length]!;
    let since = performance.now();
    while (performance.now() < end) {
      const messages = [{ role: 1 as const, content: 'hello' }];
      // All threads in turn, whoever calls, so that the work is the same however many callers there are.
      const threadId = `t${calls++ % (SERVED * TIMES)}`;
      const error = await conversation.appendMessages({ threadId, messages }).then(
        () => undefined,
        (e: ServiceError) => e,
      );
      if (!error) {
        if (performance.now() < end) latencies.push(performance.now() - since);
        since = performance.now();
        continue;
      }
      const { code, reason, message, retryAfterMs } = failureOf(error);
      if (code !== status.RESOURCE_EXHAUSTED || reason !== 'TOO_MANY_CALLS') {
        throw new Error(`a call failed with ${status[code]} ${reason}: ${message}`);
      }
      if (!retryAfterMs) throw new Error('a refusal does not say when to come again');
      shed++;
      await sleep(Math.min(retryAfterMs, Math.max(0, end - performance.now())));
    }
  }
  await Promise.all(Array.from({ length: callers }, (_, caller) => call(caller)));
  return { perSecond: latencies.length / (ms / 1000), p99: quantile(latencies, 0.99), shed };
}

async function run(arena: Arena) {
  const postgres = direct(await arena.startPostgres());
  const server = await arena.startServer({ postgres, flags: ['--max-in-flight', String(LIMIT)] });
  const headers = headersOf(await newTenant(['user'], {}, postgres.ownerUrl));
  // One connection each, as if they were processes.
  const clients = Array.from({ length: CONNECTIONS }, (_, n) =>
    connect(server.address, headers, { 'grpc.primary_user_agent': `${n}` }),
  );
  arena.cleanup(() => clients.forEach((client) => client.close()));
  const tell = (what: string, { perSecond, p99, shed }: Measured) =>
    arena.tell(`${what}: ${perSecond.toFixed(0)} calls/s, p99 ${p99.toFixed(0)} ms, ${shed} shed`);

  await load(clients, SERVED, 3000);
  const rounds: { peak: number; kept: number; recovered: number; shed: number }[] = [];
  // Short rounds, each with a peak of its own, so that what else the machine does changes both sides of a ratio.
  const ms = Math.min(12_000, Math.max(6000, arena.timeLeft() / LEAST_ROUNDS));
  while (rounds.length < LEAST_ROUNDS || arena.timeLeft() > ms) {
    const before = await load(clients, SERVED, ms / 6);
    const over = await load(clients, SERVED * TIMES, (ms * 2) / 3);
    const after = await load(clients, SERVED, ms / 6);
    tell('at its limit', before);
    tell(`${TIMES} times as many`, over);
    tell('right after', after);
    if (over.shed === 0) throw new Error('nothing was shed');
    const peak = (before.perSecond + after.perSecond) / 2;
    rounds.push({ peak, kept: over.perSecond / peak, recovered: after.perSecond / before.perSecond, shed: over.shed });
  }
  const median = (of: keyof (typeof rounds)[0]) =>
    quantile(
      rounds.map((round) => round[of]),
      0.5,
    );
  const figures = {
    'peak, calls/s': Math.round(median('peak')),
    'kept under overload': median('kept').toFixed(2),
    'of it right after': median('recovered').toFixed(2),
    shed: rounds.reduce((sum, { shed }) => sum + shed, 0),
  };
  if (median('kept') < KEEPS || median('recovered') < KEEPS) throw new Error(JSON.stringify(figures));
  return figures;
}

export const overload: Scenario = {
  name: 'overload',
  about: `${TIMES} times the callers that it can serve: it sheds the rest, goes on at its peak, and recovers at once`,
  weight: 2,
  run,
};

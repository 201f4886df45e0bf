import { type ChannelOptions, status } from '@grpc/grpc-js';
import { v4 as uuid } from 'uuid';
import { type Clients, connect, type Failure, failureOf, headersOf, metadataOf } from '../support.ts';
import type { Random } from './scenario.ts';

/** One intention of a client, and what it knows of its outcome. */
export interface Entry<Response = any> {
  readonly kind: string;
  readonly worker: number;
  /** Also the trace id of each attempt, so that every event of the audit log leads back to its entry. */
  readonly id: string;
  /** What it means to do, for the checks. */
  readonly intent: Intent;
  outcome: 'acknowledged' | 'refused' | 'unknown';
  /** Of an acknowledged one. */
  response?: Response;
  attempts: number;
}

export interface Intent {
  threadId?: string;
  /** The contents that it appends, in order. */
  contents?: string[];
  surfaceId?: string;
  /** What it merges into the session's state. */
  state?: Record<string, unknown>;
  /** What it saves, under which token, and the key that it adds to the profile. */
  draft?: { sectionId: string; content: string; token: number; profileKey: string | undefined };
  /** What it commits. */
  output?: string;
  /** What it puts. */
  memory?: { key: string; value: string };
  /** The id of the call of a model that it records. */
  usage?: string;
  /** What it tells of the person. */
  preference?: { key: string; value: string };
  /** The events that it leaves in the audit log if it happens. */
  events: string[];
}

export interface Ledger {
  readonly entries: Entry[];
  /** What no client should ever be told. */
  readonly faults: string[];
  acknowledged: number;
  /** How often each transient failure was seen. */
  readonly failures: Map<string, number>;
}

export const newLedger = (): Ledger => ({ entries: [], faults: [], acknowledged: 0, failures: new Map() });

/** A client that goes on through failures: it knows its servers, and tries again by the same request_id. */
export interface Worker {
  readonly n: number;
  readonly random: Random;
  /** A text that no other intention uses. */
  fresh(): string;
  /** Whether it should begin something new. */
  going(): boolean;
  /** Does something until it is acknowledged, refused, or patience ends. */
  intend<Response>(kind: string, intent: Intent, call: Attempt<Response>): Promise<Entry<Response>>;
  /** When the last attempt began that the service has answered, be it with a refusal, as performance.now() has it. */
  answered(): number;
  /** A read, tried until it succeeds or patience ends. */
  read<Response>(call: (clients: Clients) => Promise<Response>): Promise<Response | undefined>;
  close(): void;
}

export type Attempt<Response> = (
  clients: Clients,
  about: { id: string; metadata: ReturnType<typeof metadataOf>; options: { deadline: number } },
) => Promise<Response>;

/** How long one attempt may take. */
const CALL_MS = 3000;
const PATIENCE = 60;

/** Reconnects quickly: by default a channel waits a second and then ever longer, up to two minutes. */
export const CHANNEL = {
  'grpc.use_local_subchannel_pool': 1,
  'grpc.initial_reconnect_backoff_ms': 50,
  'grpc.max_reconnect_backoff_ms': 250,
};

const MAYBE_DONE = [status.UNAVAILABLE, status.DEADLINE_EXCEEDED, status.CANCELLED, status.UNKNOWN, status.INTERNAL];
const NOT_DONE = ['TURN_HELD', 'SECTION_HELD', 'STALE_FENCING_TOKEN', 'ETAG_MISMATCH'];

export function openWorker(
  n: number,
  addresses: string[],
  tenant: string,
  ledger: Ledger,
  random: Random,
  going: () => boolean,
  channel: Partial<ChannelOptions> = CHANNEL,
): Worker {
  const headers = headersOf(tenant);
  const servers = addresses.map((address) => connect(address, headers, channel));
  const span = `00000000000000${(n + 1).toString(16).padStart(2, '0')}`;
  let made = 0;
  let turn = n;
  let answered = 0;

  /** Undefined: worth another attempt. */
  function verdict(failure: Failure, what: string): 'refused' | undefined {
    const told = `${status[failure.code]} ${failure.reason}`.trim();
    if (NOT_DONE.includes(failure.reason)) return 'refused';
    ledger.failures.set(told, (ledger.failures.get(told) ?? 0) + 1);
    const again = failure.code === status.RESOURCE_EXHAUSTED || failure.reason === 'CONFLICT';
    // What the library makes up itself when a connection breaks has no reason.
    const broken = MAYBE_DONE.includes(failure.code) && failure.reason !== 'INTERNAL';
    if (!again && !broken) {
      ledger.faults.push(`${what}: ${told}: ${failure.message}`);
      return 'refused';
    }
    return undefined;
  }

  async function attempts<Response>(
    what: string,
    patience: number,
    call: (clients: Clients) => Promise<Response>,
  ): Promise<{ response?: Response; refused?: true; count: number }> {
    for (let count = 1; ; count++) {
      const start = performance.now();
      try {
        const response = await call(servers[turn % servers.length]!);
        answered = start;
        return { response, count };
      } catch (error) {
        if (verdict(failureOf(error as never), what)) {
          answered = start;
          return { refused: true, count };
        }
        if (count >= patience) return { count };
        turn++; // the next attempt goes to the next server
        await new Promise((resolve) => setTimeout(resolve, 20 + random.int(80)));
      }
    }
  }

  return {
    n,
    random,
    answered: () => answered,
    fresh: () => `${n}-${made++}`,
    going,
    async intend(kind, intent, call) {
      const entry: Entry = { kind, worker: n, id: uuid(), intent, outcome: 'unknown', attempts: 0 };
      ledger.entries.push(entry);
      const metadata = metadataOf({ ...headers, traceparent: `00-${entry.id.replaceAll('-', '')}-${span}-01` });
      // Some give up at once, so that outcomes stay unknown.
      const patience = random.chance(0.15) ? 1 : PATIENCE;
      const { response, refused, count } = await attempts(`${kind} of ${n}`, patience, (clients) =>
        call(clients, { id: entry.id, metadata, options: { deadline: Date.now() + CALL_MS } }),
      );
      entry.attempts = count;
      // A refusal after an attempt that nobody answered proves nothing: that one may be under way still.
      if (refused && count === 1) entry.outcome = 'refused';
      if (response) {
        entry.outcome = 'acknowledged';
        entry.response = response;
        ledger.acknowledged++;
      }
      return entry;
    },
    async read(call) {
      return (await attempts(`read of ${n}`, PATIENCE, call)).response;
    },
    close: () => servers.forEach((clients) => clients.close()),
  };
}

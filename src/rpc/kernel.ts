import type { Changes } from '../db/changes.ts';
import type { Keyring } from '../db/keyring.ts';
import type { Database } from '../db/pool.ts';
import type { Denials } from './denials.ts';
import type { Fingerprints } from './fingerprint.ts';
import type { Authenticate } from './identity.ts';
import type { InFlight } from './inflight.ts';
import type { Memberships } from './membership.ts';
import type { Metrics } from './metrics.ts';
import type { Observe } from './observe.ts';
import type { Turnstile } from './turnstile.ts';

/** What all calls share, put together by server.ts. */
export interface Kernel {
  database: Database;
  keyring: Keyring;
  fingerprints: Fingerprints;
  authenticate: Authenticate;
  members: Memberships;
  denials: Denials;
  inFlight: InFlight;
  /** The same for calls that stay open: watches and message streams. */
  openStreams: InFlight;
  /** What each tenant takes of the two. */
  turnstile: Turnstile;
  /** Whose data the calls change. */
  changes: Changes;
  observe: Observe;
  count: Metrics['counted'];
  /** Counts what a quota refused. */
  refused: Metrics['refused'];
  /** How long a call may take at most. */
  callMs: number;
  /** How long a stream may stay open. */
  streamMs: number;
}

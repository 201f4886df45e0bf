import { v7 as uuidv7 } from 'uuid';
import { changeAmongOthers, changeOnce, type Once } from '../db/change.ts';
import type { Keyring } from '../db/keyring.ts';
import { type PageRequest, type Pager, pager } from '../db/page.ts';
import type { Database, Limits } from '../db/pool.ts';
import { type FinalTx, reader, type Scope, type Stamp, type TenantDb, type TenantTx } from '../db/transaction.ts';
import type { Caller } from './caller.ts';
import type { RpcError } from './errors.ts';
import type { Fingerprints } from './fingerprint.ts';
import type { Membership } from './membership.ts';
import type { Counted, Metrics } from './metrics.ts';

/** Who calls, for whom, where: checked. */
export interface Identity extends Caller {
  membership: Membership;
}

/** Ids of the call for the log and the audit trail. Never content. */
export interface About {
  sessionId?: string;
  threadId?: string;
  requestId?: string;
  /** What became of the session: it has a line of the log of its own. */
  session?: 'started' | 'ended' | 'deleted';
  /** The answer is that of an earlier call with the same request_id. */
  replayed?: true;
}

/** What a handler knows of its call. */
export interface Call {
  /** As `MemoryService/GetSession`. */
  readonly method: string;
  readonly identity: Identity;
  readonly about: About;
  readonly limits: Limits;
  readonly traceId: string;
  /** Reads in the caller's scope. */
  readonly db: TenantDb;
  /** The same for another user of the tenant and env (a session key's, or one just minted) or another env. */
  as(scope: Partial<Scope>): Call;
  /** The same for what must still be done, in so many milliseconds, when the call itself is over. */
  afterwards(ms: number): Call;
  /**
   * Makes a change in one transaction, once per request_id. `work` gives the rows that its statement stored with
   * `requested`; a replay gives them again.
   */
  change<Row>(request: { requestId: string }, work: (tx: TenantTx) => Promise<Row[]>): Promise<Row[]>;
  /**
   * The same for a change of one statement that locks one row, which is named: it may commit together with those of other
   * calls, which costs each of them less. For what many callers do at once.
   */
  changeAmongOthers<Row>(
    request: { requestId: string },
    locks: string,
    work: (tx: FinalTx) => Promise<Row[]>,
  ): Promise<Row[]>;
  page(request: PageRequest): Pager;
  /**
   * Tells how many bytes of content a change has stored, where that is not about its request: for the quota. What a replay
   * repeats was stored before.
   */
  stored(bytes: number): void;
  /** Counts for the metrics what the call made or read. What a replay repeats was counted before. */
  count(what: Counted, kind: string, n: number): void;
}

export interface CallParts {
  database: Database;
  keyring: Keyring;
  fingerprints: Fingerprints;
  method: string;
  identity: Identity;
  about: About;
  limits: Limits;
  traceId: string;
  count: Metrics['counted'];
  changed(scope: Scope): void;
  /** Why nothing may be added, where the tenant has no room left. What was done before is told again all the same. */
  full?: RpcError | undefined;
  stored(bytes: number): void;
  /** Whom the metadata names: it scopes request ids, also where the user is minted or found only later. */
  requester: string;
}

export function makeCall(parts: CallParts): Call {
  const { database, keyring, method, identity, about, limits, traceId } = parts;
  const scope: Scope = { tenant: identity.tenant, env: identity.env, user: identity.user };
  const once: Once = {
    replayed() {
      about.replayed = true;
    },
    refusal: parts.full,
  };
  return {
    method,
    identity,
    about,
    limits,
    traceId,
    get db() {
      return reader(database, scope, limits);
    },
    as: (other) => makeCall({ ...parts, identity: { ...identity, ...other } }),
    afterwards: (ms) => makeCall({ ...parts, limits: { deadline: Date.now() + ms } }),
    async change(request, work) {
      const rows = await changeOnce(database, scope, stampOf(parts, request), limits, work, once);
      parts.changed(scope);
      return rows;
    },
    async changeAmongOthers(request, locks, work) {
      const rows = await changeAmongOthers(database, scope, stampOf(parts, request), limits, locks, work, once);
      parts.changed(scope);
      return rows;
    },
    stored(bytes) {
      if (!about.replayed) parts.stored(bytes);
    },
    count(what, kind, n) {
      if (what === 'read' || !about.replayed) parts.count(what, kind, n);
    },
    page: (request) => pager(keyring, scope, method, request),
  };
}

function stampOf(
  { identity, method, traceId, about, requester, fingerprints }: CallParts,
  request: { requestId: string },
): Stamp {
  const { tenant, env } = identity;
  const requestId = request.requestId || null;
  if (requestId) about.requestId = requestId;
  return {
    actor: identity.actor || identity.user,
    method,
    requestId,
    fingerprint: requestId ? fingerprints([tenant, env, requester, method, requestId], request) : null,
    eventId: uuidv7(),
    traceId,
    requester,
  };
}

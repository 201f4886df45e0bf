import { status } from '@grpc/grpc-js';
import { LRUCache } from 'lru-cache';
import type { Logger } from 'pino';
import { v7 as uuidv7 } from 'uuid';
import type { Database, Limits } from '../db/pool.ts';
import { change } from '../db/statement.ts';
import { transaction } from '../db/transaction.ts';
import type { Caller } from './caller.ts';
import type { About } from './context.ts';
import type { RpcError } from './errors.ts';
import type { Memberships } from './membership.ts';
import { describe } from './observe.ts';

/** Puts refused attempts into the audit trail. */
export interface Denials {
  record(refusal: RpcError, caller: Caller, method: string, about: About, traceId: string): Promise<void>;
}

// A refused attempt costs its caller nothing, so what it can make us write is bounded: for each user, and for all of a
// tenant and env, as users that do not exist are refused as well.
const PER_MINUTE = 30;
const PER_MINUTE_OF_ALL = 300;

// Only for a tenant and env that exist: nobody reads the others' events.
const RECORD = change(`
  insert into audit_events (tenant_id, env, id, user_id, actor, action, outcome, resource, session_id, request_id, trace_id, metadata)
  select $1, $2, $8, $3, $4, 'denied', 2, $5, $11::uuid, $6, $9, jsonb_build_object('reason', $12::text)
  from tenants where tenant_id = $1 and $2 = any (envs)
  returning 1`);

export function denials(database: Database, members: Memberships, log: Logger): Denials {
  const recent = new LRUCache<string, { count: number }>({ max: 10_000, ttl: 60_000 });

  function within(key: string, most: number): boolean {
    const window = recent.get(key) ?? { count: 0 };
    if (window.count === 0) recent.set(key, window);
    return ++window.count <= most;
  }

  function allowed({ tenant, env, user }: Caller): boolean {
    return within(`${tenant} ${env} ${user}`, PER_MINUTE) && within(`${tenant} ${env}`, PER_MINUTE_OF_ALL);
  }

  /** Whose name the event has. That of somebody who was erased does not come back with it. */
  async function named({ tenant, env, user, actor }: Caller, limits: Limits): Promise<{ user: string; actor: string }> {
    const { erased } = await members.find(tenant, env, user, limits);
    return erased ? { user: '', actor: actor === user ? '' : actor } : { user, actor };
  }

  return {
    async record(refusal, caller, method, about, traceId) {
      if (refusal.code !== status.PERMISSION_DENIED && refusal.code !== status.NOT_FOUND) return;
      if (!caller.tenant || !caller.env || !allowed(caller)) return;
      const { tenant, env } = caller;
      const stamp = {
        method,
        requestId: about.requestId ?? null,
        fingerprint: null,
        eventId: uuidv7(),
        traceId,
      };
      const limits = { deadline: Date.now() + 1000 };
      try {
        const { user, actor } = await named(caller, limits);
        const [scope, whole] = [
          { tenant, env, user },
          { ...stamp, actor, requester: user },
        ];
        await transaction(database, scope, whole, limits, { repeatable: false }, (tx) =>
          tx.final(RECORD, [about.sessionId, refusal.reason]),
        );
      } catch (error) {
        log.warn({ err: describe(error), method }, 'a refused attempt could not be recorded');
      }
    },
  };
}

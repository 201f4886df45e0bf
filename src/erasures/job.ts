import type { Logger } from 'pino';
import { v7 as uuidv7 } from 'uuid';
import type { Chaining } from '../audit/blocks.ts';
import { forgetInAudit } from '../audit/forget.ts';
import { serviceStamp } from '../db/change.ts';
import { keeping, rounds, waitSeconds } from '../db/queue.ts';
import { timestampText } from '../db/statement.ts';
import { type Scope, type TenantScope, type TenantTx, transaction } from '../db/transaction.ts';
import { describe } from '../rpc/observe.ts';
import { inTurns } from '../tenants/places.ts';
import { fold } from '../usage/fold.ts';
import { receiptText, signReceipt } from './receipt.ts';
import {
  type Claim,
  claimErasure,
  countForgotten,
  finishErasure,
  keepErasure,
  outlookOf,
  putOffErasure,
  statementOf,
  takeStep,
  tenantsWithDueErasures,
} from './repository.ts';
import { STEPS } from './rules.ts';

const EVERY_MS = 1000;
/** A statement may look through all rows of a tenant that name people. */
const LIMIT_MS = 5 * 60_000;
/** A process that is killed keeps an erasure from the others for so long; one that lives renews it before. */
const CLAIM_SECONDS = 15;
/** After so long the next tenant has its turn. */
const SLICE_MS = 10_000;
/** How long it leaves a transaction of before to itself that may still write an audit event. */
const HORIZON_SECONDS = 5;
/** How long it waits at most before it looks again whether snapshots are stored anew. */
const STORE_SECONDS = 60;

export interface Erasing extends Chaining {
  /** How long after an erasure began calls may still write that were admitted before. */
  settledMs: number;
  log: Logger;
}

/** Goes on with erasures that are due. Each process does; what one of them has taken the others leave alone. */
export function startErasures(connectionString: string | undefined, erasing: Erasing): { stop(): Promise<void> } {
  const ending = new AbortController();
  const looking = rounds(
    connectionString,
    EVERY_MS,
    async (pool) => {
      // One of each tenant in turn, so that one with many does not keep the others waiting.
      const next = (tenant: TenantScope) => eraseNext(erasing, { ...tenant, user: '' }, ending.signal);
      await inTurns(await tenantsWithDueErasures(pool), next, ending.signal);
    },
    (error) => erasing.log.debug({ err: describe(error) }, 'looking for erasures'),
  );
  return {
    async stop() {
      ending.abort();
      await looking.stop();
    },
  };
}

type Run = <T>(method: string, work: (tx: TenantTx) => Promise<T>) => Promise<T>;

/** Goes on with one erasure of a tenant and env as far as that goes now. False if none is due. */
async function eraseNext(erasing: Erasing, scope: Scope, ending: AbortSignal): Promise<boolean> {
  const { database, log } = erasing;
  const running =
    (of: Scope, signal?: AbortSignal): Run =>
    (method, work) => {
      const limits = { deadline: Date.now() + LIMIT_MS, signal };
      return transaction(database, of, serviceStamp(method), limits, { repeatable: true }, work);
    };
  const run = running(scope);

  const worker = uuidv7();
  const claimed = await run('erasures.claim', (tx) => claimErasure(tx, worker, CLAIM_SECONDS));
  if (!claimed) return false;
  const { id, attempts, userId, pseudonym } = claimed;
  const claim = { id, worker, pseudonym };
  const about = { tenant: scope.tenant, env: scope.env, erasure: id };
  const kept = keeping(CLAIM_SECONDS, () => run('erasures.keep', (tx) => keepErasure(tx, claim, CLAIM_SECONDS)));
  const putOff = (what: string, seconds: number) =>
    run('erasures.put_off', (tx) => putOffErasure(tx, claim, what, seconds));
  try {
    const over = AbortSignal.any([ending, kept.lost]);
    const theirs = { ...scope, user: userId };
    const runs = { run: running(scope, over), runAsUser: running(theirs, over) };
    const pause = await erase(erasing, theirs, claim, runs, over);
    if (pause) await putOff(pause.what, pause.seconds ?? Math.min(STORE_SECONDS, waitSeconds(attempts)));
    else log.info(about, 'erased');
  } catch (error) {
    // Another process takes it at once if this one ends.
    await putOff('RETRY', ending.aborted ? 0 : waitSeconds(attempts)).catch(() => {});
    log.warn({ ...about, attempts, err: describe(error) }, 'erasure');
  } finally {
    await kept.end();
  }
  return true;
}

/** What an erasure waits for, and for how long if that is known. */
interface Pause {
  what: '' | 'LATE_WRITES' | 'SNAPSHOT_STORE';
  seconds?: number;
}

/** Takes all steps until there is nothing left to do. Undefined if it is done, which only a pass tells that began late enough. */
async function erase(
  { database, keyring, settledMs }: Erasing,
  scope: Scope,
  claim: Claim,
  { run, runAsUser }: { run: Run; runAsUser: Run },
  over: AbortSignal,
): Promise<Pause | undefined> {
  const look = () => run('erasures.look', (tx) => outlookOf(tx, claim.id, settledMs / 1000));
  const until = Date.now() + SLICE_MS;
  for (;;) {
    const { lateSeconds } = await look();
    await fold(database, scope);
    let count = 0;
    for (const step of STATEMENTS) {
      for (let more = true; more; ) {
        if (over.aborted || (count > 0 && Date.now() > until)) return { what: '', seconds: 0 };
        const { seen, taken } = await runAsUser('erasures.step', (tx) => takeStep(tx, step, claim));
        count += seen;
        more = taken > 0;
      }
    }
    if (count > 0) continue;
    if (lateSeconds > 0) return { what: 'LATE_WRITES', seconds: lateSeconds };
    if ((await look()).rewriting > 0) return { what: 'SNAPSHOT_STORE' };
    const named = { user: scope.user, pseudonym: claim.pseudonym };
    const forgot = (tx: TenantTx, events: number) => countForgotten(tx, claim, events);
    const { complete } = await forgetInAudit({ database, keyring }, scope, named, over, forgot);
    if (!complete) return { what: 'LATE_WRITES', seconds: HORIZON_SECONDS };
    await run('erasures.finish', (tx) =>
      finishErasure(tx, claim, (row) => {
        const finishTime = timestampText(row.now);
        const text = receiptText(scope, row, finishTime);
        return { finishTime, text, signature: signReceipt(keyring, scope, text) };
      }),
    );
    return undefined;
  }
}

const STATEMENTS = STEPS.map(statementOf);

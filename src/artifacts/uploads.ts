import type { Logger } from 'pino';
import { v7 as uuidv7 } from 'uuid';
import { serviceStamp } from '../db/change.ts';
import type { Database } from '../db/pool.ts';
import { keeping, rounds, waitSeconds } from '../db/queue.ts';
import { type Scope, type TenantScope, type TenantTx, transaction } from '../db/transaction.ts';
import { Snapshot_Kind, Snapshot_UploadState } from '../gen/memory/v1/artifact.ts';
import type { Metrics } from '../rpc/metrics.ts';
import { describe } from '../rpc/observe.ts';
import { folderOf, isOf, pack, type Subject } from '../snapshots/archive.ts';
import { type Store, StoreError } from '../snapshots/store.ts';
import { inTurns } from '../tenants/places.ts';
import { partsOf } from './records.ts';
import { TOO_MUCH } from './repository.ts';
import {
  type Claimed,
  claimUpload,
  keepUpload,
  putOff,
  readSnapshot,
  tenantsWithDueUploads,
  uploadCounts,
  uploadDone,
} from './upload-repository.ts';

const EVERY_MS = 1000;
const COUNT_EVERY = 10;
const LIMIT_MS = 30_000;
/** A process that is killed keeps an upload from the others for so long; one that lives renews it before. */
const CLAIM_SECONDS = 15;

export interface Uploading {
  database: Database;
  store: Store;
  metrics: Pick<Metrics, 'uploaded' | 'snapshots'>;
  log: Logger;
}

/** Uploads what is due, one after the other. Each process does; what one of them has taken the others leave alone. */
export function startUploads(connectionString: string | undefined, uploading: Uploading): { stop(): Promise<void> } {
  const { metrics, log } = uploading;
  const ending = new AbortController();
  let round = 0;
  const looking = rounds(
    connectionString,
    EVERY_MS,
    async (pool) => {
      if (round++ % COUNT_EVERY === 0) metrics.snapshots(await uploadCounts(pool));
      // One of each tenant in turn, so that one with many does not keep the others waiting.
      const next = (tenant: TenantScope) => uploadNext(uploading, { ...tenant, user: '' }, ending.signal);
      await inTurns(await tenantsWithDueUploads(pool), next, ending.signal);
    },
    (error) => log.debug({ err: describe(error) }, 'looking for uploads'),
  );
  return {
    async stop() {
      ending.abort();
      await looking.stop();
    },
  };
}

/** Uploads one snapshot of a tenant and env, or finds out why not. False if none is due. */
async function uploadNext(uploading: Uploading, scope: Scope, ending: AbortSignal): Promise<boolean> {
  const { database, store, metrics, log } = uploading;
  const uploader = uuidv7();
  const run = <T>(method: string, work: (tx: TenantTx) => Promise<T>) =>
    transaction(database, scope, serviceStamp(method), { deadline: Date.now() + LIMIT_MS }, { repeatable: true }, work);

  const claimed = await run('snapshots.claim', (tx) => claimUpload(tx, uploader, CLAIM_SECONDS));
  if (!claimed) return false;
  const { id, attempts } = claimed;
  const claim = keeping(CLAIM_SECONDS, () =>
    run('snapshots.keep', (tx) => keepUpload(tx, id, uploader, CLAIM_SECONDS)),
  );
  const subject = subjectOf(scope, claimed);
  const folder = folderOf(subject);
  // A store that refuses is mended some time; what has become too much is not.
  let awaited = claimed.rewrite;
  try {
    const records = await run('snapshots.read', (tx) => readSnapshot(tx, claimed));
    if (!records) {
      if (awaited) await removeOthers(store, folder, subject);
      awaited = false;
      throw new StoreError(`its sections are by now ${TOO_MUCH}`, true);
    }
    const file = pack(subject, partsOf(records));
    const signal = AbortSignal.any([ending, claim.lost]);
    const link = await store.put(folder, file, signal);
    if (awaited) await removeOthers(store, folder, subject, file.name);
    await run('snapshots.store', (tx) => uploadDone(tx, id, uploader, link, file));
    metrics.uploaded('stored');
  } catch (error) {
    const known = error instanceof StoreError ? error : new StoreError('internal error', false, error);
    // Another process takes it at once if this one ends.
    const seconds = ending.aborted ? 0 : waitSeconds(attempts);
    const permanent = known.permanent && !awaited && !ending.aborted;
    const state = await run('snapshots.fail', (tx) => putOff(tx, id, uploader, known.message, seconds, permanent));
    const failed = state === Snapshot_UploadState.FAILED;
    metrics.uploaded(failed ? 'failed' : 'retried');
    const about = { tenant: scope.tenant, env: scope.env, snapshot: id, attempts, reason: known.message };
    log[failed ? 'error' : 'info']({ ...about, err: describe(known.cause) }, 'upload');
  } finally {
    await claim.end();
  }
  return true;
}

/** Removes what was stored before of the same: it names somebody who is erased. */
async function removeOthers(store: Store, folder: string, subject: Subject, name?: string): Promise<void> {
  for (const other of (await store.list(folder)).keys()) {
    if (other !== name && isOf(subject, other)) await store.remove(folder, other);
  }
}

const subjectOf = ({ tenant, env }: Scope, { kind, projectId, artifactKey, version }: Claimed): Subject => {
  const of = kind === Snapshot_Kind.ARTIFACT ? 'artifact' : 'profile';
  return { kind: of, tenant, env, projectId, artifactKey, version };
};

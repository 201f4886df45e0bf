import { artifactHandlers } from './artifacts/service.ts';
import { startUploads } from './artifacts/uploads.ts';
import { recordHandlers } from './audit/record-service.ts';
import { sealAll } from './audit/seal.ts';
import { auditHandlers } from './audit/service.ts';
import { bundleAccess, bundleHandlers } from './bundles/service.ts';
import { contextReadHandlers } from './contexts/context-service.ts';
import { contextHandlers } from './contexts/service.ts';
import { lockHandlers } from './drafts/lock-service.ts';
import { draftHandlers } from './drafts/service.ts';
import { startErasures } from './erasures/job.ts';
import { erasureAccess, erasureHandlers } from './erasures/service.ts';
import { AdminServiceDefinition, AdminServiceService } from './gen/memory/v1/admin_service.ts';
import { ArtifactServiceDefinition, ArtifactServiceService } from './gen/memory/v1/artifact_service.ts';
import { AuditServiceDefinition, AuditServiceService } from './gen/memory/v1/audit_service.ts';
import { ConversationServiceDefinition, ConversationServiceService } from './gen/memory/v1/conversation_service.ts';
import { MemoryServiceDefinition, MemoryServiceService } from './gen/memory/v1/memory_service.ts';
import { ProfileServiceDefinition, ProfileServiceService } from './gen/memory/v1/profile_service.ts';
import { ProjectMemoryServiceDefinition, ProjectMemoryServiceService } from './gen/memory/v1/project_memory_service.ts';
import { UsageServiceDefinition, UsageServiceService } from './gen/memory/v1/usage_service.ts';
import { inputHandlers } from './inputs/service.ts';
import { type Job, startJobs } from './jobs/worker.ts';
import { memoryHandlers } from './memories/service.ts';
import { forgetWords } from './memories/texts.ts';
import { countUses } from './memories/uses.ts';
import { mergeAccess, mergeHandlers } from './profiles/merge-service.ts';
import { readAll, readSoon } from './profiles/readers.ts';
import { profileHandlers } from './profiles/service.ts';
import { projectHandlers } from './projects/service.ts';
import { measureAll } from './quotas/measure.ts';
import { ADMISSION_MS, implement } from './rpc/implement.ts';
import { TTL_MS } from './rpc/membership.ts';
import { rederive } from './search/rederive.ts';
import type { Background, Features } from './server.ts';
import { sessionAccess, sessionHandlers } from './sessions/service.ts';
import { openStore } from './snapshots/open.ts';
import { startJanitor } from './streams/janitor.ts';
import { streamHandlers } from './streams/service.ts';
import { sweep } from './tenants/expiry.ts';
import { adminAccess, adminHandlers } from './tenants/service.ts';
import { removalHandlers } from './threads/removal-service.ts';
import { searchHandlers } from './threads/search-service.ts';
import { conversationHandlers } from './threads/service.ts';
import { checkpointHandlers } from './turns/checkpoint-service.ts';
import { leaseHandlers } from './turns/lease-service.ts';
import { turnAccess, turnHandlers } from './turns/service.ts';
import { turnListHandlers } from './turns/turn-service.ts';
import { budgetHandlers } from './usage/budget-service.ts';
import { foldAll, startFolder } from './usage/fold.ts';
import { usageHandlers } from './usage/service.ts';
import { auditWatchHandlers } from './watch/audit-service.ts';
import { watches } from './watch/poller.ts';
import { watchSessionHandlers, watchThreadHandlers } from './watch/service.ts';

/** Everything that `serve` and `dev` offer. */
export const features: Features = {
  services({ kernel, config, log, atEnd }) {
    const { keyring, members, database, changes } = kernel;
    const watching = watches(database, changes);
    const uses = countUses(database);
    atEnd(uses.stop);
    atEnd(readSoon(database, members, changes, log).stop);
    const folder = startFolder(database);
    atEnd(folder.stop);
    const sessions = sessionHandlers({ keyring, members, sessionKeySeconds: config.sessionKeyTtl / 1000 });
    return [
      implement(
        kernel,
        MemoryServiceService,
        MemoryServiceDefinition,
        {
          ...sessions,
          ...bundleHandlers,
          ...contextHandlers,
          ...checkpointHandlers,
          ...watchSessionHandlers(watching),
        },
        { ...sessionAccess, ...bundleAccess },
      ),
      implement(
        kernel,
        ConversationServiceService,
        ConversationServiceDefinition,
        {
          ...conversationHandlers,
          ...removalHandlers,
          ...searchHandlers,
          ...streamHandlers,
          ...watchThreadHandlers(watching),
          ...leaseHandlers,
          ...turnHandlers(folder),
          ...turnListHandlers,
          ...contextReadHandlers,
        },
        turnAccess,
      ),
      implement(kernel, ProjectMemoryServiceService, ProjectMemoryServiceDefinition, memoryHandlers(uses)),
      implement(
        kernel,
        ProfileServiceService,
        ProfileServiceDefinition,
        { ...profileHandlers, ...mergeHandlers(members) },
        { ...mergeAccess },
      ),
      implement(kernel, ArtifactServiceService, ArtifactServiceDefinition, {
        ...projectHandlers,
        ...inputHandlers,
        ...lockHandlers,
        ...draftHandlers,
        ...artifactHandlers,
      }),
      implement(
        kernel,
        AdminServiceService,
        AdminServiceDefinition,
        { ...adminHandlers(members), ...erasureHandlers(keyring, members) },
        { ...adminAccess, ...erasureAccess },
      ),
      implement(kernel, AuditServiceService, AuditServiceDefinition, {
        ...auditHandlers,
        ...auditWatchHandlers({ keyring, members, watches: watching }),
        ...recordHandlers,
      }),
      implement(kernel, UsageServiceService, UsageServiceDefinition, {
        ...usageHandlers(folder),
        ...budgetHandlers(members),
      }),
    ];
  },

  async background({ kernel, config, metrics, log }) {
    const { database, changes } = kernel;
    const url = config.directDatabaseUrl ?? config.databaseUrl;
    const { snapshotStore } = config;
    const store = snapshotStore !== 'none' && (await openStore(snapshotStore));
    // Calls are admitted by what was known a moment before, and a stream by what was known when it was asked last.
    const lateMs = TTL_MS + ADMISSION_MS + 2 * config.callTimeout + 2000;
    const running: Background[] = [
      startJanitor(url, database, changes, log),
      startErasures(url, { database, keyring: kernel.keyring, settledMs: lateMs, log }),
    ];
    if (store) running.push(startUploads(url, { database, store, metrics, log }));
    const stop = async () => {
      await Promise.all(running.map((one) => one.stop()));
    };
    if (!config.jobs) return { stop };

    const removed = async (signal: AbortSignal) => {
      const counts = await sweep(database, signal, kernel.keyring);
      for (const [kind, rows] of counts) metrics.swept(kind, rows);
      return Object.fromEntries(counts);
    };
    // What began so long ago has ended: it writes in no former language any more, and no message with an older id.
    const settledMs = 2 * config.callTimeout + 60_000;
    const jobs: Job[] = [
      { name: 'rederive', everyMinutes: 1, run: (signal) => rederive(database, settledMs, signal) },
      // Each word is up for it once a week.
      { name: 'forget-words', everyMinutes: 30, run: (signal) => forgetWords(database, signal) },
      { name: 'read-for-profiles', everyMinutes: 1, run: (signal) => readAll(database, settledMs, signal) },
      // Often, as what is not sealed can be changed unnoticed.
      { name: 'seal', everyMinutes: 1, run: (signal) => sealAll({ database, keyring: kernel.keyring }, signal) },
      { name: 'fold', everyMinutes: 1, run: (signal) => foldAll(database, signal) },
      { name: 'measure', everyMinutes: 1, run: (signal) => measureAll(database, signal) },
    ];
    if (config.sweepInterval > 0)
      jobs.push({ name: 'sweep', everyMinutes: config.sweepInterval / 60_000, run: removed });
    const started = startJobs(url, jobs, log);
    running.push(
      await started.catch(async (error) => {
        await stop();
        throw error;
      }),
    );
    return { stop };
  },
};

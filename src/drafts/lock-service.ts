import type { ArtifactServiceService } from '../gen/memory/v1/artifact_service.ts';
import type { Handlers } from '../rpc/implement.ts';
import { Check } from '../rpc/validate.ts';
import {
  lockFromRow,
  lockSection,
  renewLock,
  type Section,
  sectionLock,
  unlockSection,
  whyNotLocked,
  whyStale,
} from './locks.ts';

export function checkSection(check: Check, { projectId, sectionId }: Section): void {
  check.id('project_id', projectId);
  check.id('section_id', sectionId);
}

type LockMethods = 'lockSection' | 'renewSectionLock' | 'unlockSection' | 'getSectionLock';

export const lockHandlers: Pick<Handlers<typeof ArtifactServiceService>, LockMethods> = {
  async lockSection(request, call) {
    const check = new Check();
    checkSection(check, request);
    check.id('holder', request.holder);
    check.leaseTtl('ttl', request.ttl);
    check.optionalUuid('request_id', request.requestId);
    check.done();

    const [lock] = await call.change(request, async (tx) => {
      const taken = await lockSection(tx, request, request.holder, request.ttl);
      if (!taken) throw await whyNotLocked(call.db, request);
      return [taken];
    });
    return { lock: lockFromRow(lock!) };
  },

  async renewSectionLock(request, call) {
    const check = new Check();
    checkSection(check, request);
    check.fencingToken('fencing_token', request.fencingToken);
    check.leaseTtl('ttl', request.ttl);
    check.optionalUuid('request_id', request.requestId);
    check.done();

    const [lock] = await call.change(request, async (tx) => {
      const kept = await renewLock(tx, request, request.fencingToken, request.ttl);
      if (!kept) throw await whyStale(call.db, request);
      return [kept];
    });
    return { lock: lockFromRow(lock!) };
  },

  async unlockSection(request, call) {
    const check = new Check();
    checkSection(check, request);
    check.fencingToken('fencing_token', request.fencingToken);
    check.optionalUuid('request_id', request.requestId);
    check.done();

    await call.change(request, async (tx) => {
      const given = await unlockSection(tx, request, request.fencingToken);
      if (!given) throw await whyStale(call.db, request);
      return [request.sectionId];
    });
    return {};
  },

  async getSectionLock(request, call) {
    const check = new Check();
    checkSection(check, request);
    check.done();
    return { lock: await sectionLock(call.db, request) };
  },
};

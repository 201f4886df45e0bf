import { ProfileSource_Kind } from '../gen/memory/v1/profile.ts';
import type { ProfileServiceService } from '../gen/memory/v1/profile_service.ts';
import { deleted } from '../rpc/errors.ts';
import type { Handlers } from '../rpc/implement.ts';
import { Check, revisionOf } from '../rpc/validate.ts';
import { accumulate } from './accumulate.ts';
import { changeFrom, checkUpdate, profileFromRow, wantedOf } from './fields.ts';
import { getProfile, listChanges, lockProfile, requireEtag, saveProfile, sourceTime } from './repository.ts';

type ProfileMethods = 'getProfile' | 'updateProfile' | 'listProfileChanges';

export const profileHandlers: Pick<Handlers<typeof ProfileServiceService>, ProfileMethods> = {
  async getProfile(request, call) {
    const check = new Check();
    check.optionalUuid('session_id', request.sessionId);
    check.done();

    const row = await getProfile(call.db, request.sessionId);
    call.count('read', 'profiles', 1);
    return { profile: profileFromRow(call.identity.user, row) };
  },

  async updateProfile(request, call) {
    const check = new Check();
    checkUpdate(check, request);
    check.done();

    const { user, actor } = call.identity;
    const { sessionId, messageSeq } = request;
    const [row] = await call.change(request, async (tx) => {
      const stored = await lockProfile(tx, sessionId);
      requireEtag(stored, revisionOf(request.profile!.etag));
      const source = {
        kind: ProfileSource_Kind.CALLER,
        actor: actor || user,
        session_id: sessionId || undefined,
        thread_id: stored.threadId ?? undefined,
        message_seq: messageSeq || undefined,
        set_time: sourceTime(stored.at),
      };
      const made = accumulate(stored.entries, wantedOf(request, stored.entries), source);
      return saveProfile(tx, made, sessionId);
    });
    if (row!.gone) throw deleted('what this update made');
    call.count('created', 'profile_changes', row!.changes.length);
    return { profile: profileFromRow(user, row), changes: row!.changes.map(changeFrom) };
  },

  async listProfileChanges(request, call) {
    const check = new Check();
    check.text('field', request.field, 64);
    check.page(request);
    check.done();

    const page = call.page(request);
    const found = await listChanges(call.db, request.field, page.after, page.limit);
    const { rows, nextPageToken } = page.cut(
      found,
      (row) => [String(row.revision), String(row.place)],
      (row) => row.byteSize,
    );
    call.count('read', 'profile_changes', rows.length);
    return { changes: rows.map((row) => changeFrom(row.change)), nextPageToken };
  },
};

import type { ProfileServiceService } from '../gen/memory/v1/profile_service.ts';
import type { Access } from '../rpc/access.ts';
import type { Handlers } from '../rpc/implement.ts';
import { type Memberships, refuseErased } from '../rpc/membership.ts';
import { Check } from '../rpc/validate.ts';
import { listEmailMatches, matchFromRow } from './email-matches.ts';
import { mergeProfiles, previewMerge, undoMerge } from './merges.ts';

type MergeMethods = 'listEmailMatches' | 'mergeProfiles' | 'undoMergeProfiles';

export const mergeAccess: Record<MergeMethods, Access> = {
  listEmailMatches: { admin: true },
  mergeProfiles: { admin: true },
  undoMergeProfiles: { admin: true },
};

export const mergeHandlers = (members: Memberships): Pick<Handlers<typeof ProfileServiceService>, MergeMethods> => ({
  async listEmailMatches(request, call) {
    const check = new Check();
    check.optionalId('user_id', request.userId);
    check.page(request);
    check.done();

    const page = call.page(request);
    const found = await listEmailMatches(call.db, request.userId, page.after?.[0], page.limit);
    const { rows, nextPageToken } = page.cut(found, (row) => [row.id]);
    call.count('read', 'email_matches', rows.length);
    return { matches: rows.map(matchFromRow), nextPageToken };
  },

  async mergeProfiles(request, call) {
    const check = new Check();
    check.id('from_user_id', request.fromUserId);
    check.id('into_user_id', request.intoUserId);
    check.that(request.fromUserId !== request.intoUserId || !request.fromUserId, 'into_user_id', 'the same user');
    check.optionalUuid('request_id', request.requestId);
    check.done();

    await refuseErased(members, call, [request.fromUserId, request.intoUserId]);
    if (request.validateOnly) return { mergeId: '', effects: await previewMerge(call.db, request) };
    const { actor, user } = call.identity;
    const [row] = await call.change(request, (tx) => mergeProfiles(tx, request, actor || user));
    return row!;
  },

  async undoMergeProfiles(request, call) {
    const check = new Check();
    check.uuid('merge_id', request.mergeId);
    check.optionalUuid('request_id', request.requestId);
    check.done();

    const [row] = await call.change(request, (tx) => undoMerge(tx, request.mergeId));
    return row!;
  },
});

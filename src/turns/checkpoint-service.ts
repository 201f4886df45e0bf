import type { MemoryServiceService } from '../gen/memory/v1/memory_service.ts';
import type { Handlers } from '../rpc/implement.ts';
import { Check, revisionOf } from '../rpc/validate.ts';
import { getSession, sessionFromRow } from '../sessions/repository.ts';
import { checkpointFromRow, listCheckpoints, restoreState, whyNotRestored } from './checkpoints.ts';

type CheckpointMethods = 'listStateCheckpoints' | 'restoreSessionState';

export const checkpointHandlers: Pick<Handlers<typeof MemoryServiceService>, CheckpointMethods> = {
  async listStateCheckpoints(request, call) {
    const check = new Check();
    check.uuid('session_id', request.sessionId);
    check.page(request);
    check.done();

    const page = call.page(request);
    const found = await listCheckpoints(call.db, request.sessionId, page.after?.[0], page.limit);
    if (found.length === 0) await getSession(call.db, request.sessionId);
    const { rows, nextPageToken } = page.cut(
      found,
      (row) => [row.id],
      (row) => row.byteSize,
    );
    call.count('read', 'state_checkpoints', rows.length);
    return { checkpoints: rows.map(checkpointFromRow), nextPageToken };
  },

  async restoreSessionState(request, call) {
    const { sessionId, checkpointId, etag, requestId } = request;
    const check = new Check();
    check.uuid('session_id', sessionId);
    check.uuid('checkpoint_id', checkpointId);
    check.etag('etag', etag);
    check.optionalUuid('request_id', requestId);
    check.done();

    const [row] = await call.change(request, async (tx) => {
      const restored = await restoreState(tx, sessionId, checkpointId, revisionOf(etag));
      if (restored.length === 0) throw await whyNotRestored(call.db, sessionId, checkpointId);
      return restored;
    });
    const session = sessionFromRow(row!); // refuses what is gone by now
    call.stored(Buffer.byteLength(JSON.stringify(row!.state)));
    return { session };
  },
};

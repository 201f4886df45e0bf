import type { ConversationServiceService } from '../gen/memory/v1/conversation_service.ts';
import type { Handlers } from '../rpc/implement.ts';
import { Check } from '../rpc/validate.ts';
import { getSession } from '../sessions/repository.ts';
import { getSessionData, listTurns, turnFromRow } from './repository.ts';

type TurnMethods = 'listTurns' | 'getSessionData';

export const turnListHandlers: Pick<Handlers<typeof ConversationServiceService>, TurnMethods> = {
  async listTurns(request, call) {
    const check = new Check();
    check.uuid('session_id', request.sessionId);
    check.page(request);
    check.done();

    const page = call.page(request);
    const found = await listTurns(call.db, request.sessionId, page.after?.[0], page.limit);
    if (found.length === 0) await getSession(call.db, request.sessionId);
    const { rows, nextPageToken } = page.cut(
      found,
      (row) => [row.id],
      (row) => row.byteSize,
    );
    call.count('read', 'turns', rows.length);
    return { turns: rows.map(turnFromRow), nextPageToken };
  },

  async getSessionData({ sessionId }, call) {
    const check = new Check();
    check.uuid('session_id', sessionId);
    check.done();

    const data = await getSessionData(call.db, sessionId);
    if (data) {
      call.count('read', 'turns', data.turns.length);
      return data;
    }
    await getSession(call.db, sessionId); // tells why
    return { latest: undefined, turns: [], structuredData: [], reports: [] };
  },
};

import type { MemoryServiceService } from '../gen/memory/v1/memory_service.ts';
import type { Handlers } from '../rpc/implement.ts';
import { Check } from '../rpc/validate.ts';
import { whyNotSaved } from '../sessions/repository.ts';
import { checkEntries } from './context.ts';
import { appendContext, contextFromRow, getContext, getContextAt } from './repository.ts';

type ContextMethods = 'appendSessionContext' | 'getSessionContext';

export const contextHandlers: Pick<Handlers<typeof MemoryServiceService>, ContextMethods> = {
  async appendSessionContext(request, call) {
    const { sessionId, entries, requestId } = request;
    const check = new Check();
    check.uuid('session_id', sessionId);
    checkEntries(check, 'entries', entries, 1);
    check.optionalUuid('request_id', requestId);
    check.done();

    const [row] = await call.change(request, async (tx) => {
      const appended = await appendContext(tx, sessionId, entries);
      if (appended.length === 0)
        throw await whyNotSaved(call.db, { id: sessionId, surfaceId: '', projectId: '', threadId: '' });
      return appended;
    });
    call.count('created', 'context_entries', entries.length);
    return { context: call.about.replayed ? await getContextAt(call.db, row!) : contextFromRow(row!) };
  },

  async getSessionContext({ sessionId, includeCompressed, compressedOffset }, call) {
    const check = new Check();
    check.uuid('session_id', sessionId);
    check.seq('compressed_offset', compressedOffset);
    check.done();
    const context = await getContext(call.db, sessionId, includeCompressed ? compressedOffset : undefined);
    call.count('read', 'contexts', 1);
    return { context };
  },
};

import type { ConversationServiceService } from '../gen/memory/v1/conversation_service.ts';
import { notFound } from '../rpc/errors.ts';
import type { Handlers } from '../rpc/implement.ts';
import { Check } from '../rpc/validate.ts';
import { whyNotWritten } from './append.ts';
import { checkTarget } from './message.ts';
import { clearHistory, deleteMessage, deleteThread } from './removal.ts';
import { getMessage, requireThread } from './repository.ts';

/** Handlers of what takes messages away. */
export const removalHandlers: Pick<
  Handlers<typeof ConversationServiceService>,
  'deleteMessage' | 'clearHistory' | 'deleteThread'
> = {
  async deleteMessage(request, call) {
    const check = new Check();
    check.uuid('message_id', request.messageId);
    check.optionalUuid('request_id', request.requestId);
    check.done();

    const [gone] = await call.change(request, async (tx) => {
      const rows = await deleteMessage(tx, request.messageId);
      if (rows.length > 0) return rows;
      await getMessage(call.db, request.messageId); // tells whether it was deleted
      throw notFound('message');
    });
    call.about.threadId = gone!.threadId;
    return { coveringSummaries: gone!.covering };
  },

  async clearHistory(request, call) {
    const check = new Check();
    checkTarget(check, request);
    check.optionalUuid('request_id', request.requestId);
    check.done();

    const [cleared] = await call.change(request, async (tx) => {
      const rows = await clearHistory(tx, request);
      if (rows.length > 0) return rows;
      if (!request.sessionId) await requireThread(call.db, request.threadId);
      throw await whyNotWritten(call.db, request, false);
    });
    call.about.threadId = cleared!.threadId;
    return { clearedThroughSeq: cleared!.lastSeq, sessionIds: cleared!.sessionIds };
  },

  async deleteThread(request, call) {
    const check = new Check();
    check.id('thread_id', request.threadId);
    check.optionalUuid('request_id', request.requestId);
    check.done();

    await call.change(request, async (tx) => {
      const rows = await deleteThread(tx, request.threadId);
      if (rows.length > 0) return rows;
      await requireThread(call.db, request.threadId);
      throw notFound('thread'); // only a session points to it
    });
    return {};
  },
};

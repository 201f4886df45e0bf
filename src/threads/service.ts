import type { ConversationServiceService } from '../gen/memory/v1/conversation_service.ts';
import type { Handlers } from '../rpc/implement.ts';
import { Check } from '../rpc/validate.ts';
import { contentTokens } from '../tokens/counter.ts';
import { appendMessages, whyNotAppended } from './append.ts';
import { appendedMessage, checkAppended, checkTarget, storedBytes } from './message.ts';
import { getMessage, listMessages, listThreads, messageFromRow, requireThread } from './repository.ts';

export const conversationHandlers: Pick<
  Handlers<typeof ConversationServiceService>,
  'appendMessages' | 'listMessages' | 'getMessage' | 'listThreads'
> = {
  async appendMessages(request, call) {
    const check = new Check();
    checkTarget(check, request);
    check.optionalUuid('request_id', request.requestId);
    checkAppended(check, request.messages, 1);
    check.done();

    const { maxMessagesPerThread: messageLimit } = call.identity.membership.quotas;
    const append = { ...request, messageLimit, tokenCounts: await contentTokens(request.messages) };
    const thread = `${call.db.scope.user}/${request.threadId || request.sessionId}`;
    const rows = await call.changeAmongOthers(request, thread, async (tx) => {
      const appended = await appendMessages(tx, append);
      if (appended.length === 0) throw await whyNotAppended(call.db, append);
      return appended;
    });
    call.about.threadId = rows[0]!.threadId;
    const fresh = request.messages.filter((_, i) => rows[i]!.fresh);
    call.stored(storedBytes(fresh));
    call.count('created', 'messages', fresh.length);
    return { messages: rows.map(appendedMessage) };
  },

  async listMessages(request, call) {
    const check = new Check();
    check.id('thread_id', request.threadId);
    if (request.position?.$case === 'afterSeq') check.seq('after_seq', request.position.value);
    if (request.position?.$case === 'beforeSeq') check.seq('before_seq', request.position.value);
    check.page(request);
    check.done();

    const page = call.page(request);
    const ascending = request.position?.$case === 'afterSeq';
    const seq = Number(page.after?.[0] ?? request.position?.value ?? Number.MAX_SAFE_INTEGER);
    const found = await listMessages(call.db, request.threadId, { seq, ascending }, page.limit);
    const revision = found[0]?.revision ?? (await requireThread(call.db, request.threadId));
    const { rows, nextPageToken } = page.cut(
      found,
      (row) => [String(row.seq)],
      (row) => row.byteSize,
    );
    const there = rows.filter((row) => !row.deleteTime);
    call.count('read', 'messages', there.length);
    return {
      messages: there.map((row) => messageFromRow(row, request.threadId)),
      nextPageToken,
      deletedSeqs: rows.filter((row) => row.deleteTime).map((row) => row.seq),
      revision,
    };
  },

  async getMessage(request, call) {
    const check = new Check();
    check.uuid('message_id', request.messageId);
    check.done();

    const message = await getMessage(call.db, request.messageId);
    call.count('read', 'messages', 1);
    return { message };
  },

  async listThreads(request, call) {
    const check = new Check();
    check.page(request);
    check.done();

    const page = call.page(request);
    const found = await listThreads(call.db, page.after?.[0], page.limit);
    const { rows, nextPageToken } = page.cut(found, (row) => [row.threadUid]);
    return { threads: rows, nextPageToken };
  },
};

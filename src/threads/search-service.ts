import type { ConversationServiceService } from '../gen/memory/v1/conversation_service.ts';
import { MessageRole } from '../gen/memory/v1/message.ts';
import type { Handlers } from '../rpc/implement.ts';
import { Check } from '../rpc/validate.ts';
import { messageFromRow } from './repository.ts';
import { type SearchPosition, searchMessages } from './search.ts';

const MAX_QUERY = 1000;
const MAX_ROLES = 4;

export const searchHandlers: Pick<Handlers<typeof ConversationServiceService>, 'searchMessages'> = {
  async searchMessages(request, call) {
    const { startTime, endTime } = request;
    const check = new Check();
    check.text('query', request.query, MAX_QUERY, 1);
    check.optionalId('thread_id', request.threadId);
    check.optionalUuid('session_id', request.sessionId);
    if (check.count('roles', request.roles, MAX_ROLES))
      request.roles.forEach((role, i) => check.oneOf(`roles[${i}]`, role, MessageRole));
    if (check.time('start_time', startTime) && check.time('end_time', endTime) && startTime && endTime) {
      const later = endTime.seconds - startTime.seconds || endTime.nanos - startTime.nanos;
      check.that(later > 0, 'end_time', 'not after start_time');
    }
    check.page(request);
    check.done();

    const page = call.page(request);
    const after = page.after as SearchPosition | undefined;
    const { rows: found, snippetsOf } = await searchMessages(call.db, request, after, page.limit);
    const { rows, nextPageToken } = page.cut(
      found,
      (row) => [String(row.rank), row.id, row.newestId],
      (row) => row.byteSize,
    );
    call.count('read', 'messages', rows.length);
    const results = rows.map((row) => ({
      message: messageFromRow(row, row.threadId),
      rank: row.rank,
      snippets: snippetsOf(row),
    }));
    return { results, nextPageToken };
  },
};

import { ConversationServiceService as Conversation } from '../src/gen/memory/v1/conversation_service.ts';
import { MemoryServiceService, UpsertSessionRequest } from '../src/gen/memory/v1/memory_service.ts';
import { Message, MessageRole } from '../src/gen/memory/v1/message.ts';
import type { Session } from '../src/gen/memory/v1/session.ts';
import { withClient } from '../src/preflight.ts';
import type { Caller } from './client.ts';
import { growThread } from './grow.ts';
import type { Memory } from './peer.ts';
import { appendMessages, listLast, STATE } from './subjects.ts';

/** Our service as the peers are: the state is that of a session of the thread. */
export function ourMemory(call: Caller, ownerUrl: string): Memory {
  const sessions = new Map<string, string>();
  const upsert = async (session: Partial<Session>): Promise<Session> =>
    (await call(MemoryServiceService.upsertSession, UpsertSessionRequest.fromPartial({ session }))).session!;
  return {
    async create(threadId, size) {
      sessions.set(threadId, (await upsert({ surfaceId: 'web', threadId, state: STATE })).id);
      await call(Conversation.appendMessages, appendMessages(threadId));
      await withClient(ownerUrl, (client) => growThread(client, threadId, size));
    },
    append: (threadId, content) =>
      call(Conversation.appendMessages, {
        ...appendMessages(threadId, 0),
        messages: [Message.fromPartial({ role: MessageRole.HUMAN, content })],
      }),
    last: async (threadId, count) => (await call(Conversation.listMessages, listLast(threadId, count))).messages,
    putState: (threadId, state) => upsert({ id: sessions.get(threadId)!, state }),
    async getState(threadId) {
      return (await call(MemoryServiceService.getSession, { sessionId: sessions.get(threadId)! })).session!.state;
    },
  };
}

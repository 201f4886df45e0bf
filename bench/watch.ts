import { ConversationServiceService as Conversation } from '../src/gen/memory/v1/conversation_service.ts';
import type { Connection } from './client.ts';
import type { Work } from './loop.ts';
import { appendMessages } from './subjects.ts';

const WATCHERS = 64;
export const FAN_OUT = `append until ${WATCHERS} watchers know`;

/** An append to a thread, over when all who watch it have been told of the message. */
export function watchWork({ call, receive }: Connection, threadId: string): Work {
  const append = async (): Promise<number> =>
    (await call(Conversation.appendMessages, appendMessages(threadId))).messages[0]!.seq;
  const untold = new Map<number, { watchers: number; promise: Promise<void>; resolve: () => void }>();

  /** An event can come before the append is answered. */
  function message(seq: number) {
    const known = untold.get(seq) ?? { watchers: WATCHERS, ...Promise.withResolvers<void>() };
    untold.set(seq, known);
    return known;
  }
  async function watch(): Promise<void> {
    const afterRevision = await append(); // that of a thread which only saw appends
    for (let watcher = 0; watcher < WATCHERS; watcher++) {
      receive(Conversation.watchThread, { threadId, afterRevision }, ({ event }) => {
        if (event?.event?.$case !== 'appended') return;
        const told = message(event.event.value.message!.seq);
        told.watchers--;
        if (told.watchers === 0) told.resolve();
      });
    }
  }

  let watching: Promise<void> | undefined;
  return {
    async [FAN_OUT]() {
      watching ??= watch();
      await watching;
      const seq = await append();
      await message(seq).promise;
      untold.delete(seq);
    },
  };
}

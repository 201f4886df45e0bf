import type { Scope } from '../src/db/transaction.ts';
import { ConversationServiceService as Conversation } from '../src/gen/memory/v1/conversation_service.ts';
import { answer } from './child.ts';
import { connect } from './client.ts';

export interface Watching {
  address: string;
  scope: Scope;
  threadIds: string[];
}

/** Of one connection, which the server allows twice as many. */
const WATCHES = 500;

/** Watches each of the threads, and resolves when all have been told that nothing is new. */
async function watchAll({ address, scope, threadIds }: Watching): Promise<void> {
  for (let from = 0; from < threadIds.length; from += WATCHES) {
    const { receive } = connect(address, scope, { own: true });
    const watch = (threadId: string) =>
      new Promise<void>((resolve) =>
        receive(Conversation.watchThread, { threadId, afterRevision: 0 }, ({ event }) => {
          if (event?.event?.$case === 'bookmark') resolve();
        }),
      );
    await Promise.all(threadIds.slice(from, from + WATCHES).map(watch));
  }
}

answer({ watchAll });

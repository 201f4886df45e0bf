import { randomUUID } from 'node:crypto';
import { PostgresStore } from '@mastra/pg';
import { copy } from '../grow.ts';
import { CONTENT, STATE } from '../subjects.ts';
import { MAX_CONNECTIONS, servePeer } from './serve.ts';

const resourceId = 'user';

// The storage that its Memory class works on, without the class. `saveThread` is one statement where `updateThread` reads
// before it writes; `includeTotal: false` leaves out the count of all messages.
servePeer(async (connectionString, pool) => {
  const store = new PostgresStore({ id: 'bench', connectionString, max: MAX_CONNECTIONS });
  await store.init();
  const memory = (await store.getStore('memory'))!;
  const putState = (id: string, state: object) =>
    memory.saveThread({
      thread: { id, resourceId, title: 'bench', metadata: { state }, createdAt: new Date(), updatedAt: new Date() },
    });
  const append = (threadId: string, text: string) =>
    memory.saveMessages({
      messages: [
        {
          id: randomUUID(),
          threadId,
          resourceId,
          role: 'user',
          createdAt: new Date(),
          content: { format: 2, parts: [{ type: 'text', text }] },
        },
      ],
    });
  return {
    putState,
    append,
    async create(thread, size) {
      await putState(thread, STATE);
      await append(thread, CONTENT);
      const earlier = (column: string) => `"${column}" - n * interval '1 millisecond'`;
      await copy(pool, 'mastra_messages', size - 1, {
        where: `thread_id = '${thread}'`,
        set: {
          id: 'gen_random_uuid()',
          createdAt: earlier('createdAt'),
          createdAtZ: earlier('createdAtZ'),
        },
      });
    },
    async last(threadId, perPage) {
      const orderBy = { field: 'createdAt' as const, direction: 'DESC' as const };
      return (await memory.listMessages({ threadId, perPage, page: 0, orderBy, includeTotal: false })).messages;
    },
    async getState(threadId) {
      return (await memory.getThreadById({ threadId }))?.metadata?.state;
    },
  };
});

import { createEvent, type Session } from '@google/adk';
import { DatabaseSessionService } from '@google/adk/sessions/database';
import { PostgreSqlDriver } from '@mikro-orm/postgresql';
import { copy } from '../grow.ts';
import { CONTENT, STATE } from '../subjects.ts';
import { MAX_CONNECTIONS, servePeer } from './serve.ts';

const of = { appName: 'bench', userId: 'user' };

// Events of a session, of which only so many as are needed are loaded. The session is kept between appends: its runner loads
// it for each turn.
servePeer(async (clientUrl, pool) => {
  const service = new DatabaseSessionService({
    driver: PostgreSqlDriver,
    clientUrl,
    pool: { max: MAX_CONNECTIONS },
  });
  const load = async (sessionId: string, numRecentEvents: number): Promise<Session> =>
    (await service.getSession({ ...of, sessionId, config: { numRecentEvents } }))!;
  const kept = new Map<string, Session>();
  const session = async (id: string): Promise<Session> => {
    const known = kept.get(id) ?? (await load(id, 1));
    kept.set(id, known);
    return known;
  };
  return {
    async create(sessionId, size) {
      const session = await service.createSession({ ...of, sessionId, state: STATE });
      kept.set(sessionId, session);
      await service.appendEvent({ session, event: messageEvent(CONTENT) });
      await copy(pool, 'events', size - 1, {
        where: `session_id = '${sessionId}'`,
        set: { id: 'gen_random_uuid()', timestamp: `timestamp - n * interval '1 millisecond'` },
      });
    },
    append: async (id, content) => service.appendEvent({ session: await session(id), event: messageEvent(content) }),
    async putState(id, state) {
      const event = createEvent({ author: 'user', actions: { stateDelta: state as Record<string, unknown> } });
      await service.appendEvent({ session: await session(id), event });
    },
    last: async (id, count) => (await load(id, count)).events,
    getState: async (id) => (await load(id, 1)).state,
  };
});

const messageEvent = (text: string) => createEvent({ author: 'user', content: { role: 'user', parts: [{ text }] } });

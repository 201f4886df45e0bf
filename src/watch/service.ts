import type { ConversationServiceService } from '../gen/memory/v1/conversation_service.ts';
import { type MemoryServiceService, SessionEnded_Reason } from '../gen/memory/v1/memory_service.ts';
import type { Session } from '../gen/memory/v1/session.ts';
import type { ThreadEvent } from '../gen/memory/v1/thread_event.ts';
import { deleted, invalid, RpcError } from '../rpc/errors.ts';
import type { Handlers } from '../rpc/implement.ts';
import { Check } from '../rpc/validate.ts';
import { getSession } from '../sessions/repository.ts';
import { bookmarks } from './bookmarks.ts';
import { type Page, readFeed } from './feed.ts';
import type { Watches } from './poller.ts';

const ahead = (what: string, revision: number) =>
  invalid([{ field: 'after_revision', description: `ahead of the ${what}, which is at ${revision}` }]);

export const watchThreadHandlers = (
  watches: Watches,
): Pick<Handlers<typeof ConversationServiceService>, 'watchThread'> => ({
  async *watchThread({ threadId, afterRevision }, call) {
    const check = new Check();
    check.id('thread_id', threadId);
    check.seq('after_revision', afterRevision);
    check.done();

    const due = bookmarks();
    const watch = watches.open(call.db.scope, 'thread', threadId);
    try {
      for (let position = afterRevision; ; ) {
        const from = position;
        const page = await watch.read(from, (db) => readFeed(db, threadId, from));
        // Behind what it has told itself is only a thread that is gone without a trace: of somebody who is erased.
        if (position > page.head) throw position > afterRevision ? deleted('thread') : ahead('thread', page.head);
        // Who knows nothing of the thread, or has seen its end, is told as any other call is.
        if (isOver(page) && (position === 0 || position === page.head)) throw deleted('thread');
        watch.saw(page.head);
        for (const event of page.events) {
          yield { event };
          position = event.revision;
          due.told();
        }
        if (isOver(page)) return;
        if (position < page.head) continue;
        do {
          if (due.isDue()) yield { event: bookmark(position) };
        } while (!(await watch.news(due.left(), call.limits.signal!)));
      }
    } finally {
      watch.close();
    }
  },
});

const isOver = ({ events }: Page) => events.at(-1)?.event?.$case === 'ended';
const bookmark = (revision: number): ThreadEvent => ({ revision, event: { $case: 'bookmark', value: {} } });

export const watchSessionHandlers = (
  watches: Watches,
): Pick<Handlers<typeof MemoryServiceService>, 'watchSession'> => ({
  async *watchSession({ sessionId, afterRevision }, call) {
    const check = new Check();
    check.uuid('session_id', sessionId);
    check.seq('after_revision', afterRevision);
    check.done();

    const due = bookmarks();
    const watch = watches.open(call.db.scope, 'session', sessionId);
    try {
      for (let position = afterRevision, first = true; ; first = false) {
        const found = await watch.read(0, (db) => getSession(db, sessionId)).catch(refusalOf);
        if (found instanceof RpcError) {
          const reason = found.reason === 'DELETED' ? SessionEnded_Reason.DELETED : SessionEnded_Reason.EXPIRED;
          if (first && (afterRevision === 0 || reason === SessionEnded_Reason.EXPIRED)) throw found;
          return yield ended(position, reason);
        }
        if (position > found.revision) throw ahead('session', found.revision);
        watch.saw(found.revision);
        if (found.revision > position) {
          position = found.revision;
          yield { revision: position, event: { $case: 'session', value: found } };
          due.told();
        }
        if (found.endTime) return yield ended(position, SessionEnded_Reason.ENDED);
        do {
          if (due.isDue()) yield { revision: position, event: { $case: 'bookmark', value: {} } };
        } while (!(await watch.news(due.left(), call.limits.signal!)));
      }
    } finally {
      watch.close();
    }
  },
});

const ended = (revision: number, reason: SessionEnded_Reason) =>
  ({ revision, event: { $case: 'ended', value: { reason } } }) as const;

/** That a session is not there is no failure of its watch. */
function refusalOf(error: unknown): RpcError | Session {
  if (error instanceof RpcError) return error;
  throw error;
}

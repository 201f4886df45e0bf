import type { TenantDb } from '../db/transaction.ts';
import { type Message, MessageState } from '../gen/memory/v1/message.ts';
import type { ThreadEvent } from '../gen/memory/v1/thread_event.ts';
import { EventKind } from '../threads/event.ts';
import { messageFromRow, requireThread } from '../threads/repository.ts';
import { type EventRow, messagesAt, nextEvents, PAGE_BYTES, PAGE_EVENTS, type WatchedRow } from './repository.ts';

export interface Page {
  events: ThreadEvent[];
  /** The thread's revision when the page was read. */
  head: number;
}

/** An event of which it is known where it is, but not yet what the message says. */
type Planned =
  | { revision: number; $case: 'appended'; seq: number }
  | { revision: number; $case: 'finished'; seq: number; state: MessageState }
  | { revision: number; $case: 'done'; event: ThreadEvent['event'] };

/** What happened in a thread after a revision, as much of it as makes a page. */
export async function readFeed(db: TenantDb, threadId: string, after: number): Promise<Page> {
  const rows = await nextEvents(db, threadId, after);
  const [thread] = rows;
  if (!thread) return { events: [], head: await requireThread(db, threadId) };
  if (thread.deleted) {
    const ended = { $case: 'ended', value: {} } as const;
    return { events: [{ revision: thread.head, event: ended }], head: thread.head };
  }

  const planned = plan(thread, rows, after);
  const needed = planned.filter((event) => event.$case !== 'done');
  const appended = needed.flatMap((event) => (event.$case === 'appended' ? event.seq : []));
  const seqs = [...new Set(needed.map((event) => event.seq))];
  const messages = new Map<number, WatchedRow>();
  if (seqs.length > 0) {
    for (const row of await messagesAt(db, thread.threadUid, seqs, appended)) messages.set(row.seq, row);
  }
  const events: ThreadEvent[] = [];
  for (const event of planned) {
    const told = event.$case === 'done' ? event.event : withMessage(event, messages.get(event.seq), threadId);
    // The page is full; or the thread was cleared meanwhile, and the next page begins with that.
    if (!told) break;
    events.push({ revision: event.revision, event: told });
  }
  return { events, head: thread.head };
}

/**
 * The events after a revision. Appends have left none: between two events, and after the last one, each revision is that of
 * the next message.
 */
export function plan(thread: EventRow, rows: EventRow[], after: number): Planned[] {
  const { head, baseRevision, baseSeq, anchorRevision, anchorSeq } = thread;
  const planned: Planned[] = [];
  let position = after;
  if (after < baseRevision) {
    position = baseRevision;
    planned.push({ revision: position, $case: 'done', event: cleared(baseSeq) });
  }
  let seq = anchorSeq + position - anchorRevision;
  const events = rows.filter((row) => row.revision !== null);
  const all = events.length < PAGE_EVENTS && (events.at(-1)?.running ?? 0) <= PAGE_BYTES;
  const end = all ? head : events.at(-1)!.revision!;
  for (let next = 0; position < end && planned.length < PAGE_EVENTS; ) {
    position++;
    const row = events[next];
    if (row?.revision === position) {
      next++;
      seq = row.lastSeq;
      // Whatever happened to messages that are gone, that they are is what is left to be told of it.
      if (row.seq <= baseSeq) planned.push({ revision: position, $case: 'done', event: cleared(baseSeq) });
      else planned.push(told(row, position));
    } else {
      seq++;
      planned.push({ revision: position, $case: 'appended', seq });
    }
  }
  return planned;
}

const cleared = (throughSeq: number) => ({ $case: 'cleared', value: { throughSeq } }) as const;

function told({ kind, seq, byteOffset, text, state }: EventRow, revision: number): Planned {
  if (kind === EventKind.FINISHED) return { revision, $case: 'finished', seq, state: state as MessageState };
  const event: ThreadEvent['event'] =
    kind === EventKind.DELETED
      ? { $case: 'deleted', value: { seq } }
      : { $case: 'textDelta', value: { seq, offset: byteOffset, text: text ?? '' } };
  return { revision, $case: 'done', event };
}

/** The event as it was when it happened, but without what was deleted since. */
function withMessage(
  event: Exclude<Planned, { $case: 'done' }>,
  row: WatchedRow | undefined,
  threadId: string,
): ThreadEvent['event'] {
  if (!row) return undefined;
  const message: Message = messageFromRow(row, threadId);
  // What came only with its end is told with its end.
  const unfinished = { ...message, metadata: undefined, tokenCount: 0 };
  if (event.$case === 'finished') {
    const told = event.state === MessageState.COMPLETE ? message : { ...unfinished, state: event.state };
    return { $case: 'finished', value: { message: told } };
  }
  const appended = row.streamed ? { ...unfinished, state: MessageState.STREAMING } : message;
  return { $case: 'appended', value: { message: appended } };
}

import {
  AcquireTurnRequest,
  BeginTurnRequest,
  CommitTurnRequest,
  ConversationServiceService as Conversation,
} from '../src/gen/memory/v1/conversation_service.ts';
import {
  AppendSessionContextRequest,
  GetSessionContextRequest,
  MemoryServiceService as Memory,
  UpsertSessionRequest,
} from '../src/gen/memory/v1/memory_service.ts';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import type { Caller } from './client.ts';
import type { Work } from './loop.ts';
import {
  appendMessages,
  getContext,
  LAST_50,
  listLast,
  newMessages,
  STATE_PATCH,
  type Subjects,
  type TurnSubject,
  touchSession,
} from './subjects.ts';

/** The two ends of a turn, however many calls they take. */
interface Ends {
  /** Gives the fencing token. */
  begin(turn: TurnSubject): Promise<number>;
  commit(turn: TurnSubject, fencingToken: number, release: boolean): Promise<unknown>;
}

const HOLDER = 'bench';
const CONTEXT_ENTRIES = [
  { entry: { $case: 'fileAccess' as const, value: { path: 'q2/ledger.parquet', importance: 0.5 } } },
];

const question = () => newMessages(MessageRole.HUMAN);
const reply = () => newMessages(MessageRole.ASSISTANT);

export const acquireTurn = (threadId: string): AcquireTurnRequest =>
  AcquireTurnRequest.fromPartial({ threadId, holder: HOLDER });

const together = (call: Caller): Ends => ({
  async begin({ sessionId }) {
    const { session } = touchSession(sessionId);
    const request = { session, holder: HOLDER, messages: question(), context: LAST_50 };
    return (await call(Conversation.beginTurn, BeginTurnRequest.fromPartial(request))).lease!.fencingToken;
  },
  commit({ sessionId }, fencingToken, release) {
    const request = {
      sessionId,
      fencingToken,
      messages: reply(),
      statePatch: STATE_PATCH,
      contextEntries: CONTEXT_ENTRIES,
      release,
    };
    return call(Conversation.commitTurn, CommitTurnRequest.fromPartial(request));
  },
});

const apart = (call: Caller): Ends => ({
  async begin({ sessionId, threadId }) {
    await call(Memory.upsertSession, touchSession(sessionId));
    const { lease } = await call(Conversation.acquireTurn, acquireTurn(threadId));
    await call(Conversation.appendMessages, { ...appendMessages(threadId), sessionId });
    await call(Conversation.getContext, getContext(sessionId));
    return lease!.fencingToken;
  },
  async commit({ sessionId, threadId }, fencingToken, release) {
    const append = { ...appendMessages(threadId), sessionId, messages: reply(), fencingToken };
    await call(Conversation.appendMessages, append);
    await call(
      Memory.upsertSession,
      UpsertSessionRequest.fromPartial({ session: { id: sessionId, state: STATE_PATCH } }),
    );
    const touch = AppendSessionContextRequest.fromPartial({ sessionId, entries: CONTEXT_ENTRIES });
    await call(Memory.appendSessionContext, touch);
    if (release) await call(Conversation.releaseTurn, { threadId, fencingToken, requestId: '' });
  },
});

const workOf = (call: Caller, { begin, commit }: Ends, { turns, heldTurns }: Subjects): Work => ({
  'BeginTurn + CommitTurn': async (caller) => commit(turns[caller]!, await begin(turns[caller]!), true),
  // A turn that has begun must end before the next one can begin.
  'BeginTurn + ReleaseTurn': async (caller) => {
    const { threadId } = turns[caller]!;
    const fencingToken = await begin(turns[caller]!);
    await call(Conversation.releaseTurn, { threadId, fencingToken, requestId: '' });
  },
  CommitTurn: (caller) => commit(heldTurns[caller]!, heldTurns[caller]!.fencingToken, false),
});

export const turnWork = (call: Caller, subjects: Subjects): Work => workOf(call, together(call), subjects);

/** The same work by the calls that do a part of it each. */
export const singleCallWork = (call: Caller, subjects: Subjects): Work => ({
  ...workOf(call, apart(call), subjects),
  async GetContext() {
    const { contextSession: sessionId, readThread: threadId } = subjects;
    await Promise.all([
      call(Memory.getSession, { sessionId }),
      call(Conversation.listTurns, { sessionId, pageSize: 1, pageToken: '' }),
      call(Memory.getSessionContext, GetSessionContextRequest.fromPartial({ sessionId })),
      call(Conversation.listMessages, listLast(threadId, 50)),
    ]);
  },
});

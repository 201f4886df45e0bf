import { ConversationServiceService as Conversation } from '../src/gen/memory/v1/conversation_service.ts';
import { MemoryServiceService as Memory } from '../src/gen/memory/v1/memory_service.ts';
import { ProfileServiceService as Profile } from '../src/gen/memory/v1/profile_service.ts';
import { UsageServiceService as Usage } from '../src/gen/memory/v1/usage_service.ts';
import { type Connection, connect } from './client.ts';
import { draftSubject, draftWork } from './drafts.ts';
import { any, many, type Work } from './loop.ts';
import { memoriesWork, seedMemories } from './memories.ts';
import {
  appendMessages,
  forwardLast10,
  getContext,
  listLast,
  llmRequest,
  newSession,
  PERSON,
  type Subjects,
  type TurnSubject,
  tellStep,
  touchSession,
  USAGE_OF_DAYS,
} from './subjects.ts';
import { acquireTurn, turnWork } from './turns.ts';
import { watchWork } from './watch.ts';

/** The operations as a client of the service makes them. */
export function rpcWork(connection: Connection, subjects: Subjects): Work {
  const { call } = connection;
  const { readSessions, writtenSessions, writtenThreads, readThread, contextSession } = subjects;
  return {
    GetSession: () => call(Memory.getSession, { sessionId: any(readSessions) }),
    UpsertSession: (caller) => call(Memory.upsertSession, touchSession(writtenSessions[caller]!)),
    AppendMessages: (caller) => call(Conversation.appendMessages, appendMessages(writtenThreads[caller]!)),
    ListMessages: () => call(Conversation.listMessages, listLast(readThread, 50)),
    GetContext: () => call(Conversation.getContext, getContext(contextSession)),
    ForwardBundle: (caller) => call(Memory.forwardBundle, forwardLast10(readThread, writtenThreads[caller]!)),
    RecordLlmRequest: () => call(Usage.recordLlmRequest, llmRequest()),
    GetUsage: () => call(Usage.getUsage, USAGE_OF_DAYS),
    ...memoriesWork(call),
    GetProfile: () => call(Profile.getProfile, { sessionId: '' }),
    UpdateProfile: () => call(Profile.updateProfile, tellStep()),
    ...turnWork(call, subjects),
    ...draftWork(call, subjects),
    ...watchWork(connection, subjects.watchedThread),
  };
}

const READ_SESSIONS = 1000;
const READ_MESSAGES = 100;

/** Makes what the operations need, through the service. */
export async function seed(address: string, scope: Subjects['scope'], callers: number): Promise<Subjects> {
  const { call, close } = connect(address, scope);
  const session = async (threadId: string): Promise<string> =>
    (await call(Memory.upsertSession, newSession(threadId))).session!.id;
  const append = (threadId: string, count: number) =>
    call(Conversation.appendMessages, appendMessages(threadId, count));
  const turn = async (threadId: string): Promise<TurnSubject> => ({ sessionId: await session(threadId), threadId });

  await call(Profile.updateProfile, PERSON);
  const readThread = 'read';
  await append(readThread, READ_MESSAGES);
  await seedMemories(call);
  const subjects: Subjects = {
    scope,
    readThread,
    watchedThread: 'watched',
    contextSession: await session(readThread),
    readSessions: await many(READ_SESSIONS, (number) => session(`read-${number}`)),
    writtenSessions: await many(callers, (number) => session(`write-${number}`)),
    writtenThreads: await many(callers, async (number) => {
      await append(`append-${number}`, 1);
      return `append-${number}`;
    }),
    turns: await many(callers, (number) => turn(`turn-${number}`)),
    heldTurns: await many(callers, async (number) => {
      const held = await turn(`held-${number}`);
      const { lease } = await call(Conversation.acquireTurn, acquireTurn(held.threadId));
      return { ...held, fencingToken: lease!.fencingToken };
    }),
    drafts: await many(callers, (number) => draftSubject(call, `section-${number}`)),
  };
  close();
  return subjects;
}

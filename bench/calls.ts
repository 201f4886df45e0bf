import { ChannelCredentials, type ServiceError } from '@grpc/grpc-js';
import type { Scope } from '../src/db/transaction.ts';
import { ConversationServiceClient } from '../src/gen/memory/v1/conversation_service.ts';
import { MemoryServiceClient } from '../src/gen/memory/v1/memory_service.ts';
import {
  appendMessage,
  getSession,
  listLast50,
  metadataOf,
  newSession,
  type Operation,
  type Subjects,
  touchSession,
} from './subjects.ts';

/** Does an operation once, as the caller of that number. */
export type Work = Record<Operation, (caller: number) => Promise<unknown>>;

export function connect(address: string) {
  const credentials = ChannelCredentials.createInsecure();
  // Both services share grpc-js's connection to the address.
  return {
    memory: new MemoryServiceClient(address, credentials),
    conversation: new ConversationServiceClient(address, credentials),
  };
}

export function promised<Answer>(
  call: (done: (error: ServiceError | null, answer: Answer) => void) => unknown,
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    call((error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

/** The operations through the generated client, all callers over one connection. */
export function workOverRpc(address: string, subjects: Subjects): Work {
  const { memory, conversation } = connect(address);
  const metadata = metadataOf(subjects.scope);
  const { readSessions, writtenSessions, writtenThreads, readThread } = subjects;
  // A deadline, as every client should set one.
  const options = () => ({ deadline: Date.now() + 20_000 });
  return {
    GetSession: (caller) =>
      promised((done) => memory.getSession(getSession(readSessions[caller]!), metadata, options(), done)),
    UpsertSession: (caller) =>
      promised((done) => memory.upsertSession(touchSession(writtenSessions[caller]!), metadata, options(), done)),
    AppendMessages: (caller) =>
      promised((done) =>
        conversation.appendMessages(appendMessage(writtenThreads[caller]!), metadata, options(), done),
      ),
    ListMessages: () =>
      promised((done) => conversation.listMessages(listLast50(readThread), metadata, options(), done)),
  };
}

/** Makes what the operations need, through the service. */
export async function seed(address: string, scope: Scope, callers: number): Promise<Subjects> {
  const { memory, conversation } = connect(address);
  const metadata = metadataOf(scope);
  const session = async (name: string): Promise<string> => {
    const { session } = await promised<any>((done) => memory.upsertSession(newSession(name), metadata, done));
    return session.id;
  };
  const append = (thread: string, count: number) =>
    promised((done) => conversation.appendMessages(appendMessage(thread, count), metadata, done));

  const names = Array.from({ length: callers }, (_, caller) => String(caller));
  const readThread = 'read';
  for (let hundreds = 0; hundreds < 3; hundreds++) await append(readThread, 100);
  const writtenThreads = names.map((name) => `append-${name}`);
  await Promise.all(writtenThreads.map((thread) => append(thread, 1)));
  const readSessions = await Promise.all(names.map((name) => session(`read-${name}`)));
  const writtenSessions = await Promise.all(names.map((name) => session(`write-${name}`)));
  memory.close();
  conversation.close();
  return { scope, readSessions, writtenSessions, writtenThreads, readThread };
}

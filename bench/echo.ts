import { Server, ServerCredentials } from '@grpc/grpc-js';
import { ConversationServiceService } from '../src/gen/memory/v1/conversation_service.ts';
import { MemoryServiceService } from '../src/gen/memory/v1/memory_service.ts';
import { connect, promised } from './calls.ts';
import { answer } from './child.ts';
import { appendMessage, getSession, listLast50, metadataOf, type Subjects, touchSession } from './subjects.ts';

/**
 * The least that a grpc-js server can cost: it decodes each request and encodes the message that our server answered to the
 * same request, once, before; nothing else.
 */
async function start({ address, subjects }: { address: string; subjects: Subjects }): Promise<number> {
  const { memory, conversation } = connect(address);
  const metadata = metadataOf(subjects.scope);
  const { readSessions, writtenSessions, writtenThreads, readThread } = subjects;
  const [got, upserted, appended, listed] = await Promise.all([
    promised((done) => memory.getSession(getSession(readSessions[0]!), metadata, done)),
    promised((done) => memory.upsertSession(touchSession(writtenSessions[0]!), metadata, done)),
    promised((done) => conversation.appendMessages(appendMessage(writtenThreads[0]!), metadata, done)),
    promised((done) => conversation.listMessages(listLast50(readThread), metadata, done)),
  ]);
  memory.close();
  conversation.close();

  const always = (answer: unknown) => (_call: unknown, callback: (error: null, answer: unknown) => void) =>
    callback(null, answer);
  const server = new Server();
  // grpc-js refuses calls of the other methods by itself.
  server.addService(MemoryServiceService, { getSession: always(got), upsertSession: always(upserted) });
  server.addService(ConversationServiceService, { appendMessages: always(appended), listMessages: always(listed) });
  return new Promise((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, port) =>
      error ? reject(error) : resolve(port),
    );
  });
}

answer({ start });

// A client in TypeScript, that prints "ok" and what held for each thing that did.

import { deepEqual, equal, ok } from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { type ClientUnaryCall, credentials, Metadata, type ServiceError, status } from '@grpc/grpc-js';
import { BadRequest, ErrorInfo } from './gen/google/rpc/error_details.ts';
import { Status } from './gen/google/rpc/status.ts';
import {
  AppendMessagesRequest,
  ConversationServiceClient,
  DeleteThreadRequest,
  ListMessagesRequest,
  StreamOpen,
} from './gen/memory/v1/conversation_service.ts';
import { ForwardBundleRequest, MemoryServiceClient, UpsertSessionRequest } from './gen/memory/v1/memory_service.ts';
import { MessageRole, MessageState } from './gen/memory/v1/message.ts';
import type { ThreadEvent } from './gen/memory/v1/thread_event.ts';
import { stream, watch } from './live.ts';

// The service config retries UNAVAILABLE: the call may have taken effect, which is why every change carries a request_id.
const [, , address = '', serviceConfig = ''] = process.argv;
const options = { 'grpc.service_config': await readFile(serviceConfig, 'utf8') };
const memory = new MemoryServiceClient(address, credentials.createInsecure(), options);
const conversation = new ConversationServiceClient(address, credentials.createInsecure(), options);

const metadata = new Metadata();
metadata.set('x-tenant-id', 'acme');
metadata.set('x-env', 'dev');
metadata.set('x-user-id', 'member');

type Method<Request, Response> = (
  request: Request,
  metadata: Metadata,
  options: { deadline: number },
  callback: (error: ServiceError | null, response: Response) => void,
) => ClientUnaryCall;

/** The method as a promise, with the identity and a deadline of 15 seconds. */
function call<Request, Response>(method: Method<Request, Response>, request: Request): Promise<Response> {
  return new Promise((resolve, reject) => {
    method(request, metadata, { deadline: Date.now() + 15_000 }, (error, response) =>
      error ? reject(error) : resolve(response),
    );
  });
}

/** The reason of an error, and the fields that it finds fault with. */
function detailsOf(error: ServiceError): { reason: string; fields: string[] } {
  const found = { reason: '', fields: [] as string[] };
  const [bytes] = error.metadata.get('grpc-status-details-bin');
  for (const { typeUrl, value } of bytes ? Status.decode(bytes as Buffer).details : []) {
    if (typeUrl.endsWith('/google.rpc.ErrorInfo')) found.reason = ErrorInfo.decode(value).reason;
    if (typeUrl.endsWith('/google.rpc.BadRequest')) {
      found.fields = BadRequest.decode(value).fieldViolations.map(({ field }) => field);
    }
  }
  return found;
}

const passed = (what: string) => console.log('ok', what);
const threadId = `typescript-${randomUUID()}`;

const upsert = UpsertSessionRequest.fromPartial({
  session: { surfaceId: 'typescript', threadId, preferences: { tone: 'short', depth: 3 } },
  requestId: randomUUID(),
});
const { session, created } = await call(memory.upsertSession.bind(memory), upsert);
ok(created && session?.revision === 1);
passed('upserts a session');
deepEqual(session.preferences, { tone: 'short', depth: 3 });
passed('reads a Struct');

const append = AppendMessagesRequest.fromPartial({
  sessionId: session.id,
  messages: [
    { role: MessageRole.HUMAN, content: 'Grüße 👋' },
    { role: MessageRole.ASSISTANT, content: 'Hello.' },
  ],
  requestId: randomUUID(),
});
const appended = await call(conversation.appendMessages.bind(conversation), append);
deepEqual(
  appended.messages.map(({ seq }) => seq),
  [1, 2],
);
passed('appends messages');
deepEqual(await call(conversation.appendMessages.bind(conversation), append), appended);
passed('appends once for one request_id');

const list = ListMessagesRequest.fromPartial({ threadId, position: { $case: 'afterSeq', value: 0 } });
const listed = await call(conversation.listMessages.bind(conversation), list);
deepEqual(
  listed.messages.map(({ content }) => content),
  ['Grüße 👋', 'Hello.'],
);
passed('lists messages');

const forward = ForwardBundleRequest.fromPartial({
  source: {
    $case: 'inline',
    value: { sourceThreadId: threadId, selection: { selection: { $case: 'lastN', value: 1 } } },
  },
  targetThreadId: `${threadId}-target`,
  createTarget: true,
  requestId: randomUUID(),
});
const forwarded = await call(memory.forwardBundle.bind(memory), forward);
deepEqual([forwarded.firstSeq, forwarded.bundle?.messageCount], [1, 1]);
passed('forwards a bundle');

const bad = UpsertSessionRequest.fromPartial({ session: {}, requestId: 'no-uuid' });
const error: ServiceError = await call(memory.upsertSession.bind(memory), bad).then(
  () => Promise.reject(new Error('should have been refused')),
  (refusal) => refusal,
);
equal(error.code, status.INVALID_ARGUMENT);
equal(detailsOf(error).reason, 'INVALID_REQUEST');
passed('reads the reason of an error');
deepEqual(detailsOf(error).fields.sort(), ['request_id', 'session.surface_id']);
passed('reads its violations');

await watchAStream();
passed('watches and streams over a connection that breaks');

memory.close();
conversation.close();

/** A message is streamed, and watched, by a connection that is cut in the middle of it. */
async function watchAStream(): Promise<void> {
  const sockets = new Set<Socket>();
  const between = createServer((client) => {
    const server = connect(Number(address.split(':')[1]), '127.0.0.1');
    for (const socket of [client, server]) sockets.add(socket.on('error', () => {}));
    client.pipe(server).pipe(client);
  }).listen(0, '127.0.0.1');
  await once(between, 'listening');
  const { port } = between.address() as AddressInfo;
  const interrupted = new ConversationServiceClient(`127.0.0.1:${port}`, credentials.createInsecure());

  const events: ThreadEvent[] = [];
  const [durable, whole] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  async function listen() {
    for await (const told of watch(interrupted, metadata, threadId, 2)) {
      if (told.event?.$case !== 'bookmark') events.push(told);
      if (told.event?.$case === 'textDelta') durable.resolve();
      if (told.event?.$case === 'finished' && told.event.value.message?.state === MessageState.COMPLETE)
        whole.resolve();
    }
  }
  async function* pieces() {
    yield 'Everyone ';
    await durable.promise;
    for (const socket of sockets) socket.destroy();
    yield 'who ';
    yield 'may.';
  }
  const listening = listen();
  const open = StreamOpen.fromPartial({ threadId, role: MessageRole.ASSISTANT, clientId: 'answer' });
  const message = await stream(interrupted, metadata, open, pieces());
  equal(message?.state, MessageState.COMPLETE);
  await whole.promise;
  await call(conversation.deleteThread.bind(conversation), DeleteThreadRequest.fromPartial({ threadId }));
  await listening;
  interrupted.close();
  between.close();

  const deltas = events.flatMap(({ event }) => (event?.$case === 'textDelta' ? event.value : []));
  equal(deltas.map(({ text }) => text).join(''), 'Everyone who may.');
  deepEqual(
    events.map(({ revision }) => revision),
    events.map((_event, place) => 3 + place),
  );
  equal(events.at(-1)?.event?.$case, 'ended');
}

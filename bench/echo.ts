import {
  type handleUnaryCall,
  type MethodDefinition,
  Server,
  ServerCredentials,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js';
import type { Scope } from '../src/db/transaction.ts';
import { ConversationServiceService } from '../src/gen/memory/v1/conversation_service.ts';
import { MemoryServiceService } from '../src/gen/memory/v1/memory_service.ts';
import { answer } from './child.ts';
import { type Caller, connect } from './client.ts';

/**
 * The least that a grpc-js server can cost: it decodes each request, and encodes the message with which our server answered
 * the method's first call, which it passed on; nothing else.
 */
async function start({ address, scope }: { address: string; scope: Scope }): Promise<number> {
  const { call } = connect(address, scope);
  const server = new Server();
  for (const service of [MemoryServiceService, ConversationServiceService])
    server.addService(service, echoOf(call, service));
  return new Promise((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, port) =>
      error ? reject(error) : resolve(port),
    );
  });
}

function echoOf(call: Caller, service: Record<string, any>): UntypedServiceImplementation {
  const unary = Object.entries(service).filter(([, method]) => !method.requestStream && !method.responseStream);
  return Object.fromEntries(unary.map(([name, method]) => [name, echoOfMethod(call, method)]));
}

function echoOfMethod(call: Caller, method: MethodDefinition<unknown, unknown>): handleUnaryCall<unknown, unknown> {
  let always: unknown;
  return ({ request }, callback) => {
    if (always) return callback(null, always);
    const known = (answer: unknown) => {
      always = answer;
      callback(null, answer);
    };
    call(method, request).then(known, callback);
  };
}

answer({ start });

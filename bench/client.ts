import { ChannelCredentials, Client, Metadata, type MethodDefinition } from '@grpc/grpc-js';
import type { Scope } from '../src/db/transaction.ts';

/** Makes one call, as a promise. */
export type Caller = <Request, Answer>(method: MethodDefinition<Request, Answer>, request: Request) => Promise<Answer>;

const DEADLINE_MS = 20_000; // every client should set one

/** Calls a method that answers with a stream, which goes on as long as the process. */
export type Receiver = <Request, Answer>(
  method: MethodDefinition<Request, Answer>,
  request: Request,
  receive: (answer: Answer) => void,
) => void;

export interface Connection {
  call: Caller;
  receive: Receiver;
  close(): void;
}

/**
 * What the generated clients do, for any method. All that a process calls at an address shares one connection, unless it asks
 * for one of its own.
 */
export function connect(address: string, scope: Scope, { own = false } = {}): Connection {
  const options = { 'grpc.use_local_subchannel_pool': own ? 1 : 0 };
  const client = new Client(address, ChannelCredentials.createInsecure(), options);
  const metadata = metadataOf(scope);
  return {
    call: ({ path, requestSerialize, responseDeserialize }, request) =>
      new Promise((resolve, reject) => {
        const options = { deadline: Date.now() + DEADLINE_MS };
        client.makeUnaryRequest(
          path,
          requestSerialize,
          responseDeserialize,
          request,
          metadata,
          options,
          (error, answer) => (error ? reject(error) : resolve(answer!)),
        );
      }),
    receive({ path, requestSerialize, responseDeserialize }, request, receive) {
      const stream = client.makeServerStreamRequest(path, requestSerialize, responseDeserialize, request, metadata);
      stream.on('data', receive);
    },
    close: () => client.close(),
  };
}

function metadataOf({ tenant, env, user }: Scope): Metadata {
  const metadata = new Metadata();
  metadata.set('x-tenant-id', tenant);
  metadata.set('x-env', env);
  metadata.set('x-user-id', user);
  return metadata;
}

import { ChannelCredentials, Client, Metadata, type MethodDefinition } from '@grpc/grpc-js';
import type { Scope } from '../src/db/transaction.ts';

/** Makes one call, as a promise. */
export type Caller = <Request, Answer>(method: MethodDefinition<Request, Answer>, request: Request) => Promise<Answer>;

const DEADLINE_MS = 20_000; // every client should set one

/** What the generated clients do, for any method. All that a process calls at an address shares one connection. */
export function connect(address: string, scope: Scope): { call: Caller; close(): void } {
  const client = new Client(address, ChannelCredentials.createInsecure());
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

import type { Server as TcpServer } from 'node:net';
import { Server, type ServerCredentials, type ServerOptions, type ServiceError } from '@grpc/grpc-js';
import { UserError } from '../errors.ts';
import { drainingError, toServiceError } from './errors.ts';
import type { Authenticate } from './identity.ts';
import type { Service } from './implement.ts';
import { intake } from './intake.ts';
import type { Observe } from './observe.ts';

export interface TransportOptions {
  maxStreams: number;
  maxConnections: number;
  maxConnectionAge: number;
  maxConnectionAgeGrace: number;
  /** Also how long a request may take to come in. */
  callTimeout: number;
  authenticate: Authenticate;
  observe: Observe;
  unknownMethod(): void;
  connectionRefused(): void;
}

/** The gRPC server: its limits, what it serves, and how it ends. */
export interface Transport {
  add(service: Service): void;
  /** Resolves to the port. */
  listen(host: string, port: number, credentials: ServerCredentials): Promise<number>;
  /** Ends the open streams, takes no calls any more, and gives those under way the time to finish. */
  drain(timeoutMs: number): Promise<void>;
}

const MAX_MESSAGE = 4 * 1024 * 1024;
// What one connection may make us hold, in MB. Without it, grpc-js lets a connection take all memory; with Node's own
// 10 MB, three responses that the client is slow to read would stop its next call.
const MAX_SESSION_MB = 128;
const KEEPALIVE_MS = 60_000;

interface OpenStream extends NodeJS.EventEmitter {
  emit(event: 'error', error: ServiceError): boolean;
}

export function createTransport(options: TransportOptions): Transport {
  const { callTimeout, authenticate, observe } = options;
  const { interceptor, stop } = intake(MAX_MESSAGE, callTimeout, authenticate, observe);
  const settings: ServerOptions = {
    interceptors: [interceptor],
    'grpc.max_receive_message_length': MAX_MESSAGE,
    'grpc.max_send_message_length': MAX_MESSAGE,
    'grpc.max_concurrent_streams': options.maxStreams,
    'grpc.max_connection_age_ms': options.maxConnectionAge,
    'grpc.max_connection_age_grace_ms': options.maxConnectionAgeGrace,
    'grpc.keepalive_time_ms': KEEPALIVE_MS,
    'grpc.enable_channelz': 0,
    'grpc-node.max_session_memory': MAX_SESSION_MB,
  };
  const server = new Server(settings);
  const streams = new Set<OpenStream>();
  let bound = '';

  // Nothing public sees a call of a method that is not there, not even an interceptor.
  const internals = server as unknown as {
    _retrieveHandler(path: string): unknown;
    http2Servers: Map<TcpServer, unknown>;
  };
  const retrieve = internals._retrieveHandler.bind(server);
  internals._retrieveHandler = (path) => {
    const handler = retrieve(path);
    if (!handler) options.unknownMethod();
    return handler;
  };

  /** The same handler, with its streams known while they are open, as no drain would end before them. */
  function tracked(handler: (call: OpenStream, respond?: unknown) => void) {
    return (call: OpenStream, respond?: unknown) => {
      streams.add(call);
      call.on('cancelled', () => streams.delete(call)); // comes after every end, also a good one
      handler(call, respond);
    };
  }

  return {
    add({ definition, implementation }) {
      const handlers = Object.entries(definition).map(([name, method]): [string, any] => {
        const handler = (implementation[name] ?? implementation[method.originalName ?? '']) as any;
        return [name, method.requestStream || method.responseStream ? tracked(handler) : handler];
      });
      server.addService(definition, Object.fromEntries(handlers));
    },

    async listen(host, port, credentials) {
      const address = (at: number) =>
        host.includes(':') && !host.startsWith('[') ? `[${host}]:${at}` : `${host}:${at}`;
      const got = await new Promise<number>((resolve, reject) => {
        server.bindAsync(address(port), credentials, (error, at) =>
          error ? reject(listenFault(error, host, port)) : resolve(at),
        );
      });
      bound = address(got);
      for (const tcp of internals.http2Servers.keys()) {
        // Workers that are all full would hand a connection on to each other for ever, if they were not to drop it.
        Object.assign(tcp, { maxConnections: options.maxConnections, dropMaxConnection: true });
        tcp.on('drop', options.connectionRefused);
      }
      return got;
    },

    async drain(timeoutMs) {
      for (const stream of streams) stream.emit('error', toServiceError(drainingError()));
      const closed = new Promise<void>((resolve) => {
        // In this order: `drain` is what ends a connection by force, but not one that was asked to close before.
        if (bound) server.drain(bound, timeoutMs);
        server.tryShutdown(() => resolve());
      });
      // A connection that never got as far as a session is in nobody's list: it must not hold up the end.
      const late = new Promise<void>((resolve) => setTimeout(resolve, timeoutMs + 500).unref());
      await Promise.race([closed, late]);
      server.forceShutdown();
      stop();
    },
  };
}

/** Why an address cannot be listened on, with a way out. */
export function listenFault(error: Error, host: string, port: number, flag = '--port'): UserError {
  if (/EADDRINUSE/.test(error.message)) {
    return new UserError(`port ${port} on ${host} is taken: stop who has it, or choose another with ${flag}`);
  }
  const [reason] = /\b(EACCES|EADDRNOTAVAIL|ENOTFOUND|EAFNOSUPPORT)\b/.exec(error.message) ?? [error.message];
  return new UserError(`cannot listen on ${host}, port ${port}: ${reason.replaceAll('\n', ' ')}`);
}

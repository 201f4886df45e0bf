import { constants, type Http2Session, type ServerHttp2Stream } from 'node:http2';
import type { Metadata, ServerInterceptingCall, ServerInterceptor, ServiceError } from '@grpc/grpc-js';
import { status } from '@grpc/grpc-js';
import { exhausted, RpcError, toRpcError, toServiceError } from './errors.ts';
import type { Authenticate } from './identity.ts';
import { methodOf, type Observe } from './observe.ts';

/** What requests that come in parts, or compressed, may hold from their first byte until their call ends. */
export const MOST_OF_CONNECTION = 64 * 1024 * 1024;
const MOST_OF_ALL = 4 * MOST_OF_CONNECTION;
/** Messages that are unpacked at once, each of which may become as large as any. */
const UNPACKING = 4;
const LOOK_MS = 1000;
const HEAD = 5;
const NOTHING = Buffer.alloc(0);

/** A call of grpc-js as it comes in. It shows nothing of this to interceptors: no limit of theirs is on what is unfinished. */
interface Incoming {
  readonly stream: ServerHttp2Stream;
  readonly metadata: Metadata;
  readonly incomingEncoding: string;
  decoder: Assembly;
  decompressMessage(message: Buffer, encoding: string): Buffer | Promise<Buffer>;
  sendStatus(error: ServiceError): void;
}

type Refuse = (error: RpcError) => ServiceError;

export interface Assembly {
  /** The messages that these bytes complete, each with its head. */
  write(bytes: Buffer): Buffer[];
}

/**
 * Puts messages together as grpc-js does, but in one buffer each, that grows with what has come: kept as they come, the parts of
 * a message in frames of one byte hold seventy times as much. `hold` is told what it has grown to before it does, and `whole`
 * when it is there.
 */
export function assembly(most: number, hold: (bytes: number) => void, whole = () => {}): Assembly {
  let message = NOTHING;
  let filled = 0;

  function sizeOf(head: Buffer, at: number): number {
    const size = head.readUInt32BE(at + 1);
    if (size > most) throw new Error(`Received message larger than max (${size} vs ${most})`);
    return HEAD + size;
  }

  /** Takes as much as there is up to this size. */
  function fill(size: number, bytes: Buffer, at: number): number {
    const taken = Math.min(size - filled, bytes.length - at);
    if (filled + taken > message.length) {
      const room = Math.min(size, Math.max(filled + taken, 2 * message.length));
      hold(room);
      const larger = Buffer.allocUnsafeSlow(room);
      message.copy(larger, 0, 0, filled);
      message = larger;
    }
    bytes.copy(message, filled, at, at + taken);
    filled += taken;
    return at + taken;
  }

  return {
    write(bytes) {
      const messages: Buffer[] = [];
      for (let at = 0; at < bytes.length; ) {
        // Nearly every request is there at once.
        const end = filled === 0 && bytes.length - at >= HEAD ? at + sizeOf(bytes, at) : Number.POSITIVE_INFINITY;
        if (end <= bytes.length) {
          messages.push(Buffer.from(bytes.subarray(at, end)));
          at = end;
          continue;
        }
        at = fill(filled < HEAD ? HEAD : sizeOf(message, 0), bytes, at);
        if (filled >= HEAD && filled === sizeOf(message, 0)) {
          messages.push(message);
          message = NOTHING;
          filled = 0;
          whole();
        }
      }
      return messages;
    },
  };
}

/**
 * Bounds what callers can make us hold by requests that they do not finish, which no other limit sees, as a call is one only
 * when its request is there: their bytes, also unpacked, and their time. Whoever goes over is refused, the others go on. And
 * by single responses that they do not read: these are dropped.
 */
export function intake(
  most: number,
  requestMs: number,
  authenticate: Authenticate,
  observe: Observe,
): { interceptor: ServerInterceptor; stop(): void } {
  let all = 0;
  const ofConnections = new WeakMap<Http2Session, number>();
  const unfinished = new Map<Refuse, number>();
  const unread = new Map<ServerHttp2Stream, number>();
  const unpackOne = atMost(UNPACKING);

  /** Refuses a call of whom nobody knows while its request still comes in. All others are asked when it is there. */
  async function known({ metadata }: Incoming, refuse: Refuse): Promise<void> {
    try {
      await authenticate(metadata);
    } catch (error) {
      if (unfinished.has(refuse)) refuse(toRpcError(error));
    }
  }

  /** What a call holds, which is given back when it ends. */
  function ledger(incoming: Incoming, open: boolean, refuse: Refuse): (bytes: number) => void {
    const { stream } = incoming;
    const session = stream.session!; // when the stream has ended it is not known any more
    let held = 0;
    let first = true;
    const ofConnection = () => ofConnections.get(session) ?? 0;
    const book = (bytes: number) => {
      all += bytes - held;
      ofConnections.set(session, ofConnection() + bytes - held);
      held = bytes;
    };
    return (bytes) => {
      if (stream.closed) return;
      const more = bytes - held;
      if (ofConnection() + more > MOST_OF_CONNECTION || all + more > MOST_OF_ALL) {
        throw refuse(exhausted('TOO_MANY_BYTES', 'too much is being received at once', 1000));
      }
      if (first) {
        first = false;
        stream.once('close', () => book(0));
        if (!open) void known(incoming, refuse);
      }
      book(bytes);
    };
  }

  const interceptor: ServerInterceptor = ({ path, requestStream, responseStream }, call) => {
    const incoming = call as unknown as Incoming;
    const { stream } = incoming;
    const refuse = (error: RpcError): ServiceError => {
      const refusal = toServiceError(error);
      incoming.sendStatus(refusal);
      stream.close(); // whoever has not ended a request by then would keep it open
      // No call is under way yet that would tell how it ended, but of a stream.
      if (!requestStream) observe(methodOf(path), incoming.metadata).end(error.code, error.reason, {});
      return refusal;
    };
    const hold = ledger(incoming, path.startsWith('/grpc.'), refuse); // health and reflection are for anybody
    // The messages of a stream are handed on one by one, and a single one is kept as long as its call.
    incoming.decoder = assembly(most, hold, requestStream ? () => hold(0) : undefined);
    if (incoming.incomingEncoding !== 'identity') {
      const unpack = incoming.decompressMessage.bind(incoming);
      incoming.decompressMessage = async (message, encoding) => {
        const unpacked = await unpackOne(async () => unpack(message, encoding));
        if (!requestStream) hold(message.length + unpacked.length);
        return unpacked;
      };
    }
    if (!requestStream) {
      unfinished.set(refuse, Date.now());
      stream.once('end', () => {
        unfinished.delete(refuse);
        if (!responseStream) unread.set(stream, Date.now());
      });
      stream.once('close', () => {
        unfinished.delete(refuse);
        unread.delete(stream);
      });
    }
    return call as unknown as ServerInterceptingCall;
  };

  const timer = setInterval(() => {
    const now = Date.now();
    for (const [refuse, since] of unfinished) {
      if (since + requestMs > now) break; // they are in the order of their times
      unfinished.delete(refuse);
      refuse(new RpcError(status.DEADLINE_EXCEEDED, 'REQUEST_UNFINISHED', 'the request did not end in time'));
    }
    for (const [stream, since] of unread) {
      // A call may take as long, and then its response as long again.
      if (since + 2 * requestMs > now) break;
      unread.delete(stream);
      stream.close(constants.NGHTTP2_CANCEL);
    }
  }, LOOK_MS).unref();

  return { interceptor, stop: () => clearInterval(timer) };
}

/** Runs so many at once, and the others after them. */
function atMost(limit: number): <T>(work: () => Promise<T>) => Promise<T> {
  const waiting: (() => void)[] = [];
  let running = 0;
  return async (work) => {
    if (running >= limit) await new Promise<void>((resolve) => waiting.push(resolve));
    else running++;
    try {
      return await work();
    } finally {
      const next = waiting.shift();
      if (next) next();
      else running--;
    }
  };
}

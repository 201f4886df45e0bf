import { BinaryReader } from '@bufbuild/protobuf/wire';
import type {
  handleUnaryCall,
  Metadata,
  ServerDuplexStream,
  ServerReadableStream,
  ServerUnaryCall,
  ServerWritableStream,
  ServiceDefinition,
  UntypedServiceImplementation,
} from '@grpc/grpc-js';
import { status } from '@grpc/grpc-js';
import { TOO_DEEP } from '../wire/struct.ts';
import { decodeStrictUtf8 } from '../wire/utf8.ts';
import { type Access, authorize } from './access.ts';
import { type About, type Call, type Identity, makeCall } from './context.ts';
import { type Encoder, encode } from './encode.ts';
import { exhausted, RpcError as Refusal, type RpcError, toRpcError, toServiceError, unavailable } from './errors.ts';
import type { Kernel } from './kernel.ts';
import { methodOf } from './observe.ts';
import { ADDING } from './quotas.ts';

interface Method<Request, Response, RequestStream, ResponseStream> {
  path: string;
  requestStream: RequestStream;
  responseStream: ResponseStream;
  requestDeserialize(bytes: Buffer): Request;
  responseSerialize(message: Response): Buffer;
}

/** A handler's shape follows from its method: promises for messages, async iterables for streams. */
export type Handler<M> =
  M extends Method<infer Request, infer Response, infer RequestStream, infer ResponseStream>
    ? (
        request: RequestStream extends true ? AsyncIterable<Request> : Request,
        call: Call,
      ) => ResponseStream extends true ? AsyncIterable<Response> : Promise<Response>
    : never;

/** A handler for each method of a generated service definition: one that is missing does not compile. */
export type Handlers<Definition> = { [Name in keyof Definition]: Handler<Definition[Name]> };

/** The message types of a service's methods, which the generated code has beside its definition for grpc-js. */
interface Types<Definition> {
  methods: { [Name in keyof Definition]: { responseType: Encoder } };
}

type AnyMethod = Method<any, any, boolean, boolean>;
type AnyCall =
  | ServerUnaryCall<Buffer, unknown>
  | ServerWritableStream<Buffer, unknown>
  | ServerReadableStream<Buffer, unknown>
  | ServerDuplexStream<Buffer, unknown>;

export interface Service {
  definition: ServiceDefinition;
  implementation: UntypedServiceImplementation;
}

/**
 * Binds handlers to a generated service definition. This is the only file that sees grpc-js's callbacks: every call passes
 * the in-flight limit, the identity and the access rules, is decoded strictly, ends in exactly one status, and is observed.
 */
export function implement<Definition extends { [name: string]: any }>(
  kernel: Kernel,
  definition: Definition,
  types: Types<Definition>,
  handlers: Handlers<Definition>,
  access: { [Name in keyof Definition]?: Access } = {},
): Service {
  const raw: Record<string, unknown> = {};
  const implementation: Record<string, unknown> = {};
  for (const name of Object.keys(definition)) {
    const method = definition[name] as AnyMethod;
    const { responseType } = types.methods[name]!;
    raw[name] = {
      ...method,
      // Requests are decoded by us, where a failure can be answered as bad input.
      requestDeserialize: (bytes: Buffer) => bytes,
      responseSerialize: (message: unknown) => encode(responseType, message),
    };
    implementation[name] = adapt(kernel, method, handlers[name] as any, access[name] ?? {});
  }
  return { definition: raw as ServiceDefinition, implementation: implementation as UntypedServiceImplementation };
}

function decode<Request>(method: Method<Request, any, any, any>, bytes: Buffer): Request {
  try {
    // Generated decoders take a reader as well, and this one refuses text that is not UTF-8.
    const reader = new BinaryReader(bytes, decodeStrictUtf8);
    const request = method.requestDeserialize(reader as unknown as Buffer);
    if (reader.pos < reader.len) throw new Error('no field starts here'); // they would just stop
    return request;
  } catch (error) {
    const fault = decodingFault(error as Error);
    throw new Refusal(status.INVALID_ARGUMENT, 'MALFORMED_REQUEST', `the request cannot be decoded: ${fault}`, {
      violations: [{ field: '', description: fault }],
    });
  }
}

// Whatever reads past the end is a RangeError as well.
const decodingFault = ({ name, message }: Error) =>
  name === 'RangeError' && message !== TOO_DEEP ? 'it ends too early' : message;

// Not by `for await`, which destroys the stream when a message is refused: the client would never learn why.
async function* decodeAll(
  method: AnyMethod,
  stream: AsyncIterable<Buffer>,
  taken: (bytes: number) => void,
  readmit: () => Promise<void>,
): AsyncIterable<any> {
  const messages = stream[Symbol.asyncIterator]();
  for (;;) {
    const { done, value } = await messages.next();
    if (done) return;
    taken(value.length);
    await readmit();
    yield decode(method, value);
  }
}

function adapt(kernel: Kernel, method: AnyMethod, handler: (request: any, call: Call) => any, access: Access) {
  const name = methodOf(method.path);
  const open = method.requestStream || method.responseStream;
  const entrance = open ? kernel.openStreams : kernel.inFlight;
  const store = (identity: Identity, bytes: number) =>
    ADDING.has(name) ? kernel.turnstile.store(identity, bytes) : undefined;
  const sizeOf = (call: AnyCall) => ('request' in call ? (call.request?.length ?? 0) : 0);
  const decodeStream = (call: AsyncIterable<Buffer>, { identity }: Call, readmit: () => Promise<void>) =>
    decodeAll(method, call, (bytes) => store(identity, bytes), readmit);

  /** Everything between the wire and the handler, and the one place where a call ends. */
  async function serve(
    call: AnyCall,
    run: (context: Call, admit: () => Promise<Identity>) => Promise<void>,
  ): Promise<RpcError | undefined> {
    const ending = lateSignal();
    const end = deadlineOf(call, open ? kernel.streamMs : kernel.callMs);
    const limits = {
      /** Of a call that stays open: that of what it does now. */
      get deadline() {
        return open ? Math.min(end, Date.now() + kernel.callMs) : end;
      },
      get signal() {
        return ending.signal;
      },
    };
    const observed = kernel.observe(name, call.metadata);
    const about: About = {};
    // Fires after every call, also a good one: it only matters while the handler is pending.
    const cancel = () => ending.abort();
    const events: NodeJS.EventEmitter = call;
    events.on('cancelled', cancel);
    let refusal: RpcError | undefined;
    try {
      entrance.enter();
      try {
        const admit = async () => {
          const caller = access.public ? ANYONE : await kernel.authenticate(call.metadata);
          observed.caller = caller;
          return authorize(kernel.members, caller, access, limits);
        };
        const identity = await admit();
        const leave = kernel.turnstile.enter(identity, open ? 'streams' : 'calls');
        const storing = store(identity, sizeOf(call));
        /** As the handler told it; of what is done and was not told it is about the request. */
        let stored: number | undefined;
        try {
          const { database, keyring, fingerprints, count, changes } = kernel;
          const { traceId } = observed;
          const context = makeCall({
            count,
            database,
            keyring,
            fingerprints,
            method: name,
            identity,
            about,
            limits,
            traceId,
            requester: identity.user,
            changed: changes.tell,
            full: storing?.full,
            stored(bytes) {
              stored = (stored ?? 0) + bytes;
            },
          });
          await run(context, admit);
          stored ??= about.replayed ? 0 : sizeOf(call);
        } finally {
          storing?.end(stored ?? 0);
          leave();
        }
      } finally {
        entrance.leave();
      }
    } catch (error) {
      refusal = toRpcError(error);
      // A stream that its client left, or that was ended, fails wherever it just was: that is no fault of ours.
      if (refusal.code === status.INTERNAL && !call.cancelled) observed.error = error;
      observed.caller ??= refusal.caller;
      if (refusal.reason === 'QUOTA_EXCEEDED') kernel.refused(refusal.details.metadata!.quota!);
      if (observed.caller) await kernel.denials.record(refusal, observed.caller, name, about, observed.traceId);
    } finally {
      events.off('cancelled', cancel);
    }
    const gone = refusal && call.cancelled;
    observed.end(gone ? status.CANCELLED : (refusal?.code ?? status.OK), refusal?.reason ?? '', about);
    return refusal;
  }

  if (!method.requestStream && !method.responseStream) {
    const unary: handleUnaryCall<Buffer, unknown> = (call, callback) => {
      let response: unknown;
      serve(call, async (context) => {
        const request = decode(method, call.request);
        nameIds(request, context.about);
        response = await handler(request, context);
      }).then((refusal) => (refusal ? callback(toServiceError(refusal)) : callback(null, response as never)));
    };
    return unary;
  }
  if (!method.responseStream) {
    return (call: ServerReadableStream<Buffer, unknown>, callback: (error: unknown, value?: unknown) => void) => {
      let response: unknown;
      serve(call, async (context, admit) => {
        response = await handler(decodeStream(call, context, readmission(admit)), context);
      }).then((refusal) => (refusal ? callback(toServiceError(refusal)) : callback(null, response)));
    };
  }
  return (call: ServerWritableStream<Buffer, unknown> | ServerDuplexStream<Buffer, unknown>) => {
    const old = setTimeout(() => call.emit('error', toServiceError(tooOld())), Math.min(kernel.streamMs, MAX_TIMER_MS));
    serve(call, async (context, admit) => {
      const readmit = readmission(admit);
      const requests = method.requestStream
        ? decodeStream(call as ServerDuplexStream<Buffer, unknown>, context, readmit)
        : decode(method, (call as ServerWritableStream<Buffer, unknown>).request);
      for await (const response of handler(requests, context)) {
        await readmit();
        await send(call, response, context.limits.signal!);
      }
    }).then((refusal) => {
      clearTimeout(old);
      return refusal ? call.emit('error', toServiceError(refusal)) : call.end();
    });
  };
}

/** How long who opened a stream is believed to be allowed to. */
export const ADMISSION_MS = 10_000;

/** Asks again, every so often, whether a call is allowed: a token expires, and a member is removed, while its stream is open. */
function readmission(admit: () => Promise<unknown>): () => Promise<void> {
  let admitted = Date.now();
  return async () => {
    if (Date.now() - admitted <= ADMISSION_MS) return;
    await admit();
    admitted = Date.now();
  };
}
/** How long a client may leave what was sent unread. */
const SLOW_MS = 30_000;
const MAX_TIMER_MS = 2 ** 31 - 1;

const tooOld = () => unavailable('STREAM_AGE', 'the stream has been open for long enough; open it again', 0);

/** Writes one message, and waits while the client reads more slowly than we write. */
async function send(
  stream: { write(message: unknown): boolean } & NodeJS.EventEmitter,
  message: unknown,
  signal: AbortSignal,
) {
  signal.throwIfAborted();
  if (stream.write(message)) return;
  const drained = await new Promise<boolean>((resolve) => {
    const settle = (how: boolean) => () => {
      clearTimeout(timer);
      stream.off('drain', done);
      signal.removeEventListener('abort', done);
      resolve(how);
    };
    const done = settle(true);
    const timer = setTimeout(settle(false), SLOW_MS);
    stream.on('drain', done);
    signal.addEventListener('abort', done);
  });
  if (!drained) throw exhausted('SLOW_CONSUMER', 'the client does not read what was sent; open the stream again', 1000);
}

const ANYONE = { tenant: '', env: '', user: '', actor: '', scopes: new Set<string>(), vouched: false };

/** An AbortController made only when someone asks for its signal: a point read never does. */
function lateSignal(): { readonly signal: AbortSignal; abort(): void } {
  let controller: AbortController | undefined;
  let aborted = false;
  return {
    get signal() {
      if (!controller) {
        controller = new AbortController();
        if (aborted) controller.abort();
      }
      return controller.signal;
    },
    abort() {
      aborted = true;
      controller?.abort();
    },
  };
}

/** The client's deadline, bounded by ours. Far or malformed ones (grpc-timeout past 24 days overflows) become ours. */
function deadlineOf(call: { getDeadline(): Date | number; metadata: Metadata }, callMs: number): number {
  const latest = Date.now() + callMs;
  const wanted = Number(call.getDeadline());
  return Number.isNaN(wanted) ? latest : Math.min(wanted, latest);
}

const UUID_LENGTH = 36;

/** The ids that the log line tells, where the request names them at its top. */
function nameIds(request: any, about: About): void {
  const sessionId = request.sessionId ?? request.session?.id;
  const threadId = request.threadId ?? request.targetThreadId ?? request.sourceThreadId;
  if (typeof sessionId === 'string' && sessionId.length === UUID_LENGTH) about.sessionId = sessionId;
  if (typeof threadId === 'string' && threadId.length > 0 && threadId.length <= 128) about.threadId = threadId;
}

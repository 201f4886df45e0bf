import { status } from '@grpc/grpc-js';
import { v7 as uuidv7 } from 'uuid';
import { json } from '../db/statement.ts';
import type { TenantTx } from '../db/transaction.ts';
import type {
  ConversationServiceService,
  StreamMessageResponse,
  StreamOpen,
} from '../gen/memory/v1/conversation_service.ts';
import { Message, MessageRole, MessageState } from '../gen/memory/v1/message.ts';
import type { Call } from '../rpc/context.ts';
import { deleted, RpcError, unavailable } from '../rpc/errors.ts';
import type { Handlers } from '../rpc/implement.ts';
import { appendMessages, clientIdReused, whyNotAppended, whyNotWritten } from '../threads/append.ts';
import { requireThread } from '../threads/repository.ts';
import { contentTokens } from '../tokens/counter.ts';
import type { JsonObject } from '../wire/struct.ts';
import { framesOf, laterFrame, openOf, within } from './frames.ts';
import {
  findStreamed,
  finishStream,
  interruptStream,
  keepStream,
  readStreamed,
  SIGN_OF_LIFE_MS,
  type StreamedRow,
  startStream,
  storeText,
  type Writer,
} from './repository.ts';

/** Text is stored at the latest so long after it came. What comes meanwhile is stored with it. */
const BATCH_MS = 200;
/** No more is taken in before it is stored. */
const BATCH_BYTES = 64 * 1024;
/** How long it may take to store the end of a broken stream. */
const ENDING_MS = 10_000;

const ONCE = { requestId: '' };

export const streamHandlers: Pick<Handlers<typeof ConversationServiceService>, 'streamMessage'> = {
  async *streamMessage(requests, call) {
    const frames = framesOf(requests, call.limits.signal!);
    const open = openOf(await frames.next());
    const stream = await openStream(call, open);
    Object.assign(call.about, { threadId: stream.message.threadId, sessionId: open.sessionId || undefined });
    const { id, seq } = stream.message;
    try {
      yield answer('opened', { messageId: id, seq, durableOffset: stream.stored });
      if (stream.over) yield finished(stream.message);
      for (let next = frames.next(); !stream.over; ) {
        const due = stream.pending ? stream.storedAt + BATCH_MS - performance.now() : SIGN_OF_LIFE_MS;
        const full = Buffer.byteLength(stream.pending) >= BATCH_BYTES;
        const frame = full || due <= 0 ? undefined : await within(next, due);
        if (!frame && stream.pending) yield await store(call, stream);
        else if (!frame) await keep(call, stream);
        else {
          const { $case, value } = laterFrame(frame, stream.stored + Buffer.byteLength(stream.pending));
          if ($case === 'chunk') {
            stream.pending += value.text;
            next = frames.next();
          } else {
            if (stream.pending) yield await store(call, stream);
            yield finished(await finish(call, stream, value.metadata));
          }
        }
      }
    } finally {
      if (!stream.over) await interrupt(call.afterwards(ENDING_MS), stream);
    }
  },
};

type ResponseFrame = NonNullable<StreamMessageResponse['frame']>;

/** A message that is being written by this call. */
interface Stream {
  open: StreamOpen;
  message: StreamedRow;
  by: Writer;
  /** Bytes that are durable. */
  stored: number;
  storedAt: number;
  /** What is not durable yet. */
  pending: string;
  /** All of it that is durable. */
  text: string;
  /** It is complete, or another writes it. */
  over: boolean;
}

/** Makes the message, or takes up the one that is there, and becomes its writer. */
async function openStream(call: Call, open: StreamOpen): Promise<Stream> {
  const { fencingToken, role } = open;
  const writer = { writer: uuidv7(), fencingToken, exempt: role === MessageRole.HUMAN };
  const [message] = await call.change(ONCE, async (tx) => {
    const found = (await findStreamed(tx, open)) ?? (await appendEmpty(tx, call, open));
    if (found.deleted) throw deleted('message');
    const appended = found.state === MessageState.COMPLETE && !found.streamed && found.content !== '';
    if (appended || found.role !== role || found.toolCallId !== open.toolCallId) throw clientIdReused();
    if (isFinished(found)) return [found];
    const started = await startStream(
      tx,
      { ...writer, messageId: found.id },
      Buffer.byteLength(found.content),
      open.sessionId || null,
    );
    if (!started) throw await whyNotWritten(call.db, open, writer.exempt);
    return [found];
  });
  const { id, content } = message!;
  const stored = Buffer.byteLength(content);
  const over = isFinished(message!);
  if (!message!.streamed) call.count('created', 'messages', 1);
  return {
    open,
    message: message!,
    by: { ...writer, messageId: id },
    stored,
    storedAt: 0,
    pending: '',
    text: content,
    over,
  };
}

const isFinished = ({ state, streamed }: StreamedRow) => state === MessageState.COMPLETE && streamed;

async function appendEmpty(tx: TenantTx, call: Call, open: StreamOpen): Promise<StreamedRow> {
  const { role, clientId, toolCallId } = open;
  const messages = [Message.fromPartial({ role, clientId, toolCallId })];
  const append = {
    ...open,
    messages,
    tokenCounts: [0],
    messageLimit: call.identity.membership.quotas.maxMessagesPerThread,
  };
  const [appended] = await appendMessages(tx.step, append);
  if (!appended) throw await whyNotAppended(call.db, append);
  return (await readStreamed(tx, appended.id))!;
}

/** Makes what is pending durable. */
async function store(call: Call, stream: Stream): Promise<StreamMessageResponse> {
  const { by, pending, stored } = stream;
  stream.storedAt = performance.now();
  const [done] = await call.change(ONCE, async (tx) => [await storeText(tx, by, stored, pending)]);
  if (!done) throw await whyNotStored(call, stream);
  stream.pending = '';
  stream.text += pending;
  stream.stored += Buffer.byteLength(pending);
  return answer('ack', { durableOffset: stream.stored });
}

async function keep(call: Call, stream: Stream): Promise<void> {
  const [kept] = await call.change(ONCE, async (tx) => [await keepStream(tx, stream.by)]);
  if (!kept) throw await whyNotStored(call, stream);
}

async function finish(call: Call, stream: Stream, metadata: JsonObject | undefined): Promise<StreamedRow> {
  const [tokenCount] = await contentTokens([{ content: stream.text }]);
  const [ended] = await call.change(ONCE, async (tx) => [
    await finishStream(tx, stream.by, tokenCount!, json(metadata)),
  ]);
  if (!ended) throw await whyNotStored(call, stream);
  stream.over = true;
  return ended;
}

/** Leaves the message as one that broke off, with all of its text that came. */
async function interrupt(call: Call, stream: Stream): Promise<void> {
  if (stream.pending) await store(call, stream).catch(() => {}); // it was not acknowledged
  await call.change(ONCE, async (tx) => [await interruptStream(tx, stream.by.messageId, stream.by.writer)]);
}

/** Why this call may not write the message any more. */
async function whyNotStored(call: Call, stream: Stream): Promise<RpcError> {
  const { by, message, open } = stream;
  const now = await readStreamed(call.db, by.messageId);
  if (!now) {
    await requireThread(call.db, message.threadId);
    return deleted('message'); // the thread was cleared
  }
  if (now.deleted) return deleted('message');
  if (now.writer === by.writer) return whyNotWritten(call.db, open, by.exempt);
  if (now.writer || isFinished(now))
    return new RpcError(status.ABORTED, 'STREAM_TAKEN', 'another stream writes the message');
  return unavailable('STREAM_LOST', 'the message was taken for interrupted; open it again');
}

function answer<Case extends ResponseFrame['$case']>(
  $case: Case,
  value: Extract<ResponseFrame, { $case: Case }>['value'],
): StreamMessageResponse {
  return { frame: { $case, value } as ResponseFrame };
}

/** As an append tells a message. */
const finished = ({ id, threadId, seq, clientId, createTime, state, tokenCount }: StreamedRow): StreamMessageResponse =>
  answer('finished', {
    message: Message.fromPartial({ id, threadId, seq, clientId, createTime, state, tokenCount: tokenCount ?? 0 }),
  });

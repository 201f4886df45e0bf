import { status } from '@grpc/grpc-js';
import { Interrupted } from '../db/failure.ts';
import type { StreamMessageRequest, StreamOpen } from '../gen/memory/v1/conversation_service.ts';
import { MessageRole } from '../gen/memory/v1/message.ts';
import { invalid, RpcError } from '../rpc/errors.ts';
import { Check } from '../rpc/validate.ts';
import { CONTENT_BYTES, checkTarget } from '../threads/message.ts';

export type Frame = NonNullable<StreamMessageRequest['frame']>;

const CHUNK_BYTES = 64 * 1024;

const misplaced = (field: string, description: string) => invalid([{ field, description }]);

/** The frames of a stream, until the call ends, which a stream that its client has left does not always tell. */
export function framesOf(
  requests: AsyncIterable<StreamMessageRequest>,
  signal: AbortSignal,
): { next(): Promise<Frame> } {
  const source = requests[Symbol.asyncIterator]();
  const ended = new Promise<never>((_, reject) => {
    const end = () => reject(new Interrupted('the call is over'));
    if (signal.aborted) end();
    else signal.addEventListener('abort', end, { once: true });
  });
  ended.catch(() => {});

  async function read(): Promise<Frame> {
    const { done, value } = await Promise.race([source.next(), ended]);
    if (done) throw misplaced('finish', 'the stream ended without it');
    if (!value.frame) throw misplaced('frame', 'required');
    return value.frame;
  }
  return {
    next() {
      const frame = read();
      frame.catch(() => {}); // it may come to nothing while nobody looks
      return frame;
    },
  };
}

function checkFrame(check: Check, frame: Frame): void {
  if (frame.$case === 'chunk') {
    check.seq('chunk.offset', frame.value.offset);
    check.content('chunk.text', frame.value.text, CHUNK_BYTES);
  } else if (frame.$case === 'finish') {
    check.struct('finish.metadata', frame.value.metadata);
  } else {
    checkTarget(check, frame.value, 'open.');
    check.oneOf('open.role', frame.value.role, MessageRole);
    check.id('open.client_id', frame.value.clientId);
    check.optionalId('open.tool_call_id', frame.value.toolCallId);
  }
}

/** The first frame. */
export function openOf(frame: Frame): StreamOpen {
  const check = new Check();
  checkFrame(check, frame);
  check.that(frame.$case === 'open', 'open', 'required, and first');
  check.done();
  return frame.value as StreamOpen;
}

/** One of the other frames, where the text so far ends at `expected`. */
export function laterFrame(frame: Frame, expected: number): Exclude<Frame, { $case: 'open' }> {
  const check = new Check();
  checkFrame(check, frame);
  if (frame.$case === 'chunk') {
    const total = expected + Buffer.byteLength(frame.value.text);
    check.that(total <= CONTENT_BYTES, 'chunk.text', `the message is over ${CONTENT_BYTES / 1024} KiB`);
  }
  check.that(frame.$case !== 'open', 'open', 'only once, and first');
  check.done();
  if (frame.$case === 'chunk' && frame.value.offset !== expected) throw offsetMismatch(expected);
  return frame as Exclude<Frame, { $case: 'open' }>;
}

const offsetMismatch = (expected: number) =>
  new RpcError(status.INVALID_ARGUMENT, 'OFFSET_MISMATCH', `chunk.offset: the text so far ends at ${expected}`, {
    metadata: { expected_offset: String(expected) },
    violations: [{ field: 'chunk.offset', description: `not ${expected}` }],
  });

/** What a promise comes to, or undefined if that takes longer than so many milliseconds. */
export async function within<T>(promise: Promise<T>, ms: number): Promise<T | undefined> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<undefined>((resolve) => {
    timer = setTimeout(() => resolve(undefined), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

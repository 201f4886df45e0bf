import { status } from '@grpc/grpc-js';
import { Interrupted } from '../db/failure.ts';
import type { StreamFinish, StreamMessageRequest, StreamOpen } from '../gen/memory/v1/conversation_service.ts';
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

export function openOf(frame: Frame): StreamOpen {
  if (frame.$case !== 'open') throw misplaced('open', 'required, and first');
  const open = frame.value;
  const check = new Check();
  checkTarget(check, open, 'open.');
  check.oneOf('open.role', open.role, MessageRole);
  check.id('open.client_id', open.clientId);
  check.optionalId('open.tool_call_id', open.toolCallId);
  check.done();
  return open;
}

/** The text of a chunk, which must start where the text so far ends. */
export function chunkOf(frame: Frame, expected: number): string {
  if (frame.$case !== 'chunk') throw misplaced(frame.$case, 'only once, and first');
  const { offset, text } = frame.value;
  const check = new Check();
  check.seq('chunk.offset', offset);
  check.content('chunk.text', text, CHUNK_BYTES);
  const total = expected + Buffer.byteLength(text);
  check.that(total <= CONTENT_BYTES, 'chunk.text', `the message is over ${CONTENT_BYTES / 1024} KiB`);
  check.done();
  if (offset !== expected) {
    throw new RpcError(
      status.INVALID_ARGUMENT,
      'OFFSET_MISMATCH',
      `chunk.offset: the text so far ends at ${expected}, not at ${offset}`,
      {
        metadata: { expected_offset: String(expected) },
        violations: [{ field: 'chunk.offset', description: `not ${expected}` }],
      },
    );
  }
  return text;
}

export function checkFinish({ metadata }: StreamFinish): void {
  const check = new Check();
  check.struct('finish.metadata', metadata);
  check.done();
}

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

import { setTimeout as sleep } from 'node:timers/promises';
import { type Metadata, type ServiceError, status } from '@grpc/grpc-js';
import type { ConversationServiceClient, StreamChunk, StreamOpen } from './gen/memory/v1/conversation_service.ts';
import type { Message } from './gen/memory/v1/message.ts';
import type { ThreadEvent } from './gen/memory/v1/thread_event.ts';

/** Follows a thread from a revision on, over as many calls as it takes: each event once, without a gap. */
export async function* watch(
  conversation: ConversationServiceClient,
  metadata: Metadata,
  threadId: string,
  afterRevision: number,
): AsyncGenerator<ThreadEvent> {
  for (;;) {
    const call = conversation.watchThread({ threadId, afterRevision }, metadata);
    call.on('error', () => {}); // comes when it is cancelled as well
    try {
      for await (const { event } of call) {
        afterRevision = event.revision;
        yield event;
      }
      return; // the thread was deleted
    } catch (error) {
      if (!isPassing(error as ServiceError)) throw error;
    } finally {
      call.cancel();
    }
    await sleep(250 + Math.random() * 250);
  }
}

/** Stores a message while its text comes, in pieces of at most 64 KiB, over as many calls as it takes. */
export async function stream(
  conversation: ConversationServiceClient,
  metadata: Metadata,
  open: StreamOpen,
  pieces: AsyncIterable<string>,
): Promise<Message | undefined> {
  const chunks: StreamChunk[] = [];
  let finished = false;
  let failure: Error | undefined;
  let send = () => {};
  async function collect() {
    let offset = 0;
    for await (const text of pieces) {
      chunks.push({ offset, text });
      offset += Buffer.byteLength(text);
      send();
    }
    finished = true;
  }
  collect()
    .catch((error) => {
      failure = error; // the message is left INTERRUPTED
    })
    .finally(() => send());

  for (;;) {
    const call = conversation.streamMessage(metadata);
    call.on('error', () => {});
    call.write({ frame: { $case: 'open', value: open } });
    try {
      for await (const { frame } of call) {
        if (frame?.$case === 'finished') return frame.value.message;
        if (frame?.$case !== 'opened') continue;
        let next = chunks.filter(({ offset }) => offset < frame.value.durableOffset).length;
        send = () => {
          if (failure) call.destroy(failure);
          for (; next < chunks.length; next++) call.write({ frame: { $case: 'chunk', value: chunks[next]! } });
          if (finished) call.end({ frame: { $case: 'finish', value: { metadata: undefined } } });
        };
        send();
      }
    } catch (error) {
      if (!isPassing(error as ServiceError)) throw error;
    } finally {
      send = () => {};
      call.cancel();
    }
    await sleep(250 + Math.random() * 250);
  }
}

/** Whether to go on: the server asks for it, or the call broke and nobody said why. */
function isPassing({ code, metadata }: ServiceError): boolean {
  if (code === status.UNAVAILABLE || code === status.RESOURCE_EXHAUSTED) return true;
  return metadata !== undefined && metadata.get('grpc-status-details-bin').length === 0;
}

import { setTimeout as sleep } from 'node:timers/promises';
import { type ServiceError, status } from '@grpc/grpc-js';
import type { Scope } from '../src/db/transaction.ts';
import { ConversationServiceService as Conversation } from '../src/gen/memory/v1/conversation_service.ts';
import { answer } from './child.ts';
import { connect } from './client.ts';
import { appendMessages } from './subjects.ts';

/** Who makes noise: so many callers that append, each as soon as it was answered or may try again. */
export interface Noise {
  address: string;
  scope: Scope;
  callers: number;
}

let ending = new AbortController();
let callers: Promise<void>[] = [];

/** Makes noise until it is stopped. */
function start({ address, scope, callers: count }: Noise): void {
  const { call } = connect(address, scope);
  ending = new AbortController();
  const { signal } = ending;
  const append = async (threadId: string) => {
    while (!signal.aborted) {
      await call(Conversation.appendMessages, appendMessages(threadId)).catch((error: ServiceError) => {
        if (error.code !== status.RESOURCE_EXHAUSTED) throw error;
        const [waitMs] = error.metadata.get('grpc-retry-pushback-ms');
        return sleep(Number(waitMs), undefined, { signal }).catch(() => {});
      });
    }
  };
  callers = Array.from({ length: count }, (_, caller) => append(`noise-${caller}`));
}

async function stop(): Promise<void> {
  ending.abort();
  await Promise.all(callers);
}

answer({ start, stop });

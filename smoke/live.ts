import { randomUUID } from 'node:crypto';
import type { Caller, Stream } from './callers.ts';
import { same } from './surprise.ts';

const CONVERSATION = 'memory.v1.ConversationService';

interface Tour {
  caller: Caller;
  headers: Record<string, string>;
  threadId: string;
  ok(method: string, request: object): Promise<any>;
  say(step: string, answer: string): void;
}

/** A conversation watched while a message is streamed into it, breaks off, goes on, and goes away again. */
export async function live({ caller, headers, threadId, ok, say }: Tour): Promise<void> {
  const open: Stream[] = [];
  function stream(method: string, request: object): Stream {
    const opened = caller.open(`${CONVERSATION}/${method}`, headers);
    open.push(opened);
    opened.send(request);
    return opened;
  }
  const watched = (afterRevision: string): Stream => {
    const watch = stream('WatchThread', { threadId, afterRevision });
    watch.end();
    return watch;
  };

  try {
    const messages = [{ role: 'MESSAGE_ROLE_HUMAN', content: 'Who watches?' }];
    await ok(`${CONVERSATION}/AppendMessages`, { threadId, messages, requestId: randomUUID() });
    const watch = watched('0');
    const { appended: question } = await nextEvent(watch);
    same('the content', question?.message.content, messages[0]!.content);
    say('WatchThread', `“${question.message.content}” was there, and the watch stays open`);

    const named = { threadId, role: 'MESSAGE_ROLE_ASSISTANT', clientId: 'answer' };
    const first = stream('StreamMessage', { open: named });
    same('where the message starts', (await first.next()).opened?.durableOffset, '0');
    first.send({ chunk: { offset: 0, text: 'Everyone ' } });
    same('what is durable', (await first.next()).ack?.durableOffset, '9');
    first.cut();
    same('the state', (await nextEvent(watch)).appended?.message.state, 'MESSAGE_STATE_STREAMING');
    same('the text', (await nextEvent(watch)).textDelta, { seq: '2', offset: '0', text: 'Everyone ' });
    const broken = await nextEvent(watch);
    same('the state', broken.finished?.message.state, 'MESSAGE_STATE_INTERRUPTED');
    say('StreamMessage', 'broke off after “Everyone ”, which is durable; the watch was told all of it');

    const second = stream('StreamMessage', { open: named });
    same('where the message goes on', (await second.next()).opened?.durableOffset, '9');
    second.send({ chunk: { offset: 9, text: 'who may.' } });
    second.send({ finish: {} });
    second.end();
    let answer = await second.next();
    while (answer.ack) answer = await second.next();
    same('the state', answer.finished?.message.state, 'MESSAGE_STATE_COMPLETE');
    const rest = [await nextEvent(watch), await nextEvent(watch)];
    same('the text', rest[0].textDelta, { seq: '2', offset: '9', text: 'who may.' });
    same('the state', rest[1].finished?.message.state, 'MESSAGE_STATE_COMPLETE');
    say('StreamMessage', 'went on at byte 9 by the same client_id, and finished');

    const again = watched(broken.revision);
    same('what another watch tells', [await nextEvent(again), await nextEvent(again)], rest);
    say('WatchThread', `another one, after revision ${broken.revision}: the rest, each event once`);

    await ok(`${CONVERSATION}/DeleteMessage`, { messageId: answer.finished.message.id, requestId: randomUUID() });
    same('what was deleted', (await nextEvent(watch)).deleted, { seq: '2' });
    await ok(`${CONVERSATION}/ClearHistory`, { threadId, requestId: randomUUID() });
    same('what was cleared', (await nextEvent(watch)).cleared, { throughSeq: '2' });
    await ok(`${CONVERSATION}/DeleteThread`, { threadId });
    same('the end', (await nextEvent(watch)).ended, {});
    say('WatchThread', 'told that seq 2 was deleted, that the thread was cleared, and that it is gone');
  } finally {
    for (const stream of open) stream.cut();
  }
}

/** What a watch tells next; a bookmark tells nothing new. */
async function nextEvent(watch: Stream): Promise<any> {
  for (;;) {
    const { event } = await watch.next();
    if (!event.bookmark) return event;
  }
}

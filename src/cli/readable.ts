import type { styleText } from 'node:util';
import { SessionEnded_Reason, type WatchSessionResponse } from '../gen/memory/v1/memory_service.ts';
import { type Message, MessageRole, MessageState } from '../gen/memory/v1/message.ts';
import { Session } from '../gen/memory/v1/session.ts';
import type { ThreadEvent } from '../gen/memory/v1/thread_event.ts';
import { type Kind, protoJson, type Telling, visible } from './telling.ts';

/** Dresses text for a terminal. */
type Style = (format: Parameters<typeof styleText>[0], text: string) => string;

const ROLES: Record<number, [name: string, colour: Parameters<typeof styleText>[0]]> = {
  [MessageRole.HUMAN]: ['human', 'cyan'],
  [MessageRole.ASSISTANT]: ['assistant', 'green'],
  [MessageRole.SYSTEM]: ['system', 'yellow'],
  [MessageRole.TOOL]: ['tool', 'magenta'],
};
const REASONS: Record<number, string> = {
  [SessionEnded_Reason.ENDED]: 'the session was ended',
  [SessionEnded_Reason.EXPIRED]: 'the session has expired',
  [SessionEnded_Reason.DELETED]: 'the session was deleted',
};

// Text is set in: none of its lines can pass for one of ours.
const INDENT = '  ';
const setIn = (text: string) => visible(text).replaceAll('\n', `\n${INDENT}`);

// Swedish writes dates as ISO 8601 does, in the time zone of whoever reads.
const timeOf = (time: { seconds: number } | undefined) =>
  time ? new Date(time.seconds * 1000).toLocaleString('sv') : '';

/** A thread as a conversation. What is streamed appears as it comes; what interrupts it is told between. */
export function readableThread(style: Style): Telling {
  let open: number | undefined;

  const mark = (seq: number) => style('bold', `#${seq}`);
  function pause(): string {
    const end = open === undefined ? '' : '\n';
    open = undefined;
    return end;
  }
  const note = (text: string) => `${pause()}${text}\n`;

  function appended(message: Message): string {
    const { seq, role, toolCallId, forwardedFrom, state, deleteTime, content, createTime } = message;
    const [name, colour] = ROLES[role] ?? ['', 'reset'];
    const of = [
      toolCallId && `of ${toolCallId}`,
      forwardedFrom &&
        `from #${forwardedFrom.seq} of ${forwardedFrom.threadId}${forwardedFrom.unverified ? ', unverified' : ''}`,
    ];
    const about = visible([timeOf(createTime), ...of].filter(Boolean).join('  ')).replaceAll('\n', ' ');
    const head = `${pause()}${mark(seq)} ${style(colour, name)}  ${style('dim', about)}\n${INDENT}`;
    if (deleteTime) return `${head}${style('red', 'deleted since')}\n`;
    if (state !== MessageState.STREAMING) return `${head}${setIn(content)}\n`;
    open = seq;
    return head;
  }

  function more(seq: number, text: string): string {
    if (open === seq) return setIn(text);
    const head = `${pause()}${mark(seq)} ${style('dim', '…')}\n${INDENT}`;
    open = seq;
    return head + setIn(text);
  }

  function finished({ seq, state, deleteTime, tokenCount }: Message): string {
    if (deleteTime) return note(`${mark(seq)} ${style('red', 'deleted since')}`);
    if (state === MessageState.INTERRUPTED) return note(`${mark(seq)} ${style('yellow', 'interrupted')}`);
    return note(`${mark(seq)} ${style('dim', `finished, ${tokenCount} tokens`)}`);
  }

  return {
    pause,
    tell({ event }) {
      const told = event as ThreadEvent['event'];
      switch (told?.$case) {
        case 'appended':
          return appended(told.value.message!);
        case 'textDelta':
          return more(told.value.seq, told.value.text);
        case 'finished':
          return finished(told.value.message!);
        case 'deleted':
          return note(`${mark(told.value.seq)} ${style('red', 'deleted')}`);
        case 'cleared': {
          const { throughSeq } = told.value;
          return note(style('red', throughSeq ? `cleared up to #${throughSeq}` : 'the thread starts again'));
        }
        case 'ended':
          return note(style('red', 'the thread was deleted'));
        default:
          return '';
      }
    },
  };
}

// Told in the line above the fields, or nothing that a person wants to know.
const NOT_SHOWN = new Set(['revision', 'etag', 'updateTime', 'lastActivityTime']);

/** A session by the fields that changed, at first all that are set. */
export function readableSession(style: Style): Telling {
  let known: Record<string, string> = {};

  function changed(session: Session): string {
    const now: Record<string, string> = {};
    for (const [field, value] of Object.entries(protoJson('Session', Session.encode(session).finish()))) {
      if (!NOT_SHOWN.has(field)) now[field] = visible(JSON.stringify(value));
    }
    const lines = Object.keys({ ...known, ...now })
      .filter((field) => known[field] !== now[field])
      .map((field) => `${INDENT}${style('cyan', field)} ${now[field] ?? style('dim', 'not set any more')}\n`);
    known = now;
    return `${style('bold', `revision ${session.revision}`)}  ${style('dim', timeOf(session.updateTime))}\n${lines.join('')}`;
  }

  return {
    pause: () => '',
    tell({ event }) {
      const told = event as WatchSessionResponse['event'];
      if (told?.$case === 'session') return changed(told.value);
      if (told?.$case === 'ended') return `${style('red', REASONS[told.value.reason] ?? 'the session is over')}\n`;
      return '';
    },
  };
}

export const readable: Record<Kind, (style: Style) => Telling> = { thread: readableThread, session: readableSession };

import { Message, MessageRole } from '../gen/memory/v1/message.ts';
import type { Check } from '../rpc/validate.ts';

export const CONTENT_BYTES = 256 * 1024;
const MAX_APPENDED = 100;

/** The fields of a message that a caller sets. */
export function checkMessage(check: Check, field: string, message: Message): void {
  check.oneOf(`${field}.role`, message.role, MessageRole);
  check.content(`${field}.content`, message.content, CONTENT_BYTES);
  check.struct(`${field}.metadata`, message.metadata);
  check.optionalId(`${field}.tool_call_id`, message.toolCallId);
}

/** What a message takes beside its content and metadata. */
const MESSAGE_BYTES = 200;

/** How many bytes of content these messages are once they are stored. */
export const storedBytes = (messages: Message[]): number =>
  messages.reduce(
    (sum, { content, metadata }) =>
      sum + MESSAGE_BYTES + Buffer.byteLength(content) + (metadata ? Buffer.byteLength(JSON.stringify(metadata)) : 0),
    0,
  );

/** The thread that a write names, by itself or by a session that points to it, and the token of its turn. */
export function checkTarget(
  check: Check,
  { threadId, sessionId, fencingToken }: { threadId: string; sessionId: string; fencingToken: number },
  prefix = '',
): void {
  check.that(Boolean(threadId || sessionId), `${prefix}thread_id`, 'required, unless session_id is given');
  check.optionalId(`${prefix}thread_id`, threadId);
  check.optionalUuid(`${prefix}session_id`, sessionId);
  check.seq(`${prefix}fencing_token`, fencingToken);
}

/** Messages to append in one call. */
export function checkAppended(check: Check, messages: Message[], min: 0 | 1): void {
  if (!check.count('messages', messages, MAX_APPENDED, min)) return;
  const clientIds = new Set<string>();
  messages.forEach((message, i) => {
    const field = `messages[${i}].client_id`;
    checkMessage(check, `messages[${i}]`, message);
    check.optionalId(field, message.clientId);
    check.that(!message.clientId || !clientIds.has(message.clientId), field, 'used twice in the request');
    clientIds.add(message.clientId);
  });
}

/** What an append tells of a message: the fields that the caller does not have yet. */
export function appendedMessage(row: {
  id: string;
  threadId: string;
  seq: number;
  clientId: string | null;
  createTime: Message['createTime'];
}): Message {
  const { id, threadId, seq, clientId, createTime } = row;
  return { ...EMPTY, id, threadId, seq, clientId: clientId ?? '', createTime };
}

const EMPTY = Message.fromPartial({});

import { createHash } from 'node:crypto';
import { Message } from '../gen/memory/v1/message.ts';
import { Check } from '../rpc/validate.ts';
import { CONTENT_BYTES, checkMessage } from '../threads/message.ts';
import type { Report } from './report.ts';
import type { SourceMessage } from './source.ts';

/** A message that is ready to be appended, and when it was written. */
export interface Dated {
  message: Message;
  time: string | undefined;
}

const MAX_ID = 128;

/**
 * A message of another framework as messages of a thread: one, or as many as its content needs. Each says in its metadata where
 * it comes from, with what its content does not tell, if that fits. None if it says nothing.
 */
export function messagesOf(source: SourceMessage, framework: string, report: Report): Dated[] {
  const { id, role, time } = source;
  // What the service stores no text with.
  const content = source.content.replaceAll('\0', '\ufffd').toWellFormed();
  if (!content) {
    report.leave('messages left out', 'it says nothing', id);
    return [];
  }
  const pieces = split(content);
  if (pieces.length > 1) report.leave('messages of more than 256 KiB, in several', 'nothing of them is lost', id);
  return pieces.map((piece, i) => {
    const message = Message.fromPartial({
      clientId: idOf(i === 0 ? id : `${id}#${i + 1}`),
      role,
      content: piece,
      toolCallId: source.toolCallId,
      metadata: { imported_from: framework, ...(i === 0 ? source.details : {}) },
    });
    const check = new Check();
    checkMessage(check, 'message', message);
    for (const { field, description } of check.violations) {
      const [, name] = field.split(/[.[]/);
      report.leave(`message fields left out: ${name}`, description, id);
      if (name === 'metadata') message.metadata = { imported_from: framework };
      if (name === 'tool_call_id') message.toolCallId = '';
    }
    return { message, time };
  });
}

/** An id of at most 128 characters; a longer one by its hash, which is the same each time. */
const idOf = (id: string): string =>
  id.length <= MAX_ID ? id : `sha256:${createHash('sha256').update(id).digest('hex')}`;

/** A text in pieces of at most 256 KiB, none of which ends within a character. */
function split(text: string): string[] {
  const bytes = Buffer.from(text);
  const pieces: string[] = [];
  for (let from = 0; from < bytes.length; ) {
    let end = Math.min(from + CONTENT_BYTES, bytes.length);
    while (end < bytes.length && (bytes[end]! & 0xc0) === 0x80) end--;
    pieces.push(bytes.toString('utf8', from, end));
    from = end;
  }
  return pieces;
}

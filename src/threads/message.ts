import { type Message, MessageRole } from '../gen/memory/v1/message.ts';
import type { Check } from '../rpc/validate.ts';

const CONTENT_BYTES = 256 * 1024;

/** The fields of a message that a caller sets. */
export function checkMessage(check: Check, field: string, message: Message): void {
  check.oneOf(`${field}.role`, message.role, MessageRole);
  check.content(`${field}.content`, message.content, CONTENT_BYTES);
  check.struct(`${field}.metadata`, message.metadata);
  check.optionalId(`${field}.tool_call_id`, message.toolCallId);
}

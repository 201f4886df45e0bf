import { Buffer, isUtf8 } from 'node:buffer';

/** Decodes UTF-8 and refuses what is not, where the decoder's default would put U+FFFD. */
export function decodeStrictUtf8(bytes: Uint8Array): string {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8');
  // Only a text with U+FFFD can have been malformed: checking just these spares a pass over all others.
  if (text.includes('\ufffd') && !isUtf8(bytes)) throw new Error('text that is not valid UTF-8');
  return text;
}

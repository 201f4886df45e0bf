/** What a reader of JSON text is told, by offsets into its bytes; those of texts include the quotes. */
export interface JsonEvents {
  open(array: boolean, at: number): void;
  close(end: number): void;
  key(from: number, to: number): void;
  scalar(from: number, to: number): void;
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const LITERALS = ['true', 'false', 'null', 'NaN', 'Infinity', '-Infinity'].map((word) => Buffer.from(word));
const BOM = Buffer.from('\ufeff');

const isDigit = (byte: number | undefined) => byte !== undefined && byte >= 0x30 && byte <= 0x39;
const isHex = (byte: number | undefined) =>
  isDigit(byte) || (byte !== undefined && /[a-f]/i.test(String.fromCharCode(byte)));

/**
 * Reads JSON text from its bytes, which are UTF-8, and says whether it is JSON. Nothing is built and nothing recurses, so
 * that 4 MB of any shape cost a few milliseconds: `JSON.parse` takes a third of a second for 4 MB of `[` or of `[],`. A byte
 * order mark, and the NaN and Infinity that some writers leave in tables, are let through.
 */
export function readJson(bytes: Buffer, events: JsonEvents): boolean {
  const arrays: boolean[] = []; // the containers that are open: whether each is an array
  let at = bytes.subarray(0, 3).equals(BOM) ? 3 : 0;

  function skipSpace(): number | undefined {
    let byte = bytes[at];
    while (byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09) byte = bytes[++at];
    return byte;
  }

  /** Past the text that starts here, or -1. */
  function textEnd(): number {
    for (let i = at + 1; i < bytes.length; i++) {
      const byte = bytes[i]!;
      if (byte === QUOTE) return i + 1;
      if (byte < 0x20) return -1;
      if (byte !== BACKSLASH) continue;
      const escaped = bytes[++i];
      if (escaped === 0x75) {
        for (const last = i + 4; i < last; ) if (!isHex(bytes[++i])) return -1;
      } else if (escaped === undefined || !'"\\/bfnrt'.includes(String.fromCharCode(escaped))) return -1;
    }
    return -1;
  }

  function digitsEnd(from: number): number {
    let i = from;
    while (isDigit(bytes[i])) i++;
    return i > from ? i : -1;
  }

  function numberEnd(): number {
    const first = bytes[at] === 0x2d ? at + 1 : at;
    let i = bytes[first] === 0x30 ? first + 1 : digitsEnd(first);
    if (i > 0 && bytes[i] === 0x2e) i = digitsEnd(i + 1);
    if (i > 0 && (bytes[i] === 0x65 || bytes[i] === 0x45)) {
      i = digitsEnd(bytes[i + 1] === 0x2b || bytes[i + 1] === 0x2d ? i + 2 : i + 1);
    }
    return i;
  }

  function startsWith(word: Buffer): boolean {
    for (let i = 0; i < word.length; i++) if (bytes[at + i] !== word[i]) return false;
    return true;
  }

  function scalarEnd(first: number): number {
    if (first === QUOTE) return textEnd();
    if (isDigit(first)) return numberEnd();
    const word = LITERALS.find((literal) => startsWith(literal));
    return word ? at + word.length : numberEnd();
  }

  for (let expected: 'value' | 'first' | 'key' | 'next' = 'value'; ; ) {
    const byte = skipSpace();
    if (byte === undefined) return arrays.length === 0 && expected === 'next';
    const inArray = arrays[arrays.length - 1];
    const closing = byte === 0x5d || byte === 0x7d;
    if (closing && (expected === 'first' || expected === 'next') && inArray === (byte === 0x5d)) {
      arrays.pop();
      events.close(++at);
      expected = 'next';
    } else if (expected === 'next') {
      if (inArray === undefined || byte !== 0x2c) return false;
      at++;
      expected = inArray ? 'value' : 'key';
    } else if (expected === 'key' || (expected === 'first' && !inArray)) {
      const end = byte === QUOTE ? textEnd() : -1;
      if (end < 0) return false;
      events.key(at, end);
      at = end;
      if (skipSpace() !== 0x3a) return false;
      at++;
      expected = 'value';
    } else if (byte === 0x5b || byte === 0x7b) {
      arrays.push(byte === 0x5b);
      events.open(byte === 0x5b, at++);
      expected = 'first';
    } else {
      const end = scalarEnd(byte);
      if (end < 0) return false;
      events.scalar(at, end);
      at = end;
      expected = 'next';
    }
  }
}

/** The text between the quotes at these offsets, of which at least the first `most` characters. */
export function textAt(bytes: Buffer, from: number, to: number, most: number): string {
  let end = from + 1;
  // By whole characters and escapes, so that the part is JSON as well; an escape may be half a character.
  for (let units = 0; end < to - 1 && units < 2 * most; units++) {
    const byte = bytes[end]!;
    if (byte === BACKSLASH) end += bytes[end + 1] === 0x75 ? 6 : 2;
    else end += byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
  }
  const plain = bytes.toString('utf8', from + 1, end);
  return plain.includes('\\') ? JSON.parse(`"${plain}"`) : plain;
}

/** Bytes that are read for a preview. */
export const WINDOW = 8192;

/** The JSON at these offsets as text without the spaces between its tokens, or what 8 KiB hold of it. */
export function jsonAt(bytes: Buffer, from: number, to: number): string {
  if (bytes[from] === QUOTE) return textAt(bytes, from, to, WINDOW / 12);
  let end = Math.min(to, from + WINDOW);
  while (end < to && (bytes[end]! & 0xc0) === 0x80) end--; // not within a character
  const dense = bytes.toString('utf8', from, end).replace(TEXT_OR_SPACE, (_, text?: string) => {
    if (!text) return '';
    return text.includes('\\u') && text.endsWith('"') ? unescaped(text) : text;
  });
  return end < to ? `${dense}…` : dense;
}

const TEXT_OR_SPACE = /("(?:[^"\\]|\\[\s\S])*(?:"|\\?$))|[ \n\r\t]+/g;

// Shown as people read it; a lone surrogate stays escaped.
function unescaped(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text));
  } catch {
    return text; // cut within
  }
}

// HTTP/2 by hand, for what no client would send.

export const PREFACE = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');

export const TYPE = {
  data: 0,
  headers: 1,
  priority: 2,
  reset: 3,
  settings: 4,
  push: 5,
  ping: 6,
  goaway: 7,
  window: 8,
  continuation: 9,
};
export const FLAG = { endStream: 1, ack: 1, endHeaders: 4, padded: 8, priority: 32 };

interface FrameParts {
  type: number;
  flags?: number;
  stream?: number;
  payload?: Buffer;
  /** What it says its length is, if that is not true. */
  length?: number;
}

export function frame({ type, flags = 0, stream = 0, payload = Buffer.alloc(0), length }: FrameParts): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(length ?? payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
}

export const uint32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
};

export function settings(pairs: Record<number, number> = {}): Buffer {
  const payload = Buffer.concat(
    Object.entries(pairs).map(([id, value]) => Buffer.concat([Buffer.from([0, Number(id)]), uint32(value)])),
  );
  return frame({ type: TYPE.settings, payload });
}

/** HPACK's integer after a prefix of so many bits. */
function integer(value: number, bits: number, first = 0): Buffer {
  const most = 2 ** bits - 1;
  if (value < most) return Buffer.from([first | value]);
  const bytes = [first | most];
  let left = value - most;
  for (; left >= 128; left >>>= 7) bytes.push((left & 127) | 128);
  return Buffer.from([...bytes, left]);
}

const literal = (text: string): Buffer => Buffer.concat([integer(Buffer.byteLength(text), 7), Buffer.from(text)]);

/** Headers as literals, neither indexed nor compressed, or (`indexed`) put into the dynamic table. */
export const hpack = (headers: Record<string, string>, indexed = false): Buffer =>
  Buffer.concat(
    Object.entries(headers).flatMap(([name, value]) => [
      Buffer.from([indexed ? 0x40 : 0]),
      literal(name),
      literal(value),
    ]),
  );

/** So many references to the newest entry of the dynamic table: one byte each for as much as the entry holds. */
export const references = (count: number): Buffer => Buffer.alloc(count, 0x80 | 62);

export const headersFrame = (stream: number, block: Buffer, flags = FLAG.endHeaders): Buffer =>
  frame({ type: TYPE.headers, flags, stream, payload: block });

/** A message as gRPC frames it, or with a length or a flag that is not right. */
export const grpcMessage = (bytes: Buffer, { flag = 0, length = bytes.length } = {}): Buffer =>
  Buffer.concat([Buffer.from([flag]), uint32(length), bytes]);

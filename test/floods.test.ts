import { connect as connectTcp } from 'node:net';
import { expect } from 'chai';
import type { RunningServer } from '../src/server.ts';
import { connect, headersOf, newTenant, startTestServer } from './support.ts';

const [DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION] = [0, 1, 3, 4, 6, 9];
const [ACK, END_STREAM, END_HEADERS] = [1, 1, 4];
const CANCEL = Buffer.from([0, 0, 0, 8]);
const NONE = Buffer.alloc(0);

function frame(type: number, flags: number, stream: number, payload: Buffer): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
}

/** Header fields as HPACK takes them without tables. */
const fields = (headers: Record<string, string>): Buffer =>
  Buffer.concat(
    Object.entries(headers).map(([name, value]) =>
      Buffer.concat([
        Buffer.from([0, name.length]),
        Buffer.from(name),
        Buffer.from([value.length]),
        Buffer.from(value),
      ]),
    ),
  );

describe('floods of frames', () => {
  let server: RunningServer;
  let tenant: string;
  let request: Buffer;

  before(async () => {
    server = await startTestServer();
    tenant = await newTenant();
    request = fields({
      ':method': 'POST',
      ':scheme': 'http',
      ':path': '/memory.v1.MemoryService/ListSessions',
      ':authority': 'localhost',
      'content-type': 'application/grpc',
      te: 'trailers',
      ...headersOf(tenant),
    });
  });
  after(() => server.stop());

  const id = (i: number) => 1 + 2 * i;
  const FLOODS: [what: string, opening: () => Buffer, next: (i: number) => Buffer][] = [
    [
      'calls that are cancelled at once',
      () => NONE,
      (i) =>
        Buffer.concat([
          frame(HEADERS, END_HEADERS, id(i), request),
          frame(DATA, END_STREAM, id(i), Buffer.alloc(5)),
          frame(RST_STREAM, 0, id(i), CANCEL),
        ]),
    ],
    [
      'headers without an end',
      () => frame(HEADERS, 0, 1, request),
      (i) => frame(CONTINUATION, 0, 1, fields({ [`x-${i}`]: 'y'.repeat(100) })),
    ],
    ['data without bytes', () => frame(HEADERS, END_HEADERS, 1, request), () => frame(DATA, 0, 1, NONE)],
    ['pings', () => NONE, () => frame(PING, 0, 0, Buffer.alloc(8))],
    ['settings', () => NONE, () => frame(SETTINGS, 0, 0, NONE)],
  ];
  for (const [what, opening, next] of FLOODS) {
    it(`end their connection and no other: ${what}`, async () => {
      const client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
      await client.memory.listSessions({});
      const socket = connectTcp(server.port, '127.0.0.1'); // nobody reads what it answers
      socket.on('error', () => {});
      const closed = new Promise<void>((resolve) => socket.on('close', () => resolve()));
      socket.write('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
      socket.write(Buffer.concat([frame(SETTINGS, 0, 0, NONE), frame(SETTINGS, ACK, 0, NONE), opening()]));
      for (let i = 0; !socket.destroyed; i++) {
        const hundred = Buffer.concat(Array.from({ length: 100 }, (_, j) => next(i * 100 + j)));
        if (!socket.write(hundred))
          await Promise.race([new Promise((resolve) => socket.once('drain', resolve)), closed]);
      }
      await closed;
      expect((await client.memory.listSessions({})).sessions).to.deep.equal([]);
      client.close();
    });
  }
});

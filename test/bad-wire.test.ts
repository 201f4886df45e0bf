import { randomBytes, randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import fc from 'fast-check';
import { type Callers, startCallers } from './fixtures/callers.ts';
import { PROBES } from './fixtures/probes.ts';
import { RPCS } from './fixtures/rpcs.ts';
import { leavesOf } from './fixtures/schema.ts';
import { double, field, message, number, text, time, varint } from './fixtures/wire.ts';
import { type Clients, failure } from './support.ts';

const { INVALID_ARGUMENT } = status;
const UPSERT = '/memory.v1.MemoryService/UpsertSession';
const APPEND = '/memory.v1.ConversationService/AppendMessages';
const upsert = (...fields: Buffer[]) => Buffer.from(message(field(1, message(field(3, text('web')), ...fields))));

describe('bad bytes', () => {
  let callers: Callers;
  let client: Clients;
  let headers: Callers['headers'];
  let send: Callers['send'];

  before(async () => {
    callers = await startCallers({ pii: 3 });
    ({ client, headers, send } = callers);
  });
  after(() => callers?.stop());
  afterEach(() => callers.alive());

  it('is answered as such by every method when the request is empty', async () => {
    for (const rpc of RPCS) {
      const { name } = await send(rpc.path, Buffer.alloc(0), headers[PROBES[rpc.name]!.access]);
      expect(name, rpc.name).to.be.oneOf(['OK', 'INVALID_ARGUMENT']);
    }
  });

  it('ignores fields that it does not know, and reads others of another wire type as such', async () => {
    const unknown = [
      field(999, text('x')),
      field(1000, varint(7)),
      field(1001, double(1)),
      field(536_870_911, text('')),
    ];
    const group = Buffer.concat([number(2000 * 8 + 3), field(1, varint(1)), number(2000 * 8 + 4)]);
    const known = await send(UPSERT, Buffer.concat([upsert(...unknown, group), ...unknown, group]));
    expect(known.name, known.message).to.equal('OK');
    const wrong = await send(UPSERT, Buffer.from(message(field(1, message(field(3, varint(5)), field(6, double(1)))))));
    expect(wrong.fields).to.deep.equal(['session.surface_id']);
  });

  it('refuses what is no protobuf, and says so', async () => {
    const good = Buffer.concat([upsert(field(6, text('title'))), field(10, text(randomUUID()))]);
    const deepGroup = Buffer.concat([...Array(100_000).fill(number(2000 * 8 + 3))]);
    const cases: Record<string, Buffer> = {
      'a cut length': good.subarray(0, good.length - 1),
      'a cut message': good.subarray(0, 5),
      'a length past the end': Buffer.concat([number(10), number(2 ** 31), Buffer.from('x')]),
      'an endless varint': Buffer.alloc(30, 0xff),
      'a cut varint': Buffer.from([0x28, 0x80]),
      'the field number 0': Buffer.concat([good, Buffer.from([0, 0, 1, 2])]),
      'wire type 6': Buffer.from([0x0e]),
      'wire type 7': Buffer.from([0x0f, 1, 2]),
      'a group that does not end': number(2000 * 8 + 3),
      'a group in groups': deepGroup,
      'the end of a group that did not start': Buffer.concat([number(2000 * 8 + 4), good]),
      'a cut double': Buffer.from(
        message(field(1, message(field(10, message(field(1, Buffer.from([0x12, 0x09, 0x11, 1, 2]))))))),
      ),
    };
    for (const [what, bytes] of Object.entries(cases)) {
      const { name, reason, message: told } = await send(UPSERT, bytes);
      expect(name, what).to.equal('INVALID_ARGUMENT');
      expect(reason, what).to.equal('MALFORMED_REQUEST');
      if (/cut|past/.test(what)) expect(told, what).to.contain('ends too early');
    }
    for (let end = 1; end < good.length; end++) {
      expect((await send(UPSERT, good.subarray(0, end))).name, `the first ${end} bytes`).to.be.oneOf([
        'INVALID_ARGUMENT',
        'OK',
      ]);
    }
  });

  it('refuses a request over 4 MiB and headers over their limit, and the connection goes on', async () => {
    const large = await send(APPEND, Buffer.concat([field(1, text('t')), field(99, Buffer.alloc(4 * 1024 * 1024))]));
    expect(large.name).to.equal('RESOURCE_EXHAUSTED');
    for (const size of [20_000, 100_000, 1_000_000]) {
      const metadata = headers.member.clone();
      metadata.set('x-junk', 'x'.repeat(size));
      const refused = await client.raw('/memory.v1.ConversationService/ListThreads', Buffer.alloc(0), metadata).then(
        () => 'OK',
        (error) => status[error.code],
      );
      expect(refused, `${size} bytes`).to.not.be.oneOf(['UNKNOWN', 'DEADLINE_EXCEEDED']);
      expect((await send(APPEND, Buffer.alloc(0))).name, `after ${size} bytes`).to.equal('INVALID_ARGUMENT');
    }
    for (const [count, expected] of Object.entries({ 100: 'OK', 1000: 'RESOURCE_EXHAUSTED' })) {
      const metadata = headers.member.clone();
      for (let i = 0; i < Number(count); i++) metadata.add(`x-${i}`, 'x');
      expect((await send('/memory.v1.ConversationService/ListThreads', Buffer.alloc(0), metadata)).name).to.equal(
        expected,
      );
    }
  });

  it('takes only page tokens that it gave out, to the last bit', async () => {
    for (const threadId of ['p1', 'p2', 'p3'])
      await client.conversation.appendMessages({ threadId, messages: [{ role: 1, content: 'x' }] });
    const { nextPageToken: token } = await client.conversation.listThreads({ pageSize: 1 });
    expect((await client.conversation.listThreads({ pageToken: token })).threads).to.not.be.empty;
    const flipped = [...token].map((_, i) => {
      const bytes = Buffer.from(token);
      bytes[i]! ^= 1;
      return bytes.toString('latin1');
    });
    const [id, body = ''] = token.split('.');
    const others = [
      'garbage',
      '.',
      `${id}.`,
      `.${body}`,
      `${token}.`,
      `${token}=`,
      `${token}A`,
      ` ${token}`,
      token.slice(1),
      token.slice(0, -1),
      token.toUpperCase(),
      `${id}.${randomBytes(60).toString('base64url')}`,
      `${token}${token}`,
      'x'.repeat(4096),
      'x'.repeat(5000),
      'x'.repeat(1_000_000),
      '\0',
      '\ud7ff',
      '__proto__',
      '%00',
      '{}',
    ];
    for (const pageToken of [...flipped, ...others]) {
      const refused = await failure(client.conversation.listThreads({ pageToken }));
      expect(refused.code, pageToken.slice(0, 99)).to.equal(INVALID_ARGUMENT);
      expect(refused.violations.map((violation) => violation.field)).to.deep.equal(['page_token']);
    }
  });

  const seed = 20_260_727;
  it(`is never our fault: any bytes to any method (seed ${seed})`, async () => {
    for (const rpc of RPCS) {
      const metadata = headers[PROBES[rpc.name]!.access]!;
      const leaves = leavesOf(rpc.name);
      const anyValue = fc.oneof(
        fc.uint8Array({ maxLength: 40 }).map((bytes) => Buffer.from(bytes)),
        fc.string({ unit: 'binary', maxLength: 60 }).map((s) => Buffer.from(s)),
        fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }).map(varint),
        fc
          .tuple(fc.bigInt({ min: -(2n ** 40n), max: 2n ** 40n }), fc.integer())
          .map(([seconds, nanos]) => time(seconds, nanos)),
        fc.constantFrom(randomUUID(), 'dev', 'user', 'alive', 't').map(text),
      );
      const anyFields = fc
        .array(fc.tuple(leaves.length > 0 ? fc.constantFrom(...leaves) : fc.constant(undefined), anyValue), {
          maxLength: 8,
        })
        .map((parts) => Buffer.concat(parts.map(([leaf, bytes]) => leaf?.request(bytes) ?? Buffer.from(bytes))));
      const body = fc.oneof(
        fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes)),
        anyFields,
      );
      const answered = fc.asyncProperty(body, async (bytes) => {
        const { name, message: told } = await send(rpc.path, bytes, metadata);
        expect(name, told).to.not.be.oneOf(['INTERNAL', 'UNKNOWN', 'DEADLINE_EXCEEDED', 'UNAVAILABLE', 'CANCELLED']);
      });
      await fc.assert(answered, { numRuns: 30, seed });
    }
  });
});

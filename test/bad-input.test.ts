import { randomBytes, randomUUID } from 'node:crypto';
import { type Metadata, type ServiceError, status } from '@grpc/grpc-js';
import { expect } from 'chai';
import fc from 'fast-check';
import type { RunningServer } from '../src/server.ts';
import { PROBES } from './fixtures/probes.ts';
import { RPCS, rpcNamed } from './fixtures/rpcs.ts';
import { leavesOf } from './fixtures/schema.ts';
import { double, field, message, number, struct, structOf, text, time, value, varint } from './fixtures/wire.ts';
import {
  type Clients,
  connect,
  failure,
  failureOf,
  headersOf,
  metadataOf,
  newTenant,
  startTestServer,
} from './support.ts';

const { INVALID_ARGUMENT, NOT_FOUND, OK } = status;
const UPSERT = '/memory.v1.MemoryService/UpsertSession';
const APPEND = '/memory.v1.ConversationService/AppendMessages';

describe('bad input', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;
  let headers: Record<string, Metadata>;

  before(async () => {
    server = await startTestServer();
    tenant = await newTenant(['user', 'admin'], { pii: 3 });
    const user = headersOf(tenant);
    headers = {
      member: metadataOf(user),
      userless: metadataOf(user),
      admin: metadataOf(headersOf(tenant, 'admin')),
      handoff: metadataOf({ ...user, 'x-scopes': 'memory:handoff' }),
      operator: metadataOf({ 'x-scopes': 'memory:operator' }),
    };
    client = connect(`127.0.0.1:${server.port}`, user);
  });
  after(async () => {
    client?.close();
    await server?.stop();
  });

  /** The process lives, and serves the next call. */
  afterEach(async () => {
    const { messages } = await client.conversation.appendMessages({
      threadId: 'alive',
      messages: [{ role: 1, content: 'yes' }],
    });
    expect(messages).to.have.length(1);
  });

  const send = async (path: string, bytes: Buffer, metadata = headers.member!) => {
    const answer = await client.raw(path, bytes, metadata).then(
      (response) => ({ code: OK, message: '', reason: '', violations: [], response }),
      (error: ServiceError) => ({ ...failureOf(error), response: undefined }),
    );
    return { ...answer, name: status[answer.code]!, fields: answer.violations.map((violation) => violation.field) };
  };
  const upsert = (...fields: Buffer[]) => Buffer.from(message(field(1, message(field(3, text('web')), ...fields))));

  it('is told with every violation at once, each by the path of its field', async () => {
    const refused = await failure(
      client.memory.upsertSession({
        requestId: 'x',
        removeRefIds: ['', 'y'.repeat(129)],
        slidingTtl: true,
        updateMask: ['nope'],
        expiration: { $case: 'expireTime', value: { seconds: 1, nanos: 0 } },
        session: {
          id: 'x',
          title: 'x'.repeat(501),
          email: 'nobody',
          threadId: 'x'.repeat(129),
          etag: 'x'.repeat(65),
          state: { a: { b: [1, Number.NaN] } },
          pinnedRefs: [
            { id: 'a', kind: 1 },
            { id: 'a', kind: 7 as 1, text: 'x'.repeat(501) },
          ],
          summaryRefs: [{ throughSeq: -1 }],
        },
      }),
    );
    expect(refused).to.include({ code: INVALID_ARGUMENT, reason: 'INVALID_REQUEST' });
    expect(refused.violations.map((violation) => violation.field)).to.have.members([
      'request_id',
      'remove_ref_ids[0]',
      'remove_ref_ids[1]',
      'sliding_ttl',
      'update_mask',
      'expire_time',
      'session.id',
      'session.title',
      'session.email',
      'session.thread_id',
      'session.etag',
      'session.state.a.b[1]',
      'session.pinned_refs[1].kind',
      'session.pinned_refs[1].text',
      'session.pinned_refs[1].id',
      'session.summary_refs[0].through_seq',
    ]);
  });

  it('is answered as such by every method when the request is empty', async () => {
    for (const rpc of RPCS) {
      const { name } = await send(rpc.path, Buffer.alloc(0), headers[PROBES[rpc.name]!.access]);
      expect(name, rpc.name).to.be.oneOf(['OK', 'INVALID_ARGUMENT']);
    }
  });

  it('names a oneof that is not set', async () => {
    const cases: [string, object, string][] = [
      ['MemoryService/ForwardBundle', { targetThreadId: 't' }, 'source'],
      [
        'MemoryService/ForwardBundle',
        { source: { $case: 'inline', value: { sourceThreadId: 't' } }, targetThreadId: 't' },
        'inline.selection',
      ],
      ['MemoryService/SaveBundle', { sourceThreadId: 't' }, 'selection'],
      ['MemoryService/SaveBundle', { sourceThreadId: 't', selection: {} }, 'selection'],
      ['MemoryService/ResumeSession', {}, 'target'],
      ['MemoryService/UpsertSession', {}, 'session'],
      ['AdminService/CreateTenant', {}, 'tenant'],
      ['ConversationService/AppendMessages', { threadId: 't' }, 'messages'],
    ];
    for (const [name, request, path] of cases) {
      const rpc = rpcNamed(name);
      const { fields } = await send(rpc.path, rpc.encode(request), headers[PROBES[name]!.access]);
      expect(fields, name).to.include(path);
    }
  });

  it('refuses more than its limits, and takes what is just within', async () => {
    const human = (content: string) => ({ role: 1 as const, content });
    const fieldsOf = async (call: Promise<unknown>) =>
      (await failure(call)).violations.map((violation) => violation.field);
    const append = (...contents: string[]) =>
      client.conversation.appendMessages({ threadId: 'limits', messages: contents.map(human) });
    const KIB = 1024;
    expect(await fieldsOf(append('x'.repeat(256 * KIB + 1)))).to.deep.equal(['messages[0].content']);
    expect(await fieldsOf(append('é'.repeat(128 * KIB), 'é'.repeat(128 * KIB + 1)))).to.deep.equal([
      'messages[1].content',
    ]);
    expect(await fieldsOf(append(...Array(101).fill('x')))).to.deep.equal(['messages']);
    expect((await append('x'.repeat(256 * KIB))).messages).to.have.length(1);
    expect((await append(...Array(100).fill('x'))).messages).to.have.length(100);
    const ids = (n: number) => ({
      selection: { $case: 'messageIds', value: { ids: Array.from({ length: n }, () => randomUUID()) } } as const,
    });
    const save = (selection: object) => client.memory.saveBundle({ sourceThreadId: 'limits', selection });
    expect(await fieldsOf(save(ids(501)))).to.deep.equal(['selection.message_ids.ids']);
    expect(await fieldsOf(save(ids(0)))).to.deep.equal(['selection.message_ids.ids']);
    expect((await failure(save(ids(500)))).code).to.equal(NOT_FOUND);
    const twice = randomUUID();
    expect(
      await fieldsOf(save({ selection: { $case: 'messageIds', value: { ids: [twice, twice.toUpperCase()] } } })),
    ).to.deep.equal(['selection.message_ids.ids']);
    const refs = Array.from({ length: 201 }, (_, i) => ({ id: `${i}`, kind: 1 as const }));
    const session = { surfaceId: 'limits', pinnedRefs: refs.slice(0, 150) };
    expect(await fieldsOf(client.memory.upsertSession({ session: { ...session, pinnedRefs: refs } }))).to.deep.equal([
      'session.pinned_refs',
    ]);
    await client.memory.upsertSession({ session });
    expect(
      await fieldsOf(client.memory.upsertSession({ session: { ...session, pinnedRefs: refs.slice(150, 201) } })),
    ).to.deep.equal(['session.pinned_refs']);
    expect(
      await fieldsOf(
        client.memory.upsertSession({ session: { surfaceId: 'web' }, removeRefIds: Array(301).fill('x') }),
      ),
    ).to.deep.equal(['remove_ref_ids']);
  });

  const takesState = async (surfaceId: string, state: object) => {
    expect(JSON.stringify(state).length).to.be.within(63_000, 65_536);
    const { session } = await client.memory.upsertSession({ session: { surfaceId, state } });
    expect(session!.state).to.deep.equal(state);
  };
  it('takes a Struct of just 64 KiB', () => takesState('text', { a: 'x'.repeat(65_528) }));
  it('takes a Struct of just 64 KiB of very many small parts', async () => {
    await takesState('numbers', { a: Array(32_000).fill(1) });
    await takesState('keys', Object.fromEntries(Array.from({ length: 6500 }, (_, i) => [`k${1000 + i}`, i % 10])));
  });

  it('bounds a Struct by its keys, depth and size, whatever it is made of', async () => {
    const many = <T>(count: number, make: (i: number) => T) => Array.from({ length: count }, (_, i) => make(i));
    const odd = value.struct(struct(['__proto__', value.double(1)]));
    for (const content of [
      structOf(many(100_000, (i) => [`${i}`, value.double(Number.NaN)])),
      struct(['a', value.list(many(200_000, () => value.double(Number.NaN)))]),
      struct(['a', value.list(many(9000, () => odd))]),
    ]) {
      const { name, fields } = await send(UPSERT, upsert(field(10, content)));
      expect(name).to.equal('INVALID_ARGUMENT');
      expect(fields.every((path) => path.startsWith('session.state'))).to.equal(true);
      expect(fields).to.not.be.empty;
    }
    const paths = many(500_000, (i) => field(1, text(`${i}`)));
    const flood = await send(UPSERT, Buffer.concat([upsert(), field(2, Buffer.concat(paths))]));
    expect(flood.fields).to.include('update_mask');
  });

  it('bounds pages and bundles by what they hold, not by how well it packs', async () => {
    const metadata = { a: 'x'.repeat(60_000) };
    for (let i = 0; i < 2; i++) {
      const messages = Array.from({ length: 60 }, () => ({ role: 1 as const, content: 'x', metadata }));
      await client.conversation.appendMessages({ threadId: 'packed', messages });
    }
    const { session } = await client.memory.upsertSession({ session: { surfaceId: 'packed', threadId: 'packed' } });
    const page = await client.conversation.listMessages({ threadId: 'packed', pageSize: 500 });
    expect(page.messages.length).to.be.within(10, 20);
    const resumed = await client.memory.resumeSession({
      target: { $case: 'sessionId', value: session!.id },
      lastN: 500,
    });
    expect(resumed.messages.length).to.be.within(10, 20);
    const save = (lastN: number) =>
      client.memory.saveBundle({
        sourceThreadId: 'packed',
        selection: { selection: { $case: 'lastN', value: lastN } },
      });
    expect((await failure(save(120))).violations.map((violation) => violation.field)).to.deep.equal(['selection']);
    expect((await save(15)).bundle!.messages).to.have.length(15);
    const inline = {
      selection: {
        $case: 'inline' as const,
        value: { messages: Array.from({ length: 20 }, () => ({ role: 1 as const, content: 'x', metadata })) },
      },
    };
    expect(
      (await failure(client.memory.saveBundle({ sourceThreadId: 'packed', selection: inline }))).violations.map(
        (violation) => violation.field,
      ),
    ).to.deep.equal(['selection']);
  });

  it('keeps keys that mean something to JavaScript as plain data', async () => {
    const odd = {
      constructor: { prototype: { polluted: true } },
      toString: 'x',
      valueOf: 0,
      toJSON: 'y',
      ...Object.fromEntries([['then', 1]]),
      hasOwnProperty: false,
      '': '',
    };
    const { session } = await client.memory.upsertSession({
      session: { surfaceId: 'odd', preferences: odd, metadata: { list: [odd] } },
    });
    expect(session!.preferences).to.deep.equal(odd);
    expect(session!.metadata).to.deep.equal({ list: [odd] });
    const { session: merged } = await client.memory.upsertSession({
      session: { surfaceId: 'odd', preferences: { constructor: null, toString: null } },
    });
    expect(merged!.preferences).to.have.all.keys('valueOf', 'toJSON', 'then', 'hasOwnProperty', '');
    expect(({} as { polluted?: boolean }).polluted).to.equal(undefined);
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
      const metadata = metadataOf({ ...headersOf(tenant), 'x-junk': 'x'.repeat(size) });
      const refused = await client.raw('/memory.v1.ConversationService/ListThreads', Buffer.alloc(0), metadata).then(
        () => 'OK',
        (error) => status[error.code],
      );
      expect(refused, `${size} bytes`).to.not.be.oneOf(['UNKNOWN', 'DEADLINE_EXCEEDED']);
      expect((await send(APPEND, Buffer.alloc(0))).name, `after ${size} bytes`).to.equal('INVALID_ARGUMENT');
    }
    for (const [count, expected] of Object.entries({ 100: 'OK', 1000: 'RESOURCE_EXHAUSTED' })) {
      const metadata = metadataOf(headersOf(tenant));
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

  it('stores texts that look like SQL, templates or escapes as they are', async () => {
    const texts = [
      `'; drop table messages; --`,
      '$1 $2 ?? ? :name',
      '%s %d \\0 \\u0000 \u0001',
      '{{7*7}} #{7*7} %{7*7}',
      '\u202e\ufeff\ufffd\u{10ffff}',
      'e\u0301 é',
      '\r\n',
      `${'\u0300'.repeat(1000)}`,
    ];
    await client.conversation.appendMessages({
      threadId: texts[0]!,
      messages: texts.map((content, i) => ({
        role: 1,
        content,
        clientId: `${i}${content.slice(0, 50)}`,
        metadata: { [content]: content },
      })),
    });
    const { messages } = await client.conversation.listMessages({
      threadId: texts[0]!,
      position: { $case: 'afterSeq', value: 0 },
    });
    expect(messages.map((m) => m.content)).to.deep.equal(texts);
    expect(messages.map((m) => m.metadata)).to.deep.equal(texts.map((content) => ({ [content]: content })));
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

import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { type Callers, startCallers } from './fixtures/callers.ts';
import { PROBES } from './fixtures/probes.ts';
import { rpcNamed } from './fixtures/rpcs.ts';
import { field, message, struct, structOf, text, value } from './fixtures/wire.ts';
import { type Clients, failure } from './support.ts';

const { INVALID_ARGUMENT, NOT_FOUND } = status;
const UPSERT = '/memory.v1.MemoryService/UpsertSession';
const upsert = (...fields: Buffer[]) => Buffer.from(message(field(1, message(field(3, text('web')), ...fields))));

describe('bad input', () => {
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
      ['MemoryService/AppendSessionContext', { entries: [{}] }, 'entries[0].entry'],
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

  it('takes a Struct of 32 levels, and none that is deeper', async () => {
    const nested = (levels: number): object => (levels === 1 ? { a: 1 } : { a: nested(levels - 1) });
    const put = (levels: number) =>
      client.memory.upsertSession({ session: { surfaceId: 'deep', state: nested(levels) as Record<string, any> } });
    expect((await put(32)).session!.state).to.deep.equal(nested(32));
    expect((await failure(put(33))).violations.map(({ description }) => description)).to.deep.equal([
      'nested deeper than 32 levels',
    ]);
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
});

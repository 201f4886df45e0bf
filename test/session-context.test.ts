import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { appendEntries } from '../src/contexts/repository.ts';
import { type Stamp, type TenantTx, transactionOnce } from '../src/db/transaction.ts';
import { ContextEntry, SessionContext } from '../src/gen/memory/v1/context.ts';
import type { RunningServer } from '../src/server.ts';
import { sweep } from '../src/tenants/expiry.ts';
import {
  type Clients,
  connect,
  failure,
  headersOf,
  metadataOf,
  nanosOf,
  newTenant,
  rowCounts,
  startTestServer,
  tenantSql,
  until,
} from './support.ts';

const TABLES = ['session_contexts', 'context_entries', 'context_archives'];
const NOTHING = { session_contexts: 0, context_entries: 0, context_archives: 0 };

describe('session context', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;
  let sessionId: string;

  before(async () => {
    server = await startTestServer();
  });
  after(() => server.stop());
  beforeEach(async () => {
    tenant = await newTenant(['user', 'other']);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
    sessionId = await newSession();
  });
  afterEach(() => client.close());

  const newSession = async (rest: object = {}) =>
    (await client.memory.upsertSession({ session: { surfaceId: 'web' }, ...rest })).session!.id;
  const many = <T>(count: number, make: (i: number) => T) => Array.from({ length: count }, (_, i) => make(i));
  const entry = ($case: string, value: object) => ContextEntry.fromPartial({ entry: { $case, value } as any });
  const file = (path: string, importance = 0) => entry('fileAccess', { path, importance });
  const search = (query: string) => entry('search', { query });
  const decision = (text: string) => entry('decision', { text });
  const memory = (key: string, memoryId = '') => entry('memoryReference', { memoryId, key });
  const append = async (entries: ContextEntry[], requestId = '') =>
    (await client.memory.appendSessionContext({ sessionId, entries, requestId })).context!;
  const get = async (includeCompressed = false) =>
    (await client.memory.getSessionContext({ sessionId, includeCompressed })).context!;
  const session = async () => (await client.memory.getSession({ sessionId })).session!;
  /** A decision that takes so many bytes of JSON. */
  const OVERHEAD = JSON.stringify({ decision: { text: '' } }).length;
  const sized = (bytes: number, letter = 'x') => decision(letter.repeat(bytes - OVERHEAD));
  const queryOf = ({ entry: of }: ContextEntry) => (of?.$case === 'search' ? of.value.query : expect.fail());
  /** All searches that are kept, oldest first. */
  const allSearches = async () => {
    const { compressed, recentSearches, compressedCount } = await get(true);
    expect(compressed.length).to.equal(compressedCount);
    return [...compressed.map(queryOf), ...recentSearches.reverse()];
  };

  describe('what it adds up to', () => {
    it('takes several kinds in one call, and tells the newest first, files and memories once', async () => {
      const id = randomUUID();
      const first = await append([
        file('a.ts', 0.2),
        search('how'),
        file('b.ts', 1),
        decision('do it'),
        memory('style', id),
        memory('team'),
      ]);
      expect(await get()).to.deep.equal(first);
      const second = await append([decision('do it twice'), file('a.ts', 0.9), search('how'), memory('style')]);
      expect(second).to.deep.equal(
        SessionContext.fromPartial({
          filesAccessed: ['a.ts', 'b.ts'],
          fileImportanceScores: new Map([
            ['a.ts', 0.9],
            ['b.ts', 1],
          ]),
          recentSearches: ['how', 'how'],
          decisions: [{ text: 'do it twice' }, { text: 'do it' }],
          savedMemories: [{ key: 'style' }, { key: 'team' }],
          compressedCount: 0,
          sizeBytes: second.sizeBytes,
        }),
      );
      expect(await get(true)).to.deep.equal(second);
    });

    it('lets the newest access tell how much a file matters, in one call and over several', async () => {
      expect((await append([file('a', 1), file('a', 0.5)])).fileImportanceScores).to.deep.equal(new Map([['a', 0.5]]));
      expect((await append([file('a')])).fileImportanceScores).to.deep.equal(new Map([['a', 0]]));
    });

    it('is empty before the first append', async () => {
      expect(await get(true)).to.deep.equal(SessionContext.fromPartial({}));
    });

    it('keeps odd texts as they are', async () => {
      const odd = ['__proto__', 'constructor', '👋'.repeat(256), '\u0001 "q" \\ \u2028', ' '];
      const context = await append(
        odd.flatMap((text) => [file(text, 0.1), search(text), decision(text), memory(text)]),
      );
      const reversed = [...odd].reverse();
      expect(context.filesAccessed).to.deep.equal(reversed);
      expect([...context.fileImportanceScores.keys()]).to.have.members(odd);
      expect(context.recentSearches).to.deep.equal(reversed);
      expect(context.decisions.map(({ text }) => text)).to.deep.equal(reversed);
      expect(context.savedMemories.map(({ key }) => key)).to.deep.equal(reversed);
    });
  });

  describe('compression', () => {
    const half = () => many(31, (i) => sized(2048, String.fromCharCode(97 + i)));

    for (const [what, last] of [
      ['just under', 2047],
      ['exactly at', 2048],
    ] as const) {
      it(`leaves all live ${what} 64 KiB`, async () => {
        await append(half());
        const context = await append([sized(last)]);
        expect(context).to.include({ sizeBytes: 63488 + last, compressedCount: 0 });
        expect(context.decisions).to.have.length(32);
      });
    }

    it('moves the oldest just over 64 KiB, until 48 KiB are left', async () => {
      await append(half());
      const context = await append([sized(2049)]);
      expect(context).to.include({ sizeBytes: 22 * 2048 + 2049, compressedCount: 9 });
      expect(context.decisions).to.have.length(23);
      expect(context.compressed).to.deep.equal([]);
      expect(await get()).to.deep.equal(context);
      const { compressed, ...rest } = await get(true);
      expect({ ...rest, compressed: [] }).to.deep.equal(context);
      expect(compressed.map(({ entry }) => entry)).to.deep.equal(
        half()
          .slice(0, 9)
          .map(({ entry }) => entry),
      );
      expect(new Set(compressed.map(({ createTime }) => nanosOf(createTime))).size).to.equal(1);
      // What is kept leaves room, so that the next ones need no snapshot.
      await append([sized(2048)]);
      expect(await rowCounts(tenant, TABLES)).to.deep.equal({
        session_contexts: 1,
        context_entries: 24,
        context_archives: 1,
      });
    });

    it('gives every entry back exactly as it was', async () => {
      const id = randomUUID();
      const kinds = [
        file('👋/\u0001.ts', 0.1 + 0.2),
        file('tiny', 5e-324),
        search('"é"'),
        decision('\u2028'),
        memory('k', id),
      ];
      const start = await append(kinds);
      expect(start.compressedCount).to.equal(0);
      const [{ create_time: time }] = await tenantSql(
        tenant,
        `select to_char(min(create_time) at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as create_time from context_entries`,
      );
      await append(many(33, () => sized(2048)));
      const { compressed } = await get(true);
      expect(compressed.slice(0, 5).map(({ entry }) => entry)).to.deep.equal(kinds.map(({ entry }) => entry));
      const { seconds, nanos } = compressed[0]!.createTime!;
      expect(
        `${new Date(seconds * 1000).toISOString().slice(0, 19)}.${String(nanos / 1000).padStart(6, '0')}Z`,
      ).to.equal(time);
    });

    it('keeps 10,000 entries of many calls in order', async () => {
      const queries = many(10_000, (i) => `query ${i}`);
      for (let i = 0; i < queries.length; i += 500) await append(queries.slice(i, i + 500).map(search));
      expect(await allSearches()).to.deep.equal(queries);
      expect((await get()).sizeBytes).to.be.at.most(64 * 1024);
    });

    it('neither loses nor doubles one of 10,000 that 8 write at once, and keeps the order of each', async () => {
      const writers = many(8, (w) => many(1250, (i) => `${w} ${i} ${'x'.repeat(20)}`));
      await Promise.all(
        writers.map(async (queries) => {
          for (let i = 0; i < queries.length; i += 50) await append(queries.slice(i, i + 50).map(search));
        }),
      );
      const all = await allSearches();
      expect(all).to.have.length(10_000);
      writers.forEach((queries, w) => {
        expect(all.filter((query) => query.startsWith(`${w} `))).to.deep.equal(queries);
      });
      const [{ bytes, context }] = await tenantSql(
        tenant,
        'select (select sum(byte_size)::int from context_entries) as bytes, to_jsonb(c) as context from session_contexts c',
      );
      expect(context).to.deep.include({ last_ordinal: 10_000, live_bytes: bytes });
      expect(bytes).to.be.at.most(64 * 1024);
    });

    it('takes as much as a request holds, and ends a response at 2 MiB', async () => {
      const texts = many(1000, (i) => `${i} `.padEnd(4000, 'y'));
      const context = await append(texts.map(decision));
      expect(context.compressedCount + context.decisions.length).to.equal(1000);
      expect(context.sizeBytes).to.be.at.most(48 * 1024);
      const { compressed, compressedCount } = await get(true);
      expect(compressedCount).to.equal(context.compressedCount);
      expect(compressed.length).to.be.within(430, 523);
      expect(compressed.map(({ entry }) => entry?.value)).to.deep.equal(
        texts.slice(0, compressed.length).map((text) => ({ text })),
      );
    });
  });

  describe('replay by request_id', () => {
    it('appends once, also when it comes 10 times at once', async () => {
      const requestId = randomUUID();
      await append([search('before')]);
      const all = await Promise.all(many(10, () => append([search('a'), file('b', 1)], requestId)));
      for (const context of all) expect(context).to.deep.equal(all[0]);
      expect(await get()).to.deep.equal(all[0]);
      expect(await failure(append([search('other')], requestId))).to.include({
        code: status.INVALID_ARGUMENT,
        reason: 'REQUEST_ID_REUSED',
      });
    });

    it('gives the first answer again, wherever its entries have moved to since', async () => {
      const requestId = randomUUID();
      const entries = [search('a'), file('b', 0.5), memory('c', randomUUID())];
      const partly = randomUUID();
      const first = await append(entries, requestId);
      const second = await append(
        many(33, () => sized(2048)),
        partly,
      );
      expect(second.compressedCount).to.be.greaterThan(3);
      for (let i = 0; i < 3; i++) await append(many(33, () => sized(2048, 'z')));
      const now = await get(true);
      expect(await append(entries, requestId)).to.deep.equal(first);
      expect(
        await append(
          many(33, () => sized(2048)),
          partly,
        ),
      ).to.deep.equal(second);
      expect(await get(true)).to.deep.equal(now);
      await client.memory.endSession({ sessionId });
      expect(await append(entries, requestId)).to.deep.equal(first);
      await client.memory.deleteSession({ sessionId });
      expect(await failure(append(entries, requestId))).to.include({ code: status.NOT_FOUND, reason: 'DELETED' });
    });
  });

  describe('the session', () => {
    it('is active with each append, not with reads, and its snapshot does not change', async () => {
      sessionId = (
        await client.memory.upsertSession({
          session: { surfaceId: 'sliding' },
          expiration: { $case: 'ttl', value: { seconds: 600, nanos: 0 } },
          slidingTtl: true,
        })
      ).session!.id;
      const before = await session();
      await get(true);
      expect(await session()).to.deep.equal(before);
      await append([search('a')]);
      const after = await session();
      expect(nanosOf(after.lastActivityTime) > nanosOf(before.lastActivityTime)).to.equal(true);
      expect(nanosOf(after.expireTime) > nanosOf(before.expireTime)).to.equal(true);
      const { revision, etag, updateTime } = before;
      expect(after).to.deep.include({ revision, etag, updateTime });
    });

    it('can be read but not appended to once it has ended', async () => {
      const context = await append([search('a')]);
      await client.memory.endSession({ sessionId });
      expect(await failure(append([search('b')]))).to.include({
        code: status.FAILED_PRECONDITION,
        reason: 'SESSION_ENDED',
      });
      expect(await get()).to.deep.equal(context);
    });

    it('takes all of it along when it is deleted', async () => {
      await append(many(40, () => sized(2048)));
      await client.memory.deleteSession({ sessionId });
      for (const late of [() => append([search('b')]), () => get(), () => get(true)]) {
        expect(await failure(late())).to.include({ code: status.NOT_FOUND, reason: 'DELETED' });
      }
      expect(await rowCounts(tenant, TABLES)).to.deep.equal(NOTHING);
    });

    it('leaves nothing behind when it is deleted while others append', async () => {
      for (const threadId of ['', 't']) {
        const { id } = (await client.memory.upsertSession({ session: { surfaceId: 'busy', threadId } })).session!;
        if (threadId) await client.conversation.appendMessages({ threadId, messages: [{ role: 1, content: 'x' }] });
        const request = { sessionId: id, entries: many(20, () => sized(1024)) };
        const appends = many(16, () =>
          client.memory.appendSessionContext(request).then(
            () => 'OK',
            ({ code }) => status[code],
          ),
        );
        const deleted = client.memory.deleteSession({ sessionId: id });
        expect(await Promise.all(appends)).to.satisfy((ends: string[]) =>
          ends.every((end) => ['OK', 'NOT_FOUND'].includes(end)),
        );
        await deleted;
        expect(await rowCounts(tenant, TABLES)).to.deep.equal(NOTHING);
      }
    });

    it('takes it along when it has expired', async () => {
      await append(many(40, () => sized(2048)));
      await tenantSql(tenant, 'update sessions set expire_time = now()');
      for (const late of [() => append([search('b')]), () => get(), () => get(true)]) {
        expect(await failure(late())).to.include({ code: status.NOT_FOUND, reason: 'NOT_FOUND' });
      }
      await until(async () => {
        await sweep(server.kernel.database);
        return (await rowCounts(tenant, ['sessions'])).sessions === 0;
      });
      expect(await rowCounts(tenant, TABLES)).to.deep.equal(NOTHING);
    });

    it('of another user is not there', async () => {
      await append([search('a')]);
      const other = metadataOf(headersOf(tenant, 'other'));
      for (const call of [
        () => client.memory.getSessionContext({ sessionId, includeCompressed: true }, other),
        () => client.memory.appendSessionContext({ sessionId, entries: [search('b')] }, other),
      ]) {
        expect(await failure(call())).to.include({ code: status.NOT_FOUND, reason: 'NOT_FOUND' });
      }
    });
  });

  it('leaves no content in the audit trail and in the results kept for replays', async () => {
    await append(
      [file('secret-path'), search('secret-query'), decision('secret-text'), memory('secret-key')],
      randomUUID(),
    );
    await append(
      many(33, () => sized(2048)),
      randomUUID(),
    );
    const { events } = await client.audit.listAuditEvents({ sessionId });
    expect(events.map(({ action }) => action)).to.deep.equal(['context.append', 'context.append', 'sessions.upsert']);
    expect(events[0]).to.deep.include({ resource: `sessions/${sessionId}` });
    expect(events[0]!.metadata).to.deep.equal({ count: 33, archived_count: 13 });
    const stored = await tenantSql(
      tenant,
      'select to_jsonb(a)::text as row from audit_events a union all select to_jsonb(r)::text from requests r',
    );
    expect(stored.filter(({ row }) => /secret|xxx/.test(row))).to.deep.equal([]);
  });

  it('tells everything that is wrong with entries at once', async () => {
    const refused = await failure(
      client.memory.appendSessionContext({
        sessionId: 'x',
        requestId: 'y',
        entries: [
          {},
          file('', -0.1),
          file('x'.repeat(1025), Number.NaN),
          search('x'.repeat(1001)),
          search('a\0'),
          decision(''),
          decision('👋'.repeat(4001)),
          memory('', 'z'),
          memory('x'.repeat(257)),
          file('ok', 1),
        ],
      }),
    );
    expect(refused.code).to.equal(status.INVALID_ARGUMENT);
    expect(refused.violations.map(({ field }) => field)).to.deep.equal([
      'session_id',
      'entries[0].entry',
      'entries[1].file_access.path',
      'entries[1].file_access.importance',
      'entries[2].file_access.path',
      'entries[2].file_access.importance',
      'entries[3].search.query',
      'entries[4].search.query',
      'entries[5].decision.text',
      'entries[6].decision.text',
      'entries[7].memory_reference.memory_id',
      'entries[7].memory_reference.key',
      'entries[8].memory_reference.key',
      'request_id',
    ]);
    for (const count of [0, 1001]) {
      const { violations } = await failure(append(many(count, () => search('x'))));
      expect(violations.map(({ field }) => field)).to.deep.equal(['entries']);
    }
    expect(await rowCounts(tenant, TABLES)).to.deep.equal(NOTHING);
  });

  describe('as part of a larger change', () => {
    const stamp = (): Stamp => ({
      actor: 'user',
      method: 'Test/Test',
      requestId: randomUUID(),
      fingerprint: { stored: Buffer.alloc(32), is: () => true },
      eventId: randomUUID(),
      traceId: '',
      requester: 'user',
    });
    const change = <T>(work: (tx: TenantTx) => Promise<T>) =>
      transactionOnce(
        server.kernel.database,
        { tenant, env: 'dev', user: 'user' },
        stamp(),
        { deadline: Date.now() + 10_000 },
        work,
      );

    it('appends and compresses with it, or not at all, and audits nothing itself', async () => {
      const before = await rowCounts(tenant, ['audit_events', 'requests']);
      const entries = many(40, () => sized(2048));
      const failed = change(async (tx) => {
        expect(await appendEntries(tx, sessionId, entries)).to.equal(true);
        throw new Error('undone');
      });
      expect(await failed.catch((error) => error.message)).to.equal('undone');
      expect(await rowCounts(tenant, TABLES)).to.deep.equal(NOTHING);

      const { lastActivityTime } = await session();
      await change(async (tx) => {
        expect(await appendEntries(tx, sessionId, entries)).to.equal(true);
        expect(await appendEntries(tx, sessionId, [search('last')])).to.equal(true);
      });
      expect(await get()).to.deep.include({ compressedCount: 16, recentSearches: ['last'] });
      expect(await rowCounts(tenant, ['audit_events', 'requests'])).to.deep.equal(before);
      expect((await session()).lastActivityTime).to.deep.equal(lastActivityTime);
    });

    it('refuses a session that is not live', async () => {
      await client.memory.endSession({ sessionId });
      for (const id of [sessionId, randomUUID()])
        expect(await change((tx) => appendEntries(tx, id, [search('a')]))).to.equal(false);
      expect(await rowCounts(tenant, TABLES)).to.deep.equal(NOTHING);
    });
  });
});

import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { PinnedRef_Kind } from '../src/gen/memory/v1/session.ts';
import type { RunningServer } from '../src/server.ts';
import {
  type Clients,
  connect,
  failure,
  headersOf,
  newTenant,
  ownerUrl,
  rowCounts,
  runSql,
  startTestServer,
} from './support.ts';

describe('session changes', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;

  before(async () => {
    server = await startTestServer();
  });
  after(async () => {
    client.close();
    await server.stop();
  });
  const enter = async (policies: Record<string, number> = {}) => {
    client?.close();
    tenant = await newTenant(['user', 'other'], policies);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  };
  beforeEach(() => enter());

  const upsert = (session: object, rest: object = {}) =>
    client.memory.upsertSession({ session: { surfaceId: 'web', ...session }, ...rest });
  const stored = async (session: object, rest: object = {}) => (await upsert(session, rest)).session!;
  const current = async () => (await client.memory.listSessions({})).sessions[0]!;
  const fact = (id: string, text = id) => ({ id, kind: PinnedRef_Kind.FACT, text });
  const many = <T>(count: number, make: (i: number) => T) => Array.from({ length: count }, (_, i) => make(i));

  /** The fields that a refused call named. Nothing may have changed. */
  async function refused(session: object, rest: object = {}): Promise<string[]> {
    const before = (await client.memory.listSessions({})).sessions;
    const answer = await failure(upsert(session, rest));
    expect(answer.code, answer.message).to.equal(status.INVALID_ARGUMENT);
    expect((await client.memory.listSessions({})).sessions).to.deep.equal(before);
    return answer.violations.map((violation) => violation.field);
  }

  describe('merge', () => {
    it('merges Structs by RFC 7396, from the first write on', async () => {
      const first = { a: 'b', c: { d: 'e', f: 'g', h: null }, list: [1, { x: 1 }], gone: null, empty: {} };
      expect((await stored({ preferences: first })).preferences).to.deep.equal({
        a: 'b',
        c: { d: 'e', f: 'g' },
        list: [1, { x: 1 }],
        empty: {},
      });
      const patch = {
        a: 'z',
        c: { f: null, n: { o: 1, p: null } },
        list: [null, 2],
        more: { deep: { er: true } },
        empty: 0,
      };
      expect((await stored({ preferences: patch })).preferences).to.deep.equal({
        a: 'z',
        c: { d: 'e', n: { o: 1 } },
        list: [null, 2],
        more: { deep: { er: true } },
        empty: 0,
      });
      const last = await stored({ preferences: { more: null, a: { now: 'an object' }, list: { i: 1 }, c: 'text' } });
      expect(last.preferences).to.deep.equal({ a: { now: 'an object' }, c: 'text', list: { i: 1 }, empty: 0 });
      expect((await stored({ preferences: {} })).preferences).to.deep.equal(last.preferences);
    });

    it('merges each of the four Structs by itself', async () => {
      const each = (value: object) => ({ preferences: value, state: value, metadata: value, metrics: value });
      await stored(each({ x: 1, y: 1 }));
      expect(await stored(each({ y: null, z: 2 }))).to.deep.include(each({ x: 1, z: 2 }));
      expect(await stored({ state: { only: true } })).to.deep.include({
        ...each({ x: 1, z: 2 }),
        state: { x: 1, z: 2, only: true },
      });
    });

    it('keeps the keys of 50 concurrent writers', async () => {
      const { id } = await stored({ state: { nested: {} } });
      await Promise.all(many(50, (i) => upsert({ id, state: { [`k${i}`]: i, nested: { [`n${i}`]: i } } })));
      const { state, revision } = await current();
      const { nested, ...top } = state!;
      expect(top).to.deep.equal(Object.fromEntries(many(50, (i) => [`k${i}`, i])));
      expect(nested).to.deep.equal(Object.fromEntries(many(50, (i) => [`n${i}`, i])));
      expect(revision).to.equal(51);
    });

    it('holds a Struct to 64 KiB after the merge', async () => {
      for (const field of ['preferences', 'state', 'metadata', 'metrics']) {
        await stored({ [field]: { a: 'x'.repeat(40_000) } });
        expect(await refused({ [field]: { b: 'x'.repeat(40_000) } })).to.deep.equal([`session.${field}`]);
        const replaced = await stored({ [field]: { a: null, b: 'x'.repeat(40_000) } });
        expect(Object.keys((replaced as any)[field])).to.deep.equal(['b']);
        expect(await refused({ [field]: { a: 'x'.repeat(66_000) } })).to.deep.equal([`session.${field}`]);
      }
    });

    it('holds a Struct to 64 KiB also when several writers are under it together, each alone', async () => {
      const outcomes = await Promise.allSettled(many(6, (i) => stored({ state: { [`k${i}`]: 'x'.repeat(25_000) } })));
      expect(outcomes.filter(({ status }) => status === 'fulfilled')).to.have.length(2);
      expect(Object.keys((await stored({ title: 'after' })).state!)).to.have.length(2);
    });

    it('checks nothing of a session at every write that reads a Struct or refs', async () => {
      const checks = await runSql(
        ownerUrl(),
        `select k.conname as name, (
           select array_agg(format_type(a.atttypid, null)) from unnest(k.conkey) c (attnum)
           join pg_attribute a on a.attrelid = k.conrelid and a.attnum = c.attnum) as types
         from pg_constraint k where k.contype = 'c' and k.conrelid = 'sessions'::regclass`,
      );
      expect(checks.map(({ name }) => name)).to.include.members(['sessions_state_size', 'sessions_pinned_refs_count']);
      for (const { name, types } of checks) expect(types, name).to.not.include('jsonb');
    });

    it('merges refs by id and removes the named ones', async () => {
      await stored({ pinnedRefs: [fact('a'), fact('b')], summaryRefs: [{ id: 's', text: 'one', throughSeq: 1 }] });
      const next = await stored({
        pinnedRefs: [fact('b', 'new'), fact('c'), { kind: PinnedRef_Kind.URL, uri: 'http://x' }],
        summaryRefs: [
          { id: 's', text: 'two', throughSeq: 5 },
          { text: 'made', throughSeq: 6 },
        ],
      });
      expect(next.pinnedRefs.map((ref) => ref.text)).to.deep.equal(['a', 'new', 'c', '']);
      expect(next.summaryRefs.map((ref) => [ref.text, ref.throughSeq])).to.deep.equal([
        ['two', 5],
        ['made', 6],
      ]);
      const made = [next.pinnedRefs[3]!.id, next.summaryRefs[1]!.id];
      expect(made.every((id) => id.length > 0) && made[0] !== made[1]).to.equal(true);
      const left = await stored({ pinnedRefs: [fact('d')] }, { removeRefIds: ['a', made[1]!, 'never there'] });
      expect(left.pinnedRefs.map((ref) => ref.id)).to.deep.equal(['b', 'c', made[0], 'd']);
      expect(left.summaryRefs.map((ref) => ref.id)).to.deep.equal(['s']);
      expect((await stored({ title: 't' })).pinnedRefs).to.deep.equal(left.pinnedRefs);
    });

    it('keeps the refs of 20 concurrent writers', async () => {
      const { id } = await stored({});
      await Promise.all(many(20, (i) => upsert({ id, pinnedRefs: [fact(`r${i}`)] })));
      expect((await current()).pinnedRefs.map((ref) => ref.id)).to.have.members(many(20, (i) => `r${i}`));
    });

    it('holds refs to 200 and 100 after the merge', async () => {
      await stored({ pinnedRefs: many(150, (i) => fact(`p${i}`)), summaryRefs: many(60, (i) => ({ id: `s${i}` })) });
      const more = { pinnedRefs: many(51, (i) => fact(`q${i}`)) };
      expect(await refused(more)).to.deep.equal(['session.pinned_refs']);
      expect(await refused({ summaryRefs: many(41, (i) => ({ id: `t${i}` })) })).to.deep.equal([
        'session.summary_refs',
      ]);
      expect((await stored(more, { removeRefIds: ['p0'] })).pinnedRefs).to.have.length(200);
      expect((await stored({ pinnedRefs: many(150, (i) => fact(`p${i + 1}`)) }).catch((e) => e)).code).to.equal(3);
      expect((await stored({ pinnedRefs: [fact('p1', 'again')] })).pinnedRefs).to.have.length(200);
      expect(await refused({ surfaceId: 'new', pinnedRefs: many(201, (i) => fact(`p${i}`)) })).to.include(
        'session.pinned_refs',
      );
    });
  });

  describe('update masks', () => {
    it('replaces what the mask names and leaves the rest', async () => {
      await stored({
        title: 'a',
        preferences: { x: 1 },
        state: { y: 1 },
        pinnedRefs: [fact('a')],
        summaryRefs: [{ id: 's' }],
      });
      const change = { title: 'not named', preferences: { z: { n: null } }, pinnedRefs: [fact('b')], state: { y: 2 } };
      expect(await stored(change, { updateMask: ['preferences', 'pinned_refs'] })).to.deep.include({
        title: 'a',
        preferences: { z: { n: null } },
        state: { y: 1 },
      });
      const { pinnedRefs, summaryRefs } = await current();
      expect([pinnedRefs, summaryRefs].map((refs) => refs.map((ref) => ref.id))).to.deep.equal([['b'], ['s']]);
    });

    it('clears what the mask names without a value', async () => {
      const full = {
        title: 'a',
        preferences: { x: 1 },
        metrics: { m: 1 },
        toolId: 't',
        email: 'a@example.com',
        pinned: true,
      };
      await stored({ ...full, pinnedRefs: [fact('a')], workspacePath: '/w' });
      const updateMask = ['title', 'preferences', 'metrics', 'tool_id', 'email', 'pinned', 'pinned_refs'];
      const cleared = await stored({}, { updateMask });
      expect(cleared).to.deep.include({
        title: '',
        toolId: '',
        email: '',
        pinned: false,
        pinnedRefs: [],
        workspacePath: '/w',
      });
      expect([cleared.preferences ?? {}, cleared.metrics ?? {}]).to.deep.equal([{}, {}]);
    });

    it('refuses paths that are not there, key fields and output-only fields', async () => {
      await stored({ title: 'a' });
      const paths = ['nothing', 'preferences.theme', 'surface_id', 'project_id', 'thread_id', 'id', 'user_id', 'etag'];
      for (const path of [
        ...paths,
        'create_time',
        'revision',
        'anonymous',
        'end_time',
        'updateMask',
        'toolId',
        '',
        '*',
      ]) {
        expect(await refused({ title: 'b' }, { updateMask: ['title', path] }), path).to.deep.equal(['update_mask']);
      }
      expect(await refused({}, { updateMask: ['one', 'two'] })).to.deep.equal(['update_mask', 'update_mask']);
    });

    it('sets a new session by its mask', async () => {
      const { title, preferences, state } = await stored(
        { title: 'a', preferences: { x: 1 }, state: { y: 1 } },
        { updateMask: ['title', 'state'] },
      );
      expect({ title, preferences: preferences ?? {}, state }).to.deep.equal({
        title: 'a',
        preferences: {},
        state: { y: 1 },
      });
    });
  });

  it('refuses a stale etag, tells the current one and changes nothing', async () => {
    const { id, etag: stale } = await stored({ title: 'a', preferences: { x: 1 } });
    const before = await stored({ title: 'b' });
    for (const key of [{ id }, {}]) {
      const change = { ...key, etag: stale, title: 'c', preferences: { x: null }, pinnedRefs: [fact('a')] };
      const answer = await failure(upsert(change, { issueSessionKey: true, revokeSessionKeys: true }));
      expect(answer).to.include({ code: status.ABORTED, reason: 'ETAG_MISMATCH' });
      expect(answer.metadata.etag).to.equal(before.etag);
      expect(await current()).to.deep.equal(before);
    }
    expect(await rowCounts(tenant, ['session_keys'])).to.deep.equal({ session_keys: 0 });
    expect(await stored({ etag: before.etag, title: 'd' })).to.include({ title: 'd', revision: 3 });
  });

  it('lets one of 10 concurrent writers with the same etag through', async () => {
    const { id, etag } = await stored({});
    const all = await Promise.allSettled(many(10, (i) => upsert({ id, etag, state: { [`k${i}`]: i } })));
    expect(all.filter((result) => result.status === 'fulfilled')).to.have.length(1);
    const { state, revision } = await current();
    expect([Object.keys(state!).length, revision]).to.deep.equal([1, 2]);
  });
});

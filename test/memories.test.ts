import { randomBytes, randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import pg from 'pg';
import type { RunningServer } from '../src/server.ts';
import {
  allPages,
  type Clients,
  connect,
  failure,
  headersOf,
  metadataOf,
  newTenant,
  ownerUrl,
  rowCounts,
  runSql,
  startTestServer,
  tenantSql,
  until,
} from './support.ts';

const { ABORTED, NOT_FOUND } = status;
const projectId = 'atlas';

describe('project memories', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;

  before(async () => {
    server = await startTestServer();
  });
  after(() => server.stop());
  beforeEach(async () => {
    tenant = await newTenant(['user', 'other']);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  });
  afterEach(() => client.close());

  const other = () => metadataOf(headersOf(tenant, 'other'));
  const put = (key: string, value: string, rest: object = {}) =>
    client.project.putMemory({ projectId, key, value, ...rest });
  const get = async (key: string) => (await client.project.getMemory({ projectId, key })).memory!;
  const list = async (filter: object = {}) => {
    const pages = await allPages((pageToken) => client.project.listMemories({ projectId, ...filter, pageToken }));
    return pages.flatMap((page) => page.memories);
  };
  const versions = async (key: string) => {
    const page = (pageToken: string) => client.project.listMemoryVersions({ projectId, key, pageSize: 40, pageToken });
    return (await allPages(page)).flatMap((each) => each.versions);
  };
  const keysOf = (memories: { key: string }[]) => memories.map((memory) => memory.key);

  it('keeps a value under a key, which every member reads and writes, and tells who did', async () => {
    const first = await put('fiscal year', 'starts in April', { metadata: { source: 'wiki', pages: [3] } });
    expect(first.created).to.equal(true);
    expect(first.memory).to.include({ projectId, key: 'fiscal year', value: 'starts in April', version: 1 });
    expect(first.memory).to.include({ createdBy: 'user', updatedBy: 'user', accessCount: 0 });
    expect(await get('fiscal year')).to.deep.equal(first.memory);

    const second = await client.project.putMemory({ projectId, key: 'fiscal year', value: 'in May' }, other());
    expect(second.created).to.equal(false);
    expect(second.memory).to.include({ id: first.memory!.id, version: 2, createdBy: 'user', updatedBy: 'other' });
    expect(second.memory!.metadata).to.deep.equal({});
    expect(second.memory!.etag).to.not.equal(first.memory!.etag);
    expect((await get('fiscal year')).value).to.equal('in May');
    expect((await failure(client.project.getMemory({ projectId: 'else', key: 'fiscal year' }))).code).to.equal(
      NOT_FOUND,
    );
  });

  it('makes consecutive versions of concurrent puts and restores, and loses none', async () => {
    await put('k', 'v0');
    const writes = Array.from({ length: 40 }, (_, i) =>
      i % 4 === 3
        ? client.project.restoreMemory({ projectId, key: 'k', version: 1 })
        : put('k', `v${i}`, { metadata: { i } }),
    );
    const made = (await Promise.all(writes)).map(({ memory }) => memory!);
    expect(made.map((memory) => memory.version).sort((a, b) => a - b)).to.deep.equal(made.map((_, i) => i + 2));
    const kept = await versions('k');
    expect(kept.map(({ version }) => version)).to.deep.equal(Array.from({ length: 41 }, (_, i) => 41 - i));
    for (const { version, value, metadata } of made) {
      expect(kept.find((one) => one.version === version)).to.deep.include({ value, metadata });
    }
    expect(kept.filter((one) => one.restoredVersion === 1)).to.have.length(10);
    expect(await get('k')).to.include({ version: 41, value: kept[0]!.value });
  });

  it('keeps the newest 100 versions', async () => {
    for (let i = 1; i <= 103; i++) await put('k', `v${i}`);
    expect((await versions('k')).map(({ version }) => version)).to.deep.equal(
      Array.from({ length: 100 }, (_, i) => 103 - i),
    );
    const gone = await failure(client.project.restoreMemory({ projectId, key: 'k', version: 3 }));
    expect([gone.code, gone.message]).to.deep.equal([NOT_FOUND, 'version not found']);
    const { memory } = await client.project.restoreMemory({ projectId, key: 'k', version: 4 });
    expect(memory).to.include({ version: 104, value: 'v4' });
  });

  it('refuses a stale etag, tells the current one, and changes nothing', async () => {
    const { memory } = await put('k', 'one');
    const { etag } = (await put('k', 'two', { etag: memory!.etag })).memory!;
    const stale = { projectId, key: 'k', etag: memory!.etag };
    for (const attempt of [
      () => put('k', 'three', { etag: memory!.etag }),
      () => client.project.restoreMemory({ ...stale, version: 1 }),
      () => client.project.deleteMemory(stale),
    ]) {
      const refused = await failure(attempt());
      expect([refused.code, refused.reason, refused.metadata.etag]).to.deep.equal([ABORTED, 'ETAG_MISMATCH', etag]);
    }
    expect(await get('k')).to.include({ version: 2, value: 'two', etag });
    const missing = await failure(put('new', 'one', { etag }));
    expect([missing.code, missing.reason, missing.metadata.etag]).to.deep.equal([ABORTED, 'ETAG_MISMATCH', '']);
    expect(await rowCounts(tenant, ['memories', 'memory_versions'])).to.deep.equal({ memories: 1, memory_versions: 2 });
  });

  it('does each change once for a request_id, and answers the same again', async () => {
    const changes = {
      put: (requestId: string) => put('k', 'one', { requestId, metadata: { a: 1 } }),
      restore: (requestId: string) => client.project.restoreMemory({ projectId, key: 'k', version: 1, requestId }),
      delete: (requestId: string) => client.project.deleteMemory({ projectId, key: 'k', requestId }),
    };
    for (const [name, change] of Object.entries(changes)) {
      const requestId = randomUUID();
      const [first, ...again] = await Promise.all([1, 2, 3].map(() => change(requestId)));
      for (const answer of again) expect(answer, name).to.deep.equal(first);
    }
    const [{ n }] = await tenantSql(
      tenant,
      `select count(*)::int as n from audit_events where action like 'memories.%'`,
    );
    expect(n).to.equal(3);
  });

  it('deletes a memory with its versions, and gives its key to a new one', async () => {
    const { memory } = await put('k', 'secret');
    await put('k', 'secret too');
    await client.project.deleteMemory({ projectId, key: 'k' });
    for (const attempt of [
      () => client.project.getMemory({ projectId, key: 'k' }),
      () => client.project.listMemoryVersions({ projectId, key: 'k' }),
      () => client.project.restoreMemory({ projectId, key: 'k', version: 1 }),
      () => client.project.deleteMemory({ projectId, key: 'k' }),
    ]) {
      const refused = await failure(attempt());
      expect([refused.code, refused.reason]).to.deep.equal([NOT_FOUND, 'DELETED']);
    }
    expect(await list()).to.deep.equal([]);
    expect(await rowCounts(tenant, ['memories', 'memory_versions'])).to.deep.equal({ memories: 1, memory_versions: 0 });
    const again = await put('k', 'new');
    expect([again.created, again.memory!.version]).to.deep.equal([true, 1]);
    expect(again.memory!.id).to.not.equal(memory!.id);

    const etag = memory!.etag;
    for (const attempt of [
      () => put('k', 'over it', { etag }),
      () => client.project.restoreMemory({ projectId, key: 'k', version: 1, etag }),
      () => client.project.deleteMemory({ projectId, key: 'k', etag }),
    ]) {
      const refused = await failure(attempt());
      expect([refused.reason, refused.metadata.etag]).to.deep.equal(['ETAG_MISMATCH', again.memory!.etag]);
    }
    expect(await get('k'), 'the etag of a deleted memory fits no other').to.deep.equal(again.memory);
  });

  it('hides what has expired at once, swept or not, and gives its key to a new one', async () => {
    const { memory } = await put('k', 'old', { expiration: { $case: 'ttl', value: { seconds: 3600 } } });
    expect(memory!.expireTime!.seconds - memory!.createTime!.seconds).to.equal(3600);
    await tenantSql(tenant, 'update memories set expire_time = clock_timestamp()');
    expect((await failure(client.project.getMemory({ projectId, key: 'k' }))).code).to.equal(NOT_FOUND);
    expect((await failure(client.project.listMemoryVersions({ projectId, key: 'k' }))).code).to.equal(NOT_FOUND);
    expect(await list()).to.deep.equal([]);
    expect((await failure(put('k', 'x', { etag: memory!.etag }))).reason).to.equal('ETAG_MISMATCH');
    const again = (await put('k', 'new')).memory!;
    expect([again.version, again.expireTime]).to.deep.equal([1, undefined]);
    expect(again.id).to.not.equal(memory!.id);
  });

  /** Puts over the key while another transaction has done `first`, which then does `last` and commits. */
  async function putAcross(first: string, last: string, values: unknown[] = []) {
    const holder = new pg.Client({ connectionString: ownerUrl() });
    await holder.connect();
    try {
      const { rows } = await holder.query('select pg_backend_pid() as pid');
      await holder.query(`begin; set local app.tenant_id = '${tenant}'; set local app.env = 'dev'`);
      await holder.query(first, values);
      const answer = put('k', 'new');
      const waits = 'select from pg_stat_activity where $1 = any (pg_blocking_pids(pid))';
      await until(async () => (await runSql(ownerUrl(), waits, [rows[0].pid])).length > 0);
      await holder.query(`${last}; commit`);
      return await answer;
    } finally {
      await holder.end();
    }
  }

  it('takes a put that comes as the memory expires', async () => {
    await put('k', 'old');
    await tenantSql(tenant, 'update memories set expire_time = now()');
    const late = await putAcross(
      'select from memories for update',
      'update memories set expire_time = clock_timestamp()',
    );
    expect([late.created, late.memory!.version], 'it began before the new expiry').to.deep.equal([false, 2]);
    expect(await get('k')).to.include({ value: 'new', version: 2 });
  });

  it('takes a put across which another memory came and expired', async () => {
    const { created, memory } = await putAcross(
      `insert into memories (tenant_id, env, id, project_id, key, version, create_time, update_time, expire_time, created_by, updated_by)
       values ($1, 'dev', gen_random_uuid(), $2, 'k', 7, now(), now(), now(), 'other', 'other')`,
      'select',
      [tenant, projectId],
    );
    expect([created, memory!.version]).to.deep.equal([true, 1]);
    expect(await get('k')).to.deep.equal(memory);
  });

  it('tells how often a memory was read when it is put or restored, in a replay as well', async () => {
    await put('k', 'one');
    for (let i = 0; i < 3; i++) await get('k');
    await until(async () => (await tenantSql(tenant, 'select from memory_uses where access_count = 3')).length > 0);
    for (const change of [
      (requestId: string) => put('k', 'two', { requestId }),
      (requestId: string) => client.project.restoreMemory({ projectId, key: 'k', version: 1, requestId }),
    ]) {
      const requestId = randomUUID();
      const { memory } = await change(requestId);
      expect(memory!.accessCount).to.equal(3);
      expect(memory!.lastAccessTime).to.not.equal(undefined);
      expect((await change(requestId)).memory).to.deep.equal(memory);
    }
    expect(await get('k')).to.include({ version: 3, accessCount: 3 });
  });

  it('counts accesses of 100 concurrent readers without a lost one, of get and list alike', async () => {
    await put('a', '1');
    await put('b', '2');
    await Promise.all(Array.from({ length: 100 }, (_, i) => (i % 2 ? get('a') : list())));
    const [a, b] = await until(async () => {
      const rows = await tenantSql(
        tenant,
        'select access_count::int as n, last_access_time from memory_uses order by n desc',
      );
      return rows[0].n === 100 && rows;
    });
    expect([a.n, b.n]).to.deep.equal([100, 50]);
    const { accessCount, lastAccessTime, updateTime } = await get('b');
    expect(accessCount).to.equal(50);
    expect(lastAccessTime!.seconds).to.be.at.least(updateTime!.seconds);
  });

  it('writes the accesses that it still holds when it stops', async () => {
    const passing = await startTestServer();
    const reader = connect(`127.0.0.1:${passing.port}`, headersOf(tenant));
    await put('a', '1');
    for (let i = 0; i < 3; i++) await reader.project.getMemory({ projectId, key: 'a' });
    reader.close();
    await passing.stop();
    expect((await get('a')).accessCount).to.equal(3);
  });

  it('lists what was used last first, whole, by prefix and by metadata', async () => {
    for (let i = 0; i < 30; i++)
      await put(`${i % 2 ? 'odd' : 'even'}/${i}`, `v${i}`, { metadata: { i, tags: ['x', `t${i % 3}`] } });
    await client.project.putMemory({ projectId: 'else', key: 'odd/1', value: 'not here' });
    const all = await list({ pageSize: 7 });
    expect(keysOf(all).sort()).to.deep.equal(
      Array.from({ length: 30 }, (_, i) => `${i % 2 ? 'odd' : 'even'}/${i}`).sort(),
    );
    expect(keysOf(await list({ keyPrefix: 'odd/2' }))).to.have.members([
      'odd/21',
      'odd/23',
      'odd/25',
      'odd/27',
      'odd/29',
    ]);
    expect(await list({ keyPrefix: '%' })).to.deep.equal([]);
    // What is told counts as used soon after, which moves what the next pages hold.
    const counted = `select from memory_uses having sum(access_count) = $1`;
    await until(async () => (await tenantSql(tenant, counted, [30 + 5])).length > 0);
    expect(keysOf(await list({ metadataFilter: { tags: ['t1'] }, pageSize: 3 }))).to.have.length(10);
    expect(keysOf(await list({ metadataFilter: { i: 4 } }))).to.deep.equal(['even/4']);

    await get('even/0');
    const read = `select from memory_uses u join memories m on m.id = u.memory_id where key = 'even/0' and access_count = $1`;
    // It was listed once before: that is counted first, or together with it.
    await until(async () => (await tenantSql(tenant, read, [2])).length > 0);
    expect((await client.project.listMemories({ projectId, pageSize: 1 })).memories[0]!.key).to.equal('even/0');
    await put('odd/7', 'newest');
    expect((await client.project.listMemories({ projectId, pageSize: 1 })).memories[0]!.key).to.equal('odd/7');
  });

  it('lists by a prefix that few keys have, or many, and by any characters', async () => {
    const odd = ['a', 'a%', 'a_b', 'A', 'ä', 'a\u{10ffff}', 'a\u{10ffff}\u{10ffff}b', '👋', '👋👋', 'a b'];
    for (const key of odd) await put(key, 'v');
    for (const keyPrefix of ['a', 'a%', 'a_', 'A', 'ä', 'a\u{10ffff}', '👋', 'b']) {
      const expected = odd.filter((key) => key.startsWith(keyPrefix)).reverse();
      expect(keysOf(await list({ keyPrefix })), keyPrefix).to.deep.equal(expected);
    }
    const scope = [tenant, 'dev', projectId];
    await tenantSql(
      tenant,
      `with m as (
         insert into memories (tenant_id, env, id, project_id, key, version, create_time, update_time, created_by, updated_by)
         select $1, $2, gen_random_uuid(), $3, 'many ' || n, 1, now(), now(), 'user', 'user' from generate_series(1, 1200) n returning *
       ), v as (
         insert into memory_versions (tenant_id, env, memory_id, version, value, metadata, create_time, created_by)
         select $1, $2, id, 1, key, jsonb_build_object('odd', right(key, 1)::int % 2), now(), 'user' from m
       )
       insert into memory_uses (tenant_id, env, memory_id, project_id, use_time)
       select $1, $2, id, $3, now() + substr(key, 6)::int * interval '1 microsecond' from m`,
      scope,
    );
    for (const [keyPrefix, count] of Object.entries({ many: 1200, 'many 1': 312, 'many 12': 12 })) {
      const found = await list({ keyPrefix, pageSize: 500 });
      expect(new Set(keysOf(found)).size, keyPrefix).to.equal(count);
      expect(found.every(({ key }) => key.startsWith(keyPrefix))).to.equal(true);
    }
    const odds = keysOf(await list({ keyPrefix: 'many 12', metadataFilter: { odd: 1 } }));
    expect(odds).to.have.members(['many 121', 'many 123', 'many 125', 'many 127', 'many 129']);
  });

  it('ends a page at 1 MiB', async () => {
    const value = randomBytes(24 * 1024)
      .toString('base64')
      .repeat(2); // 64 KiB
    for (let i = 0; i < 20; i++) await put(`k${i}`, value);
    const first = await client.project.listMemories({ projectId, pageSize: 500 });
    expect(first.memories).to.have.length(15);
    expect(first.nextPageToken).to.not.equal('');
    expect(keysOf(await list({ pageSize: 500 }))).to.have.length(20);
  });

  it('compresses large values', async () => {
    await put('k', 'The quarter closes in June. '.repeat(2300));
    const [{ stored, whole }] = await tenantSql(
      tenant,
      'select pg_column_size(value) as stored, octet_length(value) as whole from memory_versions',
    );
    expect(stored).to.be.below(whole / 10);
  });
});

import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { pino } from 'pino';
import { parse } from 'yaml';
import type { RunningServer } from '../src/server.ts';
import {
  allPages,
  type Clients,
  connect,
  failure,
  headersOf,
  metadataOf,
  newTenant,
  startTestServer,
  tenantSql,
} from './support.ts';

const { ABORTED, FAILED_PRECONDITION, INVALID_ARGUMENT, NOT_FOUND } = status;
const projectId = 'atlas';
const STUB = '# Nobody has written this profile yet.\n{}\n';
const BASE = '# The plan.\ntitle: Plan # working title\nlead: ana\nbudget: 10\n';

describe('project profiles', () => {
  const lines: string[] = [];
  let server: RunningServer;
  let tenant: string;
  let client: Clients;

  before(async () => {
    server = await startTestServer({}, pino({ level: 'trace' }, { write: (line: string) => void lines.push(line) }));
  });
  after(() => server.stop());
  beforeEach(async () => {
    tenant = await newTenant(['user', 'other']);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  });
  afterEach(() => client.close());

  const other = () => metadataOf(headersOf(tenant, 'other'));
  const put = (yaml: string, baseVersion = 0, rest: object = {}) =>
    client.artifact.putProjectProfile({ projectId, yaml, baseVersion, ...rest });
  const get = async (version = 0) => (await client.artifact.getProjectProfile({ projectId, version })).profile!;
  const session = (rest: object = {}, metadata = metadataOf(headersOf(tenant))) =>
    client.memory.upsertSession({ session: { surfaceId: 'web', projectId, ...rest } }, metadata);
  const lock = (version: number) =>
    tenantSql(tenant, 'update project_profile_versions set lock_time = now() where version = $1', [version]);

  it('begin as a stub with the first session of a project, and stay what they are with the next', async () => {
    expect((await failure(client.artifact.getProjectProfile({ projectId }))).code).to.equal(NOT_FOUND);
    await session();
    const stub = await get();
    expect(stub).to.include({
      version: 1,
      stub: true,
      yaml: STUB,
      createdBy: 'user',
      baseVersion: 0,
    });
    await session({ title: 'again' });
    await session({ surfaceId: 'slack' }, other());
    expect(await get()).to.deep.equal(stub);
    await session({ projectId: '' });
    expect(await tenantSql(tenant, 'select project_id from project_profiles')).to.deep.equal([
      { project_id: projectId },
    ]);
  });

  it('get one stub from first sessions that come at once', async () => {
    const starts = Array.from({ length: 12 }, (_, i) => session({ threadId: `t${i}` }, i % 2 ? other() : undefined));
    await Promise.all(starts);
    expect(await get()).to.include({ version: 1, stub: true });
  });

  it('keep every version as it was put, to the byte', async () => {
    const first = await put(BASE);
    expect(first.created).to.equal(true);
    expect(first.profile).to.include({ projectId, version: 1, yaml: BASE, baseVersion: 0, merged: false, stub: false });
    expect(first.profile).to.include({ createdBy: 'user', locked: false, sizeBytes: Buffer.byteLength(BASE) });
    const odd =
      '---\r\nlist:\r\n- {a: 1,   b: [1,2]}   # odd\r\n"x" : &a  >-\r\n   folded\r\n   text\r\ny: *a\r\n...\r\n';
    const second = await client.artifact.putProjectProfile({ projectId, yaml: odd, baseVersion: 1 }, other());
    expect(second.profile).to.include({ version: 2, yaml: odd, baseVersion: 1, createdBy: 'other' });
    expect((await get()).yaml).to.equal(odd);
    expect(await get(1)).to.deep.equal(first.profile);
    expect((await failure(client.artifact.getProjectProfile({ projectId, version: 3 }))).code).to.equal(NOT_FOUND);
    const pages = await allPages((pageToken) =>
      client.artifact.listProjectProfileVersions({ projectId, pageSize: 1, pageToken }),
    );
    expect(pages.flatMap(({ versions }) => versions)).to.deep.equal(
      [second.profile, first.profile].map((profile) => ({ ...profile, yaml: '' })),
    );
  });

  it('take what is based on nothing in place of a stub, and merge it with anything else', async () => {
    await session();
    expect((await put(BASE)).profile).to.include({ version: 2, yaml: BASE, merged: false });
    expect((await put('due: June\n')).profile).to.include({ version: 3, yaml: `${BASE}due: June\n`, merged: true });
    const refused = await failure(put('lead: bo\n'));
    expect(refused).to.include({ code: ABORTED, reason: 'MERGE_CONFLICT' });
  });

  it('merge what is stale key by key, comments and order with it', async () => {
    await put(BASE);
    await put(BASE.replace('ana', 'bo # since May'), 1);
    const { profile, created } = await put(`${BASE.replace('10', '20')}risk: low\n`, 1);
    expect(created).to.equal(true);
    expect(profile).to.include({ version: 3, baseVersion: 1, merged: true });
    expect(profile!.yaml).to.equal(
      '# The plan.\ntitle: Plan # working title\nlead: bo # since May\nbudget: 20\nrisk: low\n',
    );
  });

  it('refuse a conflict whole, and name its paths with both values', async () => {
    await put(`${BASE}team: {size: 3}\n`);
    await put(`${BASE.replace('ana', 'bo')}team: {size: 4}\nmore: 1\n`, 1);
    const refused = await failure(put(`${BASE.replace('ana', 'cy')}team: {size: 5}\nless: 1\n`, 1));
    expect(refused).to.include({ code: ABORTED, reason: 'MERGE_CONFLICT' });
    expect(refused.metadata).to.deep.equal({ version: '2', conflicts: '2' });
    expect(refused.violations).to.deep.equal([
      { field: 'lead', description: 'put: "cy"; stored: "bo"', reason: 'CONFLICT' },
      { field: 'team.size', description: 'put: 5; stored: 4', reason: 'CONFLICT' },
    ]);
    expect((await get()).version).to.equal(2);
    expect(lines.filter((line) => /"cy"|team\.size/.test(line))).to.deep.equal([]);
  });

  it('tell of many and large conflicts what fits into an error', async () => {
    const yaml = (value: string) =>
      Array.from({ length: 200 }, (_, i) => `"${'k'.repeat(200)}${i}": ${value}\n`).join('');
    await put(yaml('a'));
    await put(yaml(`"${'b'.repeat(100)}"`), 1);
    const refused = await failure(put(yaml(`"${'\u{1f44b}'.repeat(100)}"`), 1));
    expect(refused).to.include({ code: ABORTED, reason: 'MERGE_CONFLICT' });
    expect(refused.violations).to.not.be.empty;
    expect(refused.violations[0]!.description).to.match(/^put: ".*…; stored: "b+"$/u);
  });

  it('lose nothing of puts that come at once', async () => {
    await put('a: 1\n');
    const puts = Array.from({ length: 12 }, (_, i) => put(`a: 1\nk${i}: ${i}\n`, 1));
    const versions = (await Promise.all(puts)).map(({ profile }) => profile!.version);
    expect(versions.sort((a, b) => a - b)).to.deep.equal(versions.map((_, i) => i + 2));
    const expected = Object.fromEntries([['a', 1], ...versions.map((_, i) => [`k${i}`, i])]);
    expect(parse((await get()).yaml)).to.deep.equal(expected);
  });

  it('let one of several first puts in, and merge or refuse the others', async () => {
    const puts = Array.from({ length: 8 }, (_, i) => put(`only: ${i}\n`));
    const outcomes = await Promise.allSettled(puts);
    expect(outcomes.filter(({ status: how }) => how === 'fulfilled')).to.have.length(1);
    expect((await get()).version).to.equal(1);
  });

  it('make no version of what says nothing new', async () => {
    await put(BASE);
    expect(await put(BASE, 1)).to.deep.include({ created: false });
    expect((await put(BASE, 1)).profile!.version).to.equal(1);
    await put(`${BASE}x: 1\n`, 1);
    expect(await put(`${BASE}x: 1\n`, 1)).to.deep.include({ created: false });
    expect((await get()).version).to.equal(2);
  });

  it('answer a replay as the first time, also when its base has become stale and conflicts', async () => {
    const requestId = randomUUID();
    await put(BASE);
    const first = await put(BASE.replace('ana', 'bo'), 1, { requestId });
    await put(BASE.replace('ana', 'cy'), 2);
    expect(await put(BASE.replace('ana', 'bo'), 1, { requestId })).to.deep.equal(first);
    expect((await failure(put(BASE, 1, { requestId }))).reason).to.equal('REQUEST_ID_REUSED');
    const unchanged = { requestId: randomUUID() };
    const kept = await put(BASE.replace('ana', 'cy'), 3, unchanged);
    await put('new: 1\n', 3);
    expect(await put(BASE.replace('ana', 'cy'), 3, unchanged)).to.deep.equal(kept);
    expect((await get()).version).to.equal(4);
  });

  it('are locked by an artifact: the next version is started knowingly, and then as usual', async () => {
    await put(BASE);
    await put(`${BASE}x: 1\n`, 1);
    await lock(2);
    expect(await get()).to.include({ version: 2, locked: true });
    for (const base of [1, 2]) {
      const refused = await failure(put(`${BASE}x: 1\ny: 2\n`, base));
      expect(refused).to.include({ code: FAILED_PRECONDITION, reason: 'PROFILE_LOCKED' });
      expect(refused.metadata).to.deep.equal({ version: '2' });
    }
    expect((await put(`${BASE}x: 1\n`, 2)).created).to.equal(false);
    expect((await put(`${BASE}x: 1\ny: 2\n`, 2, { reopen: true })).profile).to.include({ version: 3, locked: false });
    expect((await put(`${BASE}x: 1\nz: 3\n`, 2)).profile!.yaml).to.equal(`${BASE}x: 1\nz: 3\ny: 2\n`);
    expect((await get(2)).yaml).to.equal(`${BASE}x: 1\n`);
  });

  it('come with a session that is resumed by its project', async () => {
    const resume = () =>
      client.memory.resumeSession({
        target: { $case: 'resumeProjectId', value: projectId },
        createIfMissing: true,
        surfaceId: 'web',
      });
    expect((await resume()).projectProfile, 'there is the stub').to.equal(undefined);
    await put(BASE);
    const { profile } = await put(`${BASE}x: 1\n`, 2);
    const resumed = await resume();
    expect(resumed.created).to.equal(false);
    expect(resumed.projectProfile).to.deep.equal(profile);
    const target = { $case: 'sessionId' as const, value: resumed.session!.id };
    expect((await client.memory.resumeSession({ target })).projectProfile).to.equal(undefined);
  });

  it('refuse what is not one map of YAML, with where and without what', async () => {
    const faults = async (yaml: string) => (await failure(put(yaml))).violations.map(({ description }) => description);
    expect(await faults('- secret\n')).to.deep.equal(['line 1, column 1: not a map']);
    expect(await faults('a: 1\na: secret\nb: *secret\n')).to.deep.equal([
      'line 2, column 1: a key that comes twice',
      'line 3, column 4: an alias of nothing',
    ]);
    expect(await faults('a: 1\n---\nb: 1\n')).to.deep.equal(['line 2, column 1: multiple docs']);
    for (const yaml of ['a: [secret', '\tsecret: 1', 'a: "secret', `a: ${'['.repeat(100_000)}`]) {
      const refused = await failure(put(yaml));
      expect(refused).to.include({ code: INVALID_ARGUMENT, reason: 'INVALID_REQUEST' });
      expect(JSON.stringify(refused)).to.not.include('secret');
    }
    expect(await faults(`a: ${'x'.repeat(256 * 1024)}`)).to.deep.equal(['over 256 KiB']);
    expect((await failure(put('a: 1\n', 5))).code).to.equal(NOT_FOUND);
    expect(await faults(`${'a: 1\n'.repeat(50_000)}`)).to.have.length(20);
    const half = (key: string) => `${key}: ${'x'.repeat(150 * 1024)}\n`;
    await put(half('a'));
    expect(await faults(half('b'))).to.deep.equal(['over 256 KiB after the merge']);
  });
});

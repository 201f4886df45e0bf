import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { migrate } from '../src/db/migrate.ts';
import type { DeepPartial } from '../src/gen/memory/v1/memory_service.ts';
import type { SearchMemoriesRequest } from '../src/gen/memory/v1/project_memory_service.ts';
import type { RunningServer } from '../src/server.ts';
import {
  allPages,
  appUrl,
  type Clients,
  connect,
  failure,
  headersOf,
  metadataOf,
  newTenant,
  ownerUrl,
  runSql,
  startTestServer,
  tenantSql,
} from './support.ts';

const { FAILED_PRECONDITION, INVALID_ARGUMENT } = status;
const projectId = 'atlas';

const available = async () =>
  (await runSql(ownerUrl(), `select from pg_available_extensions where name = 'vector'`)).length > 0;

const refusedAs = async (call: Promise<unknown>) => {
  const { code, reason, message, metadata } = await failure(call);
  return { code, reason, extension: metadata.extension, helps: /install it .* `memoryd migrate`/.test(message) };
};
const NOT_INSTALLED = {
  code: FAILED_PRECONDITION,
  reason: 'CAPABILITY_NOT_INSTALLED',
  extension: 'vector',
  helps: true,
};

describe('embeddings without the extension', () => {
  const name = `plain_${randomUUID().replaceAll('-', '')}`;
  let owner: string;
  let app: string;
  let server: RunningServer;
  let client: Clients;

  before(async () => {
    await runSql(ownerUrl(), `create database ${name}`);
    [owner, app] = [ownerUrl(), appUrl()].map((url) => Object.assign(new URL(url), { pathname: `/${name}` }).href) as [
      string,
      string,
    ];
    await migrate(owner);
    await runSql(owner, 'drop extension if exists vector cascade');
    server = await startTestServer({}, undefined, app);
    client = connect(`127.0.0.1:${server.port}`, headersOf('acme', 'user'));
    await runSql(owner, `insert into tenants (tenant_id, envs) values ('acme', '{dev}')`);
    await runSql(owner, `insert into tenant_members (tenant_id, env, user_id, role) values ('acme', 'dev', 'user', 1)`);
  });
  after(async () => {
    client?.close();
    await server?.stop();
    await runSql(ownerUrl(), `drop database if exists ${name} with (force)`);
  });

  const put = (key: string, rest: object = {}) =>
    client.project.putMemory({ projectId, key, value: `the ${key}`, ...rest });

  it('are refused, with what to install, and everything else goes on', async () => {
    const requestId = randomUUID();
    expect(await refusedAs(put('k', { embedding: [1, 2], requestId }))).to.deep.equal(NOT_INSTALLED);
    const search = { projectId, query: 'the', embedding: [1, 2] };
    expect(await refusedAs(client.project.searchMemories(search))).to.deep.equal(NOT_INSTALLED);
    expect((await put('k')).created).to.equal(true);
    const { results } = await client.project.searchMemories({ projectId, query: 'the' });
    expect(results).to.have.length(1);
  });

  it('are taken from the migration on that finds the extension, by the same server', async function () {
    if (!(await available())) this.skip();
    await put('before');
    await runSql(owner, 'create extension vector');
    expect(await refusedAs(put('k', { embedding: [1, 2] }))).to.deep.equal(NOT_INSTALLED);
    expect(await migrate(owner)).to.deep.equal([]);
    await Promise.all([migrate(owner), migrate(owner)]);
    await put('k', { embedding: [1, 2] });
    const { results } = await client.project.searchMemories({ projectId, embedding: [2, 1] });
    expect(results.map(({ memory }) => memory!.key)).to.deep.equal(['k']);
    await runSql(owner, 'drop extension vector cascade');
    expect(await refusedAs(put('k', { embedding: [1, 2] }))).to.deep.equal(NOT_INSTALLED);
    await migrate(owner);
    await server.stop();
    server = await startTestServer({}, undefined, app);
    client.close();
    client = connect(`127.0.0.1:${server.port}`, headersOf('acme', 'user'));
    await put('again', { embedding: [1, 2, 3] });
  });
});

describe('embeddings', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;

  before(async function () {
    if (!(await available())) this.skip();
    server = await startTestServer();
  });
  after(() => server?.stop());
  beforeEach(async () => {
    tenant = await newTenant();
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  });
  afterEach(() => client?.close());

  const put = (key: string, embedding: number[], value = `about ${key}`, rest: object = {}) =>
    client.project.putMemory({ projectId, key, value, embedding, ...rest });
  const search = async (request: DeepPartial<SearchMemoriesRequest>, headers = headersOf(tenant)) =>
    (await client.project.searchMemories({ projectId, ...request }, metadataOf(headers))).results;
  const keys = async (request: DeepPartial<SearchMemoriesRequest>, headers?: Record<string, string>) =>
    (await search(request, headers)).map(({ memory }) => memory!.key);

  it('find the nearest by cosine, whatever their length', async () => {
    await put('east', [1, 0, 0]);
    await put('north', [0, 100, 0]);
    await put('up', [0, 0, 1]);
    await put('north east', [0.5, 0.5, 0]);
    await client.project.putMemory({ projectId, key: 'none', value: 'without' });
    expect(await keys({ embedding: [9, 1, 0.1] })).to.deep.equal(['east', 'north east', 'north', 'up']);
    expect(await keys({ embedding: [0, 1, 0.1] })).to.deep.equal(['north', 'north east', 'up', 'east']);
    const [first] = await search({ embedding: [1, 0, 0] });
    expect(first!.score).to.be.closeTo(1 / 61, 1e-6);
    expect(first!.snippets[0]!.pieces[0]!.text).to.equal('about east');
  });

  it('are fused with words by reciprocal rank', async () => {
    await put('both', [0.9, 0.1], 'marmalade on toast');
    await put('near', [1, 0], 'jam on bread');
    await put('words', [-1, 0], 'marmalade and marmalade');
    await put('neither', [-0.9, 0.2], 'honey');
    const results = await search({ query: 'marmalade', embedding: [1, 0] });
    const scores = Object.fromEntries(results.map(({ memory, score }) => [memory!.key, score]));
    const sum = (...places: number[]) => places.reduce((total, place) => total + 1 / (60 + place), 0);
    expect(scores.both).to.be.closeTo(sum(2, 2), 1e-6);
    expect(scores.words).to.be.closeTo(sum(1, 4), 1e-6);
    expect(scores.near).to.be.closeTo(sum(1), 1e-6);
    expect(scores.neither).to.be.closeTo(sum(3), 1e-6);
    expect(results.map(({ memory }) => memory!.key)).to.deep.equal(['both', 'words', 'near', 'neither']);
    const pages = await allPages((pageToken) =>
      client.project.searchMemories({ projectId, query: 'marmalade', embedding: [1, 0], pageSize: 1, pageToken }),
    );
    expect(pages.flatMap((page) => page.results)).to.deep.equal(results);
  });

  it('are those of the newest version of live memories, filtered as words are', async () => {
    await put('k', [1, 0], 'one', { metadata: { n: 1 } });
    await put('other', [0, 1], 'two', { metadata: { n: 2 } });
    expect(await keys({ embedding: [1, 0], metadataFilter: { n: 2 } })).to.deep.equal(['other']);
    await put('k', [0, 1], 'three');
    expect(await keys({ embedding: [0, 1] })).to.have.members(['k', 'other']);
    await client.project.restoreMemory({ projectId, key: 'k', version: 1 });
    expect(await keys({ embedding: [1, 0] }), 'a restored memory has none').to.deep.equal(['other']);
    await client.project.putMemory({ projectId, key: 'other', value: 'put without' });
    expect(await keys({ embedding: [1, 0] })).to.deep.equal([]);
    await put('k', [0, 1]);
    await tenantSql(tenant, `update memories set expire_time = clock_timestamp() where key = 'k'`);
    expect(await keys({ embedding: [0, 1] })).to.deep.equal([]);
    await put('k', [0, 1]);
    await client.project.deleteMemory({ projectId, key: 'k' });
    expect(await keys({ embedding: [0, 1] })).to.deep.equal([]);
  });

  it('have as many numbers as the first one of the project, also where several come at once', async () => {
    const sizes = [2, 3, 4, 5, 6, 7, 8, 9];
    const first = await Promise.allSettled(sizes.map((n) => put(`k${n}`, new Array(n).fill(1))));
    expect(first.filter((each) => each.status === 'fulfilled')).to.have.length(1);
    const dimension = sizes[first.findIndex((each) => each.status === 'fulfilled')]!;
    const wrong = await failure(put('wrong', new Array(dimension + 1).fill(1)));
    expect([wrong.code, wrong.violations[0]!.field]).to.deep.equal([INVALID_ARGUMENT, 'embedding']);
    expect((await failure(search({ embedding: [1] }))).violations[0]!.field).to.equal('embedding');
    await put('elsewhere', [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 'x', { projectId: 'other' });
    await client.project.deleteMemory({ projectId, key: `k${dimension}` });
    await put('new', new Array(2000).fill(0.1));
    expect(await keys({ embedding: new Array(2000).fill(0.2) })).to.deep.equal(['new']);
  });

  it('come again with a request_id, and are part of what it stands for', async () => {
    const requestId = randomUUID();
    const first = await put('k', [1, 2], 'v', { requestId });
    expect(await put('k', [1, 2], 'v', { requestId })).to.deep.equal(first);
    expect((await failure(put('k', [1, 3], 'v', { requestId }))).reason).to.equal('REQUEST_ID_REUSED');
  });

  it('of other projects, envs and tenants are never compared', async () => {
    const elsewhere = headersOf(await newTenant());
    await client.project.putMemory({ projectId, key: 'theirs', value: 'v', embedding: [1, 0] }, metadataOf(elsewhere));
    await put('mine', [0, 1]);
    await put('other project', [1, 0], 'v', { projectId: 'other' });
    expect(await keys({ embedding: [1, 0] })).to.deep.equal(['mine']);
    expect(await keys({ embedding: [1, 0] }, elsewhere)).to.deep.equal(['theirs']);
  });
});

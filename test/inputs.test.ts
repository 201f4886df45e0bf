import { createHash, randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
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
} from './support.ts';

const projectId = 'atlas';
const sha256 = (text: string) => createHash('sha256').update(text).digest('hex');

describe('inputs', () => {
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
  const register = (text: string, rest: object = {}) =>
    client.artifact.registerInput({ projectId, fileName: `${text}.pdf`, sha256: sha256(text), ...rest });
  const get = async (inputId: string) => (await client.artifact.getInput({ inputId })).input!;

  it('are what was registered, and read by every member', async () => {
    const { session } = await client.memory.upsertSession({ session: { surfaceId: 'web', projectId } });
    const given = {
      fileName: 'Q3 (final).pdf',
      mediaType: 'application/pdf',
      sizeBytes: 5_000_000_000,
      uri: 's3://bucket/q3.pdf',
      metadata: { pages: 12 },
      sessionId: session!.id,
    };
    const content = 'Sales grew.\n'.repeat(80_000);
    const { input, created } = await register('q3', { ...given, content, sectionIds: ['sales', 'intro', 'sales'] });
    expect(created).to.equal(true);
    const told = { ...given, projectId, sha256: sha256('q3'), content: '', contentBytes: content.length };
    expect(input).to.deep.include({ ...told, sectionIds: ['intro', 'sales'], createdBy: 'user', updatedBy: 'user' });
    const whole = (await client.artifact.getInput({ inputId: input!.id }, other())).input!;
    expect(whole).to.deep.equal({ ...input, content });
    expect((await client.artifact.listInputs({ projectId })).inputs).to.deep.equal([input]);
  });

  it('are one for the same file of a project, which a second registration adds to', async () => {
    const first = await register('q3', { sectionIds: ['intro'], metadata: { from: 'mail' } });
    const more = { content: 'text', uri: 'https://example.com', sectionIds: ['sales'], sizeBytes: 4 };
    const second = await client.artifact.registerInput(
      { projectId, fileName: 'renamed.pdf', sha256: sha256('q3').toUpperCase(), metadata: { from: 'web' }, ...more },
      other(),
    );
    expect(second.created).to.equal(false);
    const told = { id: first.input!.id, fileName: 'q3.pdf', uri: 'https://example.com', contentBytes: 4, sizeBytes: 4 };
    expect(second.input).to.deep.include({ ...told, sectionIds: ['intro', 'sales'], metadata: { from: 'mail' } });
    expect(second.input).to.include({ createdBy: 'user', updatedBy: 'other' });
    await register('q3', { content: 'another text', uri: 'https://example.org' });
    expect(await get(first.input!.id)).to.include({ content: 'text', uri: 'https://example.com' });
    const elsewhere = await register('q3', { projectId: 'borea' });
    expect(elsewhere.created).to.equal(true);
  });

  it('are one also when the same file comes many times at once', async () => {
    const all = await Promise.all(Array.from({ length: 12 }, (_, i) => register('q3', { sectionIds: [`s${i}`] })));
    expect(all.filter(({ created }) => created)).to.have.length(1);
    expect(new Set(all.map(({ input }) => input!.id)).size).to.equal(1);
    expect((await get(all[0]!.input!.id)).sectionIds).to.have.length(12);
  });

  it('are listed newest first, by section, in pages', async () => {
    for (let i = 0; i < 7; i++) await register(`f${i}`, { sectionIds: i % 2 ? ['odd', 'all'] : ['all'] });
    const names = async (filter: object) => {
      const page = (pageToken: string) => client.artifact.listInputs({ projectId, pageSize: 2, ...filter, pageToken });
      return (await allPages(page)).flatMap(({ inputs }) => inputs.map(({ fileName }) => fileName[1]));
    };
    expect((await names({})).join('')).to.equal('6543210');
    expect((await names({ sectionId: 'all' })).join('')).to.equal('6543210');
    expect((await names({ sectionId: 'odd' })).join('')).to.equal('531');
    expect(await names({ sectionId: 'none' })).to.deep.equal([]);
    expect(await names({ projectId: 'borea' })).to.deep.equal([]);
  });

  it('end a page of a list at 1 MiB', async () => {
    const metadata = { text: 'x'.repeat(60_000) };
    for (let i = 0; i < 20; i++) await register(`f${i}`, { metadata });
    const pages = await allPages((pageToken) => client.artifact.listInputs({ projectId, pageSize: 500, pageToken }));
    expect(pages.map(({ inputs }) => inputs.length)).to.deep.equal([17, 3]);
  });

  it('answer a replay as the first time, and refuse what is not right', async () => {
    const requestId = randomUUID();
    const first = await register('q3', { requestId });
    expect(await register('q3', { requestId })).to.deep.equal(first);
    const { session } = await client.memory.upsertSession({ session: { surfaceId: 'web' } }, other());
    for (const sessionId of [session!.id, randomUUID()])
      expect(await failure(register('x', { sessionId }))).to.include({ message: 'session not found' });
    const wrong = {
      sha256: 'xyz',
      sizeBytes: -1,
      sectionIds: ['', 'x'.repeat(129)],
      content: 'x'.repeat(1024 * 1024 + 1),
    };
    const refused = await failure(register('x', wrong));
    expect(refused.code).to.equal(status.INVALID_ARGUMENT);
    expect(refused.violations.map(({ field }) => field)).to.deep.equal([
      'size_bytes',
      'sha256',
      'content',
      'section_ids[0]',
      'section_ids[1]',
    ]);
    const many = (from: number) => ({ sectionIds: Array.from({ length: 100 }, (_, i) => `s${from + i}`) });
    for (let i = 0; i < 10; i++) await register('many', many(i * 100));
    expect((await failure(register('many', many(1000)))).violations.map(({ field }) => field)).to.deep.equal([
      'section_ids',
    ]);
  });
});

import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { applyPatch } from 'diff';
import type { DraftRevision } from '../src/gen/memory/v1/draft.ts';
import type { RunningServer } from '../src/server.ts';
import { holdRows } from './fixtures/rows-held.ts';
import {
  allPages,
  type Clients,
  connect,
  failure,
  headersOf,
  metadataOf,
  newTenant,
  rowCounts,
  startTestServer,
  tenantSql,
} from './support.ts';

const STALE = { code: status.ABORTED, reason: 'STALE_FENCING_TOKEN' };
const HELD = { code: status.FAILED_PRECONDITION, reason: 'SECTION_HELD' };
const section = { projectId: 'atlas', sectionId: 'intro' };

describe('drafts', () => {
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
  const lock = async (holder = 'editor', rest: object = {}) =>
    (await client.artifact.lockSection({ ...section, holder, ...rest })).lock!.fencingToken;
  const unlock = (fencingToken: number) => client.artifact.unlockSection({ ...section, fencingToken });
  const renew = (fencingToken: number) => client.artifact.renewSectionLock({ ...section, fencingToken });
  const save = async (fencingToken: number, content: string, rest: object = {}) =>
    (await client.artifact.saveDraft({ ...section, fencingToken, content, ...rest })).revision!;
  const restore = async (fencingToken: number, revision: number, rest: object = {}) =>
    (await client.artifact.restoreDraft({ ...section, fencingToken, revision, ...rest })).revision!;
  const get = (revision = 0) => client.artifact.getDraft({ ...section, revision });
  const revisions = async (pageSize = 3): Promise<DraftRevision[]> => {
    const page = (pageToken: string) => client.artifact.listRevisions({ ...section, pageSize, pageToken });
    return (await allPages(page)).flatMap((each) => each.revisions);
  };
  const lapse = () => tenantSql(tenant, `update drafts set lease_expire_time = now() - interval '1 ms'`);
  const profile = async () => (await client.artifact.getProjectProfile({ projectId: section.projectId })).profile!;

  it('are written by who holds the section, revision after revision, and read by all', async () => {
    const token = await lock();
    const { input } = await client.artifact.registerInput({
      projectId: section.projectId,
      fileName: 'facts.pdf',
      sha256: 'a'.repeat(64),
    });
    const sources = [
      { passage: 'Sales', source: { $case: 'inputId' as const, value: input!.id }, locator: 'page 3', quote: 'up 3 %' },
      { passage: '', source: { $case: 'messageId' as const, value: randomUUID() }, locator: '', quote: '' },
      { passage: 'Costs', source: { $case: 'uri' as const, value: 'https://example.com/c' }, locator: '', quote: '' },
    ];
    const prompts = [{ name: 'draft', version: '2', text: 'Write.' }];
    const rest = { sources, prompts, metadata: { tone: 'dry' } };
    const first = await save(token, '# Intro\n\nSales grew.\n', rest);
    expect(first).to.include({
      ...section,
      revision: 1,
      createdBy: 'user',
      content: '',
      restoredRevision: 0,
      sizeBytes: 21,
    });
    const { draft, revision } = await client.artifact.getDraft(section, other());
    expect(revision).to.deep.equal({ ...first, content: '# Intro\n\nSales grew.\n', ...rest });
    expect(draft).to.include({ ...section, revision: 1, createdBy: 'user', updatedBy: 'user', locked: false });
    expect(draft!.lock).to.include({ holder: 'editor', userId: 'user', fencingToken: 0 });

    const second = await save(token, '# Intro\n\nSales fell.\n', { sources: sources.slice(1) });
    expect(second.revision).to.equal(2);
    expect((await get(1)).revision).to.deep.equal(revision);
    const [newest, oldest] = await revisions();
    expect(oldest).to.include({ revision: 1, contentDiff: '', sourcesDiff: '', diffTruncated: false });
    expect(newest!.contentDiff).to.equal(
      '--- revision 1\n+++ revision 2\n@@ -1,3 +1,3 @@\n # Intro\n \n-Sales grew.\n+Sales fell.\n',
    );
    expect(newest!.sourcesDiff).to.match(
      /^--- revision 1\n\+\+\+ revision 2\n@@ -1,3 \+1,2 @@\n-"Sales" from input [0-9a-f-]{36} at "page 3" quoting "up 3 %"\n /,
    );
    expect((await failure(get(3))).code).to.equal(status.NOT_FOUND);
  });

  it('have diffs from which each revision follows, also where little or nothing was left', async () => {
    const token = await lock();
    const lines = Array.from({ length: 5000 }, (_, i) => `Line ${i} of the section.`);
    const contents = [
      '',
      'one\ntwo\nthree',
      'one\r\ntwo\r\nthree\n',
      lines.join('\n'),
      lines.map((line, i) => (i % 50 ? line : `${line} Changed.`)).join('\n'),
      lines.map((line) => `${line} Rewritten.`).join('\n'),
      '\\ No newline at end of file\n--- a\n+++ b\n',
      '',
    ];
    for (const content of contents) await save(token, content);
    const listed = (await revisions()).reverse();
    expect(listed.map(({ revision }) => revision)).to.deep.equal(contents.map((_, i) => i + 1));
    for (const [i, { contentDiff, diffTruncated }] of listed.entries()) {
      if (diffTruncated) continue;
      expect(
        applyPatch(i > 0 ? contents[i - 1]! : '', contentDiff || '', { autoConvertLineEndings: false }),
        `${i}`,
      ).to.equal(i > 0 ? contents[i] : '');
    }
    expect(listed.map(({ diffTruncated }) => diffTruncated).indexOf(true)).to.equal(5);
    expect(Buffer.byteLength(listed[5]!.contentDiff)).to.be.within(250 * 1024, 256 * 1024);
  });

  it('refuse who does not hold the section now, and store nothing of it', async () => {
    expect((await failure(save(1, 'x'))).code).to.equal(status.NOT_FOUND);
    const first = await lock('a');
    await save(first, 'by a');
    await unlock(first);
    for (const token of [first, first + 1, first + 2]) expect(await failure(save(token, 'x'))).to.include(STALE);
    const second = await lock('b');
    expect(second).to.be.greaterThan(first);
    const late = [save(first, 'x'), restore(first, 1), renew(first), unlock(first)];
    for (const refused of await Promise.all(late.map(failure))) expect(refused).to.include(STALE);
    await save(second, 'by b');
    expect((await revisions()).map(({ revision }) => revision)).to.deep.equal([2, 1]);
  });

  it('have one editor at a time, whoever asks, and tell who that is and until when, but no token', async () => {
    const [mine, theirs] = await Promise.allSettled([
      client.artifact.lockSection({ ...section, holder: 'a', ttl: { seconds: 30 } }),
      client.artifact.lockSection({ ...section, holder: 'b', ttl: { seconds: 30 } }, other()),
    ]);
    expect([mine.status, theirs.status].sort()).to.deep.equal(['fulfilled', 'rejected']);
    const holder = mine.status === 'fulfilled' ? 'a' : 'b';
    const refused = await failure(client.artifact.lockSection({ ...section, holder: 'c' }));
    expect(refused).to.include(HELD);
    expect(refused.metadata.holder).to.equal(holder);
    expect(refused.retryAfterMs).to.be.within(20_000, 30_000);
    const told = (await client.artifact.getSectionLock(section)).lock!;
    expect(told).to.include({ ...section, holder, userId: holder === 'a' ? 'user' : 'other', fencingToken: 0 });
    const won = mine.status === 'fulfilled' ? mine : (theirs as PromiseFulfilledResult<any>);
    expect(told.expireTime).to.deep.equal(won.value.lock.expireTime);
    await unlock(won.value.lock.fencingToken);
    expect((await client.artifact.getSectionLock(section)).lock).to.equal(undefined);
  });

  it('keep their editor whose lock has only lapsed, until another takes it', async () => {
    const token = await lock('a');
    await lapse();
    expect((await client.artifact.getSectionLock(section)).lock).to.equal(undefined);
    await save(token, 'late, but nobody came');
    await renew(token);
    expect(await failure(lock('b'))).to.include(HELD);
    await lapse();
    const next = await lock('b');
    expect(await failure(save(token, 'too late'))).to.include(STALE);
    await save(next, 'in time');
    expect((await get()).revision).to.include({ revision: 2, content: 'in time' });
  });

  it('refuse a save whose lock is lost while it waits to write', async () => {
    const token = await lock('a');
    await save(token, 'before');
    const taker = await holdRows(tenant, `update drafts set lease_holder = 'b', fencing_token = fencing_token + 1`);
    const saving = failure(save(token, 'in between', { profileChange: { yaml: 'a: 1\n' } }));
    await taker.awaited(1);
    await taker.letGo();
    expect(await saving).to.include(STALE);
    expect((await get()).revision).to.include({ revision: 1, content: 'before' });
    expect((await failure(profile())).code).to.equal(status.NOT_FOUND);
  });

  it('are read with the newest of their revisions, also while another one is saved', async () => {
    const token = await lock();
    await save(token, '0');
    let saving = true;
    const reading = Array.from({ length: 4 }, async () => {
      while (saving) {
        const { draft, revision } = await get();
        expect(revision).to.include({ revision: draft!.revision, content: String(draft!.revision - 1) });
      }
    });
    for (let i = 1; i <= 40; i++) await save(token, String(i));
    saving = false;
    await Promise.all(reading);
  });

  it('number what one editor saves at once without a gap, each compared with the one before', async () => {
    const token = await lock();
    await save(token, 'start\n');
    const saves = Array.from({ length: 12 }, (_, i) => (i % 4 ? save(token, `start\nsave ${i}\n`) : restore(token, 1)));
    const made = await Promise.all(saves);
    expect(made.map(({ revision }) => revision).sort((a, b) => a - b)).to.deep.equal(made.map((_, i) => i + 2));
    let content = 'start\n';
    for (const { revision, contentDiff } of (await revisions(500)).reverse().slice(1)) {
      content = contentDiff ? (applyPatch(content, contentDiff) as string) : content;
      expect((await get(revision)).revision!.content, `${revision}`).to.equal(content);
    }
  });

  it('save a change of the profile with them, both or neither', async () => {
    const token = await lock();
    await client.artifact.putProjectProfile({ projectId: section.projectId, yaml: 'a: 1\n' });
    const saved = await save(token, 'one', { profileChange: { yaml: 'a: 2\n', baseVersion: 1 } });
    expect(saved.profileVersion).to.equal(2);
    expect(await profile()).to.include({ version: 2, yaml: 'a: 2\n', baseVersion: 1 });

    const conflicting = await failure(save(token, 'x', { profileChange: { yaml: 'a: 3\n', baseVersion: 1 } }));
    expect(conflicting).to.include({ code: status.ABORTED, reason: 'MERGE_CONFLICT' });
    const wrong = await failure(save(token, 'x', { profileChange: { yaml: 'a: [', baseVersion: 2 } }));
    expect(wrong.violations.map(({ field }) => field)).to.deep.equal(['profile_change.yaml']);
    expect(await failure(save(token + 1, 'x', { profileChange: { yaml: 'a: 4\n', baseVersion: 2 } }))).to.include(
      STALE,
    );
    await tenantSql(tenant, 'update project_profile_versions set lock_time = now() where version = 2');
    expect(await failure(save(token, 'x', { profileChange: { yaml: 'a: 4\n', baseVersion: 2 } }))).to.include({
      code: status.FAILED_PRECONDITION,
      reason: 'PROFILE_LOCKED',
    });
    expect(await rowCounts(tenant, ['draft_revisions', 'project_profile_versions'])).to.deep.equal({
      draft_revisions: 1,
      project_profile_versions: 2,
    });

    expect((await save(token, 'two')).profileVersion).to.equal(2);
    const merged = await save(token, 'three', {
      profileChange: { yaml: 'a: 1\nb: 1\n', baseVersion: 1, reopen: true },
    });
    expect(merged.profileVersion).to.equal(3);
    expect(await profile()).to.include({ yaml: 'a: 2\nb: 1\n', merged: true });
    const { events } = await client.audit.listAuditEvents({ pageSize: 3 });
    expect(events.map(({ action }) => action).sort()).to.deep.equal(['drafts.save', 'drafts.save', 'profiles.put']);
  });

  it('save profiles of several sections at once, none of them lost', async () => {
    const sections = Array.from({ length: 6 }, (_, i) => ({ projectId: 'atlas', sectionId: `s${i}` }));
    await client.artifact.putProjectProfile({ projectId: 'atlas', yaml: 'a: 1\n' });
    const versions = await Promise.all(
      sections.map(async (own, i) => {
        const { lock: taken } = await client.artifact.lockSection({ ...own, holder: 'me' });
        const profileChange = { yaml: `a: 1\ns${i}: ${i}\n`, baseVersion: 1 };
        const { fencingToken } = taken!;
        return (await client.artifact.saveDraft({ ...own, fencingToken, content: 'x', profileChange })).revision!;
      }),
    );
    expect(versions.map(({ profileVersion }) => profileVersion).sort()).to.deep.equal([2, 3, 4, 5, 6, 7]);
    expect((await profile()).yaml.split('\n').sort().join()).to.equal(',a: 1,s0: 0,s1: 1,s2: 2,s3: 3,s4: 4,s5: 5');
    const { drafts } = await client.artifact.listDrafts({ projectId: 'atlas' });
    expect(drafts.map(({ sectionId, revision }) => `${sectionId} ${revision}`)).to.deep.equal(
      sections.map(({ sectionId }) => `${sectionId} 1`),
    );
  });

  it('bring an older revision back as a new one', async () => {
    const token = await lock();
    const sources = [{ passage: 'a', source: { $case: 'uri' as const, value: 'https://example.com' } }];
    await save(token, 'good\n', { sources, prompts: [{ name: 'p' }], metadata: { n: 1 } });
    await save(token, 'bad\n');
    const restored = await restore(token, 1);
    expect(restored).to.include({ revision: 3, restoredRevision: 1 });
    const [first, third] = [(await get(1)).revision!, (await get()).revision!];
    for (const name of ['content', 'sources', 'prompts', 'metadata', 'sizeBytes'] as const)
      expect(third[name], name).to.deep.equal(first[name]);
    expect((await revisions())[0]!.contentDiff).to.include('-bad\n+good\n');
    expect((await failure(restore(token, 9))).code).to.equal(status.NOT_FOUND);
  });

  it('answer a replay as the first time, whoever holds the section by then', async () => {
    const requestId = randomUUID();
    const token = await lock('a', { requestId });
    expect(await lock('a', { requestId })).to.equal(token);
    const all = await Promise.all(Array.from({ length: 5 }, () => save(token, 'once', { requestId })));
    for (const revision of all) expect(revision).to.deep.equal(all[0]);
    const back = await restore(token, 1, { requestId });
    const change = { requestId: randomUUID(), profileChange: { yaml: 'a: 1\n' } };
    const withProfile = await save(token, 'with profile', change);
    await save(token, 'more', { profileChange: { yaml: 'a: 2\n', baseVersion: 1 } });
    await unlock(token);
    await lock('b');
    expect(await save(token, 'once', { requestId })).to.deep.equal(all[0]);
    expect(await restore(token, 1, { requestId })).to.deep.equal(back);
    expect(await save(token, 'with profile', change)).to.deep.equal(withProfile);
    expect((await failure(save(token, 'other', { requestId }))).reason).to.equal('REQUEST_ID_REUSED');
    expect((await get()).draft!.revision).to.equal(4);
    expect((await profile()).version).to.equal(2);
  });

  it('name only inputs of their project and sessions of their caller', async () => {
    const token = await lock();
    const register = async (projectId: string) =>
      (await client.artifact.registerInput({ projectId, fileName: 'f', sha256: 'b'.repeat(64) })).input!.id;
    const from = (value: string) => ({ sources: [{ source: { $case: 'inputId' as const, value } }] });
    expect(await failure(save(token, 'x', from(randomUUID())))).to.include({ message: 'input not found' });
    expect(await failure(save(token, 'x', from(await register('else'))))).to.include({ message: 'input not found' });
    await save(token, 'x', from((await register('atlas')).toUpperCase()));
    const { session } = await client.memory.upsertSession({ session: { surfaceId: 'web' } }, other());
    const theirs = { ...section, fencingToken: token, content: 'x', sessionId: session!.id };
    expect(await failure(client.artifact.saveDraft(theirs))).to.include({ message: 'session not found' });
    expect((await client.artifact.saveDraft(theirs, other())).revision).to.include({
      revision: 2,
      sessionId: session!.id,
      createdBy: 'other',
    });
  });

  it('are listed by section without those never saved, and hold as much as they may', async () => {
    const token = await lock();
    expect((await client.artifact.listDrafts({ projectId: 'atlas' })).drafts).to.deep.equal([]);
    expect((await failure(get())).code).to.equal(status.NOT_FOUND);
    expect((await failure(revisions())).code).to.equal(status.NOT_FOUND);
    const whole = 'ä'.repeat(512 * 1024);
    await save(token, whole);
    expect((await get()).revision!.content).to.equal(whole);
    await save(token, `${whole.slice(1)}ab`);
    const [row] = await tenantSql(tenant, 'select sum(pg_column_size(content))::int as stored from draft_revisions');
    expect(row.stored, 'Postgres compresses it').to.be.lessThan(100_000);
    expect((await failure(save(token, `${whole}x`))).violations).to.deep.include({
      field: 'content',
      description: 'over 1024 KiB',
      reason: '',
    });
    expect((await client.artifact.listDrafts({ projectId: 'atlas' })).drafts).to.have.length(1);
    expect((await client.artifact.listDrafts({ projectId: 'else' })).drafts).to.deep.equal([]);
  });
});

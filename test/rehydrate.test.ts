import { mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { expect } from 'chai';
import { Snapshot_UploadState } from '../src/gen/memory/v1/artifact.ts';
import { killAll, memoryd } from './fixtures/command.ts';
import { commitOf, projectId, registerInput, saveSection, writeDocument } from './fixtures/documents.ts';
import {
  addMember,
  type Clients,
  connect,
  headersOf,
  newDatabase,
  newTenant,
  runSql,
  startTestServer,
  until,
} from './support.ts';

// Each test has a database that is lost, and one in which nothing is.
describe('rehydration', function () {
  this.timeout(60_000);
  let folder: string;
  let lost: { owner: string; app: string };
  let fresh: { owner: string; app: string };
  let running: { stop(): Promise<void> }[];
  let tenant: string;

  const store = () => pathToFileURL(join(folder, 'snapshots')).href;
  const files = () => join(folder, 'snapshots', tenant, 'dev', projectId);
  const arguments_ = (more: string[] = []) => [
    ...['rehydrate', '--tenant', tenant, '--env', 'dev', '--project', projectId, '--from', store()],
    ...more,
  ];
  const start = (more: string[] = [], url = fresh.app) => memoryd(arguments_(more), { DATABASE_URL: url });

  async function done(): Promise<string> {
    const run = start();
    expect(await run.ended, run.err()).to.equal(0);
    return run.err();
  }
  async function refused(more: string[] = [], url = fresh.app): Promise<string> {
    const run = start(more, url);
    expect(await run.ended).to.equal(1);
    return run.err();
  }
  async function clientOf(database: { app: string; owner: string }, snapshotStore?: string): Promise<Clients> {
    const server = await startTestServer(
      snapshotStore ? { snapshotStore: new URL(snapshotStore) } : {},
      undefined,
      database.app,
    );
    running.push(server);
    const client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
    running.push({ stop: async () => client.close() });
    return client;
  }
  /** The same tenant, which an operator made again. */
  async function makeTenant(): Promise<void> {
    await runSql(fresh.owner, `insert into tenants (tenant_id, envs) values ($1, '{dev}')`, [tenant]);
    await addMember(tenant, 'user', 'dev', fresh.owner);
  }
  const stored = (client: Clients) =>
    until(async () => {
      const { snapshots } = await client.artifact.listSnapshots({ projectId });
      return snapshots.length > 0 && snapshots.every(({ uploadState }) => uploadState === Snapshot_UploadState.STORED);
    });

  before(async () => {
    [lost, fresh] = await Promise.all([newDatabase(), newDatabase()]);
  });
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'memoryd-rehydrate-'));
    running = [];
    tenant = await newTenant(['user'], {}, lost.owner);
    await makeTenant();
  });
  afterEach(async () => {
    killAll();
    await Promise.all(running.map((one) => one.stop()));
    await rm(folder, { recursive: true });
  });

  /** Everything that members can read of what was committed, but for when and how often it was uploaded. */
  async function seen(
    client: Clients,
    { inputId }: { inputId: string },
    sections: [string, number][],
  ): Promise<object> {
    const { artifact } = client;
    const { artifacts } = await artifact.listArtifacts({ projectId });
    const whole = await Promise.all(
      artifacts.map(({ artifactKey, version }) => artifact.getArtifact({ projectId, artifactKey, version })),
    );
    const { versions } = await artifact.listProjectProfileVersions({ projectId });
    const profiles = await Promise.all(
      versions.map(({ version }) => artifact.getProjectProfile({ projectId, version })),
    );
    const revisions = await Promise.all(
      sections.map(([sectionId, revision]) => artifact.getDraft({ projectId, sectionId, revision })),
    );
    const listed = await Promise.all(sections.map(([sectionId]) => artifact.listRevisions({ projectId, sectionId })));
    const { snapshots } = await artifact.listSnapshots({ projectId });
    const upload = { storeTime: undefined, attempts: 0, id: '' };
    const text = JSON.stringify([
      whole.map((one) => ({ ...one.artifact, snapshot: { ...one.artifact!.snapshot, ...upload } })),
      profiles,
      revisions,
      listed.map((one) => one.revisions.filter(({ locked }) => locked)),
      await artifact.getInput({ inputId }),
      await artifact.listDrafts({ projectId }),
      snapshots
        .map((snapshot) => ({ ...snapshot, ...upload, createTime: undefined }))
        .sort((a, b) => (a.link < b.link ? -1 : 1)),
    ]);
    return JSON.parse(text);
  }

  it('into an empty database gives back all that was committed, as it was, and only once', async () => {
    const client = await clientOf(lost, store());
    const document = await writeDocument(client);
    await client.artifact.commitArtifact(commitOf(document));
    // Another version, from a later revision and a later profile; another artifact; and much that is in none.
    const yaml = 'title: more\n';
    await client.artifact.putProjectProfile({ projectId, yaml, baseVersion: document.profileVersion, reopen: true });
    const sources = [{ source: { $case: 'inputId' as const, value: document.inputId } }];
    const metadata = { exact: 0.1, nested: { list: [1, 'zwei', null, true] }, text: 'ü👋\n"' };
    const revision = await saveSection(client, 'end', 'ended again, ü👋', { sources, metadata });
    const sections = [document.sections[0]!, { sectionId: 'end', revision }];
    await client.artifact.commitArtifact(commitOf({ sections }, { finalOutput: 'ü👋\r\n second', metadata }));
    await client.artifact.commitArtifact(
      commitOf({ sections: sections.slice(1) }, { artifactKey: 'a/b ü*', approvals: [] }),
    );
    await registerInput(client, 'not cited');
    await stored(client);
    const revisions: [string, number][] = [
      ['intro', 2],
      ['end', 1],
      ['end', 2],
    ];
    const was = await seen(client, document, revisions);

    expect(await done()).to.contain('restored 7 snapshots; 0 were there already');
    const again = await clientOf(fresh);
    expect(await seen(again, document, revisions)).to.deep.equal(was);
    expect(await done()).to.contain('restored 0 snapshots; 7 were there already');
    expect(await seen(again, document, revisions)).to.deep.equal(was);
    const events = await runSql(
      fresh.owner,
      `select count(*)::int as n from audit_events where tenant_id = $1 and action = 'snapshots.restore' and actor = 'cli'`,
      [tenant],
    );
    expect(events).to.deep.equal([{ n: 7 }]);
  });

  it('leaves a project that goes on: the next revision, version and commit', async () => {
    const client = await clientOf(lost, store());
    const document = await writeDocument(client);
    await client.artifact.commitArtifact(commitOf(document));
    await stored(client);
    await done();
    const again = await clientOf(fresh);
    const { lock } = await again.artifact.lockSection({ projectId, sectionId: 'intro', holder: 'writer' });
    expect(lock!.fencingToken).to.be.greaterThan(1_000_000);
    await again.artifact.unlockSection({ projectId, sectionId: 'intro', fencingToken: lock!.fencingToken });
    const revision = await saveSection(again, 'intro', 'goes on\n');
    expect(revision).to.equal(3);
    const put = { projectId, yaml: 'title: on\n', baseVersion: document.profileVersion };
    expect((await again.artifact.putProjectProfile({ ...put, reopen: true })).profile!.version).to.equal(4);
    const { artifact } = await again.artifact.commitArtifact(
      commitOf({ sections: [{ sectionId: 'intro', revision }] }),
    );
    expect(artifact!.version).to.equal(2);
    expect(await done()).to.contain('restored 0 snapshots');
  });

  it('refuses a snapshot that was changed, cut or renamed, names it, and stores nothing', async () => {
    const client = await clientOf(lost, store());
    await client.artifact.commitArtifact(commitOf(await writeDocument(client)));
    await stored(client);
    const names = await readdir(files());
    for (const name of names) {
      const file = join(files(), name);
      const bytes = await readFile(file);
      const changed = Buffer.from(bytes);
      changed[600] = changed[600]! ^ 1;
      for (const bad of [changed, bytes.subarray(0, -512), Buffer.alloc(0)]) {
        await writeFile(file, bad);
        const said = await refused();
        expect(said).to.contain(`${name}: its checksum is not the one in its name. Nothing was restored`);
      }
      await writeFile(file, bytes);
    }
    const artifact = names.find((name) => name.startsWith('artifact'))!;
    const other = artifact.replace('-v1-', '-v2-');
    await rename(join(files(), artifact), join(files(), other));
    expect(await refused()).to.contain(`${other}: it is not the snapshot that its name says. Nothing was restored`);
    const rows = await runSql(fresh.owner, 'select from artifacts where tenant_id = $1', [tenant]);
    expect(rows).to.have.length(0);
  });

  it('leaves out what somebody else keeps beside the snapshots, and names it', async () => {
    const client = await clientOf(lost, store());
    await client.artifact.commitArtifact(commitOf(await writeDocument(client)));
    await stored(client);
    await writeFile(join(files(), '.DS_Store'), 'not ours');
    await mkdir(join(files(), 'old'));
    const said = await done();
    expect(said).to.contain('left out .DS_Store, which is no snapshot');
    expect(said).to.contain('left out old, which is no snapshot');
    expect(said).to.contain('restored 4 snapshots; 0 were there already');
  });

  it('refuses to change what is there otherwise, names it, and stores nothing of that snapshot', async () => {
    const client = await clientOf(lost, store());
    const document = await writeDocument(client);
    await client.artifact.commitArtifact(commitOf(document));
    await stored(client);
    const again = await clientOf(fresh);
    await saveSection(again, 'end', 'written since');
    const said = await refused();
    expect(said).to.match(
      /artifact-report-v1-\w+\.tar: draft_revisions \["atlas", ?"end", ?1\] is there already, but not as/,
    );
    expect((await again.artifact.listArtifacts({ projectId })).artifacts).to.deep.equal([]);
    const { revision } = await again.artifact.getDraft({ projectId, sectionId: 'end', revision: 1 });
    expect(revision!.content).to.equal('written since');
  });

  it('tells which versions the store does not have', async () => {
    const client = await clientOf(lost, store());
    const document = await writeDocument(client);
    for (let i = 0; i < 3; i++) await client.artifact.commitArtifact(commitOf(document));
    await stored(client);
    for (const name of await readdir(files())) if (name.startsWith('artifact-report-v2')) await rm(join(files(), name));
    expect(await done()).to.contain('the store has no snapshot of the artifact report, version 2');
  });

  it('refuses what is not there: a tenant, an env, a project, a store', async () => {
    expect(await refused()).to.contain(`the store has no snapshots of ${tenant}/dev/atlas`);
    expect(await refused(['--env', 'none'])).to.contain('has no env none');
    expect(await refused(['--tenant', 'nobody'])).to.contain('there is no tenant nobody');
    expect(await refused(['--from', 'ftp://host'])).to.contain('is not a URL such as');
  });
});

import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { Snapshot_Kind, Snapshot_UploadState } from '../src/gen/memory/v1/artifact.ts';
import type { RunningServer } from '../src/server.ts';
import { commitOf, projectId, registerInput, saveSection, writeDocument } from './fixtures/documents.ts';
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

const { FAILED_PRECONDITION, INVALID_ARGUMENT, NOT_FOUND } = status;
const { PENDING, STORED, FAILED } = Snapshot_UploadState;
const key = { projectId, artifactKey: 'report' };

describe('artifacts', () => {
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

  it('hold what was committed, for every member, and are queued for the store', async () => {
    const document = await writeDocument(client);
    const { session } = await client.memory.upsertSession({ session: { surfaceId: 'web', projectId } });
    const request = commitOf(document, { sessionId: session!.id });
    const { artifact } = await client.artifact.commitArtifact(request);
    expect(artifact).to.deep.include({
      ...key,
      version: 1,
      finalOutput: '',
      sizeBytes: Buffer.byteLength(request.finalOutput),
      sections: document.sections,
      profileVersion: document.profileVersion,
      reviewers: request.reviewers,
      approvals: request.approvals,
      gateStage: 'review',
      metadata: { pages: 3 },
      sessionId: session!.id,
      createdBy: 'user',
    });
    const { snapshot } = artifact!;
    expect(snapshot).to.deep.include({ ...key, version: 1, kind: Snapshot_Kind.ARTIFACT, uploadState: PENDING });
    expect(snapshot).to.deep.include({ reason: '', attempts: 0, link: '', sha256: '', storeTime: undefined });
    expect(snapshot!.nextAttemptTime).to.deep.equal(artifact!.createTime);

    const read = await client.artifact.getArtifact(key, other());
    expect(read.artifact).to.deep.equal({ ...artifact, finalOutput: request.finalOutput });
    expect((await client.artifact.listArtifacts({ projectId }, other())).artifacts).to.deep.equal([artifact]);
  });

  it('take the time of the commit for approvals that tell none', async () => {
    const document = await writeDocument(client);
    const approvals = [{ approver: 'ada', verdict: 3 as const }];
    const { artifact } = await client.artifact.commitArtifact(commitOf(document, { approvals, metadata: undefined }));
    expect(artifact!.metadata).to.deep.equal({});
    expect(artifact!.approvals[0]!.decideTime).to.deep.equal(artifact!.createTime);
    expect((await client.artifact.getArtifact(key)).artifact!.approvals).to.deep.equal(artifact!.approvals);
  });

  it('lock the profile version and the revisions that they name, and nothing else', async () => {
    const { sections, profileVersion } = await writeDocument(client);
    await client.artifact.commitArtifact(commitOf({ sections: sections.slice(0, 1) }));
    const { versions } = await client.artifact.listProjectProfileVersions({ projectId });
    expect(versions.map(({ version, locked }) => [version, locked])).to.deep.equal([
      [profileVersion, true],
      [profileVersion - 1, false],
      [1, false],
    ]);
    const locked = async (sectionId: string, revision: number) =>
      (await client.artifact.getDraft({ projectId, sectionId, revision })).revision!.locked;
    expect(await Promise.all([locked('intro', 1), locked('intro', 2), locked('end', 1)])).to.deep.equal([
      false,
      true,
      false,
    ]);
    const yaml = 'title: other\n';
    const put = { projectId, yaml, baseVersion: profileVersion };
    expect(await failure(client.artifact.putProjectProfile(put))).to.include({
      code: FAILED_PRECONDITION,
      reason: 'PROFILE_LOCKED',
    });
    const { profile } = await client.artifact.putProjectProfile({ ...put, reopen: true });
    expect(profile).to.deep.include({ version: profileVersion + 1, locked: false });
    expect(await saveSection(client, 'intro', 'goes on')).to.equal(3);
  });

  it('lock the newest version of the profile, whatever is put at the same time', async () => {
    const { sections, profileVersion: newest } = await writeDocument(client);
    const commit = async () => (await client.artifact.commitArtifact(commitOf({ sections }))).artifact!;
    const put = (reopen = false) =>
      client.artifact.putProjectProfile({ projectId, yaml: 'title: other\n', baseVersion: newest, reopen });
    const profile = 'select version from project_profiles for update';
    const locked = async () =>
      (await client.artifact.listProjectProfileVersions({ projectId })).versions.map((version) => version.locked);

    // What the put is prepared from is not locked yet when it comes to write.
    let held = await holdRows(tenant, profile);
    const committing = commit();
    await held.awaited(1);
    const late = failure(put());
    await held.awaited(2);
    await held.letGo();
    expect((await committing).profileVersion).to.equal(newest);
    expect(await late).to.include({ code: FAILED_PRECONDITION, reason: 'PROFILE_LOCKED' });

    held = await holdRows(tenant, profile);
    const putting = put(true);
    await held.awaited(1);
    const after = commit();
    await held.awaited(2);
    await held.letGo();
    expect((await putting).profile!.version).to.equal(newest + 1);
    expect((await after).profileVersion).to.equal(newest + 1);
    expect(await locked()).to.deep.equal([true, true, false, false]);
  });

  it('take the profile at a named version, and none where the project has none', async () => {
    const document = await writeDocument(client);
    const { artifact } = await client.artifact.commitArtifact(commitOf(document, { profileVersion: 2 }));
    expect(artifact!.profileVersion).to.equal(2);
    await tenantSql(tenant, 'delete from project_profiles where project_id = $1', [projectId]);
    const again = await client.artifact.commitArtifact(commitOf(document));
    expect(again.artifact!.profileVersion).to.equal(0);
  });

  it('number the versions of a name without a gap, whoever commits at once', async () => {
    const document = await writeDocument(client);
    const commits = Array.from({ length: 8 }, (_, i) =>
      client.artifact.commitArtifact(commitOf(document, { finalOutput: `output ${i}` }), i % 2 ? other() : undefined),
    );
    const versions = (await Promise.all(commits)).map(({ artifact }) => artifact!.version);
    expect(versions.sort()).to.deep.equal([1, 2, 3, 4, 5, 6, 7, 8]);
    await client.artifact.commitArtifact(commitOf(document, { artifactKey: 'summary' }));
    const listed = async (artifactKey: string) => {
      const list = (pageToken: string) =>
        client.artifact.listArtifacts({ projectId, artifactKey, pageSize: 3, pageToken });
      return (await allPages(list)).flatMap(({ artifacts }) => artifacts);
    };
    expect((await listed('')).map(({ artifactKey }) => artifactKey)).to.deep.equal([
      'summary',
      ...Array(8).fill('report'),
    ]);
    expect((await listed('report')).map(({ version }) => version).sort()).to.deep.equal([1, 2, 3, 4, 5, 6, 7, 8]);
    const read = (version: number) => client.artifact.getArtifact({ ...key, version });
    expect((await read(3)).artifact!.version).to.equal(3);
    expect((await read(0)).artifact!.version).to.equal(8);
    expect((await failure(read(9))).code).to.equal(NOT_FOUND);
  });

  it('commit once for a request_id, however often it comes', async () => {
    const request = commitOf(await writeDocument(client));
    const both = await Promise.all([client.artifact.commitArtifact(request), client.artifact.commitArtifact(request)]);
    expect(both[0]).to.deep.equal(both[1]);
    expect(await client.artifact.commitArtifact(request)).to.deep.equal(both[0]);
    expect(await rowCounts(tenant, ['artifacts'])).to.deep.equal({ artifacts: 1 });
    const reused = await failure(client.artifact.commitArtifact({ ...request, finalOutput: 'other' }));
    expect(reused.reason).to.equal('REQUEST_ID_REUSED');
  });

  it('name all that is not there, and commit nothing then', async () => {
    const { sections } = await writeDocument(client);
    const refused = async (more: object) => {
      const { code, message } = await failure(client.artifact.commitArtifact(commitOf({ sections }, more)));
      expect(code).to.equal(NOT_FOUND);
      return message;
    };
    const wrong = [{ sectionId: 'intro', revision: 9 }, ...sections.slice(1), { sectionId: 'nothing', revision: 1 }];
    expect(await refused({ sections: wrong })).to.equal('not found: sections[0], sections[2]');
    expect(await refused({ sections: wrong, profileVersion: 9 })).to.contain('sections[2], profile_version');
    expect(await refused({ projectId: 'elsewhere' })).to.equal('not found: sections[0], sections[1]');
    expect(await refused({ sessionId: randomUUID() })).to.equal('session not found');
    const counts = await rowCounts(tenant, ['artifacts', 'requests']);
    expect(counts.artifacts).to.equal(0);
    const [{ locked }] = await tenantSql(tenant, 'select count(lock_time)::int as locked from draft_revisions');
    expect(locked).to.equal(0);
    const { snapshots } = await client.artifact.listSnapshots({ projectId });
    expect(snapshots.filter(({ kind }) => kind === Snapshot_Kind.ARTIFACT)).to.deep.equal([]);
  });

  it('refuse more than fits into a snapshot, counting the inputs that are cited', async () => {
    const MiB = 1024 * 1024;
    const inputs = await Promise.all(['a', 'b'].map((letter) => registerInput(client, letter.repeat(MiB))));
    const sources = inputs.map((value) => ({ source: { $case: 'inputId' as const, value } }));
    const sections = [];
    for (let i = 0; i < 15; i++) {
      const [sectionId, content] = [`s${i}`, 'x'.repeat(MiB)];
      sections.push({ sectionId, revision: await saveSection(client, sectionId, content, { sources }) });
    }
    const { code, violations } = await failure(client.artifact.commitArtifact(commitOf({ sections })));
    expect(code).to.equal(INVALID_ARGUMENT);
    expect(violations).to.deep.include({
      field: 'sections',
      description: 'over 16 MiB together with the inputs that they cite',
      reason: '',
    });
    await client.artifact.commitArtifact(commitOf({ sections: sections.slice(1) }));
  }).timeout(120_000);

  it('have a snapshot for each version, and for each version of the profile, which can be listed by their state', async () => {
    const document = await writeDocument(client);
    await client.artifact.commitArtifact(commitOf(document));
    await client.artifact.commitArtifact(commitOf(document));
    const list = async (uploadState: Snapshot_UploadState) => {
      const page = (pageToken: string) =>
        client.artifact.listSnapshots({ projectId, uploadState, pageSize: 2, pageToken });
      const snapshots = (await allPages(page)).flatMap((one) => one.snapshots);
      return snapshots.map(({ kind, version }) => `${kind} ${version}`).sort();
    };
    expect(await list(0)).to.deep.equal(['1 1', '1 2', '2 1', '2 2', '2 3']);
    expect(await list(PENDING)).to.deep.equal(await list(0));
    await tenantSql(tenant, `update snapshots set upload_state = ${STORED} where kind = 2 and version = 2`);
    expect(await list(STORED)).to.deep.equal(['2 2']);
    expect(await list(FAILED)).to.deep.equal([]);
  });

  it('are uploaded again on request when that was given up, but not when they are stored', async () => {
    const { artifact } = await client.artifact.commitArtifact(commitOf(await writeDocument(client)));
    const { id } = artifact!.snapshot!;
    const set = (state: number) =>
      tenantSql(
        tenant,
        `update snapshots set upload_state = ${state}, attempts = 9, reason = 'S3: 403' where id = $1`,
        [id],
      );
    await set(FAILED);
    const requestId = randomUUID();
    const { snapshot } = await client.artifact.retrySnapshot({ snapshotId: id, requestId }, other());
    expect(snapshot).to.deep.include({ id, uploadState: PENDING, attempts: 0, reason: 'S3: 403' });
    await set(STORED);
    expect((await client.artifact.retrySnapshot({ snapshotId: id, requestId }, other())).snapshot).to.deep.equal(
      snapshot,
    );
    expect(await failure(client.artifact.retrySnapshot({ snapshotId: id }))).to.include({
      code: FAILED_PRECONDITION,
      reason: 'SNAPSHOT_STORED',
    });
    expect((await failure(client.artifact.retrySnapshot({ snapshotId: randomUUID() }))).code).to.equal(NOT_FOUND);
  });

  it('are told with every fault of a request at once', async () => {
    const { violations } = await failure(
      client.artifact.commitArtifact({
        projectId: '',
        artifactKey: 'k'.repeat(129),
        sections: [
          { sectionId: 'a', revision: 0 },
          { sectionId: 'a', revision: -1 },
        ],
        finalOutput: '',
        profileVersion: -1,
        reviewers: [''],
        approvals: [{ approver: '', verdict: 9 as never, comment: 'c'.repeat(2001) }],
        sessionId: 'none',
        requestId: 'none',
      }),
    );
    expect(violations.map(({ field }) => field)).to.deep.equal([
      'project_id',
      'artifact_key',
      'sections[0].revision',
      'sections[1].section_id',
      'sections[1].revision',
      'final_output',
      'profile_version',
      'reviewers[0]',
      'approvals[0].approver',
      'approvals[0].verdict',
      'approvals[0].comment',
      'session_id',
      'request_id',
    ]);
  });
});

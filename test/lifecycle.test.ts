import { createHash } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { ContextSection } from '../src/gen/memory/v1/conversation_service.ts';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import { memoryd } from './fixtures/command.ts';
import {
  addMember,
  connect,
  failure,
  headersOf,
  metadataOf,
  newDatabase,
  newTenant,
  runSql,
  startTestServer,
  until,
} from './support.ts';

describe('the life of a document', function () {
  this.timeout(60_000);
  const undo: (() => unknown)[] = [];
  afterEach(async () => {
    for (const step of undo.splice(0).reverse()) await step();
  });

  it('goes from the first session of a project over profile, inputs, drafts and turns to an artifact that outlives its database', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'memoryd-life-'));
    undo.push(() => rm(folder, { recursive: true }));
    const [database, next] = await Promise.all([newDatabase(), newDatabase()]);
    const snapshotStore = pathToFileURL(folder);
    const server = await startTestServer({ snapshotStore }, undefined, database.app);
    undo.push(server.stop);
    const tenant = await newTenant(['ada', 'grace'], {}, database.owner);
    const ada = connect(`127.0.0.1:${server.port}`, headersOf(tenant, 'ada'));
    undo.push(ada.close);
    const grace = metadataOf(headersOf(tenant, 'grace'));
    const projectId = 'report';

    // A turn begins the first session of the project, which makes the stub of its profile.
    const begun = await ada.conversation.beginTurn({
      session: { surfaceId: 'web', projectId, threadId: 'writing' },
      holder: 'orchestrator',
      messages: [{ role: MessageRole.HUMAN, content: 'Write the report on sales.' }],
    });
    const sessionId = begun.session!.id;
    const stub = await ada.artifact.getProjectProfile({ projectId }, grace);
    expect(stub.profile).to.deep.include({ version: 1, stub: true });

    // Two edit the profile; what they changed is merged.
    const yaml = 'title: Sales # working title\ntone: dry\n';
    await ada.artifact.putProjectProfile({ projectId, yaml, baseVersion: 1 });
    await ada.artifact.putProjectProfile({ projectId, yaml: yaml.replace('dry', 'warm'), baseVersion: 2 });
    const { profile } = await ada.artifact.putProjectProfile(
      { projectId, yaml: `${yaml}length: 2\n`, baseVersion: 2 },
      grace,
    );
    expect(profile).to.deep.include({ version: 4, merged: true });
    expect(profile!.yaml).to.equal('title: Sales # working title\ntone: warm\nlength: 2\n');

    const content = 'year,sales\n2025,7\n';
    const sha256 = createHash('sha256').update(content).digest('hex');
    const file = { projectId, fileName: 'sales.csv', sha256, content, sessionId, sectionIds: ['sales'] };
    const { input } = await ada.artifact.registerInput(file);

    // A draft under lock, revised; another waits until the lock is given back.
    const section = { projectId, sectionId: 'sales' };
    const { lock } = await ada.artifact.lockSection({ ...section, holder: 'ada' });
    expect((await failure(ada.artifact.lockSection({ ...section, holder: 'grace' }, grace))).reason).to.equal(
      'SECTION_HELD',
    );
    const own = { ...section, fencingToken: lock!.fencingToken, sessionId };
    const sources = [
      { passage: 'Sales', source: { $case: 'inputId' as const, value: input!.id }, locator: 'row 1', quote: '2025,7' },
    ];
    await ada.artifact.saveDraft({ ...own, content: 'Seven.\n', sources });
    const prompts = [{ name: 'revise', text: 'Name the year.' }];
    const { revision } = await ada.artifact.saveDraft({ ...own, content: 'Seven in 2025.\n', sources, prompts });
    await ada.artifact.unlockSection(own);
    const { revisions } = await ada.artifact.listRevisions(section);
    expect(revisions[0]!.contentDiff).to.contain('-Seven.\n+Seven in 2025.\n');

    const { context } = await ada.conversation.getContext({
      sessionId,
      options: { include: [ContextSection.PROJECT_PROFILE, ContextSection.DRAFTS] },
    });
    expect(context!.projectProfile!.version).to.equal(4);
    expect(context!.drafts).to.have.length(1);
    await ada.conversation.commitTurn({
      sessionId,
      fencingToken: begun.lease!.fencingToken,
      messages: [{ role: MessageRole.ASSISTANT, content: 'The section is drafted.' }],
      statePatch: { step: 'review' },
      release: true,
    });

    // Another member reviews and commits; profile and revision are locked.
    const approvals = [{ approver: 'grace', verdict: 1 as const, comment: 'good' }];
    const sections = [{ sectionId: 'sales', revision: revision!.revision }];
    const output = { projectId, artifactKey: 'report', sections, finalOutput: '# Sales\n\nSeven in 2025.\n' };
    const committed = await ada.artifact.commitArtifact(
      { ...output, reviewers: ['grace'], approvals, gateStage: 'released' },
      grace,
    );
    expect(committed.artifact).to.deep.include({ version: 1, profileVersion: 4, createdBy: 'grace' });
    const put = { projectId, yaml: 'title: other\n', baseVersion: 4 };
    expect(await failure(ada.artifact.putProjectProfile(put))).to.include({
      code: status.FAILED_PRECONDITION,
      reason: 'PROFILE_LOCKED',
    });
    const resumed = await ada.memory.resumeSession({ target: { $case: 'resumeProjectId', value: projectId } });
    expect(resumed.session).to.deep.include({ id: sessionId, state: { step: 'review' } });

    const get = async (client: typeof ada) =>
      (await client.artifact.getArtifact({ projectId, artifactKey: 'report' })).artifact!;
    await until(async () => {
      const { snapshots } = await ada.artifact.listSnapshots({ projectId });
      return snapshots.every(({ link }) => link !== '');
    });
    const artifact = await get(ada);
    await server.stop();
    await runSql(next.owner, `drop database ${database.name} with (force)`);

    // In another database the tenant is made again, and the project comes back.
    await runSql(next.owner, `insert into tenants (tenant_id, envs) values ($1, '{dev}')`, [tenant]);
    await addMember(tenant, 'ada', 'dev', next.owner);
    const place = ['--tenant', tenant, '--env', 'dev', '--project', projectId, '--from', snapshotStore.href];
    const run = memoryd(['rehydrate', ...place], { DATABASE_URL: next.app });
    expect(await run.ended, run.err()).to.equal(0);
    const again = await startTestServer({}, undefined, next.app);
    undo.push(again.stop);
    const reader = connect(`127.0.0.1:${again.port}`, headersOf(tenant, 'ada'));
    undo.push(reader.close);
    const { snapshot, ...rest } = await get(reader);
    const { snapshot: before, ...was } = artifact;
    expect(rest).to.deep.equal(was);
    expect(snapshot).to.deep.include({ link: before!.link, sha256: before!.sha256, uploadState: before!.uploadState });
    const draft = await reader.artifact.getDraft(section);
    expect(draft.revision).to.deep.include({ revision: 2, content: 'Seven in 2025.\n', sources, locked: true });
    expect((await reader.artifact.getProjectProfile({ projectId })).profile).to.deep.equal({
      ...profile,
      locked: true,
    });
    expect((await reader.artifact.getInput({ inputId: input!.id })).input!.content).to.equal(content);
  });
});

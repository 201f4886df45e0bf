import { createHash, randomUUID } from 'node:crypto';
import { same } from './surprise.ts';

const ARTIFACT = 'memory.v1.ArtifactService';
const PROFILE = '# What the report is like.\ntitle: Report # working title\ntone: dry\n';

interface Tools {
  projectId: string;
  ok(method: string, request: object): Promise<any>;
  refused(code: string, reason: string, method: string, request: object): Promise<any>;
  told(reply: any): string;
  say(step: string, answer: string): void;
}

/** A document section by section: from the first session of its project to the committed artifact in the store. */
export async function document({ projectId, ok, refused, told, say }: Tools): Promise<void> {
  const session = { surfaceId: 'smoke', projectId };
  const started = await ok('memory.v1.MemoryService/UpsertSession', { session, requestId: randomUUID() });
  const sessionId = started.session.id;
  const { profile: stub } = await ok(`${ARTIFACT}/GetProjectProfile`, { projectId });
  same('that the profile is a stub', [stub.version, stub.stub], ['1', true]);
  say('GetProjectProfile', 'the first session of a project made a stub of its profile');

  const put = (yaml: string, baseVersion: string) => ({ projectId, yaml, baseVersion, requestId: randomUUID() });
  await ok(`${ARTIFACT}/PutProjectProfile`, put(PROFILE, '1'));
  await ok(`${ARTIFACT}/PutProjectProfile`, put(PROFILE.replace('dry', 'warm'), '2'));
  const { profile } = await ok(`${ARTIFACT}/PutProjectProfile`, put(`${PROFILE}length: short\n`, '2'));
  same('the merged profile', profile.yaml, `${PROFILE.replace('dry', 'warm')}length: short\n`);
  say('PutProjectProfile', `version ${profile.version} merges what two changed in version 2, with its comments`);

  const clash = put(PROFILE.replace('dry', 'stern'), '2');
  const conflict = await refused('ABORTED', 'MERGE_CONFLICT', `${ARTIFACT}/PutProjectProfile`, clash);
  same('the path of the conflict', conflict.details.BadRequest?.fieldViolations[0]?.field, 'tone');
  say('PutProjectProfile', `${told(conflict)}, ${conflict.details.BadRequest.fieldViolations[0].description}`);

  const file = { fileName: 'sales.csv', mediaType: 'text/csv', content: 'year,sales\n2025,7\n', sectionIds: ['sales'] };
  const sha256 = createHash('sha256').update(file.content).digest('hex');
  const { input } = await ok(`${ARTIFACT}/RegisterInput`, { projectId, sessionId, ...file, sha256 });
  const twice = await ok(`${ARTIFACT}/RegisterInput`, { projectId, ...file, fileName: 'copy.csv', sha256 });
  same('the input, registered twice', [twice.input.id, twice.created], [input.id, false]);
  say('RegisterInput', `${input.fileName}, ${input.contentBytes} bytes of text; the same file again is the same input`);

  const section = { projectId, sectionId: 'sales' };
  const { lock } = await ok(`${ARTIFACT}/LockSection`, { ...section, holder: 'tour', requestId: randomUUID() });
  const held = await refused('FAILED_PRECONDITION', 'SECTION_HELD', `${ARTIFACT}/LockSection`, {
    ...section,
    holder: 'another',
  });
  say('LockSection', `token ${lock.fencingToken}; another is told ${told(held)}`);

  const own = { ...section, fencingToken: lock.fencingToken, sessionId };
  const sources = [{ passage: 'Sales', inputId: input.id, locator: 'row 1' }];
  const first = { ...own, content: '# Sales\n\nSeven.\n', sources, prompts: [{ name: 'draft', text: 'Write it.' }] };
  await ok(`${ARTIFACT}/SaveDraft`, { ...first, requestId: randomUUID() });
  const { revision } = await ok(`${ARTIFACT}/SaveDraft`, {
    ...first,
    content: '# Sales\n\nSeven in 2025.\n',
    profileChange: { yaml: `${profile.yaml}status: drafted\n`, baseVersion: profile.version },
    requestId: randomUUID(),
  });
  same('the revision and its profile', [revision.revision, revision.profileVersion], ['2', '5']);
  const { revisions } = await ok(`${ARTIFACT}/ListRevisions`, section);
  const changes = revisions[0].contentDiff.split('\n').filter((line: string) => /^[+-][^+-]/.test(line));
  same('the diff', changes, ['-Seven.', '+Seven in 2025.']);
  say('SaveDraft', `revision ${revision.revision}, with version 5 of the profile: ${changes.join(' ')}`);

  await ok(`${ARTIFACT}/UnlockSection`, { ...section, fencingToken: lock.fencingToken });
  const late = await refused('ABORTED', 'STALE_FENCING_TOKEN', `${ARTIFACT}/SaveDraft`, { ...own, content: 'late' });
  say('UnlockSection', `then SaveDraft: ${told(late)}`);

  const options = { include: ['CONTEXT_SECTION_PROJECT_PROFILE', 'CONTEXT_SECTION_DRAFTS'] };
  const { context } = await ok('memory.v1.ConversationService/GetContext', { sessionId, options });
  same('the drafts of the context', [context.drafts.length, context.projectProfile.version], [1, '5']);
  say('GetContext', `the profile and the draft in ${context.tokenCount} tokens`);

  const named = { projectId, artifactKey: 'report', finalOutput: '# Sales\n\nSeven in 2025, as planned.\n', sessionId };
  const approvals = [{ approver: 'tour', verdict: 'VERDICT_APPROVED', comment: 'as planned' }];
  const sections = [{ sectionId: 'sales', revision: '2' }];
  const commit = { ...named, sections, reviewers: ['tour'], approvals, gateStage: 'review', requestId: randomUUID() };
  const absent = { ...commit, sections: [...sections, { sectionId: 'costs', revision: '1' }], requestId: randomUUID() };
  const refusal = await refused('NOT_FOUND', 'NOT_FOUND', `${ARTIFACT}/CommitArtifact`, absent);
  const { artifact } = await ok(`${ARTIFACT}/CommitArtifact`, commit);
  same('the artifact', [artifact.version, artifact.profileVersion, artifact.approvals.length], ['1', '5', 1]);
  same('its replay', (await ok(`${ARTIFACT}/CommitArtifact`, commit)).artifact.id, artifact.id);
  say('CommitArtifact', `version 1 from revision 2, approved; with a revision that is not there: ${told(refusal)}`);

  const changed = put(`${profile.yaml}status: sent\n`, '5');
  const locked = await refused('FAILED_PRECONDITION', 'PROFILE_LOCKED', `${ARTIFACT}/PutProjectProfile`, changed);
  say('PutProjectProfile', `on the version that it was committed from: ${told(locked)}`);

  const read = { projectId, artifactKey: 'report' };
  let stored = artifact;
  for (const end = Date.now() + 30_000; !stored.snapshot.link && Date.now() < end; ) {
    await new Promise((resolve) => setTimeout(resolve, 200));
    stored = (await ok(`${ARTIFACT}/GetArtifact`, read)).artifact;
  }
  const { snapshot } = stored;
  same(
    'the output, and its upload',
    [stored.finalOutput, snapshot.uploadState],
    [named.finalOutput, 'UPLOAD_STATE_STORED'],
  );
  const { snapshots } = await ok(`${ARTIFACT}/ListSnapshots`, { projectId, uploadState: 'UPLOAD_STATE_STORED' });
  const last = snapshot.link.split('/').at(-1);
  say(
    'GetArtifact',
    `${snapshot.sizeBytes} bytes in the store as …${last.slice(-24)}, of ${snapshots.length} snapshots`,
  );
}

import { Approval_Verdict } from '../src/gen/memory/v1/artifact.ts';
import {
  ArtifactServiceService as Artifact,
  CommitArtifactRequest,
  LockSectionRequest,
  SaveDraftRequest,
} from '../src/gen/memory/v1/artifact_service.ts';
import type { Caller } from './client.ts';
import type { Work } from './loop.ts';
import type { DraftSubject, Subjects } from './subjects.ts';

const PROJECT = 'report';
const LINES = Array.from(
  { length: 80 },
  (_, i) => `${i}. Revenue of the region was compared with its forecast, month by month, for line ${i}.`,
);

/** A section of some 7 KiB, of which one line is another each time. */
function saveDraft({ sectionId, fencingToken }: DraftSubject): SaveDraftRequest {
  const lines = [...LINES];
  lines[Math.floor(Math.random() * lines.length)] = `Explained anew: ${Math.random()}.`;
  const sources = [{ passage: 'Revenue', source: { $case: 'uri' as const, value: 'file:///q2/ledger.parquet' } }];
  return SaveDraftRequest.fromPartial({
    projectId: PROJECT,
    sectionId,
    fencingToken,
    content: lines.join('\n'),
    sources,
  });
}

/** An output as long as its section, from the first revision of it. */
const commitArtifact = ({ sectionId }: DraftSubject): CommitArtifactRequest =>
  CommitArtifactRequest.fromPartial({
    projectId: PROJECT,
    artifactKey: sectionId,
    sections: [{ sectionId, revision: 1 }],
    finalOutput: LINES.join('\n'),
    approvals: [{ approver: 'bench', verdict: Approval_Verdict.APPROVED }],
  });

/** A section that was locked and saved once, to be saved again and again. */
export async function draftSubject(call: Caller, sectionId: string): Promise<DraftSubject> {
  const request = LockSectionRequest.fromPartial({ projectId: PROJECT, sectionId, holder: 'bench' });
  const { lock } = await call(Artifact.lockSection, request);
  const subject = { sectionId, fencingToken: lock!.fencingToken };
  await call(Artifact.saveDraft, saveDraft(subject));
  return subject;
}

export const draftWork = (call: Caller, { drafts }: Subjects): Work => ({
  SaveDraft: (caller) => call(Artifact.saveDraft, saveDraft(drafts[caller]!)),
  CommitArtifact: (caller) => call(Artifact.commitArtifact, commitArtifact(drafts[caller]!)),
  GetDraft: (caller) =>
    call(Artifact.getDraft, { projectId: PROJECT, sectionId: drafts[caller]!.sectionId, revision: 0 }),
});

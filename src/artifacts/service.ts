import { status } from '@grpc/grpc-js';
import { v7 as uuidv7 } from 'uuid';
import { Approval_Verdict, Snapshot_UploadState } from '../gen/memory/v1/artifact.ts';
import type { ArtifactServiceService, CommitArtifactRequest } from '../gen/memory/v1/artifact_service.ts';
import { notFound, RpcError } from '../rpc/errors.ts';
import type { Handlers } from '../rpc/implement.ts';
import { Check } from '../rpc/validate.ts';
import {
  artifactFromCommit,
  artifactFromRow,
  commitArtifact,
  getArtifact,
  type Key,
  listArtifacts,
  whyNotCommitted,
} from './repository.ts';
import { listSnapshots, retrySnapshot, snapshotFromRow, uploadStateOf } from './snapshots.ts';

const OUTPUT_BYTES = 2 * 1024 * 1024;
const MAX_SECTIONS = 100;
const MAX_REVIEWERS = 50;
const MAX_APPROVALS = 50;

function checkKey(check: Check, { projectId, artifactKey }: Key): void {
  check.id('project_id', projectId);
  check.id('artifact_key', artifactKey);
}

function checkCommit(check: Check, request: CommitArtifactRequest): void {
  const { sections, reviewers, approvals } = request;
  checkKey(check, request);
  if (check.count('sections', sections, MAX_SECTIONS, 1)) {
    const seen = new Set<string>();
    sections.forEach(({ sectionId, revision }, i) => {
      check.id(`sections[${i}].section_id`, sectionId);
      check.that(!seen.has(sectionId), `sections[${i}].section_id`, 'named twice');
      check.that(revision >= 1, `sections[${i}].revision`, revision === 0 ? 'required' : 'negative');
      seen.add(sectionId);
    });
  }
  check.content('final_output', request.finalOutput, OUTPUT_BYTES);
  check.seq('profile_version', request.profileVersion);
  if (check.count('reviewers', reviewers, MAX_REVIEWERS)) {
    reviewers.forEach((reviewer, i) => {
      check.id(`reviewers[${i}]`, reviewer);
    });
  }
  if (check.count('approvals', approvals, MAX_APPROVALS)) {
    approvals.forEach(({ approver, verdict, decideTime, comment }, i) => {
      check.id(`approvals[${i}].approver`, approver);
      check.oneOf(`approvals[${i}].verdict`, verdict, Approval_Verdict);
      check.time(`approvals[${i}].decide_time`, decideTime);
      check.text(`approvals[${i}].comment`, comment, 2000);
    });
  }
  check.text('gate_stage', request.gateStage, 128);
  check.struct('metadata', request.metadata);
  check.optionalUuid('session_id', request.sessionId);
  check.optionalUuid('request_id', request.requestId);
}

type Methods = 'commitArtifact' | 'getArtifact' | 'listArtifacts' | 'listSnapshots' | 'retrySnapshot';

export const artifactHandlers: Pick<Handlers<typeof ArtifactServiceService>, Methods> = {
  async commitArtifact(request, call) {
    const check = new Check();
    checkCommit(check, request);
    check.done();

    const [row] = await call.change(request, async (tx) => {
      const committed = await commitArtifact(tx, request, uuidv7());
      if (committed.length === 0) throw await whyNotCommitted(call.db, request);
      return committed;
    });
    call.count('created', 'artifacts', 1);
    return { artifact: artifactFromCommit(request, row!) };
  },

  async getArtifact(request, call) {
    const check = new Check();
    checkKey(check, request);
    check.seq('version', request.version);
    check.done();

    const row = await getArtifact(call.db, request, request.version);
    if (!row) throw notFound('artifact');
    call.count('read', 'artifacts', 1);
    return { artifact: artifactFromRow(row) };
  },

  async listArtifacts(request, call) {
    const check = new Check();
    check.id('project_id', request.projectId);
    check.optionalId('artifact_key', request.artifactKey);
    check.page(request);
    check.done();

    const page = call.page(request);
    const found = await listArtifacts(call.db, request, page.after?.[0], page.limit);
    const { rows, nextPageToken } = page.cut(
      found,
      (row) => [row.id],
      (row) => row.byteSize,
    );
    call.count('read', 'artifacts', rows.length);
    return { artifacts: rows.map(artifactFromRow), nextPageToken };
  },

  async listSnapshots(request, call) {
    const check = new Check();
    check.id('project_id', request.projectId);
    if (request.uploadState !== 0) check.oneOf('upload_state', request.uploadState, Snapshot_UploadState);
    check.page(request);
    check.done();

    const page = call.page(request);
    const found = await listSnapshots(call.db, request, page.after?.[0], page.limit);
    const { rows, nextPageToken } = page.cut(found, (row) => [row.id]);
    call.count('read', 'snapshots', rows.length);
    return { snapshots: rows.map(snapshotFromRow), nextPageToken };
  },

  async retrySnapshot(request, call) {
    const check = new Check();
    check.uuid('snapshot_id', request.snapshotId);
    check.optionalUuid('request_id', request.requestId);
    check.done();

    const [row] = await call.change(request, async (tx) => {
      const retried = await retrySnapshot(tx, request.snapshotId);
      if (retried.length > 0) return retried;
      const state = await uploadStateOf(call.db, request.snapshotId);
      if (state !== Snapshot_UploadState.STORED) throw notFound('snapshot');
      throw new RpcError(status.FAILED_PRECONDITION, 'SNAPSHOT_STORED', 'the snapshot is stored');
    });
    return { snapshot: snapshotFromRow(row!) };
  },
};

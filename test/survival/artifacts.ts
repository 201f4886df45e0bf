import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { recordsOf } from '../../src/artifacts/records.ts';
import { unpack } from '../../src/snapshots/archive.ts';
import type { Entry, Worker } from './ledger.ts';

const PROJECT = 'report';
const KEYS = ['draft', 'final'];
/** Long enough for what a killed server had taken to be taken from it. */
const PATIENCE_MS = 60_000;

/** Commits an output from a revision. */
export async function output(worker: Worker, sectionId: string, revision: number): Promise<void> {
  const finalOutput = worker.fresh();
  const artifactKey = worker.random.pick(KEYS);
  const commit = { projectId: PROJECT, artifactKey, sections: [{ sectionId, revision }], finalOutput };
  const intent = { output: finalOutput, events: ['artifacts.commit'] };
  await worker.intend('artifact', intent, ({ artifact }, { id, metadata, options }) =>
    artifact.commitArtifact({ ...commit, requestId: id }, metadata, options),
  );
}

type Rows = (sql: string) => Promise<any[]>;
type Check = (holds: unknown, fault: () => string) => void;

/** Each version is one commit that happened, and each ends in the store, whole, though servers were killed in its upload. */
export async function checkArtifacts(
  rows: Rows,
  entries: Entry[],
  happened: Set<Entry>,
  check: Check,
): Promise<number> {
  const done = entries.filter((entry) => entry.intent.output && happened.has(entry));
  const artifacts = await rows(
    `select artifact_key, version::int, final_output from artifacts where tenant_id = $1 order by artifact_key, version`,
  );
  for (const key of KEYS) {
    const versions = artifacts.filter((row) => row.artifact_key === key).map(({ version }) => version);
    check(
      versions.every((version, i) => version === i + 1),
      () => `${key} has the versions ${versions.join()}`,
    );
  }
  const committed = artifacts.map((row) => row.final_output).sort();
  check(
    committed.join() ===
      done
        .map((entry) => entry.intent.output)
        .sort()
        .join(),
    () => {
      return `${done.length} commits left ${artifacts.length} versions, or others`;
    },
  );

  // Whatever waits after a failure need not wait that long.
  await rows('update snapshots set due_time = now() where uploader is null and tenant_id = $1');
  const waiting = async () =>
    (await rows(`select id, reason from snapshots where tenant_id = $1 and upload_state <> 2`)) as { reason: string }[];
  for (const end = Date.now() + PATIENCE_MS; Date.now() < end && (await waiting()).length > 0; ) await sleep(100);
  const left = await waiting();
  check(left.length === 0, () => `${left.length} snapshots are not stored: ${left[0]!.reason}`);
  const stored = await rows(
    `select s.link, s.sha256, a.final_output from snapshots s join artifacts a on a.tenant_id = s.tenant_id and a.env = s.env
      and a.project_id = s.project_id and a.artifact_key = s.artifact_key and a.version = s.version
      where s.tenant_id = $1 and s.kind = 1 and s.upload_state = 2`,
  );
  check(stored.length === artifacts.length, () => `${artifacts.length} versions have ${stored.length} snapshots`);
  for (const { link, sha256, final_output: text } of stored) {
    const bytes = await readFile(fileURLToPath(link));
    check(createHash('sha256').update(bytes).digest('hex') === sha256, () => `${link} has another checksum`);
    const records = recordsOf(unpack(decodeURIComponent(basename(link)), bytes).parts);
    check(records.at(-1)?.text === text, () => `${link} holds another output`);
  }
  return stored.length;
}

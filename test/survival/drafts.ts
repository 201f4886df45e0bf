import { applyPatch } from 'diff';
import { parse } from 'yaml';
import { output } from './artifacts.ts';
import type { Entry, Worker } from './ledger.ts';

const PROJECT = 'report';
const SECTIONS = ['intro', 'sales', 'costs'];

/** Writes a section under its lock, now and then with a key of its own in the profile that all share. */
export async function draft(worker: Worker): Promise<void> {
  const sectionId = worker.random.pick(SECTIONS);
  const section = { projectId: PROJECT, sectionId };
  const taking = { ...section, holder: `worker ${worker.n}`, ttl: { seconds: 2, nanos: 0 } };
  const { response } = await worker.intend(
    'lock',
    { events: ['sections.lock'] },
    ({ artifact }, { id, metadata, options }) => artifact.lockSection({ ...taking, requestId: id }, metadata, options),
  );
  if (!response) return;
  const own = { ...section, fencingToken: response.lock!.fencingToken };
  for (let i = 1 + worker.random.int(3); i > 0; i--) {
    const content = `${worker.fresh()}\n`;
    const profileKey = worker.random.chance(0.2) ? worker.fresh() : undefined;
    const profileChange = profileKey ? { yaml: `${profileKey}: 1\n`, reopen: true } : undefined;
    const events = ['drafts.save', ...(profileKey ? ['profiles.put'] : [])];
    const intent = { draft: { sectionId, content, token: own.fencingToken, profileKey }, events };
    const saved = await worker.intend('draft', intent, ({ artifact }, { id, metadata, options }) =>
      artifact.saveDraft({ ...own, content, profileChange, requestId: id }, metadata, options),
    );
    if (saved.response && worker.random.chance(0.3)) await output(worker, sectionId, saved.response.revision!.revision);
  }
  await worker.intend('unlock', { events: ['sections.unlock'] }, ({ artifact }, { id, metadata, options }) =>
    artifact.unlockSection({ ...own, requestId: id }, metadata, options),
  );
}

type Rows = (sql: string) => Promise<any[]>;
type Check = (holds: unknown, fault: () => string) => void;

/** Revisions are gap-free, each is one save that happened, in the order of the holders, and with it came its part of the profile. */
export async function checkDrafts(rows: Rows, entries: Entry[], happened: Set<Entry>, check: Check): Promise<number> {
  const drafts = await rows(
    `select d.section_id, d.revision::int, d.fencing_token::int, (
        select count(*)::int from audit_events e where e.tenant_id = d.tenant_id and e.resource = 'projects/${PROJECT}/drafts/' || d.section_id
          and e.action in ('sections.lock', 'sections.unlock')
      ) as leases from drafts d where d.tenant_id = $1`,
  );
  const revisions = await rows(
    `select section_id, revision::int, content, content_diff from draft_revisions where tenant_id = $1 order by section_id, revision`,
  );
  const saves = entries.filter((entry) => entry.intent.draft);
  const saveOf = new Map(saves.map((entry) => [entry.intent.draft!.content, entry]));
  for (const { section_id: sectionId, revision, fencing_token: token, leases } of drafts) {
    check(token === leases, () => `${sectionId} has the token ${token} after ${leases} locks taken and given back`);
    const own = revisions.filter((row) => row.section_id === sectionId);
    const gap = own.findIndex((row, i) => row.revision !== i + 1);
    check(gap < 0 && own.length === revision, () => `${sectionId} is at ${revision}, with ${own.length} revisions`);
    let before = { content: '', token: 0 };
    for (const [i, { content, content_diff: diff }] of own.entries()) {
      const entry = saveOf.get(content);
      const intent = entry?.intent.draft;
      check(
        entry && happened.has(entry) && intent!.sectionId === sectionId,
        () => `nobody has saved ${content} in ${sectionId}`,
      );
      check((intent?.token ?? 0) >= before.token, () => `${content} of ${sectionId} comes after a later holder's`);
      const told = entry?.response?.revision.revision ?? i + 1;
      check(told === i + 1, () => `${content} was told to be revision ${told}, and is ${i + 1}`);
      const follows = i === 0 || applyPatch(before.content, diff) === content;
      check(follows, () => `the diff of revision ${i + 1} of ${sectionId} does not lead to it`);
      before = { content, token: intent?.token ?? 0 };
    }
  }
  const done = saves.filter((entry) => happened.has(entry));
  check(revisions.length === done.length, () => `${done.length} saves left ${revisions.length} revisions`);

  const versions = await rows(
    'select version::int, yaml from project_profile_versions where tenant_id = $1 order by version',
  );
  const keys = done.flatMap((entry) => entry.intent.draft!.profileKey ?? []).sort();
  const stored = Object.keys(parse(versions.at(-1)?.yaml ?? '{}')).sort();
  check(versions.length === keys.length, () => `${keys.length} changes left ${versions.length} versions`);
  check(stored.join() === keys.join(), () => `the profile has ${stored.length} keys in place of ${keys.length}`);
  return revisions.length;
}

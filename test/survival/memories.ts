import { allPages, type Clients } from '../support.ts';
import type { Entry, Worker } from './ledger.ts';

const PROJECT = 'survival';
const KEYS = ['fact0', 'fact1', 'fact2'];

/** Puts a memory that others put, too. */
export async function remember(worker: Worker): Promise<void> {
  const memory = { projectId: PROJECT, key: worker.random.pick(KEYS), value: worker.fresh() };
  const intent = { memory, events: ['memories.put'] };
  await worker.intend('put', intent, ({ project }, { id, metadata, options }) =>
    project.putMemory({ ...memory, requestId: id }, metadata, options),
  );
}

/** Each put that happened is one version, and the versions have no gap. The newest ones are there, with what was put. */
export async function checkMemories(
  { project }: Clients,
  happened: Set<Entry>,
  events: { action: string; trace: string; metadata: { version: number } }[],
  check: (holds: unknown, fault: () => string) => void,
): Promise<void> {
  const versionOf = new Map(
    events.filter(({ action }) => action === 'memories.put').map(({ trace, metadata }) => [trace, metadata.version]),
  );
  const puts = [...happened].filter((entry) => entry.kind === 'put');
  for (const [key, own] of Map.groupBy(puts, (entry) => entry.intent.memory!.key)) {
    const values = new Map<number, string>();
    for (const { id, intent, response } of own) {
      const version = versionOf.get(id.replaceAll('-', ''))!;
      check(!values.has(version), () => `${key} has two versions ${version}`);
      values.set(version, intent.memory!.value);
      const told = response?.memory.version ?? version;
      check(told === version, () => `a put of ${key} was told version ${told}, and made ${version}`);
    }
    check(Math.max(...values.keys()) === own.length, () => `${own.length} puts of ${key} left a gap in its versions`);
    const pages = await allPages((pageToken) => project.listMemoryVersions({ projectId: PROJECT, key, pageToken }));
    const kept = pages.flatMap((page) => page.versions);
    check(kept.length === Math.min(100, own.length), () => `${kept.length} versions of ${key} are kept`);
    for (const { version, value } of kept)
      check(values.get(version) === value, () => `${key} has another value in version ${version} than was put`);
    const { memory } = await project.getMemory({ projectId: PROJECT, key });
    check(memory?.version === own.length, () => `${key} is at version ${memory?.version} after ${own.length} puts`);
    const found = await project.searchMemories({ projectId: PROJECT, query: `"${key}" "${memory?.value}"` });
    check(found.results.length === 1, () => `${key} is not found by its newest value`);
  }
}

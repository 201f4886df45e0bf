import type { Clients } from '../support.ts';
import type { Entry, Worker } from './ledger.ts';

/** Each worker has a key of its own in the preferences of the profile, which all of them write. */
export async function tell(worker: Worker): Promise<void> {
  const preference = { key: `worker${worker.n}`, value: worker.fresh() };
  const profile = { preferences: { [preference.key]: preference.value } };
  await worker.intend('tell', { preference, events: ['profiles.update'] }, (clients, { id, metadata, options }) =>
    clients.profile.updateProfile({ profile, requestId: id }, metadata, options),
  );
}

/** Each update that happened is one revision, and they have no gap. Of each worker the newest is in the profile. */
export async function checkProfile(
  clients: Clients,
  happened: Set<Entry>,
  events: { action: string; trace: string; metadata: { revision: number } }[],
  check: (holds: unknown, fault: () => string) => void,
): Promise<void> {
  const revisionOf = new Map(
    events
      .filter(({ action }) => action === 'profiles.update')
      .map(({ trace, metadata }) => [trace, metadata.revision]),
  );
  const updates = [...happened]
    .filter((entry) => entry.kind === 'tell')
    .map((entry) => ({ ...entry.intent.preference!, revision: revisionOf.get(entry.id.replaceAll('-', ''))!, entry }))
    .sort((a, b) => a.revision - b.revision);
  const { profile } = await clients.profile.getProfile({});
  updates.forEach(({ revision, entry }, i) => {
    check(revision === i + 1, () => `update ${i + 1} of the profile made revision ${revision}`);
    const told = entry.response?.profile.revision ?? revision;
    check(told === revision, () => `an update was told revision ${told}, and made ${revision}`);
  });
  check(profile!.revision === updates.length, () => `${updates.length} updates left revision ${profile!.revision}`);
  for (const [key, own] of Map.groupBy(updates, (update) => update.key)) {
    const kept = profile!.preferences![key];
    check(kept === own.at(-1)!.value, () => `${key} is ${kept} in the profile, not what was told last`);
  }
}

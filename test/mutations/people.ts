import { type Mutant, mutant } from './mutant.ts';

/** Bugs of the profiles of people. */
export const PEOPLE: Mutant[] = [
  mutant(
    'a profile is read by another user',
    'src/profiles/repository.ts',
    'left join profiles p on p.tenant_id = $1 and p.env = $2 and p.user_id = $3',
    'left join profiles p on p.tenant_id = $1 and p.env = $2 and $3 is not null',
    'profiles',
  ),
  mutant(
    'a profile is written by two at once',
    'src/profiles/repository.ts',
    `
  for update of p`,
    '',
    'profiles',
  ),
  mutant(
    'what a person removed stays in the changes of the profile',
    'src/profiles/repository.ts',
    'update profile_changes h set previous = null, current = null,',
    'update profile_changes h set kind = h.kind,',
    'profiles',
  ),
  mutant(
    'what a person removed comes back with a replay',
    'src/profiles/repository.ts',
    `set result = '[{"gone": true}]'`,
    'set result = r.result',
    'profiles',
  ),
  mutant(
    'a profile takes what is said to be of another person',
    'src/profiles/extract.ts',
    'return !SUPPOSED.test(before) && !OTHERS.test(before);',
    'return before !== undefined;',
    'profile-extraction',
  ),
  mutant(
    'what was read takes the place of what a caller said of a person',
    'src/profiles/accumulate.ts',
    'return (entry.value === null || kind === ProfileSource_Kind.EXTRACTION) && set_time < saidAt;',
    'return set_time < saidAt;',
    'profile-reading',
  ),
  mutant(
    'what a person removed is read again in older messages',
    'src/profiles/accumulate.ts',
    ' && set_time < saidAt;',
    ';',
    'profile-reading',
  ),
  mutant(
    'a message that is stored late is not read for the profile',
    'src/profiles/readers.ts',
    'const through = floorId(Date.now() - settledMs);',
    'const through = floorId(Date.now());',
    'profile-reading',
  ),
  mutant(
    'a message that is being streamed is passed over for the profile',
    'src/profiles/reading.ts',
    'streaming < 0 ? messages : messages.slice(0, streaming)',
    'messages',
    'profile-reading',
  ),
  mutant(
    'a merge forgets where values came from',
    'src/profiles/merges.ts',
    ', origin: saidIn(before) };',
    ' };',
    'profile-merges',
  ),
  mutant(
    'members learn of others with their e-mail address',
    'src/profiles/merge-service.ts',
    'listEmailMatches: { admin: true },',
    'listEmailMatches: {},',
    'profile-merges',
  ),
  mutant(
    'the event of an e-mail match is shown to its user',
    'src/profiles/email-matches.ts',
    `select $1, $2, $8, '', $4,`,
    'select $1, $2, $8, $3, $4,',
    'profile-merges',
  ),
  mutant(
    'a merge of profiles puts the first over the second',
    'src/profiles/merges.ts',
    '    if (kept) continue;\n',
    '',
    'profile-merges',
  ),
  mutant(
    'a merge of profiles keeps what was removed since',
    'src/profiles/repository.ts',
    'update profile_merges m set from_entries = null, into_entries = null',
    'update profile_merges m set undo_time = m.undo_time',
    'profile-merges',
  ),
];

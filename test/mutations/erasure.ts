import { type Mutant, mutant } from './mutant.ts';

/** Bugs of the erasure of people. */
export const ERASURE: Mutant[] = [
  mutant(
    'an erasure is done while calls of before may still write',
    'src/erasures/job.ts',
    'if (lateSeconds > 0) return',
    'if (lateSeconds > 1e9) return',
    'erasure-rules',
  ),
  mutant(
    'who was erased comes back by a token',
    'src/rpc/membership.ts',
    'e.digest = any ($4::text[])',
    'e.digest = $4::text',
    'erasure-rules: refuse a person whom a token vouches for',
  ),
  mutant(
    'what another profile took over from somebody who is erased stays',
    'src/erasures/rules.ts',
    "    table: 'profiles',\n    where: finds('t.entries', `$[*].source.${MERGED}`),",
    "    table: 'profiles',\n    where: 'false',",
    'erasure-rules: end with a receipt that names nobody',
  ),
  mutant(
    'an erasure forgets by what merges values are found while one carries them on',
    'src/erasures/repository.ts',
    'once ? ` and ${once}`',
    'once ? ``',
    'erasure-rules: follow what others took over',
  ),
  mutant(
    'an import brings back who was erased',
    'src/transfer/import.ts',
    'await refuseErased(target, header, file);',
    '',
    'erasure-rules: end with a receipt that names nobody',
  ),
  mutant(
    'files that name who is erased stay in the store',
    'src/artifacts/uploads.ts',
    'if (awaited) await removeOthers(store, folder, subject, file.name)',
    'if (claimed.attempts < 0) await removeOthers(store, folder, subject, file.name)',
    'erasure-snapshots: are stored anew without the name',
  ),
  mutant(
    'a file that cannot be stored anew keeps the name of who is erased',
    'src/artifacts/uploads.ts',
    'if (awaited) await removeOthers(store, folder, subject);',
    '',
    'erasure-snapshots: that have become too much to be stored anew',
  ),
];

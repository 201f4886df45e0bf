import { type Mutant, mutant } from './mutant.ts';

/** Bugs of artifacts, of their snapshots and of what is rebuilt from these. */
export const ARTIFACTS: Mutant[] = [
  mutant(
    'an artifact is committed though a revision that it names is not there',
    'src/artifacts/repository.ts',
    'where (select count(*) from named) = cardinality($15)',
    'where (select count(*) from named) > 0',
    'artifacts',
  ),
  mutant(
    'the profile that an artifact was committed from can still be changed',
    'src/artifacts/repository.ts',
    'v.version = saved.profile_version and v.lock_time is null',
    'v.version = saved.profile_version and v.lock_time is not null',
    'artifacts',
  ),
  mutant(
    'the inputs that are cited do not count against the limit of a snapshot',
    'src/artifacts/repository.ts',
    '(select coalesce(sum(content_bytes), 0) from cited)',
    '0',
    'artifacts',
  ),
  mutant(
    'a store that refuses is asked again for a day',
    'src/artifacts/upload-repository.ts',
    'when $15::bool or queue_time',
    'when ($15::bool and false) or queue_time',
    'uploads',
  ),
  mutant(
    'an upload that takes long is taken by another server as well',
    'src/artifacts/upload-repository.ts',
    'update snapshots set due_time = clock_timestamp() + make_interval(secs => $6::float8)',
    'update snapshots set due_time = due_time',
    'uploads',
  ),
  mutant(
    'an upload that failed is never tried again',
    'src/artifacts/upload-repository.ts',
    'set uploader = null, reason = $13::text, due_time = clock_timestamp() + make_interval(secs => $14::float8)',
    "set uploader = null, reason = $13::text, due_time = case when $14::float8 > 0 then 'infinity' end",
    'uploads',
  ),
  mutant(
    'a file in the store is overwritten with other content',
    'src/snapshots/folder.ts',
    "if (createHash('sha256').update(stored).digest('hex') === sha256) return link;",
    'if (stored.length < 0) return link;',
    'snapshot-stores',
  ),
  mutant(
    'a resumed upload begins where the last chunk would have ended',
    'src/snapshots/drive.ts',
    '[next, asking] = [stored, false];',
    '[next, asking] = [asking ? end : stored, false];',
    'snapshot-stores',
  ),
  mutant(
    'a damaged snapshot is believed',
    'src/snapshots/archive.ts',
    "if (!name.endsWith(`-${checksum}.tar`)) throw new BadSnapshot('its checksum is not the one in its name');",
    '',
    'rehydrate',
  ),
  mutant(
    'what was locked is open after a rehydration',
    'src/transfer/rehydrate.ts',
    "if (kind === 'artifact') await tx.query(LOCK",
    "if (kind !== 'artifact') await tx.query(LOCK",
    'rehydrate',
  ),
  mutant(
    'fencing tokens begin anew after a rehydration',
    'src/transfer/rehydrate.ts',
    'extract(epoch from now())::bigint',
    '0',
    'rehydrate',
  ),
];

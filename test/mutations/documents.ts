import { type Mutant, mutant } from './mutant.ts';

/** Bugs of project profiles, inputs and drafts. */
export const DOCUMENTS: Mutant[] = [
  mutant(
    'a draft is saved without the lock of its section, if that was held a moment before',
    'src/drafts/repository.ts',
    `\${held('t', '$13::bigint')}
      and t.revision`,
    `$13::bigint > 0
      and t.revision`,
    'drafts',
  ),
  mutant(
    'two saves at once are compared with the same revision',
    'src/drafts/repository.ts',
    'and t.revision = $14::bigint',
    'and $14::bigint >= 0',
    'drafts',
  ),
  mutant(
    'a draft is saved though the profile that came with it was not',
    'src/drafts/repository.ts',
    'await together([tx.query(statement, values), putProfile(tx.step, profile)])',
    'await Promise.all([tx.final(statement, values), []])',
    'drafts',
  ),
  mutant(
    'a profile is stored though the draft that it came with was not',
    'src/drafts/repository.ts',
    'await together([tx.query(statement, values), putProfile(tx.step, profile)])',
    '[await tx.query(statement, values), await putProfile(tx, profile)]',
    'drafts',
  ),
  mutant(
    'the lock of a section tells its token to all',
    'src/drafts/locks.ts',
    'holder: leaseHolder, userId,',
    'holder: leaseHolder, userId, fencingToken: 1,',
    'drafts',
  ),
  mutant(
    'the newer of two puts at once wins, unseen',
    'src/projects/repository.ts',
    'and p.project_id = $11 and p.version = $15',
    'and p.project_id = $11 and $15 > 0',
    'project-profiles',
  ),
  mutant(
    'a put that was prepared before a commit passes its lock',
    'src/projects/repository.ts',
    'v.version = $15 and v.lock_time is not null',
    'v.version = $15 and v.lock_time < v.create_time',
    'artifacts',
  ),
  mutant(
    'an artifact takes the profile that was the newest before it waited for a put',
    'src/artifacts/repository.ts',
    'await together([holdProfile(tx, projectId), tx.final(COMMIT, values)])',
    'await together([[], tx.final(COMMIT, values)])',
    'artifacts',
  ),
  mutant(
    'one tenant has all threads that read documents',
    'src/projects/thread.ts',
    'if (line.served) continue;',
    '',
    'document-thread',
  ),
  mutant(
    'a locked profile is changed without a word',
    'src/projects/put.ts',
    'if (state.locked && !reopen)',
    'if (state.locked && !reopen && baseVersion === 0)',
    'project-profiles',
  ),
  mutant(
    'what two changed in a profile to different values is settled by who came first',
    'src/projects/merge.ts',
    'if (conflicts.length < MAX_CONFLICTS) conflicts.push',
    'if (conflicts.length < 0) conflicts.push',
    'profile-merge',
  ),
  mutant(
    'an alias means after a merge what it did not mean before',
    'src/projects/merge.ts',
    'one?.look === other?.look && one?.meaning === other?.meaning;',
    'one?.look === other?.look;',
    'profile-merge',
  ),
  mutant(
    'a merge is not read again',
    'src/projects/merge.ts',
    'if (!again.faults && again.reading.nature(again.reading.root).meaning === meaning)',
    'if (!again.faults)',
    'profile-merge',
  ),
  mutant(
    'a replay is refused when its base has become stale since',
    'src/rpc/prepared.ts',
    'return await call.change(request, async (tx) => work(tx, ready()));',
    `const value = ready();
      return await call.change(request, async (tx) => work(tx, value));`,
    'project-profiles',
  ),
  mutant(
    'the same file makes an input each time',
    'src/inputs/service.ts',
    'sha256: request.sha256.toLowerCase(),',
    '',
    'inputs',
  ),
  mutant(
    'an input is registered in a session of somebody else',
    'src/inputs/repository.ts',
    's.user_id = $3 and s.id = $13 and ${READABLE}',
    's.id = $13 and ${READABLE}',
    'inputs',
  ),
];

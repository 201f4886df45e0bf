import { type Mutant, mutant } from './mutant.ts';

/** Bugs of how long things are kept. */
export const RETENTION: Mutant[] = [
  mutant(
    'turns stay for a moment longer than their age',
    'src/tenants/retention.ts',
    'due: `${time} <= ${keptSince(kind)}',
    'due: `${time} < ${keptSince(kind)}',
    'retention',
  ),
  mutant(
    'a call of a model goes before it is in the sums',
    'src/tenants/retention.ts',
    `{ also: ' and folded' }`,
    '{}',
    'retention',
  ),
  mutant(
    'a month loses what its budgets count',
    'src/tenants/retention.ts',
    `day < date_trunc('month', now() at time zone 'UTC') or not exists`,
    'day < now() or not exists',
    'retention',
  ),
  mutant(
    'a message that is still being streamed goes',
    'src/threads/retention.ts',
    ' or ${m}.state = ${MessageState.STREAMING} and ${m}.delete_time is null',
    '',
    'retention-threads',
  ),
  mutant(
    'who watches from before misses the messages after those that went',
    'src/threads/retention.ts',
    'when max(gone.seq) = t.last_seq then t.revision + 1',
    'when true then t.revision + 1',
    'retention-threads',
  ),
];

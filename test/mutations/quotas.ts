import { type Mutant, mutant } from './mutant.ts';

/** Bugs of what tenants may store and call. */
export const QUOTAS: Mutant[] = [
  mutant(
    'a session that is created is not counted',
    'src/quotas/sessions.ts',
    'set sessions = least(q.sessions + 1,',
    'set sessions = least(q.sessions,',
    'quotas',
  ),
  mutant(
    'a new thread takes more messages than one may hold',
    'src/threads/append.ts',
    '($17::bigint is null or f.n <= $17)',
    '($17::bigint is null or true)',
    'quotas',
  ),
  mutant(
    'messages that were deleted take room for ever',
    'src/threads/append.ts',
    " or ${messagesOf('t')} + excluded.last_seq <= ${limit})`",
    ')`',
    'quotas',
  ),
  mutant(
    'a tenant whose bytes are used up is not told again what was done before',
    'src/db/change.ts',
    'const run = refusal ? () => Promise.reject(refusal) : work;',
    'if (refusal) throw refusal;\n  const run = work;',
    'quotas',
  ),
  mutant(
    'what is copied counts as little as the request for it',
    'src/bundles/service.ts',
    "    call.stored(repeated ? 0 : 'bundleId' in forward.source ? byteSize : 2 * byteSize);\n",
    '',
    'quotas',
  ),
  mutant(
    'what is told again counts again',
    'src/rpc/implement.ts',
    'about.replayed ? 0 : sizeOf(call)',
    'sizeOf(call)',
    'quotas',
  ),
  mutant(
    'one tenant may take all of a server',
    'src/db/fair.ts',
    'own <= 3 * (limit - taken)',
    'own <= limit',
    'turnstile',
  ),
];

import { type Mutant, mutant } from './mutant.ts';

/** Bugs of the audit trail's chain and its watches. */
export const AUDIT: Mutant[] = [
  mutant(
    'the sealer takes events that another may still come before',
    'src/audit/seal.ts',
    'and e.xid < $6::xid8',
    'and $6::text is not null',
    'audit-chain',
  ),
  mutant(
    'what an event did can be changed unnoticed',
    'src/audit/chain.ts',
    'const columns = [id, xid, micros, userId, actor, action, outcome',
    'const columns = [id, xid, micros, userId, actor, outcome',
    'audit-chain',
  ),
  mutant(
    'a change passes itself off as an erasure',
    'src/audit/verify.ts',
    'if (isIntact(tx.scope, keyring, block)) put(',
    'put(',
    'audit-chain',
  ),
  mutant(
    'the sealer vouches for a chain that somebody else has gone on with',
    'src/audit/blocks.ts',
    'if (newest && !keyring.verifies(',
    'if (newest && head.blockNo < 0 && !keyring.verifies(',
    'audit-chain',
  ),
  mutant(
    'a watch of the audit trail skips what commits late',
    'src/audit/repository.ts',
    'and (xid, id) > ($12::xid8, $13::uuid) and xid < $14::xid8',
    'and (xid, id) > ($12::xid8, $13::uuid) and $14::text is not null',
    'watch-audit',
  ),
  mutant(
    'audit events go a moment too early',
    'src/audit/prune.ts',
    'k.newest_micros > ${CUTOFF}',
    'k.newest_micros > ${CUTOFF} + 1',
    'retention-audit',
  ),
];

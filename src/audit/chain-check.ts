import type { Keyring } from '../db/keyring.ts';
import type { TenantScope } from '../db/transaction.ts';
import { type Block, BlockKind, hashOf, NO_HASH, signing } from './chain.ts';

/** Something that is not as it was sealed. */
export interface Finding {
  blockNo: number;
  /** Empty if it is about the block itself. */
  eventId: string;
  what: string;
}

/** A block that is known from elsewhere. */
export interface Anchor {
  blockNo: number;
  hash: string;
}

export type Tell = (finding: Finding) => void;

/** Whether a block says what was signed, as far as its own hash and signature tell. */
export const isIntact = (scope: TenantScope, keyring: Keyring, block: Block): boolean =>
  faultOf(scope, keyring, block) === undefined;

function faultOf(scope: TenantScope, keyring: Keyring, block: Block): string | undefined {
  if (!hashOf(scope, block.blockNo, block.prev, block).equals(block.hash)) return 'the block was changed';
  // A block of an old key is vouched for by those that come after it.
  if (!keyring.knows(block.signature)) return undefined;
  const right = keyring.verifies(signing(scope), block.hash.toString('hex'), block.signature);
  return right ? undefined : 'the block has a bad signature';
}

/** Follows a chain block by block. Up to the block `removed`, blocks may be missing from its beginning. */
export function chainCheck(
  scope: TenantScope,
  keyring: Keyring,
  removed: number,
  anchor: Anchor | undefined,
  tell: Tell,
) {
  let last: { blockNo: number; hash: Buffer; signature: string; sound: boolean } | undefined;
  const hashes = new Map<number, Buffer>();
  const found = (blockNo: number, what: string) => tell({ blockNo, eventId: '', what });

  function linked(block: Block): boolean {
    if (last) return block.prev.equals(last.hash);
    if (block.blockNo === 1) return block.prev.equals(NO_HASH);
    hashes.set(block.blockNo - 1, block.prev);
    return true;
  }

  return {
    /** Looks at the next block. Told is whether the one before it is missing that should be there. */
    next(block: Block): { gap: boolean } {
      const { blockNo, hash, signature } = block;
      const expected = last ? last.blockNo + 1 : Math.min(blockNo, removed + 1);
      const gap = blockNo !== expected;
      if (gap) found(expected, `removed${blockNo - expected > 1 ? ` (up to block ${blockNo - 1})` : ''}`);
      const fault = faultOf(scope, keyring, block);
      const follows = gap || linked(block);
      if (fault) found(blockNo, fault);
      else if (!follows && last?.sound !== false)
        found(blockNo, `does not follow from block ${blockNo - 1}, or that was rewritten`);
      if (anchor?.blockNo === blockNo && hash.toString('hex') !== anchor.hash)
        found(blockNo, 'is not that of the anchor');
      // What retention removed must have been the beginning of this very chain.
      const known = block.kind === BlockKind.PRUNING ? hashes.get(block.about!) : undefined;
      if (known && !known.equals(block.leaves)) found(blockNo, `tells of another block ${block.about}`);
      last = { blockNo, hash, signature, sound: !fault };
      return { gap };
    },

    end(): Anchor {
      if (!last) {
        if (anchor) found(anchor.blockNo, 'removed: the chain is shorter than the anchor');
        return { blockNo: 0, hash: '' };
      }
      if (anchor && anchor.blockNo > last.blockNo)
        found(anchor.blockNo, 'removed: the chain is shorter than the anchor');
      if (!keyring.knows(last.signature))
        found(last.blockNo, 'the last block was signed with a key that is not in the key file');
      return { blockNo: last.blockNo, hash: last.hash.toString('hex') };
    },
  };
}

import { createHash } from 'node:crypto';
import { uniformInt } from 'pure-rand/distribution/uniformInt';
import { xoroshiro128plus } from 'pure-rand/generator/xoroshiro128plus';
import type { Random } from './scenario.ts';

/** Choices that a seed and a name decide, so that a scenario makes the same ones whichever others run beside it. */
export function makeRandom(seed: number, name: string): Random {
  const generator = xoroshiro128plus(createHash('sha256').update(`${seed} ${name}`).digest().readInt32LE());
  const int = (n: number) => uniformInt(generator, 0, n - 1);
  return {
    int,
    pick: (list) => list[int(list.length)]!,
    chance: (p) => int(1_000_000) < p * 1_000_000,
  };
}

import { isDeepStrictEqual } from 'node:util';

/** An answer that is not the one it should be. */
export class Surprise extends Error {}

export function same(what: string, actual: unknown, expected: unknown): void {
  if (!isDeepStrictEqual(actual, expected)) {
    throw new Surprise(`${what}: ${JSON.stringify(actual)} instead of ${JSON.stringify(expected)}`);
  }
}

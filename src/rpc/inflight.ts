import { exhausted } from './errors.ts';

/** Bounds the calls under way, so that overload is refused at once instead of queueing without end. */
export interface InFlight {
  enter(method: string): void;
  leave(): void;
  readonly count: number;
}

export function inFlight(limit: number): InFlight {
  let count = 0;
  return {
    enter() {
      count++;
      if (count > limit) {
        count--;
        throw exhausted('TOO_MANY_CALLS', 'too many calls in flight', 200);
      }
    },
    leave() {
      count--;
    },
    get count() {
      return count;
    },
  };
}

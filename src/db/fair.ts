import { PoolExhausted } from './failure.ts';

/** Hands out what there is a bounded number of, so that whoever asks for much leaves others a part. */
export interface FairShare {
  /** Resolves when there is one for them, and fails if that takes too long. */
  take(who: string): Promise<void>;
  give(who: string): void;
  readonly waiting: number;
}

/**
 * Whether one of many may take more of what is bounded, where it holds `own` and all together hold `taken`: up to three times
 * what is left. So whoever is alone gets about three quarters, several get equal parts, and who comes next finds some left.
 */
export const mayTakeMore = (own: number, taken: number, limit: number): boolean =>
  own === 0 || own <= 3 * (limit - taken);

/** What somebody gets who is alone. */
export const mostOf = (limit: number): number => (3 / 4) * limit;

/** Those who wait are served in turns: nobody waits for all that another asked for before. */
export function fairShare(limit: number, waitMs: number): FairShare {
  const held = new Map<string, number>();
  // In the order in which they come to their turns, each with what it waits for.
  const queues = new Map<string, Set<() => void>>();
  let taken = 0;
  let waiting = 0;

  const mayTake = (who: string) => taken < limit && mayTakeMore(held.get(who) ?? 0, taken, limit);

  function grant(who: string): void {
    held.set(who, (held.get(who) ?? 0) + 1);
    taken++;
  }

  function leave(who: string, turn: () => void): void {
    const queue = queues.get(who)!;
    queue.delete(turn);
    waiting--;
    if (queue.size === 0) queues.delete(who);
  }

  function serve(): void {
    for (const [who, queue] of queues) {
      if (!mayTake(who)) continue;
      const [turn] = queue;
      queues.delete(who); // and to the end of the row: it is visited there again, if others of it wait
      queues.set(who, queue);
      turn!();
    }
  }

  return {
    take(who) {
      if (!queues.has(who) && mayTake(who)) {
        grant(who);
        return Promise.resolve();
      }
      return new Promise((resolve, reject) => {
        const turn = () => {
          clearTimeout(timer);
          leave(who, turn);
          grant(who);
          resolve();
        };
        const timer = setTimeout(() => {
          leave(who, turn);
          reject(new PoolExhausted('no database connection came free in time'));
        }, waitMs);
        const queue = queues.get(who) ?? new Set();
        queues.set(who, queue.add(turn));
        waiting++;
      });
    },
    give(who) {
      const left = held.get(who)! - 1;
      if (left > 0) held.set(who, left);
      else held.delete(who);
      taken--;
      serve();
    },
    get waiting() {
      return waiting;
    },
  };
}

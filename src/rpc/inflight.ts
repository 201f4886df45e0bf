import { drainingError, exhausted } from './errors.ts';

/** Bounds the calls under way, so that overload is refused at once instead of queueing without end. */
export interface InFlight {
  enter(): void;
  leave(): void;
  readonly count: number;
  /** Refuses every new one from now on. */
  close(): void;
  /** Resolves when none is under way. */
  idle(): Promise<void>;
}

export function inFlight(limit: number, what = 'calls in flight'): InFlight {
  let count = 0;
  let closed = false;
  let waiting: (() => void)[] = [];
  return {
    enter() {
      if (closed) throw drainingError();
      if (count >= limit) throw exhausted('TOO_MANY_CALLS', `too many ${what}`, 200);
      count++;
    },
    leave() {
      if (--count > 0) return;
      for (const resolve of waiting) resolve();
      waiting = [];
    },
    get count() {
      return count;
    },
    close() {
      closed = true;
    },
    async idle() {
      if (count > 0) await new Promise<void>((resolve) => waiting.push(resolve));
    },
  };
}

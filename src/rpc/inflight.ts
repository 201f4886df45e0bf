import { drainingError, exhausted } from './errors.ts';

/** Bounds the calls under way, so that overload is refused at once instead of queueing without end. */
export interface InFlight {
  readonly limit: number;
  enter(): void;
  leave(): void;
  readonly count: number;
  /** Tells who may not go on that there are too many: all together, or those `of` somebody who may have so many. */
  refuse(of?: string, most?: number): never;
  /** Refuses every new one from now on. */
  close(): void;
  /** Resolves when none is under way. */
  idle(): Promise<void>;
}

// Those who are refused are told to come again, the later the more of them there are. With a fixed delay of 200 ms, refusing
// ten times the callers that can be served again and again left them half of the throughput.
const SHORTEST_MS = 200;
const LONGEST_MS = 5000;
/** For each time that as many as may be under way were refused lately. */
const EACH_CROWD_MS = 400;
const FORGET_HALF_MS = 4000;

/** How long a caller that is refused now shall wait, where so many may be under way. */
export function pushback(clock: () => number): (limit: number) => number {
  let lately = 0;
  let since = clock();
  return (limit) => {
    const now = clock();
    lately = lately * 0.5 ** ((now - since) / FORGET_HALF_MS) + 1;
    since = now;
    const delay = Math.min(LONGEST_MS, SHORTEST_MS + (EACH_CROWD_MS * lately) / limit);
    return delay * (0.5 + Math.random()); // so that those who came together do not come together again
  };
}

export function inFlight(limit: number, what = 'calls in flight', clock = Date.now): InFlight {
  const retryAfter = pushback(clock);
  let count = 0;
  let closed = false;
  let waiting: (() => void)[] = [];
  const refuse = (of = '', most = limit): never => {
    throw exhausted('TOO_MANY_CALLS', `too many ${what}${of}`, retryAfter(most));
  };
  return {
    limit,
    refuse,
    enter() {
      if (closed) throw drainingError();
      if (count >= limit) refuse();
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

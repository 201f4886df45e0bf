/** Does an operation once, as the caller of that number. */
export type Call = (caller: number) => Promise<unknown>;

/** What a contestant can do, by the operation's name. */
export type Work = Record<string, Call>;

export interface RunOrder {
  contestant: string;
  operation: string;
  callers: number;
  ms: number;
}

export interface RunResult {
  ms: number;
  /** Milliseconds of each call. */
  latencies: Float64Array;
}

/**
 * So many callers, each with its next call as soon as its last one is answered. Ends when the last call is answered, so that
 * what is counted is all that was done.
 */
export async function drive(work: Call, callers: number, limitMs: number): Promise<RunResult> {
  const latencies: number[] = [];
  const start = performance.now();
  const end = start + limitMs;
  async function call(caller: number): Promise<void> {
    for (let before = performance.now(); before < end; ) {
      await work(caller);
      const after = performance.now();
      latencies.push(after - before);
      before = after;
    }
  }
  await Promise.all(Array.from({ length: callers }, (_, caller) => call(caller)));
  return { ms: performance.now() - start, latencies: Float64Array.from(latencies) };
}

export const any = <Item>(items: Item[]): Item => items[Math.floor(Math.random() * items.length)]!;

/** Fewer than a server takes of one tenant. */
const AT_ONCE = 200;

/** Makes so many things. */
export async function many<Made>(count: number, make: (number: number) => Promise<Made>): Promise<Made[]> {
  const made: Made[] = [];
  for (let from = 0; from < count; from += AT_ONCE) {
    const length = Math.min(AT_ONCE, count - from);
    made.push(...(await Promise.all(Array.from({ length }, (_, number) => make(from + number)))));
  }
  return made;
}

/** What a client asked and was told, with when it asked and when it knew. */
export interface Operation<Input, Output> {
  readonly input: Input;
  /** Undefined if nobody knows: it happened once, at any time from `start` on, or never. */
  readonly output: Output | undefined;
  readonly start: number;
  /** Infinity if nobody knows. */
  readonly end: number;
}

/** How one thing behaves to which operations happen one after the other. */
export interface Model<State, Input, Output> {
  readonly initial: State;
  /** The state after the operation, undefined if it cannot answer so in this state. Without an output: whatever it does. */
  step(state: State, input: Input, output: Output | undefined): State | undefined;
}

/**
 * Whether the operations could have happened one after the other, each between its start and its end: the search of Wing and
 * Gong with the memory of Lowe, that never tries the same rest from the same state twice. Undefined if they could, else as
 * many operations as can be put in order, and one that then answered what it could not.
 */
export function whyNotLinearizable<State, Input, Output>(
  model: Model<State, Input, Output>,
  operations: Operation<Input, Output>[],
): string | undefined {
  const history = operations.toSorted((a, b) => a.start - b.start);
  const done = new Array<boolean>(history.length).fill(false);
  const tried = new Set<string>();
  let best: { count: number; state: State; stuck: Operation<Input, Output>[] } | undefined;

  /** Those that may be next: begun before any other that is due has ended. */
  function candidates(): number[] {
    const found: number[] = [];
    let horizon = Infinity;
    for (const [i, operation] of history.entries()) {
      if (operation.start > horizon) break;
      if (done[i]) continue;
      found.push(i);
      horizon = Math.min(horizon, operation.end);
    }
    return found;
  }

  function search(state: State, count: number): boolean {
    const next = candidates();
    if (next.every((i) => history[i]!.output === undefined)) return true; // those may never have happened
    if (!best || count > best.count) best = { count, state, stuck: next.map((i) => history[i]!) };
    for (const i of next) {
      const { input, output } = history[i]!;
      const after = model.step(state, input, output);
      if (after === undefined) continue;
      done[i] = true;
      const key = keyOf(done, after);
      if (!tried.has(key)) {
        tried.add(key);
        if (search(after, count + 1)) return true;
      }
      done[i] = false;
    }
    return false;
  }

  if (search(model.initial, 0)) return undefined;
  const { count, state, stuck } = best!;
  const told = stuck.map(({ input, output }) => `${JSON.stringify(input)} → ${JSON.stringify(output)}`);
  return `after ${count} of ${history.length} operations, at ${JSON.stringify(state)}, none of these can be next: ${told.join('; ')}`;
}

/** Which ones are done: all up to a place, but for few, and few behind it. */
function keyOf(done: boolean[], state: unknown): string {
  const last = done.lastIndexOf(true);
  const missing: number[] = [];
  for (let i = 0; i < last; i++) if (!done[i]) missing.push(i);
  return `${last} ${missing.join()} ${JSON.stringify(state)}`;
}

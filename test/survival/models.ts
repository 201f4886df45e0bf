import type { Model } from './linearize.ts';

// What one session and one thread promise, as if all calls came one after the other.

export type SessionInput =
  | { kind: 'upsert'; title: string }
  /** Only if the session has this revision. */
  | { kind: 'edit'; title: string; revision: number }
  | { kind: 'get' };

export type SessionOutput = { title: string; revision: number } | 'refused';

export interface SessionState {
  title: string;
  /** 0: not there yet. */
  revision: number;
}

export const sessionModel: Model<SessionState, SessionInput, SessionOutput> = {
  initial: { title: '', revision: 0 },
  step(state, input, output) {
    const happens = input.kind === 'upsert' || (input.kind === 'edit' && input.revision === state.revision);
    const after = happens ? { title: (input as { title: string }).title, revision: state.revision + 1 } : state;
    if (output === undefined) return after;
    if (output === 'refused') return happens || input.kind === 'get' ? undefined : state;
    if (input.kind === 'edit' && !happens) return undefined;
    return output.title === after.title && output.revision === after.revision ? after : undefined;
  },
};

export type ThreadInput =
  | { kind: 'acquire'; holder: string }
  | { kind: 'renew' | 'release'; token: number }
  /** Token 0: what a person says, which needs none. */
  | { kind: 'append'; content: string; token: number }
  | { kind: 'list' };

export type ThreadOutput = { token: number } | { seq: number } | { log: string[] } | 'done' | 'refused';

export interface ThreadState {
  /** '' if nobody holds the turn. No lease lapses while it is looked at. */
  holder: string;
  /** Grows with each lease taken and each given back. */
  token: number;
  log: string[];
}

export const threadModel: Model<ThreadState, ThreadInput, ThreadOutput> = {
  initial: { holder: '', token: 0, log: [] },
  step(state, input, output) {
    const answer = answerOf(state, input);
    const [after, expected] = answer;
    if (output === undefined) return after;
    return JSON.stringify(output) === JSON.stringify(expected) ? after : undefined;
  },
};

/** What happens, and what is told. */
function answerOf(state: ThreadState, input: ThreadInput): [ThreadState, ThreadOutput] {
  const { holder, token, log } = state;
  const admits = (given: number) => holder !== '' && given === token;
  switch (input.kind) {
    case 'acquire':
      if (holder) return [state, 'refused'];
      return [{ ...state, holder: input.holder, token: token + 1 }, { token: token + 1 }];
    case 'renew':
      return [state, admits(input.token) ? 'done' : 'refused'];
    case 'release':
      if (!admits(input.token)) return [state, 'refused'];
      return [{ ...state, holder: '', token: token + 1 }, 'done'];
    case 'append':
      if (input.token !== 0 && !admits(input.token)) return [state, 'refused'];
      return [{ ...state, log: [...log, input.content] }, { seq: log.length + 1 }];
    case 'list':
      return [state, { log }];
  }
}

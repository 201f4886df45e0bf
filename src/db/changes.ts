import type { Scope } from './transaction.ts';

/** Tells, within this process, whose data a call has changed, so that who waits for it need not ask the database. */
export interface Changes {
  tell(scope: Scope): void;
  listen(listener: (scope: Scope) => void): void;
}

export function changes(): Changes {
  const listeners: ((scope: Scope) => void)[] = [];
  return {
    tell(scope) {
      for (const listener of listeners) listener(scope);
    },
    listen(listener) {
      listeners.push(listener);
    },
  };
}

/** What a row of thread_events tells. */
export const EventKind = { TEXT: 1, FINISHED: 2, DELETED: 3, CLEARED: 4 } as const;

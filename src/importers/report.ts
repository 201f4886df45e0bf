const EXAMPLES = 3;

/** What an import did, or would do, and what it left out, and why. */
export interface Report {
  add(what: string, count?: number): void;
  leave(what: string, why: string, id: string): void;
  lines(): string[];
}

export function createReport(): Report {
  const counts = new Map<string, number>();
  const left = new Map<string, { count: number; ids: string[] }>();
  return {
    add(what, count = 1) {
      counts.set(what, (counts.get(what) ?? 0) + count);
    },
    leave(what, why, id) {
      const key = `${what}: ${why}`;
      const entry = left.get(key) ?? { count: 0, ids: [] };
      entry.count++;
      if (entry.ids.length < EXAMPLES) entry.ids.push(id.slice(0, 64));
      left.set(key, entry);
    },
    lines: () => [
      ...[...counts].map(([what, count]) => `${what}: ${count.toLocaleString('en')}`),
      ...[...left].map(([key, { count, ids }]) => {
        const more = count > ids.length ? ', …' : '';
        return `${key}: ${count.toLocaleString('en')} (${ids.join(', ')}${more})`;
      }),
    ],
  };
}

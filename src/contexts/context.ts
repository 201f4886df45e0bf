import { type ContextEntry, type Decision, type MemoryReference, SessionContext } from '../gen/memory/v1/context.ts';
import type { Check } from '../rpc/validate.ts';

/** Entries of one call, or of one turn. */
export const MAX_ENTRIES = 1000;

/** More than this of live entries, and the oldest move into a snapshot. */
export const LIVE_BYTES = 64 * 1024;
/** What is live again after that: well under the limit, so that not every append compresses. */
export const KEPT_BYTES = 48 * 1024;

type Touched = NonNullable<ContextEntry['entry']>;
type Kind = Touched['$case'];

// As stored. The numbers are those of the proto's oneof.
const NUMBERS: Record<Kind, number> = { fileAccess: 1, search: 2, decision: 3, memoryReference: 4 };
const KINDS = new Map(Object.entries(NUMBERS).map(([kind, number]) => [number, kind as Kind]));

/** An entry as a row stores it. */
export interface StoredEntry {
  kind: number;
  data: Record<string, unknown>;
}

/** Adds what is wrong with entries to append, by their paths under `field`. */
export function checkEntries(check: Check, field: string, entries: readonly ContextEntry[], min = 0): void {
  if (!check.count(field, entries, MAX_ENTRIES, min)) return;
  entries.forEach(({ entry }, i) => {
    const path = `${field}[${i}]`;
    switch (entry?.$case) {
      case 'fileAccess':
        check.text(`${path}.file_access.path`, entry.value.path, 1024, 1);
        check.range(`${path}.file_access.importance`, entry.value.importance, 0, 1);
        break;
      case 'search':
        check.text(`${path}.search.query`, entry.value.query, 1000, 1);
        break;
      case 'decision':
        check.text(`${path}.decision.text`, entry.value.text, 4000, 1);
        break;
      case 'memoryReference':
        check.optionalUuid(`${path}.memory_reference.memory_id`, entry.value.memoryId);
        check.text(`${path}.memory_reference.key`, entry.value.key, 256, 1);
        break;
      default:
        check.that(false, `${path}.entry`, 'required');
    }
  });
}

/** A checked entry as it is stored, and its size: the bytes of its JSON, which names its kind. */
export function toStored({ entry }: ContextEntry): StoredEntry & { size: number } {
  const { $case, value } = entry!;
  const size = Buffer.byteLength(JSON.stringify({ [$case]: value }));
  return { kind: NUMBERS[$case], data: { ...value }, size };
}

export function fromStored({ kind, data }: StoredEntry): Touched {
  const $case = KINDS.get(kind);
  if (!$case) throw new Error(`a context entry of kind ${kind}`);
  return { $case, value: data } as unknown as Touched;
}

/** What the entries, oldest first, add up to. */
export function foldEntries(entries: Iterable<Touched>): SessionContext {
  // Maps keep the order of insertion: what comes again moves to the end, and the ends come first.
  const files = new Map<string, number>();
  const memories = new Map<string, MemoryReference>();
  const searches: string[] = [];
  const decisions: Decision[] = [];
  for (const { $case, value } of entries) {
    switch ($case) {
      case 'fileAccess':
        files.delete(value.path);
        files.set(value.path, value.importance);
        break;
      case 'search':
        searches.push(value.query);
        break;
      case 'decision':
        decisions.push(value);
        break;
      case 'memoryReference':
        memories.delete(value.key);
        memories.set(value.key, value);
        break;
    }
  }
  return SessionContext.fromPartial({
    filesAccessed: [...files.keys()].reverse(),
    fileImportanceScores: files,
    recentSearches: searches.reverse(),
    decisions: decisions.reverse(),
    savedMemories: [...memories.values()].reverse(),
  });
}

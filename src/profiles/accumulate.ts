import { isDeepStrictEqual } from 'node:util';
import { ProfileSource_Kind, ProfileValueChange_Kind } from '../gen/memory/v1/profile.ts';
import type { JsonObject } from '../wire/struct.ts';

export type Json = string | number | boolean | null | Json[] | JsonObject;

/** The fields that hold one text each. */
export const ADDRESS = ['address.street', 'address.city', 'address.state', 'address.zip', 'address.country'] as const;
export const TEXTS = ['name', 'phone', 'email', ...ADDRESS] as const;
export const LISTS = ['products', 'services'] as const;

/** As stored, so named as in the database. */
export interface Source {
  kind: ProfileSource_Kind;
  actor: string;
  session_id?: string | undefined;
  thread_id?: string | undefined;
  message_seq?: number | undefined;
  /** The merges by which it came, from the first on. */
  merge_ids?: string[] | undefined;
  /** As Postgres writes it. */
  set_time: string;
  /** Of a merge: where the other profile had it from. */
  origin?: Source | undefined;
}

/** Where a value was said, whatever merges it went through. */
export const saidIn = (source: Source): Source => source.origin ?? source;

/** One value of a profile. Without a value: it was removed. */
export interface Entry {
  field: string;
  /** '' for texts, else which of the field's values: a list's by its key, a key of preferences. */
  item: string;
  value: Json;
  source: Source;
}

/** A value to set; null removes. */
export interface Wanted {
  field: string;
  item: string;
  value: Json;
  /** An object is merged into the one that is stored. */
  merge?: boolean;
}

export interface Change {
  field: string;
  item: string;
  kind: ProfileValueChange_Kind;
  previous: Json;
  current: Json;
  source: Source;
  previous_source: Source | null;
}

const keyOf = ({ field, item }: { field: string; item: string }) => `${field}\0${item}`;
const isObject = (value: Json | undefined): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** What names a product or service: neither case nor spaces matter. */
export const itemKey = (text: string): string => text.normalize('NFKC').trim().replace(/\s+/gu, ' ').toLowerCase();

/** RFC 7396, of values in a profile whose row is locked. */
export function mergePatch(target: Json | undefined, patch: Json): Json {
  if (!isObject(patch)) return patch;
  const merged = new Map(Object.entries(isObject(target) ? target : {}));
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) merged.delete(key);
    else merged.set(key, mergePatch(merged.get(key), value));
  }
  return Object.fromEntries(merged);
}

/** The entries after these were set, and what changed. What is there already keeps its source. */
export function accumulate(
  entries: Entry[],
  wanted: Wanted[],
  source: Source,
): { entries: Entry[]; changes: Change[] } {
  const kept = new Map(entries.map((entry) => [keyOf(entry), entry]));
  const changes: Change[] = [];
  for (const { field, item, value: given, merge } of wanted) {
    const key = keyOf({ field, item });
    const stored = kept.get(key);
    const previous = stored?.value ?? null;
    const value = merge ? mergePatch(previous, given) : given;
    if (isDeepStrictEqual(previous, value)) continue;
    // A product is called as it was first; the texts of the others have no item.
    if (isList(field) && previous !== null && value !== null) continue;
    if (value === null && !isText(field)) kept.delete(key);
    else kept.set(key, { field, item, value, source });
    const kind =
      previous === null
        ? ProfileValueChange_Kind.ADDED
        : value === null
          ? ProfileValueChange_Kind.REMOVED
          : ProfileValueChange_Kind.REPLACED;
    changes.push({
      field,
      item: isList(field) ? String(value ?? previous) : item,
      kind,
      previous: value === null ? null : previous,
      current: value,
      source,
      previous_source: previous === null ? null : stored!.source,
    });
  }
  return { entries: [...kept.values()], changes };
}

const isText = (field: string) => (TEXTS as readonly string[]).includes(field);
const isList = (field: string) => (LISTS as readonly string[]).includes(field);

export const textOf = (entries: Entry[], field: string): string | undefined =>
  (entries.find((entry) => entry.field === field)?.value ?? undefined) as string | undefined;

export const itemsOf = (entries: Entry[], field: string): Entry[] => entries.filter((entry) => entry.field === field);

/** The entries that hold a value. */
export const present = (entries: Entry[]): Entry[] => entries.filter((entry) => entry.value !== null);

/**
 * Which of the texts that a message tells may be set: what a caller said stands, and so does what was said or removed later.
 * An address that contradicts the one that was read before takes its place as a whole, so that no two are mixed.
 */
export function admissible(entries: Entry[], found: Map<string, string>, saidAt: string): Wanted[] {
  const stored = (field: string) => entries.find((entry) => entry.field === field);
  const open = (field: string) => {
    const entry = stored(field);
    if (!entry) return true;
    const { kind, set_time } = saidIn(entry.source);
    return (entry.value === null || kind === ProfileSource_Kind.EXTRACTION) && set_time < saidAt;
  };
  const set = (field: string): Wanted => ({ field, item: '', value: found.get(field) ?? null });
  const wanted = ['name', 'phone', 'email'].filter((field) => found.has(field) && open(field)).map(set);
  if (!ADDRESS.some((field) => found.has(field)) || !ADDRESS.every(open)) return wanted;
  const agrees = (field: string) => {
    const [before, now] = [stored(field)?.value ?? undefined, found.get(field)];
    return before === undefined || now === undefined || before === now;
  };
  const fields = ADDRESS.every(agrees) ? ADDRESS.filter((field) => found.has(field)) : ADDRESS;
  return [...wanted, ...fields.map(set)];
}

/** What an update or a merge may not exceed, as the field that does. */
export function overLimit(entries: Entry[]): { field: string; description: string } | undefined {
  for (const field of LISTS)
    if (itemsOf(entries, field).length > 100) return { field, description: 'more than 100 after the union' };
  const preferences = itemsOf(entries, 'preferences');
  if (preferences.length > 200) return { field: 'preferences', description: 'more than 200 keys after the merge' };
  if (Buffer.byteLength(JSON.stringify(preferencesOf(entries))) > 64 * 1024)
    return { field: 'preferences', description: 'over 64 KiB after the merge' };
  return undefined;
}

export const preferencesOf = (entries: Entry[]): JsonObject =>
  Object.fromEntries(itemsOf(entries, 'preferences').map(({ item, value }) => [item, value]));

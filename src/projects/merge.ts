import { isAlias, isMap, isScalar, isSeq, type Node, Pair, type Scalar, type YAMLMap, type YAMLSeq } from 'yaml';
import {
  type Fault,
  type Item,
  interning,
  meaningOfList,
  meaningOfMap,
  type Reading,
  readDocument,
} from './document.ts';

/** A value that both sides changed, and not to the same. */
export interface Conflict {
  path: string;
  ours: string;
  theirs: string;
}

export type Merge = { yaml: string } | { conflicts: Conflict[] } | { faults: Fault[] };

const MAX_CONFLICTS = 50;
const SHOWN = 120;
/** Aliases that stand for more than this together are not written out. */
const MAX_EXPANDED = 50_000;

type Collection = YAMLMap<Node, Node | null> | YAMLSeq<Node>;

/** A key and its value, or an item of a list that has an id. */
interface Entry {
  label: string;
  item: Item | Node;
  value: Node | null;
  meaning: number;
  look: number;
}

/**
 * What `theirs` becomes by the changes from `base` to `ours`. Whoever alone changed something has it their way, comments and
 * order included. Lists whose items all have an `id` of their own are merged by it, others taken whole.
 *
 * The result is read again and has to say what was meant. Where anchors are in the way of that, or of merging, it is made
 * without them: aliases are then written out.
 */
export function mergeDocuments(base: string, ours: string, theirs: string): Merge {
  const asWritten = attempt(base, ours, theirs, false);
  return 'yaml' in asWritten || !asWritten.aliases ? asWritten : attempt(base, ours, theirs, true);
}

function attempt(base: string, ours: string, theirs: string, writtenOut: boolean): Merge & { aliases: boolean } {
  const intern = interning();
  const read = (text: string) => {
    const first = readDocument(text, intern);
    if (first.faults || !writtenOut || !first.reading.aliases) return first;
    const expanded = expand(first.reading);
    if (expanded === undefined) return { faults: [{ line: 1, column: 1, description: 'aliases stand for too much' }] };
    return readDocument(expanded, intern);
  };
  const readings: Reading[] = [];
  for (const text of [base, ours, theirs]) {
    const { faults, reading } = read(text) as { faults?: Fault[]; reading: Reading };
    if (faults) return { faults, aliases: false };
    readings.push(reading);
  }
  const [b, o, t] = readings as [Reading, Reading, Reading];
  const aliases = readings.some((reading) => reading.aliases);
  const { meaning, conflicts } = mergeReadings(b, o, t, intern);
  if (conflicts.length > 0) return { conflicts, aliases };
  try {
    const yaml = write(t, theirs);
    const again = readDocument(yaml, intern);
    if (!again.faults && again.reading.nature(again.reading.root).meaning === meaning) return { yaml, aliases };
  } catch (error) {
    if (!aliases) throw error; // an alias whose anchor is gone cannot be written
  }
  if (!aliases) throw new Error('the merge does not say what was meant');
  return { conflicts: [], aliases };
}

function mergeReadings(b: Reading, o: Reading, t: Reading, intern: (text: string) => number) {
  const conflicts: Conflict[] = [];

  const entriesOf = (reading: Reading, node: Collection | undefined): Map<number, Entry> => {
    const entries = new Map<number, Entry>();
    for (const item of node?.items ?? []) {
      const key = item instanceof Pair ? item.key : idOf(item)!;
      const value = item instanceof Pair ? item.value : item;
      const { meaning, look } = reading.nature(value);
      const label = item instanceof Pair ? keyName(key) : `[${brief(key)}]`;
      const keyLook = item instanceof Pair ? `${reading.nature(key).look} ` : '';
      entries.set(reading.nature(key).meaning, { label, item, value, meaning, look: intern(`${keyLook}${look}`) });
    }
    return entries;
  };

  /** Lists are merged only where every item of every side has an id that no other has. */
  const byId = (reading: Reading, node: Node | null): node is YAMLSeq<Node> => {
    if (!isSeq(node)) return false;
    const ids = (node.items as Node[]).map(idOf);
    return ids.every((id) => id) && new Set(ids.map((id) => reading.nature(id!).meaning)).size === ids.length;
  };

  function mergeable(
    eb: Entry | undefined,
    eo: Entry,
    et: Entry,
  ): [Collection | undefined, Collection, Collection] | undefined {
    const [vb, vo, vt] = [eb?.value ?? null, eo.value, et.value];
    if (isMap(vo) && isMap(vt)) return [isMap(vb) ? vb : undefined, vo, vt] as [Collection, Collection, Collection];
    if (byId(o, vo) && byId(t, vt) && (!isSeq(vb) || byId(b, vb))) return [byId(b, vb) ? vb : undefined, vo, vt];
    return undefined;
  }

  /** Merges into `theirs`. Gives what it then says. */
  function merge(base: Collection | undefined, ours: Collection, theirs: Collection, path: string): number {
    const [eb, eo, et] = [entriesOf(b, base), entriesOf(o, ours), entriesOf(t, theirs)];
    const kept = new Map<number, { item: Item | Node; meaning: number }>();
    for (const key of new Set([...et.keys(), ...eo.keys()])) {
      const merged = mergeEntry(eb.get(key), eo.get(key), et.get(key), path);
      if (merged) kept.set(key, merged);
    }
    const order = arrange([...eb.keys()], [...eo.keys()], [...et.keys()]).filter((key) => kept.has(key));
    theirs.items = order.map((key) => kept.get(key)!.item) as never;
    mergeNotes(base, ours, theirs);
    if (isSeq(theirs)) return intern(meaningOfList(order.map((key) => kept.get(key)!.meaning)));
    return intern(meaningOfMap(order.map((key) => [key, kept.get(key)!.meaning])));
  }

  function mergeEntry(eb: Entry | undefined, eo: Entry | undefined, et: Entry | undefined, path: string) {
    if (sameLook(eo, eb)) return et;
    if (sameLook(et, eb)) return eo;
    const label = (eo ?? et ?? eb)!.label;
    const inner = path === '' || label.startsWith('[') ? `${path}${label}` : `${path}.${label}`;
    const collections = eo && et && mergeable(eb, eo, et);
    if (collections) {
      const keys = [eb, eo, et].map((entry) => (entry?.item instanceof Pair ? entry.item.key : undefined));
      if (keys[2]) mergeNotes(keys[0], keys[1]!, keys[2]);
      return { item: et.item, meaning: merge(...collections, inner) };
    }
    if (eo?.meaning === et?.meaning || eo?.meaning === eb?.meaning) return et;
    if (et?.meaning === eb?.meaning) return eo;
    if (conflicts.length < MAX_CONFLICTS) conflicts.push({ path: inner, ours: shown(eo), theirs: shown(et) });
    return et;
  }

  const meaning = merge(b.root, o.root, t.root, '');
  mergeNotes(b.document, o.document, t.document);
  return { meaning, conflicts };
}

// Both, as an alias looks the same when what it stands for has changed.
const sameLook = (one: Entry | undefined, other: Entry | undefined) =>
  one?.look === other?.look && one?.meaning === other?.meaning;

/** Comments go the way of values, but never conflict: where both sides changed one, theirs stays. */
function mergeNotes(base: object | undefined, ours: object, theirs: object): void {
  for (const name of ['commentBefore', 'comment', 'spaceBefore'] as const) {
    const [b, o, t] = [base, ours, theirs] as [Partial<Node> | undefined, Partial<Node>, Partial<Node>];
    if (t[name] === b?.[name]) t[name] = o[name] as never;
  }
}

/**
 * The order of whoever alone reordered what all three have, else theirs. What only the other side has comes after what it comes
 * after there, or last if nothing there is here.
 */
function arrange(base: number[], ours: number[], theirs: number[]): number[] {
  const [inOurs, inTheirs] = [new Set(ours), new Set(theirs)];
  const common = new Set(base.filter((key) => inOurs.has(key) && inTheirs.has(key)));
  const order = (keys: number[]) => keys.filter((key) => common.has(key)).join();
  const byOurs = order(theirs) === order(base) && order(ours) !== order(base);
  const [first, second] = byOurs ? [ours, theirs] : [theirs, ours];
  const placed = new Set(first);
  const after = new Map<number | undefined, number[]>();
  let last: number | undefined;
  for (const key of second) {
    if (placed.has(key)) last = key;
    else after.set(last, [...(after.get(last) ?? []), key]);
  }
  const [lead, rest] = [after.get(undefined) ?? [], first.flatMap((key) => [key, ...(after.get(key) ?? [])])];
  return last === undefined ? [...rest, ...lead] : [...lead, ...rest];
}

function idOf(item: Node): Node | undefined {
  if (!isMap(item)) return undefined;
  const pair = (item.items as Item[]).find(({ key }) => isScalar(key) && key.value === 'id');
  return isScalar(pair?.value) && pair.value.value !== null ? pair.value : undefined;
}

/** A key in a path: as it is if that is a plain word. */
function keyName(key: Node | null): string {
  const name = brief(key);
  return /^"[\p{L}\p{N}_-]+"$/u.test(name) ? name.slice(1, -1) : `[${name}]`;
}

const shown = (entry: Entry | undefined) => (entry ? brief(entry.value) : 'nothing');

/** A value on one line, and not much of it. */
function brief(node: Node | null): string {
  let left = SHOWN;
  const write = (part: Node | null): string => {
    if (left <= 0) return '…';
    if (isMap(part)) return `{${within(part.items as Item[], ({ key, value }) => `${write(key)}: ${write(value)}`)}}`;
    if (isSeq(part)) return `[${within(part.items as Node[], write)}]`;
    const value = isScalar(part) ? part.value : null;
    const text = isAlias(part) ? `*${part.source}` : typeof value === 'string' ? JSON.stringify(value) : `${value}`;
    left -= text.length;
    return text.length > SHOWN ? `${text.slice(0, SHOWN)}…` : text;
  };
  const within = <T>(items: T[], each: (item: T) => string): string => {
    const texts: string[] = [];
    for (const item of items) {
      texts.push(each(item));
      if (left <= 0) break;
    }
    return texts.join(', ');
  };
  return write(node);
}

/** In the style of the document that it was merged into, as far as the library lets one choose. */
function write({ document }: Reading, source: string): string {
  return document.toString({
    lineWidth: 0,
    flowCollectionPadding: !/[[{][^\s\]}]/.test(source),
    indentSeq: !/^( *)(?! |- |#)[^\n]*:[ \t]*\n\1- /m.test(source),
  });
}

/** The document with what its aliases stand for in their place, or undefined if that is too much. */
function expand({ document, root }: Reading): string | undefined {
  let count = 0;
  const anchors = new Map<string, Node>();
  const copy = (node: Node | null): Node | null => {
    if (!node || ++count > MAX_EXPANDED) return node;
    if (isAlias(node)) {
      const target = copy(anchors.get(node.source)!)!;
      const { commentBefore, comment, spaceBefore } = node;
      return Object.assign(target, { commentBefore, comment, spaceBefore });
    }
    const own = node as Scalar | YAMLMap | YAMLSeq;
    if (own.anchor) anchors.set(own.anchor, node);
    const clone = own.clone() as typeof own;
    delete clone.anchor;
    if (isMap(clone)) clone.items = (clone.items as Item[]).map(({ key, value }) => new Pair(copy(key), copy(value)));
    if (isSeq(clone)) clone.items = (clone.items as Node[]).map(copy);
    return clone as Node;
  };
  document.contents = copy(root) as never;
  return count > MAX_EXPANDED ? undefined : document.toString({ lineWidth: 0 });
}

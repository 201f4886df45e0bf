import {
  type Alias,
  type Document,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  LineCounter,
  type Node,
  type Pair,
  parseDocument,
  type Scalar,
  type YAMLMap,
  type YAMLSeq,
} from 'yaml';

export const MAX_DEPTH = 32;
const MAX_FAULTS = 20;

/** What is wrong with a document, and where. Never what it says. */
export interface Fault {
  line: number;
  column: number;
  description: string;
}

/** What two nodes are compared by: equal numbers mean equal things, also in different documents. */
export interface Nature {
  /** What it says: aliases are what they stand for, and the order of keys does not matter. */
  meaning: number;
  /** How it is written, with its comments. */
  look: number;
}

/** A document that was read, with the nature of each of its nodes. */
export interface Reading {
  document: Document.Parsed;
  root: YAMLMap<Node, Node | null>;
  nature(node: Node | null): Nature;
  aliases: boolean;
}

export type Item = Pair<Node, Node | null>;

/** Gives equal texts the same number. Numbers stand for whole subtrees, so that no alias makes anything larger. */
export function interning(): (text: string) => number {
  const numbers = new Map<string, number>();
  return (text) => {
    const known = numbers.get(text);
    if (known !== undefined) return known;
    numbers.set(text, numbers.size);
    return numbers.size - 1;
  };
}

export const meaningOfMap = (entries: [number, number][]) =>
  `map ${entries
    .map(([key, value]) => `${key}:${value}`)
    .sort()
    .join()}`;
export const meaningOfList = (items: number[]) => `list ${items.join()}`;

const PLAIN = /^tag:yaml\.org,2002:(str|int|float|bool|null|map|seq)$/;

/** Reads a document that has to be one map. Keys may not come twice, and an alias not be inside of what it stands for. */
export function readDocument(
  text: string,
  intern = interning(),
): { reading: Reading; faults?: never } | { faults: Fault[] } {
  const lines = new LineCounter();
  // The library compares each key with each other one; here they are looked up.
  const document = parseDocument(text, {
    uniqueKeys: false,
    intAsBigInt: true,
    prettyErrors: false,
    lineCounter: lines,
    logLevel: 'error', // 'silent' would take several documents, and read the first
  });
  const faults: Fault[] = [];
  const fault = (offset: number, description: string) => {
    if (faults.length >= MAX_FAULTS) return;
    const { line, col } = lines.linePos(offset);
    faults.push({ line, column: col, description });
  };
  for (const error of document.errors.slice(0, MAX_FAULTS)) {
    fault(error.pos[0], error.code.toLowerCase().replaceAll('_', ' '));
  }
  if (faults.length > 0) return { faults };
  const root = document.contents as Node | null;
  if (!isMap(root)) return { faults: [{ line: 1, column: 1, description: 'not a map' }] };

  const natures = new WeakMap<Node, Nature>();
  const anchors = new Map<string, Node>();
  const nothing: Nature = { meaning: intern('null null'), look: intern('nothing') };
  const nature = (node: Node | null) => (node ? natures.get(node)! : nothing);
  let aliases = false;

  function visit(node: Node | null, depth: number): Nature {
    if (!node) return nothing;
    const found = describe(node, depth);
    natures.set(node, found);
    return found;
  }

  function describe(node: Node, depth: number): Nature {
    const offset = node.range?.[0] ?? 0;
    if (isAlias(node)) return ofAlias(node, offset);
    const { anchor, tag } = node as Scalar | YAMLMap | YAMLSeq;
    if (anchor) anchors.set(anchor, node);
    const own = tag && !PLAIN.test(tag) ? `${tag} ` : '';
    const { commentBefore, comment, spaceBefore } = node;
    const look = (...of: unknown[]) =>
      intern(JSON.stringify([commentBefore, comment, spaceBefore, anchor, tag, ...of]));
    if (isScalar(node)) {
      const { value, type, source } = node;
      const kind = value === null ? 'null' : typeof value;
      return { meaning: intern(`${own}${kind} ${value}`), look: look(type, source) };
    }
    if (depth > MAX_DEPTH) {
      fault(offset, `nested deeper than ${MAX_DEPTH} levels`);
      return nothing;
    }
    if (isSeq(node)) {
      const items = (node.items as Node[]).map((item) => visit(item, depth + 1));
      const meaning = intern(own + meaningOfList(items.map((item) => item.meaning)));
      return { meaning, look: look('list', node.flow, ...items.map((item) => item.look)) };
    }
    return ofMap(node as YAMLMap<Node, Node | null>, own, look, depth);
  }

  function ofMap(node: YAMLMap<Node, Node | null>, own: string, look: (...of: unknown[]) => number, depth: number) {
    const values = new Map<number, number>();
    const looks: number[] = [];
    for (const { key, value } of node.items) {
      const offset = key?.range?.[0] ?? node.range?.[0] ?? 0;
      if (key && !isScalar(key)) fault(offset, 'a key that is not a plain value');
      const of = [visit(key, depth + 1), visit(value, depth + 1)] as const;
      if (values.has(of[0].meaning)) fault(offset, 'a key that comes twice');
      values.set(of[0].meaning, of[1].meaning);
      looks.push(of[0].look, of[1].look);
    }
    return { meaning: intern(own + meaningOfMap([...values])), look: look('map', node.flow, ...looks) };
  }

  function ofAlias(node: Alias, offset: number): Nature {
    aliases = true;
    const target = anchors.get(node.source);
    const known = target && natures.get(target);
    if (!target) fault(offset, 'an alias of nothing');
    else if (!known) fault(offset, 'an alias inside of what it stands for');
    const { source, commentBefore, comment, spaceBefore } = node;
    const look = intern(JSON.stringify(['alias', source, commentBefore, comment, spaceBefore]));
    return { meaning: known?.meaning ?? nothing.meaning, look };
  }

  visit(root, 1);
  if (faults.length > 0) return { faults };
  return { reading: { document, root: root as Reading['root'], nature, aliases } };
}

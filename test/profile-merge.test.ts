import { isDeepStrictEqual } from 'node:util';
import { expect } from 'chai';
import fc from 'fast-check';
import { parse, stringify } from 'yaml';
import { readDocument } from '../src/projects/document.ts';
import { mergeDocuments } from '../src/projects/merge.ts';

const ODD = [
  '',
  ' a ',
  '- x',
  'null',
  '1',
  '1.0',
  '#',
  'a: b',
  '*a',
  '&a',
  '!t',
  '\n',
  'a\nb\n',
  "'",
  '"',
  '%',
  '---',
  '...',
  '<<',
  '~',
];
const ABSENT = Symbol('absent');

const isMap = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
const hasIds = (value: unknown): value is { id: unknown }[] =>
  Array.isArray(value) &&
  value.every(
    (item) => isMap(item) && 'id' in item && !isMap(item.id) && item.id !== null && !Array.isArray(item.id),
  ) &&
  new Set(value.map(({ id }) => id)).size === value.length;
const byId = (list: { id: unknown }[]) => new Map(list.map((item) => [item.id, item]));

/** The same by the rules of the merge alone, on values: without order, comments and style. */
function mergedValues(base: unknown, ours: unknown, theirs: unknown, path: string, conflicts: string[]): unknown {
  if (isDeepStrictEqual(ours, base)) return theirs;
  if (isDeepStrictEqual(theirs, base)) return ours;
  if (isMap(ours) && isMap(theirs)) {
    const there = isMap(base) ? base : {};
    const keys = new Set([...Object.keys(theirs), ...Object.keys(ours)]);
    const of = (map: Record<string, unknown>, key: string) => (Object.hasOwn(map, key) ? map[key] : ABSENT);
    const entries = [...keys].map((key) => [
      key,
      mergedValues(of(there, key), of(ours, key), of(theirs, key), `${path}.${key}`, conflicts),
    ]);
    return Object.fromEntries(entries.filter(([, value]) => value !== ABSENT));
  }
  if (hasIds(ours) && hasIds(theirs) && (!Array.isArray(base) || hasIds(base))) {
    const [b, o, t] = [Array.isArray(base) ? base : [], ours, theirs].map(byId);
    const items = [...new Set([...t!.keys(), ...o!.keys()])].map((id) =>
      mergedValues(b!.get(id) ?? ABSENT, o!.get(id) ?? ABSENT, t!.get(id) ?? ABSENT, `${path}[${id}]`, conflicts),
    );
    return items.filter((item) => item !== ABSENT);
  }
  if (!isDeepStrictEqual(ours, theirs)) conflicts.push(path);
  return theirs;
}

/** Without the order of items that have ids. */
const unordered = (value: unknown): unknown => {
  if (isMap(value)) return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, unordered(inner)]));
  if (!Array.isArray(value)) return value;
  const items = value.map(unordered);
  return hasIds(items) ? items.sort((a, b) => Number(a.id) - Number(b.id)) : items;
};

interface Case {
  what: string;
  base: string;
  ours: string;
  theirs: string;
  merged?: string;
  conflicts?: [path: string, ours: string, theirs: string][];
}

const BASE = 'title: Plan\nlead: ana\nbudget: 10\n';

const CASES: Case[] = [
  { what: 'nothing changed', base: BASE, ours: BASE, theirs: BASE, merged: BASE },
  {
    what: 'a key added here, another there',
    base: BASE,
    ours: `${BASE}due: June\n`,
    theirs: `${BASE}risk: low\n`,
    merged: `${BASE}due: June\nrisk: low\n`,
  },
  {
    what: 'keys added at the front and in the middle',
    base: BASE,
    ours: 'first: 1\ntitle: Plan\nlead: ana\nafter: 2\nbudget: 10\n',
    theirs: `${BASE}last: 3\n`,
    merged: 'first: 1\ntitle: Plan\nlead: ana\nafter: 2\nbudget: 10\nlast: 3\n',
  },
  {
    what: 'keys added by one who had nothing',
    base: '{}',
    ours: 'due: June\nlead: ana\n',
    theirs: 'title: Plan\n',
    merged: 'title: Plan\ndue: June\nlead: ana\n',
  },
  {
    what: 'different keys changed',
    base: BASE,
    ours: 'title: Plan\nlead: bo\nbudget: 10\n',
    theirs: 'title: Plan\nlead: ana\nbudget: 20\n',
    merged: 'title: Plan\nlead: bo\nbudget: 20\n',
  },
  {
    what: 'a key deleted here, another there',
    base: BASE,
    ours: 'lead: ana\nbudget: 10\n',
    theirs: 'title: Plan\nlead: ana\n',
    merged: 'lead: ana\n',
  },
  { what: 'the same key deleted', base: BASE, ours: 'title: Plan\n', theirs: 'title: Plan\n', merged: 'title: Plan\n' },
  {
    what: 'the same change, written differently',
    base: BASE,
    ours: 'title: "Plan B"\nlead: ana\nbudget: 10\n',
    theirs: "title: 'Plan B'\nlead: ana\nbudget: 10\n",
    merged: "title: 'Plan B'\nlead: ana\nbudget: 10\n",
  },
  {
    what: 'the same key added with the same value',
    base: BASE,
    ours: `${BASE}tags: [a, b]\n`,
    theirs: `${BASE}tags:\n  - a\n  - b\n`,
    merged: `${BASE}tags:\n  - a\n  - b\n`,
  },
  {
    what: 'one key changed to different values',
    base: BASE,
    ours: 'title: Plan\nlead: bo\nbudget: 10\n',
    theirs: 'title: Plan\nlead: cy\nbudget: 10\n',
    conflicts: [['lead', '"bo"', '"cy"']],
  },
  {
    what: 'a key changed here and deleted there',
    base: BASE,
    ours: 'title: Plan\nlead: bo\nbudget: 10\n',
    theirs: 'title: Plan\nbudget: 10\n',
    conflicts: [['lead', '"bo"', 'nothing']],
  },
  {
    what: 'a key deleted here and changed there',
    base: BASE,
    ours: 'title: Plan\nlead: ana\n',
    theirs: 'title: Plan\nlead: ana\nbudget: 20\n',
    conflicts: [['budget', 'nothing', '20']],
  },
  {
    what: 'a key added with different values',
    base: BASE,
    ours: `${BASE}due: June\n`,
    theirs: `${BASE}due: July\n`,
    conflicts: [['due', '"June"', '"July"']],
  },
  {
    what: 'a text here and a number there',
    base: 'a: x\n',
    ours: 'a: "1"\n',
    theirs: 'a: 1\n',
    conflicts: [['a', '"1"', '1']],
  },
  {
    what: 'several conflicts, some further in, all told at once',
    base: 'a: 1\nin:\n  b: 1\n  "c.d": 1\n',
    ours: 'a: 2\nin:\n  b: 2\n  "c.d": 2\n',
    theirs: 'a: 3\nin:\n  b: 3\n  "c.d": 3\n',
    conflicts: [
      ['a', '2', '3'],
      ['in.b', '2', '3'],
      ['in["c.d"]', '2', '3'],
    ],
  },
  {
    what: 'keys of a nested map',
    base: 'team:\n  lead: ana\n  size: 3\nstyle:\n  tone: dry\n',
    ours: 'team:\n  lead: ana\n  size: 4\nstyle:\n  tone: dry\n  person: we\n',
    theirs: 'team:\n  lead: bo\n  size: 3\nstyle:\n  tone: dry\n',
    merged: 'team:\n  lead: bo\n  size: 4\nstyle:\n  tone: dry\n  person: we\n',
  },
  {
    what: 'a nested map deleted here and changed there',
    base: 'team:\n  lead: ana\ntitle: Plan\n',
    ours: 'title: Plan\n',
    theirs: 'team:\n  lead: bo\ntitle: Plan\n',
    conflicts: [['team', 'nothing', '{"lead": "bo"}']],
  },
  {
    what: 'a map made by both where none was',
    base: BASE,
    ours: `${BASE}style:\n  tone: dry\n`,
    theirs: `${BASE}style:\n  person: we\n`,
    merged: `${BASE}style:\n  person: we\n  tone: dry\n`,
  },
  {
    what: 'a value that became a map here and another value there',
    base: 'lead: ana\n',
    ours: 'lead:\n  name: ana\n',
    theirs: 'lead: bo\n',
    conflicts: [['lead', '{"name": "ana"}', '"bo"']],
  },
  {
    what: 'keys reordered here, a value changed there',
    base: BASE,
    ours: 'budget: 10\ntitle: Plan\nlead: ana\n',
    theirs: 'title: Plan\nlead: bo\nbudget: 10\nrisk: low\n',
    merged: 'budget: 10\nrisk: low\ntitle: Plan\nlead: bo\n',
  },
  {
    what: 'keys reordered there, a value changed here',
    base: BASE,
    ours: 'title: Plan\nlead: bo\nbudget: 10\n',
    theirs: 'lead: ana\ntitle: Plan\nbudget: 10\n',
    merged: 'lead: bo\ntitle: Plan\nbudget: 10\n',
  },
  {
    what: 'keys reordered by both: theirs stays',
    base: BASE,
    ours: 'budget: 10\ntitle: Plan\nlead: ana\n',
    theirs: 'lead: ana\ntitle: Plan\nbudget: 10\n',
    merged: 'lead: ana\ntitle: Plan\nbudget: 10\n',
  },
  {
    what: 'keys of a nested map reordered here, changed there',
    base: 'team:\n  lead: ana\n  size: 3\n',
    ours: 'team:\n  size: 3\n  lead: ana\n',
    theirs: 'team:\n  lead: ana\n  size: 4\n',
    merged: 'team:\n  size: 4\n  lead: ana\n',
  },
  {
    what: 'comments of all kinds, each with its key',
    base: '# The plan.\n\ntitle: Plan # working title\n\n# Who leads.\nlead: ana\n# Money.\nbudget: 10\n',
    ours: '# The plan.\n\ntitle: Plan # working title\n\n# Who leads.\nlead: bo # since May\n# Money.\nbudget: 10\n',
    theirs:
      '# The plan.\n\ntitle: Plan B # final\n\n# Who leads.\nlead: ana\n# Money, in thousands.\nbudget: 10\n# Added.\nrisk: low\n',
    merged:
      '# The plan.\n\ntitle: Plan B # final\n\n# Who leads.\nlead: bo # since May\n# Money, in thousands.\nbudget: 10\n# Added.\nrisk: low\n',
  },
  {
    what: 'a comment changed here, the value there',
    base: 'a: 1 # one\nb: 1\n',
    ours: 'a: 1 # uno\nb: 1\n',
    theirs: 'a: 2 # one\nb: 1\n',
    merged: 'a: 2 # one\nb: 1\n',
  },
  {
    what: 'comments alone: changed here, and there',
    base: '# old\n\na: 1\n# b\nb: 1\n',
    ours: '# new\n\na: 1\n# b\nb: 1\n',
    theirs: '# old\n\na: 1\n# bee\nb: 1\nc: 1\n',
    merged: '# new\n\na: 1\n# bee\nb: 1\nc: 1\n',
  },
  {
    what: 'a comment changed to different texts: theirs stays, without a conflict',
    base: '# x\n\na: 1\n# b\nb: 1\n',
    ours: '# y\n\na: 1\n# b1\nb: 1\n',
    theirs: '# z\n\na: 1\n# b2\nb: 1\n',
    merged: '# z\n\na: 1\n# b2\nb: 1\n',
  },
  {
    what: 'a key deleted with its comment',
    base: 'a: 1\n# About b.\nb: 1\nc: 1\n',
    ours: 'a: 1\nc: 1\n',
    theirs: 'a: 1\n# About b.\nb: 1\nc: 2\n',
    merged: 'a: 1\nc: 2\n',
  },
  {
    what: 'a list changed here only',
    base: 'tags: [a, b]\nx: 1\n',
    ours: 'tags: [a, b, c]\nx: 1\n',
    theirs: 'tags: [a, b]\nx: 2\n',
    merged: 'tags: [a, b, c]\nx: 2\n',
  },
  {
    what: 'a list of plain values changed by both is one value',
    base: 'tags: [a, b]\n',
    ours: 'tags: [a, b, c]\n',
    theirs: 'tags: [b]\n',
    conflicts: [['tags', '["a", "b", "c"]', '["b"]']],
  },
  {
    what: 'a list of maps with ids: changed, added and deleted by both',
    base: 'people:\n  - id: ana\n    role: lead\n  - id: bo\n    role: dev\n  - id: cy\n    role: dev\n',
    ours: 'people:\n  - id: ana\n    role: boss\n  - id: bo\n    role: dev\n  - id: dee\n    role: new\n',
    theirs:
      'people:\n  - id: ana\n    role: lead\n  - id: bo\n    role: ops\n    since: 2024\n  - id: cy\n    role: dev\n',
    merged:
      'people:\n  - id: ana\n    role: boss\n  - id: bo\n    role: ops\n    since: 2024\n  - id: dee\n    role: new\n',
  },
  {
    what: 'a conflict inside of an item with an id',
    base: 'people:\n  - id: ana\n    role: lead\n',
    ours: 'people:\n  - id: ana\n    role: boss\n',
    theirs: 'people:\n  - id: ana\n    role: dev\n',
    conflicts: [['people["ana"].role', '"boss"', '"dev"']],
  },
  {
    what: 'a list in which an id comes twice is one value',
    base: 'people:\n  - id: 1\n',
    ours: 'people:\n  - id: 1\n  - id: 1\n',
    theirs: 'people:\n  - id: 2\n',
    conflicts: [['people', '[{"id": 1}, {"id": 1}]', '[{"id": 2}]']],
  },
  {
    what: 'anchors and aliases that nobody touched',
    base: 'defaults: &d\n  font: Arial\ncover: *d\ntitle: x\n',
    ours: 'defaults: &d\n  font: Arial\ncover: *d\ntitle: y\n',
    theirs: 'defaults: &d\n  font: Arial\ncover: *d\ntitle: x\nend: *d\n',
    merged: 'defaults: &d\n  font: Arial\ncover: *d\ntitle: y\nend: *d\n',
  },
  {
    what: 'what an alias stands for, changed here',
    base: 'size: &s 10\ncover: *s\nx: 1\n',
    ours: 'size: &s 12\ncover: *s\nx: 1\n',
    theirs: 'size: &s 10\ncover: *s\nx: 2\n',
    merged: 'size: &s 12\ncover: *s\nx: 2\n',
  },
  {
    what: 'what an alias stands for, changed here, under an alias that was added there: that one keeps its value',
    base: 'size: &s 10\n',
    ours: 'size: &s 12\n',
    theirs: 'size: &s 10\ncover: *s\n',
    merged: 'size: &s 12\ncover: 10\n',
  },
  {
    what: 'an anchor deleted here that theirs still uses',
    base: 'd: &d { font: Arial }\nx: 1\n',
    ours: 'x: 1\n',
    theirs: 'd: &d { font: Arial }\nx: 1\ncover: *d\n',
    merged: 'x: 1\ncover: { font: Arial }\n',
  },
  {
    what: 'the same anchor made by both for different things',
    base: 'x: 1\n',
    ours: 'x: 1\na: &n one\nb: *n\n',
    theirs: 'x: 1\nc: &n two\nd: *n\n',
    merged: 'x: 1\na: &n one\nb: *n\nc: &n two\nd: *n\n',
  },
  {
    what: 'a map behind an anchor, changed by both in different keys',
    base: 'd: &d\n  font: Arial\n  size: 10\ncover: *d\n',
    ours: 'd: &d\n  font: Arial\n  size: 12\ncover: *d\n',
    theirs: 'd: &d\n  font: Serif\n  size: 10\ncover: *d\n',
    merged: 'd:\n  font: Serif\n  size: 12\ncover:\n  font: Serif\n  size: 12\n',
  },
  {
    what: 'numbers past 2^53, exactly',
    base: 'id: 9007199254740993\nx: 1\n',
    ours: 'id: 9007199254740992\nx: 1\n',
    theirs: 'id: 9007199254740993\nx: 2\n',
    merged: 'id: 9007199254740992\nx: 2\n',
  },
  {
    what: 'block texts and quoted keys as they were written, but for where a folded text breaks its lines',
    base: 'text: |\n  one\n  two\n"a key": >-\n  folded\n  text\nx: 1\n',
    ours: 'text: |\n  one\n  three\n"a key": >-\n  folded\n  text\nx: 1\n',
    theirs: 'text: |\n  one\n  two\n"a key": >-\n  folded\n  text\nx: 2\n',
    merged: 'text: |\n  one\n  three\n"a key": >-\n  folded text\nx: 2\n',
  },
  {
    what: 'lists that are not indented, and braces without spaces, stay so',
    base: 'l:\n- a\n- {k: 1}\nx: 1\n',
    ours: 'l:\n- a\n- {k: 1}\nx: 2\n',
    theirs: 'l:\n- a\n- {k: 1}\nx: 1\ny: 1\n',
    merged: 'l:\n- a\n- {k: 1}\nx: 2\ny: 1\n',
  },
];

describe('merging project profiles', () => {
  for (const { what, base, ours, theirs, merged, conflicts } of CASES) {
    it(what, () => {
      const result = mergeDocuments(base, ours, theirs);
      const expected =
        merged === undefined
          ? { conflicts: conflicts!.map(([path, mine, other]) => ({ path, ours: mine, theirs: other })) }
          : { yaml: merged };
      const { aliases: _, ...told } = result as any;
      expect(told).to.deep.equal(expected);
    });
  }

  it('gives what every side says where only one of them changed anything', () => {
    for (const { what, base, ours, theirs } of CASES) {
      expect(mergeDocuments(base, ours, base), what)
        .to.have.property('yaml')
        .that.satisfies(says(ours));
      expect(mergeDocuments(base, base, theirs), what)
        .to.have.property('yaml')
        .that.satisfies(says(theirs));
      expect(mergeDocuments(base, ours, ours), what)
        .to.have.property('yaml')
        .that.satisfies(says(ours));
    }
  });
  const says = (text: string) => (other: string) => {
    expect(parse(other, { intAsBigInt: true })).to.deep.equal(parse(text, { intAsBigInt: true }));
    return true;
  };

  it('does with any documents what a merge of plain values does', () => {
    const text = fc.oneof(fc.string({ unit: 'grapheme', maxLength: 12 }), fc.constantFrom(...ODD));
    const double = fc.double({ noNaN: true }).map((value) => value || 0); // -0 is read as 0
    const plain = fc.oneof(text, fc.integer(), fc.boolean(), fc.constant(null), double);
    const key = fc.oneof({ weight: 8, arbitrary: fc.constantFrom('a', 'b', 'c', 'd') }, { weight: 1, arbitrary: text });
    const people = fc.uniqueArray(fc.record({ id: fc.nat(4), of: plain }, { noNullPrototype: true }), {
      selector: ({ id }) => id,
      maxLength: 4,
    });
    const { tree } = fc.letrec<{ tree: unknown; map: Record<string, unknown> }>((tie) => ({
      tree: fc.oneof({ depthSize: 'small' }, plain, fc.array(tie('tree'), { maxLength: 3 }), people, tie('map')),
      map: fc.dictionary(key, tie('tree'), { maxKeys: 5, noNullPrototype: true }),
    }));
    const root = fc
      .tuple(fc.dictionary(key, tree, { maxKeys: 6, noNullPrototype: true }), fc.option(people, { nil: undefined }))
      .map(([own, list]) => (list ? { ...own, people: list } : own));
    // Each side takes some of its keys from what was there.
    const sides = fc.tuple(root, root, root, fc.infiniteStream(fc.boolean())).map(([base, ours, theirs, keep]) => {
      const mixed = (own: Record<string, unknown>) =>
        Object.fromEntries(
          [...new Set([...Object.keys(base), ...Object.keys(own)])].flatMap((name) => {
            const from = keep.next().value && Object.hasOwn(base, name) ? base : own;
            return Object.hasOwn(from, name) ? [[name, from[name]]] : [];
          }),
        );
      return [base, mixed(ours), mixed(theirs)] as const;
    });
    const property = fc.property(sides, ([base, ours, theirs]) => {
      const [b, o, t] = [base, ours, theirs].map((side) => stringify(side));
      const result = mergeDocuments(b!, o!, t!);
      const conflicts: string[] = [];
      const expected = mergedValues(base, ours, theirs, '', conflicts);
      if (conflicts.length > 0) expect(result).to.have.property('conflicts').that.has.length(conflicts.length);
      else expect(unordered(parse((result as { yaml: string }).yaml))).to.deep.equal(unordered(expected));
    });
    fc.assert(property, { numRuns: 400 });
  }).timeout(30_000);

  it('is bounded where aliases stand for more and more', () => {
    const lines = Array.from({ length: 30 }, (_, i) => `a${i + 1}: &a${i + 1} [*a${i}, *a${i}, *a${i}]`);
    const bomb = ['a0: &a0 [x, x, x]', ...lines, ''].join('\n');
    expect(mergeDocuments(bomb, `${bomb}b: 1\n`, `${bomb}c: 1\n`)).to.deep.include({ yaml: `${bomb}b: 1\nc: 1\n` });
    const changed = bomb.replace('[x, x, x]', '[y]');
    expect(mergeDocuments(bomb, changed, `${bomb}c: *a30\n`)).to.have.property('faults');
  });
});

describe('reading project profiles', () => {
  const faults = (text: string) =>
    readDocument(text).faults?.map(({ line, column, description }) => `${line}:${column} ${description}`);

  it('takes one map, with comments, anchors and any values', () => {
    for (const text of [
      '{}',
      '# c\na: 1\n',
      'a: &x [1, 2]\nb: *x\n',
      '---\na: !own x\n...\n',
      '1: a\nnull: b\n"1": c\n',
    ])
      expect(faults(text), text).to.equal(undefined);
  });

  it('tells what is wrong and where, and never what it says', () => {
    expect(faults('')).to.deep.equal(['1:1 not a map']);
    expect(faults('- a\n')).to.deep.equal(['1:1 not a map']);
    expect(faults('secret\n')).to.deep.equal(['1:1 not a map']);
    expect(faults('a: 1\n---\nb: 2\n')).to.deep.equal(['2:1 multiple docs']);
    expect(faults('a: 1\nb: 2\na: secret\n')).to.deep.equal(['3:1 a key that comes twice']);
    expect(faults('a: 1\nb:\n  "x": 1\n  x: 2\n')).to.deep.equal(['4:3 a key that comes twice']);
    expect(faults('a: *secret\n')).to.deep.equal(['1:4 an alias of nothing']);
    expect(faults('a: &a\n  b: *a\n')).to.deep.equal(['2:6 an alias inside of what it stands for']);
    expect(faults('? [a]\n: 1\n')).to.deep.equal(['1:3 a key that is not a plain value']);
    expect(faults(`a: ${'['.repeat(32)}${']'.repeat(32)}\n`)).to.deep.equal(['1:35 nested deeper than 32 levels']);
    for (const text of [
      'a: [secret\n',
      'a: "secret\n',
      'a:\n\tb: secret',
      'a: secret: b',
      '%secret',
      '@secret: 1',
      'a: 1\n b: 2\n',
    ])
      expect(faults(text)?.join(), text)
        .to.match(/^\d+:\d+ [a-z ]+/)
        .and.not.match(/secret/);
  });

  it('reads 256 KiB that are made to be hard in bounded steps', () => {
    for (const text of [
      `{${Array.from({ length: 40_000 }, (_, i) => `${i}:`).join(',')}}`,
      `a:\n  - &a 1\n${'  - *a\n'.repeat(37_000)}`,
      'x'.repeat(200_000),
      '['.repeat(100_000),
      '? '.repeat(100_000),
    ])
      readDocument(text);
  }).timeout(20_000);
});

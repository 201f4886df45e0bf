import { randomUUID } from 'node:crypto';
import type { Metadata } from '@grpc/grpc-js';
import { expect } from 'chai';
import { type Callers, startCallers } from './fixtures/callers.ts';
import { PROBES } from './fixtures/probes.ts';
import { RPCS } from './fixtures/rpcs.ts';
import { type Leaf, leavesOf } from './fixtures/schema.ts';
import { type Bytes, double, float, mask, nested, struct, text, time, value, varint } from './fixtures/wire.ts';

interface Bad {
  what: string;
  value: Bytes;
  /** Refused before any rule is looked at, so that no field is named. */
  undecodable?: boolean;
}
const bad = (what: string, bytes: Bytes, undecodable = false): Bad => ({ what, value: bytes, undecodable });

const NOT_UTF8: Bad[] = [
  ['a lone byte', [0x61, 0xff]],
  ['a lone surrogate', [0xed, 0xa0, 0x80]],
  ['a surrogate pair as six bytes', [0xed, 0xa0, 0xbd, 0xed, 0xb1, 0x8b]],
  ['an overlong NUL', [0xc0, 0x80]],
  ['an overlong slash', [0xe0, 0x80, 0xaf]],
  ['a cut character', [0x61, 0xe2, 0x82]],
  ['a character past U+10FFFF', [0xf4, 0x90, 0x80, 0x80]],
].map(([what, bytes]) => bad(what as string, Buffer.from(bytes as number[]), true));

const YEAR_10000 = 253_402_300_800;
const BAD_NANOS = [bad('negative nanos', time(1, -1)), bad('a whole second of nanos', time(1, 1e9))];
const BAD_TIMES = [
  bad('year 10000', time(YEAR_10000)),
  bad('year 9999999', time(315_569_488_000_000n)),
  bad('year 0', time(-62_135_596_801)),
  bad('2^53 seconds', time(2n ** 53n), true),
  bad('2^60 seconds', time(2n ** 60n), true),
  bad('-2^60 seconds', time(-(2n ** 60n)), true),
  ...BAD_NANOS,
];
const BAD_DURATIONS = [
  bad('nothing', time(0)),
  bad('negative', time(-5)),
  bad('a million years', time(31_556_952_000_000n)),
  bad('2^60 seconds', time(2n ** 60n), true),
  bad('mixed signs', time(2, -1)),
  bad('negative nanos', time(0, -1)),
  bad('two seconds of nanos', time(1, 2_000_000_000)),
];
const BAD_STRUCTS = [
  bad('NaN', struct(['a', value.double(Number.NaN)])),
  bad('Infinity', struct(['a', value.list([value.double(Number.POSITIVE_INFINITY)])])),
  bad('-Infinity', struct(['a', value.double(Number.NEGATIVE_INFINITY)])),
  bad('NUL in a text', struct(['a', value.string(text('x\0'))])),
  bad('NUL in a key', struct(['a\0', value.double(1)])),
  bad('a key __proto__', struct(['__proto__', value.struct(struct(['admin', value.double(1)]))])),
  bad('a key __proto__ further in', struct(['a', value.struct(struct(['__proto__', value.double(1)]))])),
  bad('a key of 2,000 characters', struct(['k'.repeat(2000), value.double(1)])),
  bad('33 levels', nested(33)),
  bad(
    '33 levels of lists',
    struct(['a', Array.from({ length: 32 }).reduce<Bytes>((inner) => value.list([inner]), value.double(1))]),
  ),
  bad('64 KiB and a byte', struct(['a', value.string(text('x'.repeat(64 * 1024 - 7)))])),
  bad('invalid UTF-8 in a text', struct(['a', value.string(Buffer.from([0xff]))]), true),
  bad('a lone surrogate in a key', struct([Buffer.from([0xed, 0xa0, 0x80]), value.double(1)]), true),
  bad('10,000 levels', nested(10_000), true),
];
const GOOD_STRUCTS = [
  bad('32 levels', nested(32)),
  bad(
    'keys of Object',
    struct(
      ...['constructor', 'prototype', 'toString', 'toJSON', 'then', 'length', ''].map((key): [string, Bytes] => [
        key,
        value.double(1),
      ]),
    ),
  ),
  bad(
    'extreme numbers',
    struct(...[5e-324, -0, 1.7976931348623157e308, 2 ** 53].map((n): [string, Bytes] => [`${n}`, value.double(n)])),
  ),
  bad('a value that is not set', struct(['a', Buffer.alloc(0)])),
];

/** What a field's proto says about it: wrong values, and such that are just right. */
function casesOf({ kind, comment, input, repeated, lastNumber, path }: Leaf): { wrong: Bad[]; right: Bad[] } {
  const wrong: Bad[] = [];
  const right: Bad[] = [];
  const required = input && /Required(\.|, unless)/.test(comment) && !repeated;
  switch (kind) {
    case 'string': {
      wrong.push(...NOT_UTF8);
      if (!input) break;
      if (!/page_token$/.test(path)) wrong.push(bad('NUL', text('a\0b')));
      if (required) wrong.push(bad('nothing', text('')));
      const limit = Number(/(\d[\d,]*) characters/.exec(comment)?.[1]?.replace(',', ''));
      const mail = path.endsWith('email') ? '@example.com' : '';
      if (limit) {
        wrong.push(bad('a character too many', text('x'.repeat(limit + 1 - mail.length) + mail)));
        wrong.push(bad('an emoji too many', text('👋'.repeat(limit + 1 - mail.length) + mail)));
        right.push(bad('as many emoji as may be', text('👋'.repeat(limit - mail.length) + mail)));
      }
      if (/UUID/.test(comment)) {
        for (const id of [
          'x',
          randomUUID().slice(1),
          `{${randomUUID()}}`,
          `${randomUUID()} `,
          randomUUID().replaceAll('-', ''),
        ])
          wrong.push(bad(`the id ${id}`, text(id)));
        right.push(bad('a UUID in capitals', text(randomUUID().toUpperCase())));
      }
      if (/\[a-z0-9\]\[a-z0-9-\]/.test(comment)) {
        for (const slug of ['A', '-a', 'a_b', 'a b', 'ä', 'a\n', 'x'.repeat(64)])
          wrong.push(bad(`the name ${slug}`, text(slug)));
        right.push(bad('63 characters', text(`0${'-'.repeat(62)}`)));
      }
      break;
    }
    case 'int64':
      wrong.push(
        bad('2^60', varint(2n ** 60n), true),
        bad('2^53', varint(2n ** 53n), true),
        bad('-2^63', varint(-(2n ** 63n)), true),
      );
      if (input) wrong.push(bad('-1', varint(-1)));
      if (input) (required ? wrong : right).push(bad('0', varint(0)));
      break;
    case 'int32': {
      if (!input) break;
      wrong.push(bad('-1', varint(-1)), bad('-2^31', varint(-(2 ** 31))));
      const most = Number(
        (/at most ([\d,]+)/.exec(comment) ?? /\d to ([\d,]+)/.exec(comment))?.[1]?.replaceAll(',', ''),
      );
      expect(most, `${path} says how many`).to.be.greaterThan(0);
      // A page may be asked to be larger than it gets.
      (path === 'page_size' ? right : wrong).push(
        bad('2^31-1', varint(2 ** 31 - 1)),
        bad('one too many', varint(most + 1)),
      );
      right.push(bad('the most', varint(most)));
      break;
    }
    case 'double': {
      if (!input) break;
      const range = /from (\d+) to (\d+)/.exec(comment);
      expect(range, `${path} says from what to what`).to.not.equal(null);
      const [least, most] = [Number(range![1]), Number(range![2])];
      for (const number of [
        least - 0.001,
        most + 0.001,
        Number.NaN,
        Number.POSITIVE_INFINITY,
        Number.NEGATIVE_INFINITY,
      ])
        wrong.push(bad(`${number}`, double(number)));
      for (const number of [least, most, (least + most) / 2]) right.push(bad(`${number}`, double(number)));
      break;
    }
    case 'float':
      for (const number of [0, Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])
        wrong.push(bad(`${number} alone`, float(number)));
      for (const number of [-1, 1e-38, 3e38]) right.push(bad(`${number}`, float(number)));
      break;
    case 'enum':
      if (!input) break;
      wrong.push(
        bad('the number after the last', varint(lastNumber + 1)),
        bad('-1', varint(-1)),
        bad('2^31-1', varint(2 ** 31 - 1)),
      );
      if (required) wrong.push(bad('0', varint(0)));
      break;
    case 'timestamp':
      if (input) wrong.push(...BAD_TIMES);
      if (path === 'expire_time') wrong.push(bad('a time that has passed', time(1)));
      if (input) right.push(bad('the last time', time(YEAR_10000 - 1, 999_999_999)));
      break;
    case 'duration':
      if (input) wrong.push(...BAD_DURATIONS);
      break;
    case 'struct':
      if (input) wrong.push(...BAD_STRUCTS);
      if (input) right.push(...GOOD_STRUCTS);
      break;
    case 'mask':
      for (const paths of [
        ['garbage'],
        [''],
        ['id'],
        ['session.title'],
        ['title '],
        ['__proto__'],
        ['title', 'constructor'],
        ['*'],
        ['x'.repeat(100_000)],
        ['a\0'],
      ]) {
        wrong.push(bad(`the paths ${paths.join().slice(0, 20)}`, mask(...paths)));
      }
  }
  return { wrong, right };
}

describe('bad fields', () => {
  let callers: Callers;
  let headers: Callers['headers'];
  let send: Callers['send'];

  before(async () => {
    callers = await startCallers();
    ({ headers, send } = callers);
  });
  after(() => callers?.stop());

  const refusalOf = async (path: string, request: Buffer, metadata: Metadata) => {
    const answer = await send(path, request, metadata);
    // The process lives, and serves the next call.
    await send('/memory.v1.ConversationService/ListThreads', Buffer.alloc(0));
    return answer;
  };
  const about = (path: string) => (field: string) =>
    field === path || field.startsWith(`${path}.`) || field.startsWith(`${path}[`);

  for (const rpc of RPCS) {
    it(`are refused and named by ${rpc.name}`, async () => {
      const metadata = headers[PROBES[rpc.name]!.access]!;
      // Of messages given inline, nothing reads this one.
      const leaves = leavesOf(rpc.name).filter(({ path }) => !/inline\.messages\[0\]\.client_id$/.test(path));
      for (const leaf of leaves) {
        const named = leaf.kind === 'mask' || leaf.repeated ? leaf.path.replace(/\[0\]$/, '') : leaf.path;
        const { wrong, right } = casesOf(leaf);
        for (const { what, value: bytes, undecodable } of wrong) {
          const { name: code, reason, fields } = await refusalOf(rpc.path, leaf.request(bytes), metadata);
          const name = `${leaf.path}: ${what}`;
          expect(code, name).to.equal('INVALID_ARGUMENT');
          expect(reason, name).to.equal(undecodable ? 'MALFORMED_REQUEST' : 'INVALID_REQUEST');
          if (!undecodable) expect(fields.filter(about(named)), `${name} is named among ${fields}`).to.not.be.empty;
        }
        for (const { what, value: bytes } of right) {
          const { fields } = await refusalOf(rpc.path, leaf.request(bytes), metadata);
          expect(fields.filter(about(named)), `${leaf.path}: ${what} is fine`).to.deep.equal([]);
        }
        // What only the service sets is not looked at: whatever it holds, nothing breaks.
        if (!leaf.input && leaf.kind === 'string') {
          const { name: code } = await refusalOf(rpc.path, leaf.request(text(`a\0${'x'.repeat(5000)}`)), metadata);
          expect(code, leaf.path).to.be.oneOf(['OK', 'INVALID_ARGUMENT', 'NOT_FOUND']);
        }
      }
    });
  }
});

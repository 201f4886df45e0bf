import { expect } from 'chai';
import { findPii, type PiiFinding, redactPii, scanPii } from '../src/sessions/pii.ts';
import { negatives, positives } from './fixtures/pii.ts';

function scan(value: unknown, path = 'state') {
  const findings: PiiFinding[] = [];
  scanPii(path, value, findings);
  return findings;
}

describe('pii', () => {
  for (const [text, kind, found = text] of positives) {
    it(`finds ${kind} in ${text}`, () => {
      const spans = findPii(text).map(({ start, end, ...span }) => ({ ...span, found: text.slice(start, end) }));
      expect(spans).to.deep.equal([{ kind, found }]);
    });
  }

  it('flags none of the negatives, alone, in a list, in a sentence or as a key', () => {
    expect(positives).to.have.lengthOf.at.least(60);
    expect(negatives).to.have.lengthOf.at.least(120);
    const flagged = negatives.filter((text) => findPii(text).length > 0);
    expect(flagged).to.deep.equal([]);
    expect(scan(negatives)).to.deep.equal([]);
    expect(scan(negatives.map((text) => `The value was "${text}", as asked.`))).to.deep.equal([]);
    expect(scan(Object.fromEntries(negatives.map((text) => [text, text])))).to.deep.equal([]);
    expect(redactPii(negatives)).to.equal(negatives);
  });

  it('leaves a realistic state alone', () => {
    const state = {
      session_id: '01890a5d-ac96-774b-bcce-b302099a8057',
      cursor: 4539148803436467,
      order_id: '4539148803436467',
      sku: 'PN123456A',
      phone_number_id: '106540352242922',
      telemetry: { sin: 0.046454286, values: [1714567890123, 1714567890123456, -74.005974, 4155552671] },
      phone_verified: true,
      call_count: 12345678,
      last_run: 123456785,
      files: ['src/sessions/pii.ts:123', 'logo@2x.png'],
    };
    // A card's prefix and checksum alone are chance: the cursor needs a key that tells.
    expect(scan({ ...state, cursor: undefined, cursor_id: state.cursor })).to.deep.equal([]);
    expect(scan({ ...state, cursor: state.cursor })).to.deep.equal([{ path: 'state.cursor', kind: 'PAYMENT_CARD' }]);
  });

  it('names paths, never values, and each kind once', () => {
    const value = {
      contact: { 'e mail': 'a@example.com or b@example.com', phone: '4155552671', ssn: 536904399 },
      items: ['x', { n: 1 }, ['c@example.com, 4111 1111 1111 1111']],
      card: 4111111111111111,
      'd@example.com': { nested: 'e@example.com' },
    };
    expect(scan(value)).to.deep.equal([
      { path: 'state.contact["e mail"]', kind: 'EMAIL' },
      { path: 'state.contact.phone', kind: 'PHONE' },
      { path: 'state.contact.ssn', kind: 'NATIONAL_ID' },
      { path: 'state.items[2][0]', kind: 'EMAIL' },
      { path: 'state.items[2][0]', kind: 'PAYMENT_CARD' },
      { path: 'state.card', kind: 'PAYMENT_CARD' },
      { path: 'state["[EMAIL]"]', kind: 'EMAIL' },
      { path: 'state["[EMAIL]"].nested', kind: 'EMAIL' },
    ]);
    expect(scan('f@example.com', 'title')).to.deep.equal([{ path: 'title', kind: 'EMAIL' }]);
    expect(scan(new Map([['note', 'g@example.com']]), 'metadata')).to.deep.equal([
      { path: 'metadata.note', kind: 'EMAIL' },
    ]);
    for (const nothing of [null, undefined, true, 1.5, 1e300, Number.NaN, '', [], {}, new Uint8Array(9), new Date()]) {
      expect(scan(nothing)).to.deep.equal([]);
    }
  });

  it('redacts, and keeps every entry', () => {
    expect(redactPii('Ask a@example.com or +1 415 555 2671, card 4111111111111111, 536-90-4399.')).to.equal(
      'Ask [EMAIL] or [PHONE], card [PAYMENT_CARD], [NATIONAL_ID].',
    );
    const input = {
      'a@example.com': 1,
      'b@example.com': 2,
      '[EMAIL]': 3,
      'c@example.com': 4,
      deep: [{ phone: 4155552671, n: 7 }],
    };
    const output = redactPii(input);
    expect(output).to.deep.equal({
      '[EMAIL] 2': 1,
      '[EMAIL] 3': 2,
      '[EMAIL]': 3,
      '[EMAIL] 4': 4,
      deep: [{ phone: '[PHONE]', n: 7 }],
    });
    expect(scan(output)).to.deep.equal([]);
    expect(redactPii(output)).to.equal(output);
    expect(redactPii(new Map([['x', 'a@example.com']]))).to.deep.equal(new Map([['x', '[EMAIL]']]));
  });

  it('gives the same reference back when nothing was found', () => {
    const clean = {
      a: [1, Number.NaN, { b: 'text' }],
      m: new Map([['k', 'v']]),
      bytes: new Uint8Array(3),
      at: new Date(),
    };
    expect(redactPii(clean)).to.equal(clean);
    const mixed = { clean, dirty: 'a@example.com' };
    expect(redactPii(mixed).clean).to.equal(clean);
    expect(mixed.dirty).to.equal('a@example.com');
  });

  it('keeps null prototypes and keys like __proto__', () => {
    const input = Object.assign(Object.create(null), { constructor: 'a@example.com' });
    Object.defineProperty(input, '__proto__', { value: { x: 'b@example.com' }, enumerable: true });
    expect(scan(input).map((finding) => finding.path)).to.deep.equal(['state.constructor', 'state.__proto__.x']);
    const output = redactPii(input);
    expect(Object.getPrototypeOf(output)).to.equal(null);
    expect(Object.entries(output)).to.deep.equal([
      ['constructor', '[EMAIL]'],
      ['__proto__', { x: '[EMAIL]' }],
    ]);
    const plain = redactPii(JSON.parse('{"__proto__":"a@example.com"}'));
    expect(Object.getPrototypeOf(plain)).to.equal(Object.prototype);
    expect(JSON.stringify(plain)).to.equal('{"__proto__":"[EMAIL]"}');
  });

  it('redacts what it flags, wherever the text is cut or joined', () => {
    for (const [text] of positives) {
      for (const around of [`${text} and ${text}`, `(${text})`, `"${text}",`, `\n${text}\n`]) {
        const redacted = redactPii(around);
        expect(redacted, around).to.not.equal(around);
        expect(findPii(redacted), redacted).to.deep.equal([]);
      }
    }
  });

  const size = 64 * 1024;
  const fill = (part: string | ((i: number) => string)) => {
    let text = '';
    for (let i = 0; text.length < size; i++) text += typeof part === 'string' ? part : part(i);
    return text;
  };
  for (const [name, part] of Object.entries<string | ((i: number) => string)>({
    digits: '1234567890',
    'single digits': '1 ',
    dashes: '12-34-',
    'at signs': '@',
    'short addresses': 'a@a',
    'percent signs': "a'%40",
    'long local parts': `${'a.'.repeat(40)}@`,
    'endless domain': 'a.',
    'plus signs': '+1+12 ',
    brackets: '((00 ((0(',
    spaces: `1${' '.repeat(999)}`,
    'almost cards': (i) => `4000 1234 5678 ${1000 + (i % 9000)} `,
    'almost phones': (i) => `+49101${10000 + (i % 90000)} `,
    'national numbers': (i) => `0${10 + (i % 80)} ${1000 + (i % 9000)} ${1000 + ((i * 7) % 9000)} `,
    'called by name': (i) => `phone ${1000000 + i} `,
  })) {
    it(`is linear in 64 KiB of ${name}`, () => {
      const text = name === 'endless domain' ? `a@${fill(part)}` : fill(part);
      scan({ [text]: text });
      redactPii({ [text]: text });
    });
  }

  it('numbers 8,000 colliding keys without counting each time', () => {
    const keys = Array.from({ length: 8000 }, (_, i) => [`u${i}@e.io`, i]);
    expect(Object.keys(redactPii(Object.fromEntries(keys)))).to.have.lengthOf(8000);
  });
});

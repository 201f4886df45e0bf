import { readFileSync } from 'node:fs';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import fc from 'fast-check';
import { countTokens as cl100k } from 'gpt-tokenizer/encoding/cl100k_base';
import { countTokens as o200k } from 'gpt-tokenizer/encoding/o200k_base';
import { createTokenCounter, type TokenCounter, tokenCounter } from '../src/tokens/counter.ts';
import { outOfProportion } from './fixtures/growth.ts';
import { type Clients, connect, failure, headersOf, newTenant, startTestServer } from './support.ts';

/** The library's own count, in which `<|endoftext|>` is text like any other. */
const expected = (text: string, count = o200k) => count(text, { disallowedSpecial: new Set() });

const SAMPLES = {
  nothing: '',
  prose:
    'The quick brown fox, having jumped over 12,345 lazy dogs, said: "it\'s enough — we’ll rest."\n\n  Then it slept.',
  shouting: "DON'T PANIC! I'VE A TOWEL, THEY'RE HERE'S",
  code: readFileSync(new URL('../src/tokens/counter.ts', import.meta.url), 'utf8'),
  sql: readFileSync(new URL('../migrations/0001_foundation.sql', import.meta.url), 'utf8'),
  json: JSON.stringify({ a: [1, 2.5e-7, null], ключ: { b: '\u0000\ud83d\ude00' } }, null, 2),
  chinese: '我们在数据库中保存会话的记忆，每个租户只能看到自己的内容。',
  japanese: 'セッションの記憶をデータベースに保存します。ｶﾀｶﾅも。',
  korean: '세션의 기억을 데이터베이스에 저장합니다.',
  arabic: 'نحفظ ذاكرة الجلسة في قاعدة البيانات',
  hindi: 'हम सत्र की स्मृति को डेटाबेस में रखते हैं।',
  thai: 'เราเก็บความทรงจำของเซสชันไว้ในฐานข้อมูล',
  emoji: '👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽😀😀😀 ☕️ 🇨🇿',
  combining: 'e\u0301 Z\u0351\u036b\u0343\u036a a\u0308o\u0308',
  special: 'before <|endoftext|> and <|im_start|>user<|im_end|> after',
  controls: '\u0001\u007f\u2028\r\n\r\n\t \u00a0\u3000 x',
  pairless: 'a\ud800b',
  longWord: 'antidisestablishmentarianism'.repeat(40),
};

const KIB_256 = 256 * 1024;
const upTo256KiB = (unit: string) => unit.repeat(Math.floor(KIB_256 / Buffer.byteLength(unit)));
/** The same every time, and without pattern. */
function noise(alphabet: string): string {
  const characters = [...alphabet];
  let state = 1;
  let text = '';
  for (let bytes = 0; ; ) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const next = characters[(state >>> 8) % characters.length]!;
    bytes += Buffer.byteLength(next);
    if (bytes > KIB_256) return text;
    text += next;
  }
}
const LETTERS = 'abcdefghijklmnopqrstuvwxyz';
const HOSTILE = {
  'one letter': upTo256KiB('a'),
  'one Cyrillic letter': upTo256KiB('ж'),
  'one capital, then a digit': `${upTo256KiB('A').slice(1)}1`,
  spaces: upTo256KiB(' '),
  'line ends': upTo256KiB('\n'),
  underscores: upTo256KiB('_'),
  'a word without end': upTo256KiB('the'),
  alphabets: upTo256KiB(LETTERS),
  'letters at random': noise(LETTERS),
  'punctuation at random': noise('!"#$%&()*+,-./:;<=>?@[]^_`{|}~'),
  'white space at random': noise(' \t\n\r\u3000'),
  'Chinese at random': noise(String.fromCharCode(...Array.from({ length: 20_000 }, (_, i) => 0x4e00 + i))),
  'Thai at random': noise(String.fromCharCode(...Array.from({ length: 46 }, (_, i) => 0xe01 + i))),
  'emoji at random': noise(String.fromCodePoint(...Array.from({ length: 700 }, (_, i) => 0x1f300 + i))),
  'combining marks': upTo256KiB('\u0301'),
  'zero-width joiners': upTo256KiB('\u200d'),
  families: upTo256KiB('👨‍👩‍👧‍👦'),
  'ends of lines in spaces': upTo256KiB(`\n${' '.repeat(1000)}x`),
  'capitals after small ones': upTo256KiB('aA'),
  possessives: upTo256KiB("a's"),
};

describe('tokens', () => {
  let counter: TokenCounter;
  before(() => {
    counter = createTokenCounter();
  });
  after(() => counter.stop());

  it('counts as the library does', async () => {
    const texts = Object.values(SAMPLES);
    expect(await counter.count(texts)).to.deep.equal(texts.map((text) => expected(text)));
    expect(await counter.count(texts, 'cl100k_base')).to.deep.equal(texts.map((text) => expected(text, cl100k)));
    const pieces = fc.oneof(
      fc.string({ unit: 'binary', maxLength: 200 }).map((text) => text.replace(/[\ufeff\u0085]/g, '?')),
      fc.string({ unit: fc.constantFrom(...LETTERS, ...'ABÉß', "'", ' ', '\n', '1', '界', '😀'), maxLength: 400 }),
      fc.tuple(fc.constantFrom('a', 'ab', ' ', '=', '界', '😀', 'th'), fc.nat(300)).map(([unit, n]) => unit.repeat(n)),
    );
    const lists = fc.array(fc.array(pieces, { maxLength: 6 }), { maxLength: 20 });
    await fc.assert(
      fc.asyncProperty(lists, async (list) => {
        const random = list.map((parts) => parts.join(''));
        expect(await counter.count(random)).to.deep.equal(random.map((text) => expected(text)));
      }),
      { numRuns: 60 },
    );
  });

  it('counts as the reference does where the library does not', async () => {
    // As its build for WebAssembly counts them.
    const counts = { '\ufeff': 1, '\ufeffusing System;': 3, 'x\ufeff\ufeffy': 3, ' \u0085\u0085 a': 5 };
    expect(await counter.count(Object.keys(counts))).to.deep.equal(Object.values(counts));
  });

  it('counts long runs exactly', async () => {
    const texts = Object.values(HOSTILE).map((text) => text.slice(0, 6001).toWellFormed());
    expect(await counter.count(texts)).to.deep.equal(texts.map((text) => expected(text)));
  });

  for (const [what, text] of Object.entries(HOSTILE)) {
    // Half a minute and more by a merge that starts anew each time.
    it(`takes no longer for ${what} than by their length`, async () => {
      const count = (length: number) => counter.count([text.slice(0, length).toWellFormed()]);
      expect(await outOfProportion(count, 64 * 1024)).to.be.below(6);
    });
  }

  it('gives everybody their own counts, however many ask at once', async () => {
    const lists = Array.from({ length: 300 }, (_, i) =>
      Array.from({ length: i % 7 }, (_, j) => `${'word '.repeat((i * j) % 50)}${i}`),
    );
    lists[100] = Array.from({ length: 40 }, (_, i) => `${'many words '.repeat(1000)}${i}`);
    const all = await Promise.all(lists.map((texts) => counter.count(texts)));
    expect(all).to.deep.equal(lists.map((texts) => texts.map((text) => expected(text))));
  });

  it('starts no thread before it is needed, and another one when it died', async () => {
    const own = createTokenCounter();
    expect(await own.count([])).to.deep.equal([]);
    expect(own.worker).to.equal(undefined);
    expect(await own.count(['one two'])).to.deep.equal([2]);
    const first = own.worker!;
    await first.terminate();
    expect(await own.count(['one two three'])).to.deep.equal([3]);
    expect(own.worker).to.not.equal(first);

    // Also one that dies while it counts: its texts go to the next one.
    const under = own.count([HOSTILE.alphabets, 'one']);
    const after = own.count(['one two']);
    await new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
    await own.worker!.terminate();
    expect(await under).to.deep.equal([10082, 1]);
    expect(await after).to.deep.equal([2]);

    // What kills each thread is given up.
    const refused = failing(own.count([HOSTILE.alphabets]));
    for (let i = 0; i < 2; i++) {
      while (!own.worker) await new Promise((resolve) => setImmediate(resolve));
      await new Promise((resolve) => setTimeout(resolve, 5));
      await own.worker?.terminate();
    }
    expect(await refused).to.include({ code: status.UNAVAILABLE, reason: 'TOKENIZER_AWAY' });
    expect(await own.count(['one two'])).to.deep.equal([2]);
    await own.stop();
    expect(own.worker).to.equal(undefined);
  });

  it('refuses what waits when it stops, and what is too much to wait', async () => {
    const own = createTokenCounter();
    const texts = Array.from({ length: 16 }, () => 'x '.repeat(500_000));
    const first = failing(own.count(texts));
    expect(await failing(own.count(texts))).to.include({ code: status.RESOURCE_EXHAUSTED, reason: 'TOKENIZER_BUSY' });
    await own.stop();
    expect(await first).to.include({ code: status.UNAVAILABLE });
    expect(await own.count(['one two'])).to.deep.equal([2]);
    await own.stop();
  });

  describe('through the wire', () => {
    let client: Clients;
    let server: Awaited<ReturnType<typeof startTestServer>>;
    before(async () => {
      await tokenCounter.stop();
      server = await startTestServer();
      client = connect(`127.0.0.1:${server.port}`, headersOf(await newTenant()));
    });
    after(async () => {
      client.close();
      await server.stop();
    });

    it('counts texts, and messages when they are stored', async () => {
      await client.conversation.listThreads({});
      expect(tokenCounter.worker, 'no thread for reads').to.equal(undefined);
      const { counts, tokenizer } = await client.conversation.countTokens({
        texts: Object.values(SAMPLES).slice(0, 12),
      });
      expect(tokenizer).to.equal('o200k_base');
      expect(counts).to.deep.equal(
        Object.values(SAMPLES)
          .slice(0, 12)
          .map((text) => expected(text)),
      );

      const content = SAMPLES.prose;
      const said = { role: 1 as const, content, tokenCount: 1_000_000 };
      const { messages } = await client.conversation.appendMessages({ threadId: 't', messages: [said, said] });
      const tokenCount = expected(content);
      const listed = (await client.conversation.listMessages({ threadId: 't' })).messages;
      expect(listed.map((m) => m.tokenCount)).to.deep.equal([tokenCount, tokenCount]);
      const got = await client.conversation.getMessage({ messageId: messages[0]!.id });
      expect(got.message!.tokenCount).to.equal(tokenCount);
    });

    it('carries the counts of forwarded messages', async () => {
      const target = { targetThreadId: 'copies', createTarget: true };
      const lastN = { selection: { $case: 'lastN' as const, value: 1 } };
      const said = { role: 1 as const, content: 'given by the caller', tokenCount: 77 };
      const inline = { selection: { $case: 'inline' as const, value: { messages: [said] } } };
      for (const selection of [lastN, inline]) {
        const value = { sourceThreadId: 't', selection };
        await client.memory.forwardBundle({ source: { $case: 'inline', value }, ...target });
      }
      const { bundle } = await client.memory.saveBundle({ sourceThreadId: 't', selection: inline });
      expect(bundle!.messages[0]!.tokenCount).to.equal(4);
      const listed = (await client.conversation.listMessages({ threadId: 'copies' })).messages;
      expect(listed.map((m) => m.tokenCount)).to.deep.equal([4, expected(SAMPLES.prose)]);
    });

    it('refuses bad texts', async () => {
      const texts = [[], ['x\0'], Array.from({ length: 1001 }, () => 'x'), ['x'.repeat(600_000), 'é'.repeat(300_000)]];
      for (const bad of texts) {
        const refused = await failure(client.conversation.countTokens({ texts: bad }));
        expect(refused.code).to.equal(status.INVALID_ARGUMENT);
        expect(refused.violations[0]!.field).to.match(/^texts/);
      }
    });
  });
});

const failing = (promise: Promise<unknown>): Promise<Error> =>
  promise.then(
    () => expect.fail('it should have failed'),
    (error: Error) => error,
  );

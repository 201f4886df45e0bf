import { once } from 'node:events';
import { credentials, status } from '@grpc/grpc-js';
import { expect } from 'chai';
import {
  ConversationServiceClient,
  type SearchMessagesRequest,
  StreamMessageRequest,
} from '../src/gen/memory/v1/conversation_service.ts';
import type { DeepPartial } from '../src/gen/memory/v1/memory_service.ts';
import { MessageRole, MessageState } from '../src/gen/memory/v1/message.ts';
import { rederive } from '../src/search/rederive.ts';
import type { RunningServer } from '../src/server.ts';
import { as as asRole, REFUSED, refusal } from './fixtures/roles.ts';
import { type Searching, searching } from './fixtures/search.ts';
import {
  addMember,
  allPages,
  appUrl,
  type Clients,
  connect,
  failure,
  headersOf,
  metadataOf,
  newTenant,
  startTestServer,
  until,
} from './support.ts';

const { HUMAN, ASSISTANT, TOOL } = MessageRole;

const CORPUS = {
  revenue: 'The revenue of the third quarter grew by twelve percent.',
  costs: 'Revenues and costs: the third quarter was better than the second.',
  cats: 'Cats sleep. A cat sleeps for most of the day.',
  dogs: 'Dogs bark at the cat, and the mailman.',
  order: 'The quarter that came third had less revenue.',
  house: 'Das Haus steht neben den alten Häusern.',
  cafe: 'Le café est fermé, mais le CAFÉ du coin est ouvert.',
  chinese: '今天天气很好。 我们去公园。',
  address: 'Mail ann.lee@example.com or open https://example.com/reports/q3.html, version v1.25.3.',
  quotes: `It's O'Reilly's book: "C:\\temp\\new" & 100% <b>bold</b> | (maybe) !`,
};
type Name = keyof typeof CORPUS;

describe('search', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;
  let { append, search, contents, marked, setLanguage } = {} as Searching;

  before(async () => {
    server = await startTestServer();
  });
  after(() => server.stop());
  beforeEach(async () => {
    tenant = await newTenant(['user', 'other']);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
    ({ append, search, contents, marked, setLanguage } = searching(client, tenant));
  });
  afterEach(() => client.close());

  const plantCorpus = () => append(Object.values(CORPUS));
  /** Which messages of the corpus a query finds, in the corpus's order. */
  const named = async (query: string): Promise<Name[]> => {
    const found = await contents(query);
    const names = (Object.keys(CORPUS) as Name[]).filter((name) => found.includes(CORPUS[name]));
    expect(names, query).to.have.length(found.length);
    return names;
  };
  const ANSWERS: Record<string, Record<string, Name[]>> = {
    simple: {
      revenue: ['revenue', 'order'],
      REVENUE: ['revenue', 'order'],
      'revenue third': ['revenue', 'order'],
      '"third quarter"': ['revenue', 'costs'],
      '"quarter third"': [],
      '"third quarter" -costs': ['revenue'],
      'reven*': ['revenue', 'costs', 'order'],
      'reven* -"third quarter"': ['order'],
      'quarter -reven*': [],
      'cats OR dogs': ['cats', 'dogs'],
      'cat dogs OR revenue percent': ['revenue', 'dogs'],
      'cats or dogs': [],
      'OR cats OR': ['cats'],
      'OR OR': [],
      cat: ['cats', 'dogs'],
      the: ['revenue', 'costs', 'cats', 'dogs', 'order'],
      häusern: ['house'],
      haus: ['house'],
      'HÄUS*': ['house'],
      café: ['cafe'],
      CAFÉ: ['cafe'],
      cafe: [],
      今天天气很好: ['chinese'],
      '今天*': ['chinese'],
      天气: [],
      'ann.lee@example.com': ['address'],
      'example.com': ['address'],
      'v1.25.3': ['address'],
      "O'Reilly": ['quotes'],
      bold: ['quotes'],
      '"never closed': [],
      '"cat sleeps': ['cats'],
    },
    english: {
      revenue: ['revenue', 'costs', 'order'],
      'sleeping cats': ['cats'],
      cat: ['cats', 'dogs'],
      'the third of the quarters': ['revenue', 'costs', 'order'],
      '"the third quarters"': ['revenue', 'costs'],
      'cats -the': ['cats', 'dogs'],
      the: [],
      '"of the"': [],
      'the OR of': [],
    },
    german: { haus: ['house'], hausern: ['house'], 'alte Häuser': ['house'], 'neben den': ['house'] },
  };
  for (const [language, answers] of Object.entries(ANSWERS)) {
    it(`finds what is known to be in a small corpus, in ${language}`, async () => {
      if (language !== 'simple') await setLanguage(language);
      await plantCorpus();
      for (const [query, expected] of Object.entries(answers))
        expect(await named(query), query).to.deep.equal(expected);
    });
  }

  it('takes nothing in a query for syntax', async () => {
    await plantCorpus();
    const odd = [
      `'; drop table messages; --`,
      `') or true --`,
      `cat' | 'dogs`,
      `cat':*`,
      `cat\\`,
      `\\'`,
      `'`,
      `''`,
      `"'"`,
      `cat & (dogs`,
      `cat <-> sleeps`,
      `cat <2> day`,
      `!cat`,
      `cat:A`,
      `cat:*`,
      `(((`,
      `|||`,
      `& & &`,
      `*`,
      `***`,
      `-`,
      `--`,
      `-*`,
      `""`,
      `"`,
      `"""`,
      `-""`,
      `$1 %s %I :name ?`,
      ` \t\n `,
      `\u0001\u007f\u2028`,
      `👋`,
      `👋*`,
      `x`.repeat(1000),
      `語`.repeat(1000),
      `${'𝒳'.repeat(999)}*`,
      `-`.repeat(1000),
      `"a" `.repeat(250),
      `-a* OR `.repeat(142),
      `'\\`.repeat(500),
      `a-b-c-d.e/f@g `.repeat(71),
    ];
    for (const query of odd) expect(await search(query), query.slice(0, 40)).to.be.an('array');
    for (const query of ['...', '"', '-', '*', "'", '👋', '( & | ! )', '-- ""'])
      expect(await contents(query), query).to.deep.equal([]);
    // What to_tsquery would take for operators and weights is not.
    expect(await named('cat <-> sleeps')).to.deep.equal(['cats']);
    expect(await named("cat' | 'dogs")).to.deep.equal(['dogs']);
    expect(await named('cat:A')).to.deep.equal([]);
    expect(await named('-cat -the')).to.deep.equal(['house', 'cafe', 'chinese', 'address', 'quotes']);
  });

  it('takes any characters in any order, as a fuzzer shows', async () => {
    await plantCorpus();
    const atoms = [
      'cat',
      'OR',
      '"',
      '-',
      '*',
      "'",
      '\\',
      ' ',
      '(',
      ')',
      '&',
      '|',
      '!',
      ':',
      '<->',
      '<',
      '>',
      '@',
      '/',
      '.',
      'ä',
      '語',
      '👋',
      '\u0000',
    ];
    let seed = 7;
    const random = (n: number) => {
      seed = (seed * 48271) % 2147483647;
      return seed % n;
    };
    for (let i = 0; i < 300; i++) {
      const query = Array.from({ length: 1 + random(24) }, () => atoms[random(atoms.length - 1)]).join('');
      expect(await search(query), query).to.be.an('array');
    }
  });

  it('ranks what matches better first, and of equals the newest', async () => {
    await append([
      'apple and pear and plum',
      'apple pear',
      'apple apple pear',
      'apple pear',
      'pear, and then at last apple',
    ]);
    const found = await search('apple pear');
    expect(found.map(({ message }) => message!.seq)).to.deep.equal([4, 2, 3, 1, 5]);
    const ranks = found.map(({ rank }) => rank);
    expect(ranks).to.deep.equal([...ranks].sort((a, b) => b - a));
    expect(ranks[0]).to.equal(ranks[1]);
    expect(ranks.at(-1)).to.be.greaterThan(0);
    expect((await search('-plum')).map(({ rank }) => rank)).to.deep.equal([0, 0, 0, 0]);
  });

  it('shows where a message matches, as plain text in pieces', async () => {
    await setLanguage('english');
    const filler = 'Nothing of interest here. '.repeat(30);
    await append([
      `${filler}The <b>budget</b> & "budgets" were approved. ${filler}No budget${'!'.repeat(3)} ${filler}`,
      'A budget [with] <script>alert(1)</script> & more',
      `budget ${'x'.repeat(1000)}`,
    ]);
    const [first, second, third] = (await search('budget')).sort((a, b) => a.message!.seq - b.message!.seq);
    expect(first!.snippets).to.have.length(2);
    expect(marked(first!)[0]).to.include('[budget]').and.to.include('& "[budgets]" were approved.');
    expect(marked(first!)[1]).to.include('No [budget]!!!');
    for (const { pieces } of first!.snippets) expect(pieces.every(({ text }) => text.length <= 300)).to.equal(true);
    expect(second!.snippets).to.deep.equal([
      {
        pieces: [
          { text: 'A ', match: false },
          { text: 'budget', match: true },
          { text: ' [with]  alert(1)  & more', match: false },
        ],
      },
    ]);
    const { pieces } = third!.snippets[0]!;
    expect(pieces[0]).to.deep.equal({ text: 'budget', match: true });
    expect(pieces[1]!.text).to.match(/^ x{148}…x{150}$/);
    expect(marked((await search('-nothing'))[0]!).join()).to.not.include('[budget]');
  });

  it('gives whole messages, as they are listed', async () => {
    const { session } = await client.memory.upsertSession({ session: { surfaceId: 'web', threadId: 's' } });
    const message = {
      role: TOOL,
      content: 'a needle',
      metadata: { a: [1, null] },
      toolCallId: 'call',
      clientId: 'mine',
    };
    await client.conversation.appendMessages({ sessionId: session!.id, messages: [message] });
    const { messages } = await client.conversation.listMessages({ threadId: 's' });
    expect((await search('needle')).map((result) => result.message)).to.deep.equal(messages);
  });

  it('filters by thread, session, roles and time', async () => {
    const { session } = await client.memory.upsertSession({ session: { surfaceId: 'web', threadId: 'one' } });
    const [a] = (await append(['word a'], 'one')).messages;
    const [b] = (await append(['word b'], 'two', ASSISTANT)).messages;
    await append(['word c'], 'two', TOOL);
    const messages = [{ role: ASSISTANT, content: 'word d' }];
    const [d] = (await client.conversation.appendMessages({ sessionId: session!.id, messages })).messages;
    const found = async (rest: DeepPartial<SearchMessagesRequest>) => (await contents('word', rest)).join();
    expect(await found({})).to.equal('word d,word c,word b,word a');
    expect(await found({ threadId: 'one' })).to.equal('word d,word a');
    expect(await found({ threadId: 'nowhere' })).to.equal('');
    expect(await found({ sessionId: session!.id })).to.equal('word d');
    expect(await found({ roles: [ASSISTANT] })).to.equal('word d,word b');
    expect(await found({ roles: [HUMAN, TOOL] })).to.equal('word c,word a');
    // The start belongs to the range, the end does not.
    expect(await found({ startTime: b!.createTime! })).to.equal('word d,word c,word b');
    expect(await found({ endTime: b!.createTime! })).to.equal('word a');
    expect(await found({ startTime: a!.createTime!, endTime: d!.createTime! })).to.equal('word c,word b,word a');
    expect(await found({ startTime: b!.createTime!, threadId: 'one', roles: [ASSISTANT] })).to.equal('word d');
    const refused = await failure(search('word', { startTime: a!.createTime!, endTime: a!.createTime! }));
    expect(refused).to.include({ code: status.INVALID_ARGUMENT });
    expect(refused.violations.map(({ field }) => field)).to.deep.equal(['end_time']);
  });

  it('finds a message from the moment it is stored, and a forwarded copy too', async () => {
    for (let i = 0; i < 20; i++) {
      await append([`fresh${i}`]);
      expect(await contents(`fresh${i}`)).to.deep.equal([`fresh${i}`]);
    }
    const selection = { selection: { $case: 'lastN' as const, value: 1 } };
    const source = { $case: 'inline' as const, value: { sourceThreadId: 't', selection } };
    await client.memory.forwardBundle({ source, targetThreadId: 'copy', createTarget: true });
    const found = await search('fresh19');
    expect(found.map(({ message }) => message!.threadId).sort()).to.deep.equal(['copy', 't']);
  });

  it('finds nothing of a deleted thread, nor of what a thread was before it began again', async () => {
    const session = { surfaceId: 'web', threadId: 't' };
    await client.memory.upsertSession({ session });
    await append(['old word'], 't');
    await append(['other word'], 'u');
    expect(await contents('word')).to.deep.equal(['other word', 'old word']);
    await client.conversation.deleteThread({ threadId: 't' });
    expect(await contents('word')).to.deep.equal(['other word']);
    expect(await contents('word', { threadId: 't' })).to.deep.equal([]);
    await client.memory.upsertSession({ session: { ...session, surfaceId: 'new' } });
    await append(['new word'], 't');
    expect(await contents('word', { threadId: 't' })).to.deep.equal(['new word']);
  });

  it('finds nothing of a deleted message or a cleared thread', async () => {
    const [first] = (await append(['word one', 'word two'])).messages;
    await client.conversation.deleteMessage({ messageId: first!.id });
    for (const query of ['word', 'w*', '-absent']) expect(await contents(query), query).to.deep.equal(['word two']);
    await setLanguage('english');
    await rederive(server.kernel.database, 0);
    expect(await contents('-absent')).to.deep.equal(['word two']);
    await client.conversation.clearHistory({ threadId: 't' });
    expect(await contents('-absent')).to.deep.equal([]);
    await append(['word three']);
    expect(await contents('word')).to.deep.equal(['word three']);
  });

  it('finds a message that was streamed from its end on, whole or broken off', async () => {
    const streaming = new ConversationServiceClient(`127.0.0.1:${server.port}`, credentials.createInsecure());
    const open = async (clientId: string) => {
      const stream = streaming.streamMessage(metadataOf(headersOf(tenant)));
      stream.on('error', () => {});
      const send = async (frame: DeepPartial<StreamMessageRequest>['frame']) => {
        stream.write(StreamMessageRequest.fromPartial({ frame } as object));
        return (await once(stream, 'data'))[0].frame.value;
      };
      const { durableOffset } = await send({ $case: 'open', value: { threadId: 't', role: ASSISTANT, clientId } });
      return { stream, send, durableOffset };
    };
    const chunk = (offset: number, text: string) => ({ $case: 'chunk' as const, value: { offset, text } });
    try {
      const whole = await open('whole');
      await whole.send(chunk(0, 'a streamed ans'));
      expect(await contents('streamed OR -absent')).to.deep.equal([]);
      await setLanguage('english');
      await rederive(server.kernel.database, 0);
      expect(await contents('streamed OR -absent')).to.deep.equal([]);
      await whole.send(chunk(14, 'wer, finished'));
      await whole.send({ $case: 'finish', value: {} });
      expect(await contents('answers')).to.deep.equal(['a streamed answer, finished']);

      const broken = await open('broken');
      await broken.send(chunk(0, 'cut answer'));
      broken.stream.cancel();
      const cut = await until(async () => (await search('cut'))[0]);
      expect(cut.message).to.include({ content: 'cut answer', state: MessageState.INTERRUPTED });
      const resumed = await open('broken');
      expect(resumed.durableOffset).to.equal(10);
      expect(await contents('cut')).to.deep.equal([]);
      await resumed.send(chunk(10, ' mended'));
      await resumed.send({ $case: 'finish', value: {} });
      expect(await contents('cut mending')).to.deep.equal(['cut answer mended']);
    } finally {
      streaming.close();
    }
  });

  it('gives every match once, page by page, also while more are stored', async () => {
    const words = ['pin', 'pin pin', 'pin and more', 'a pin in a haystack'];
    for (let i = 0; i < 3; i++) await append(Array.from({ length: 60 }, (_, n) => `${words[n % 4]} ${n}`));
    const whole = await search('pin', { pageSize: 500 });
    expect(whole).to.have.length(180);
    const pages = await allPages(async (pageToken) => {
      const page = await client.conversation.searchMessages({ query: 'pin', pageSize: 7, pageToken });
      await append(['pin pin pin']);
      return page;
    });
    expect(pages).to.have.length(26);
    expect(pages.flatMap((page) => page.results)).to.deep.equal(whole);
    expect(await search('pin', { pageSize: 500 })).to.have.length(206);
  });

  it('ends a page at 1 MiB, and finds the words far into a long message', async () => {
    const long = (n: number) => `needle ${'words that fill '.repeat(15_000)} tail${n}`.slice(-250 * 1024);
    for (let n = 0; n < 6; n++) await append([`needle ${long(n)}`]);
    const pages = await allPages((pageToken) => client.conversation.searchMessages({ query: 'needle', pageToken }));
    expect(pages.map((page) => page.results.length)).to.deep.equal([4, 2]);
    const seqs = pages.flatMap((page) => page.results.map(({ message }) => message!.seq));
    expect(seqs.sort()).to.deep.equal([1, 2, 3, 4, 5, 6]);
    await append([`${'far '.repeat(32_700)}within`, `${'far '.repeat(32_768)}beyond`]);
    expect(await search('within')).to.have.length(1);
    expect(await search('beyond')).to.have.length(0);
  });

  it('stores any content, however many different words it has', async () => {
    const letters = Array.from({ length: 64 }, (_, i) => String.fromCodePoint(0xe0 + i));
    const pairs = letters.flatMap((a) => letters.map((b) => a + b));
    const dense = pairs.flatMap((pair, i) => [0, 1, 2, 3, 4, 5, 6].map((k) => `${pair}-${pairs[(i + k * 37) % 4096]}`));
    const hosts = Array.from({ length: 40_000 }, (_, i) => `${(i + 1296).toString(36)}.co/${i.toString(36)}`);
    for (const words of [dense, hosts, hosts.map((host) => `a@${host}`)]) {
      const content = Buffer.from(words.join(' '))
        .subarray(0, 262_144)
        .toString()
        .replace(/\ufffd+$/, '');
      await append([content]);
      expect(await contents(`"${words[5]}"`)).to.include(content);
    }
  });

  it('ends with the deadline where a query is far too much work', async () => {
    const hasty = await startTestServer({ callTimeout: 500 });
    const impatient = connect(`127.0.0.1:${hasty.port}`, headersOf(tenant));
    try {
      await append(['a b '.repeat(32_000), 'the needle']);
      const query = `"${'a b '.repeat(245)}"`;
      expect(await failure(impatient.conversation.searchMessages({ query }))).to.include({
        code: status.DEADLINE_EXCEEDED,
        reason: 'DEADLINE_EXCEEDED',
      });
      const { results } = await impatient.conversation.searchMessages({ query: 'needle' });
      expect(results).to.have.length(1);
    } finally {
      impatient.close();
      await hasty.stop();
    }
  });

  it('keeps users, envs and tenants with the same words apart', async () => {
    await addMember(tenant, 'user', 'prod');
    const elsewhere = await newTenant();
    const places = [
      headersOf(tenant),
      headersOf(tenant, 'other'),
      headersOf(tenant, 'user', 'prod'),
      headersOf(elsewhere),
    ];
    for (const [i, headers] of places.entries()) await append([`shared word ${i}`], 't', HUMAN, headers);
    for (const [i, headers] of places.entries()) {
      for (const query of ['shared', 'sha*', '-absent', '"shared word"']) {
        const { results } = await client.conversation.searchMessages({ query }, metadataOf(headers));
        expect(
          results.map(({ message }) => message!.content),
          query,
        ).to.deep.equal([`shared word ${i}`]);
      }
    }
  });

  it("looks only where the transaction's own settings let it, whoever asks the function", async () => {
    await plantCorpus();
    await append(['The cat of the other'], 't', HUMAN, headersOf(tenant, 'other'));
    const sql = `select * from search_messages($1, $2, $3, '''cat''', null, null, null, null, null, null, null, null, 50)`;
    const call = (args: unknown[], settings: { tenant?: string; env?: string }) =>
      asRole(appUrl(), settings, [sql, args]);
    const own = { tenant, env: 'dev' };
    expect((await call([tenant, 'dev', 'user'], own)).rowCount).to.equal(2);
    expect((await call([tenant, 'dev', 'other'], own)).rowCount).to.equal(1);
    expect((await call([tenant, 'dev', 'use_'], own)).rowCount).to.equal(0);
    expect((await call([tenant, 'dev', null], own)).rowCount).to.equal(0);
    for (const settings of [
      {},
      { tenant },
      { env: 'dev' },
      { tenant: '', env: '' },
      { tenant, env: 'prod' },
      { tenant: await newTenant(), env: 'dev' },
    ])
      expect(await refusal(call([tenant, 'dev', 'user'], settings)), JSON.stringify(settings)).to.equal(REFUSED);
    for (const args of [
      [null, 'dev', 'user'],
      [tenant, null, 'user'],
      [null, null, null],
    ]) {
      expect(await refusal(call(args, own)), JSON.stringify(args)).to.equal(REFUSED);
    }
  });
});

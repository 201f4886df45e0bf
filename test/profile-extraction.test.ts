import { expect } from 'chai';
import { extract, READ_CHARACTERS } from '../src/profiles/extract.ts';
import { outOfProportion } from './fixtures/growth.ts';
import { HELD_OUT, type Said, type Told, TUNING } from './fixtures/profile-messages.ts';
import { MEANT, TRAPS } from './fixtures/profile-traps.ts';

type Figures = { right: number; wrong: number; missed: number };

const toldIn = (message: string): Told =>
  Object.fromEntries([...extract(message)].map(([field, value]) => [field.replace('address.', ''), value]));

const precision = ({ right, wrong }: Figures) => right / Math.max(1, right + wrong);
const recall = ({ right, missed }: Figures) => right / Math.max(1, right + missed);

/** How often each field was right, wrong, or missed. The parts of an address count together. */
function measure(messages: Said[]): Map<string, Figures> {
  const figures = new Map<string, Figures>();
  const addressOf = ({ name, email, phone, ...address }: Told) =>
    Object.keys(address).length > 0 ? JSON.stringify(Object.entries(address).sort()) : undefined;
  for (const [text, told] of messages) {
    const found = toldIn(text);
    for (const field of ['name', 'email', 'phone', 'address'] as const) {
      const pick = (of: Told) => (field === 'address' ? addressOf(of) : of[field]);
      const [is, should] = [pick(found), pick(told)];
      for (const name of [field, 'all']) {
        const sum = figures.get(name) ?? { right: 0, wrong: 0, missed: 0 };
        figures.set(name, sum);
        if (is !== undefined) sum[is === should ? 'right' : 'wrong']++;
        if (should !== undefined && is !== should) sum.missed++;
      }
    }
  }
  return figures;
}

describe('what is read in messages', () => {
  for (const [what, messages] of [
    ['the messages it was made with', TUNING],
    ['messages that nobody looked at meanwhile', HELD_OUT],
  ] as const) {
    it(`is right in at least 95 of 100 cases, in ${what}`, function () {
      const figures = measure(messages);
      const shown = [...figures].map(([field, sum]) => {
        const percent = (share: number) => `${(100 * share).toFixed(0)} %`;
        return `${field}: precision ${percent(precision(sum))}, recall ${percent(recall(sum))}`;
      });
      this.test!.title += ` (${shown.join('; ')})`;
      expect(messages).to.have.length(100);
      expect(precision(figures.get('all')!)).to.be.at.least(0.95);
      expect(recall(figures.get('all')!)).to.be.at.least(0.6);
    });
  }

  it('is nothing where it is a trap, and never wrong beside one', function () {
    expect(TRAPS.length + MEANT.length).to.be.at.least(100);
    for (const trap of TRAPS) expect(toldIn(trap), trap).to.deep.equal({});
    const figures = measure(MEANT).get('all')!;
    this.test!.title +=
      ` (${TRAPS.length} traps, none taken; ${MEANT.length} others, recall ${(100 * recall(figures)).toFixed(0)} %)`;
    expect(figures.wrong).to.equal(0);
    expect(recall(figures)).to.be.at.least(0.8);
  });

  // Each of them once took seconds, or longer than the universe is old.
  const HOSTILE: Record<string, (length: number) => string> = {
    'parts of a name': (length) => `This is ${'Aa-'.repeat(length / 3)}!`,
    'a name of many': (length) => `My name is ${'Anna-Maria-'.repeat(length / 11)}`,
    'quotation marks': (length) => '"“'.repeat(length / 2),
    'marks that nobody closes': (length) => '„'.repeat(length),
    'empty lines': (length) => `Hi, I am ${'\n'.repeat(length)}`,
    greetings: (length) => `${'hi yes so '.repeat(length / 10)}my name is Anna`,
    labels: (length) => 'my name: '.repeat(length / 9),
    'colons and digits': (length) => '1:1'.repeat(length / 3),
    code: (length) => 'a('.repeat(length / 2),
  };
  for (const [what, text] of Object.entries(HOSTILE)) {
    it(`takes no longer than in proportion for ${what}`, async () => {
      expect(extract(`${text(READ_CHARACTERS - 100)}\nMy name is Anna Schmidt.`).get('name')).to.be.oneOf([
        'Anna Schmidt',
        'Anna',
        undefined,
      ]);
      expect(await outOfProportion((length) => extract(text(length)), READ_CHARACTERS, 20)).to.be.below(6);
    });
  }

  it('is nothing of what stands in quotation marks, which are closed in their line or are none', () => {
    const cited = ['"My name is Anna."', '“My name is Anna.”', '„My name is Anna.“', '«My name is Anna.»'];
    for (const text of cited) expect(toldIn(`It says ${text} there.`), text).to.deep.equal({});
    for (const text of cited)
      expect(toldIn(`12${text[0]} wide.\nMy name is Anna.`), text).to.deep.equal({ name: 'Anna' });
    expect(toldIn('“One” and ”two, “My name is Bert.”, my name is Anna.')).to.deep.equal({ name: 'Anna' });
  });

  it('is nothing of what is said of somebody else, by somebody else, or only supposed', () => {
    for (const message of [
      'She told me: my number is +1 202 555 0143',
      'Let’s say my email is anna@example.org.',
      'If my email is anna@example.org, then it must work.',
      'His sister said my address is 7 Rose Lane, Bath BA1 2AB.',
      'Angenommen, ich wohne in der Lindenstraße 12, 10969 Berlin.',
      'The support has asked me to call me on +1 202 555 0143.',
      'He says my name is Anna Schmidt.',
      'I sent my email to support@shop.example.',
      'Contact me or Bob at bob@example.org.',
      'Hello, this is Microsoft Support calling.',
      'Hi, I’m Curious, how does it work.',
    ])
      expect(toldIn(message), message).to.deep.equal({});
  });

  it('is a state of the United States, where that is what somebody says', () => {
    expect(toldIn('I live in Texas, USA.')).to.deep.equal({ state: 'Texas', country: 'US' });
    expect(toldIn('I live in Austin, USA.')).to.deep.equal({ city: 'Austin', country: 'US' });
  });

  it('is read at the beginning of a long message only', () => {
    const said = 'My name is Anna Schmidt.';
    expect(toldIn(`${said} ${'lorem '.repeat(40_000)}`)).to.deep.equal({ name: 'Anna Schmidt' });
    expect(toldIn(`${'x '.repeat(READ_CHARACTERS / 2)}\n${said}`)).to.deep.equal({});
  });
});

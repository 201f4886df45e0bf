import { type CountryCode, parsePhoneNumberFromString } from 'libphonenumber-js/max';
import { findPii } from '../sessions/pii.ts';
import { readAddress } from './address.ts';
import {
  ADDRESS_CUE,
  CITED,
  EMAIL_CUE,
  FILLER,
  GAP,
  LEAD,
  NAME_CUE,
  NO_NAME,
  NO_PERSON,
  OTHERS,
  PHONE_CUES,
  SUPPOSED,
  TASK,
} from './cues.ts';

/** Of a message, so that a long one keeps nobody waiting: who introduces himself does so at once. */
export const READ_CHARACTERS = 8192;
const SENTENCE_CHARACTERS = 1000;

// Each letter can belong to one place only: a pattern that could share it out in two ways would try all of them.
const WORD = `\\p{Lu}[\\p{L}\\p{M}]*(?:['’-][\\p{L}\\p{M}]+)*`;
const PARTICLES = `(?:(?:van|von|vom|zu|zum|de|del|della|der|den|di|da|do|dos|das|du|la|le|el|al|bin|ibn|ter|ten) ){0,3}`;
const TITLE = `(?:(?:Dr|Prof|Mr|Mrs|Ms|Herr|Frau)\\.? )*`;
const CAPITALISED = `${TITLE}(?<name>${WORD}(?: ${PARTICLES}${WORD}){0,4})`;
const ENDS = `(?=\\s*(?:[,.;!]|$))`;
/** Who says his or her name goes on to speak of himself or herself. */
const GOES_ON = `(?=\\s*,? (?:and )?(?:I|I['’]\\p{L}+|my|from) |,? from )`;
const GREETED = `^(?:[Hh]i|[Hh]ello|[Hh]ey|[Gg]ood (?:morning|afternoon|evening|day))(?: there| all| everyone)?[,!.]* +`;
const AFTER_CUE = new RegExp(`[ :]*${CAPITALISED}(?![\\p{L}\\p{M}])`, 'uy');
/** Introductions that begin a sentence, and are names only if what stands around them shows it. */
const OPENINGS = [
  new RegExp(`${GREETED}I(?:['’]m| am) ${CAPITALISED}${GOES_ON}`, 'u'),
  new RegExp(`^I(?:['’]m| am) ${TITLE}(?<name>${WORD} ${PARTICLES}${WORD})${GOES_ON}`, 'u'),
  new RegExp(
    `${GREETED}[Tt]his is ${TITLE}(?<name>${WORD} (?:${PARTICLES}${WORD})(?: ${WORD})?)(?=,? (?:from|speaking|calling|here)(?![\\p{L}])|, I )`,
    'u',
  ),
  new RegExp(`^(?:(?:[Yy]ou can|[Pp]lease|[Jj]ust)(?: just| simply)?) call me ${CAPITALISED}${ENDS}`, 'u'),
  new RegExp(`^(?:[Ff]ull|[Mm]y(?: full)?) [Nn]ame ?: ${CAPITALISED}$`, 'u'),
];
const NUMBER = /(?<![\p{L}\p{N}+])\+?\(?\d[\d \u00a0()./-]{5,20}\d(?![\p{L}\p{N}])/gu;

const CLOSING = new Map([
  ['"', /"/g],
  ['“', /”/g],
  ['„', /[“”]/g],
  ['«', /»/g],
]);

/** A line without what is in quotation marks. What is not closed is not looked for again, so that it takes no longer the more there is of it. */
function withoutQuotations(line: string): string {
  const closings = new Map(CLOSING);
  let left = '';
  for (let at = 0; at < line.length; at++) {
    const closing = closings.get(line[at]!);
    if (closing) closing.lastIndex = at + 1;
    const end = closing?.exec(line)?.index;
    if (closing && end === undefined) closings.delete(line[at]!);
    left += end === undefined ? line[at] : ' … ';
    at = end ?? at;
  }
  return left;
}

/** A line that shows that it is code: of what it says nothing was said by anybody. */
const CODE =
  /[{}=]|;\s*$|\/\/|\/\*|[\p{L}\p{N}_]\(|^\s*(?:#|--|\*|\$|<)|^\s*(?:TODO|FIXME|import|export|const|let|var|def|return|echo)(?![\p{L}\p{N}])/u;
/** A line under which others speak, or that one of them speaks: what a label announces, unless it is the person's own. */
const LABEL = /^[^:]{1,60}:(?=\s|$)/u;

/** The lines before the first one that announces words of others: `Bob: …`, `The mail says:`, `[10:32] Bob Miller: …`. */
function unannounced(lines: string[]): string[] {
  const at = lines.findIndex((line) => {
    const label = LABEL.exec(line.replace(/\d:\d/g, '0'))?.[0];
    return label !== undefined && !isOwn(label);
  });
  return at < 0 ? lines : lines.slice(0, at);
}

/** The sentences that are the person's own words, without code, links, quotations and what follows somebody else's mail. */
export function ownSentences(message: string): string[] {
  if (TASK.test(message)) return [];
  const text = message.slice(0, READ_CHARACTERS).replace(/^(\s*(?:hi|hello|hey|good \p{L}+)(?: \p{L}+)?)!/iu, '$1,');
  const cited = CITED.exec(text);
  const lines = text
    .slice(0, cited?.index)
    .replace(/```[\s\S]*?(?:```|(?![\s\S]))|`[^`\n]*`|^[^\S\n]*>.*$|\b(?:https?|ftp|mailto):\S+/gimu, '\n')
    .split('\n');
  return unannounced(lines)
    .filter((line) => !CODE.test(line))
    .map(withoutQuotations)
    .join('\n')
    .split(/(?<=[!?])\s+|\n+|(?<=[\p{L}\d]{3}\.)\s+(?=\p{Lu})/u)
    .map((sentence) => sentence.trim().slice(0, SENTENCE_CHARACTERS))
    .filter((sentence) => sentence && !/\?$/.test(sentence));
}

const OWN = [NAME_CUE, EMAIL_CUE, ADDRESS_CUE, ...PHONE_CUES.map(([cue]) => cue)];
/** Whether it is a label of the person's own data: `My address:`. */
const isOwn = (label: string) =>
  OWN.some((cue) => label.search(cue) >= 0) || /^\s*(?:full|my(?: full)?) name ?:/iu.test(label);

const LEAD_CHARACTERS = 80;

/** Whether a cue is what the person says, rather than what is said of the words: it begins a sentence or a clause. */
function begins(sentence: string, at: number): boolean {
  const before = sentence.slice(0, at);
  return LEAD.test(before.length > LEAD_CHARACTERS ? `x${before.slice(-LEAD_CHARACTERS)}` : before);
}

/** Whose words stand before a value: nobody else's, and nothing that is only supposed. */
const ownUpTo = (sentence: string, at: number) => {
  const before = sentence.slice(0, at);
  return !SUPPOSED.test(before) && !OTHERS.test(before);
};

/** Whether what follows a value gives it to somebody else: `bob@example.org, my assistant`. */
const isOthers = (rest: string) =>
  /^[\s,(]*(?:my|our|the|mein\p{L}*|mon|ma|mi|mijn) /iu.test(rest) && OTHERS.test(rest.slice(0, 40));

function* cuesIn(sentence: string, cue: RegExp): Iterable<{ start: number; end: number }> {
  for (const match of sentence.matchAll(cue))
    if (begins(sentence, match.index)) yield { start: match.index, end: match.index + match[0].length };
}

const isName = (name: string) =>
  !NO_NAME.has(name.split(/[ -]/)[0]!.toLowerCase()) && !NO_PERSON.test(name) && name.length <= 100;

function nameIn(sentence: string): string | undefined {
  for (const { start, end } of cuesIn(sentence, NAME_CUE)) {
    if (SUPPOSED.test(sentence.slice(0, start))) continue;
    AFTER_CUE.lastIndex = end;
    const name = AFTER_CUE.exec(sentence)?.groups?.name;
    if (name && isName(name)) return name;
  }
  for (const opening of OPENINGS) {
    const name = opening.exec(sentence)?.groups?.name;
    if (name && isName(name) && !/(?<!\p{L})\p{Lu}{2,}(?!\p{L})/u.test(name)) return name;
  }
  return undefined;
}

const isAnswer = (sentence: string, value: string) => sentence.replace(value, '').replace(FILLER, '') === '';

function emailIn(sentence: string): string | undefined {
  const found = findPii(sentence)
    .filter(({ kind }) => kind === 'EMAIL')
    .map(({ start, end }) => ({ start, end, email: sentence.slice(start, end) }))
    .filter(({ email }) => !/^(?:no|do-?not)-?reply|^(?:info|support|admin|sales|postmaster)@/iu.test(email));
  const [first] = found;
  if (!first) return undefined;
  if (found.length === 1 && isAnswer(sentence, first.email)) return first.email;
  for (const cue of cuesIn(sentence, EMAIL_CUE)) {
    const next = found.find(({ start }) => start >= cue.end);
    if (!next || !GAP.test(sentence.slice(cue.end, next.start)) || !ownUpTo(sentence, next.start)) continue;
    if (!isOthers(sentence.slice(next.end))) return next.email;
  }
  return undefined;
}

/** In E.164, if it is a number of one of the countries, and of no other of them. */
function numberOf(text: string, countries: string[]): string | undefined {
  const international = /^(?:\+|00)/.test(text) ? parsePhoneNumberFromString(text.replace(/^00/, '+')) : undefined;
  const known = (number: { number: string; isValid(): boolean }) =>
    number.isValid() || /^\+(?:1\d{3}55501\d\d|447700900\d{3}|3363998\d{4})$/.test(number.number);
  if (international) return known(international) ? international.number : undefined;
  const national = countries
    .map((country) => parsePhoneNumberFromString(text, country as CountryCode))
    .filter((number) => number !== undefined && known(number));
  return national.length === 1 ? national[0]!.number : undefined;
}

/** `My number is 4155550132`: of an order, perhaps. */
const isBare = (cue: string, number: string) =>
  /number$/iu.test(cue) && !/phone|mobile|cell/iu.test(cue) && /^\d+$/.test(number);

function phoneIn(sentence: string): string | undefined {
  const found = [...sentence.matchAll(NUMBER)].map(({ 0: text, index }) => ({ start: index, text }));
  const [first] = found;
  if (!first) return undefined;
  if (found.length === 1 && isAnswer(sentence, first.text)) return numberOf(first.text, []);
  for (const [cue, countries] of PHONE_CUES) {
    for (const { start, end } of cuesIn(sentence, cue)) {
      const next = found.find(({ start }) => start >= end);
      if (!next || !GAP.test(sentence.slice(end, next.start)) || !ownUpTo(sentence, next.start)) continue;
      if (isBare(sentence.slice(start, end), next.text) || isOthers(sentence.slice(next.start + next.text.length)))
        continue;
      const number = numberOf(next.text, countries);
      if (number) return number;
    }
  }
  return undefined;
}

function addressIn(sentence: string): Map<string, string> | undefined {
  for (const { start, end } of cuesIn(sentence, ADDRESS_CUE)) {
    if (!ownUpTo(sentence, start)) continue;
    const found = readAddress(sentence.slice(end));
    if (found) return found;
  }
  return undefined;
}

/**
 * What the person who wrote a message tells there of himself or herself, by the fields of the profile: only what is said to be
 * his or her own, in words that leave little doubt. Of what is said twice the last counts.
 */
export function extract(message: string): Map<string, string> {
  const found = new Map<string, string>();
  const set = (field: string, value: string | undefined) => value && found.set(field, value);
  for (const sentence of ownSentences(message)) {
    set('name', nameIn(sentence));
    set('email', emailIn(sentence));
    set('phone', phoneIn(sentence));
    const address = addressIn(sentence);
    for (const [field, value] of address ?? []) set(field, value);
  }
  return found;
}

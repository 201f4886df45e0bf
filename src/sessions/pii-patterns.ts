import { type CountryCode, parsePhoneNumberFromString } from 'libphonenumber-js/max';
// One file per id, because stdnum's index loads all 200 (56 ms and 3.6 MB of heap; these are 11 ms and 0.9 MB).
import { validate as nn } from 'stdnum/lib/cjs/be/nn.js';
import { validate as cpf } from 'stdnum/lib/cjs/br/cpf.js';
import { validate as sin } from 'stdnum/lib/cjs/ca/sin.js';
import { validate as ahv } from 'stdnum/lib/cjs/ch/ssn.js';
import { validate as rut } from 'stdnum/lib/cjs/cl/rut.js';
import { validate as ric } from 'stdnum/lib/cjs/cn/ric.js';
import { validate as idnr } from 'stdnum/lib/cjs/de/idnr.js';
import { validate as dni } from 'stdnum/lib/cjs/es/dni.js';
import { validate as nie } from 'stdnum/lib/cjs/es/nie.js';
import { validate as hetu } from 'stdnum/lib/cjs/fi/hetu.js';
import { validate as nir } from 'stdnum/lib/cjs/fr/nir.js';
import { validate as nino } from 'stdnum/lib/cjs/gb/nino.js';
import { validate as hkid } from 'stdnum/lib/cjs/hk/hkid.js';
import { validate as aadhaar } from 'stdnum/lib/cjs/in/aadhaar.js';
import { validate as codiceFiscale } from 'stdnum/lib/cjs/it/codicefiscale.js';
import { validate as rrn } from 'stdnum/lib/cjs/kr/rrn.js';
import { validate as curp } from 'stdnum/lib/cjs/mx/curp.js';
import { validate as bsn } from 'stdnum/lib/cjs/nl/bsn.js';
import { validate as pesel } from 'stdnum/lib/cjs/pl/pesel.js';
import { validate as personnummer } from 'stdnum/lib/cjs/se/personnummer.js';
import { validate as tckn } from 'stdnum/lib/cjs/tr/tckimlik.js';
import { luhnChecksumValidate } from 'stdnum/lib/cjs/util/checksum.js';

export type PiiKind = 'EMAIL' | 'PHONE' | 'PAYMENT_CARD' | 'NATIONAL_ID';

export type Span = { kind: PiiKind; start: number; end: number };
type Check = (value: string, label: () => Label | undefined) => boolean;
type Label = 'phone' | 'no card' | Check;
type Rule = [PiiKind, Check];

const passes =
  (validate: (value: string) => { isValid: boolean }): Check =>
  (value) =>
    validate(value).isValid;

// stdnum's SSN passes serial 0000 and skips numbers printed in advertisements, its CPF passes one repeated digit, its RUT
// fails on dots. Eight digits that read as a date are a build tag, not a DNI.
const isSsn: Check = (value) => /^(?!000|666|9)\d{3}[ -]?(?!00)\d\d[ -]?(?!0000)\d{4}$/.test(value);
const isCpf: Check = (value) => cpf(value).isValid && !/^(\d)\1+$/.test(value.replace(/\D/g, ''));
const isNir: Check = (value) => /^[12] ?\d\d ?(?:0[1-9]|1[0-2])/.test(value) && nir(value).isValid;
const isRut: Check = (value) => rut(value.replaceAll('.', '').toUpperCase()).isValid;
const isDni: Check = (value) => dni(value).isValid && !/^(?:19|20)\d\d(?:0[1-9]|1[0-2])/.test(value);

// What a key, or the words before a value, can call it. A tenth or more of all bare numbers pass the checksums of these
// ids, so that such a number counts only when it is called by its name.
const LABELS = new Map<string, Label>();
function name(label: Label, words: string) {
  for (const word of words.split('|')) LABELS.set(word, label);
}
name(
  'phone',
  'phone|telephone|tel|mobile|cellphone|whatsapp|whats app|fax|telefono|teléfono|telefon|téléphone|portable|móvil',
);
name('phone', 'celular|telefone|handy|电话|手机|電話|携帯|전화|телефон|тел');
name('no card', 'id|ids|order|tracking|trace|span|invoice|transaction|shipment|seed|nonce|sku|gtin|imei');
name(isSsn, 'ssn|social security');
name(passes(nino), 'nino|national insurance');
name(passes(aadhaar), 'aadhaar|aadhar|आधार');
name(isCpf, 'cpf');
name(passes(sin), 'social insurance');
name(passes(idnr), 'idnr|steuer id|steueridentifikationsnummer');
name(passes(bsn), 'bsn|burgerservicenummer');
name(passes(pesel), 'pesel');
name(passes(personnummer), 'personnummer');
name(passes(tckn), 'tckn|tc kimlik');
name(isRut, 'rut');

function labelOf(context: string): Label | undefined {
  const split = context.slice(-40).replace(/(\p{Ll})(\p{Lu})/gu, '$1 $2');
  const words = split.toLowerCase().match(/[\p{L}\p{M}]+/gu) ?? [];
  while (/^(?:numbers?|num|no|nr|n|is|ist|est|es|é)$/.test(words.at(-1) ?? '')) words.pop();
  const last = words.at(-1) ?? '';
  const own = LABELS.get(`${words.at(-2)} ${last}`) ?? LABELS.get(last);
  return own ?? (/\p{Script=Han}$|\p{Script=Hangul}$/u.test(last) ? LABELS.get(last.slice(-2)) : undefined);
}

// Visa, Maestro, Mastercard, Discover, UnionPay, Mir, JCB, American Express, Diners Club.
const CARD =
  /^(?:4\d{15}(?:\d{3})?|5[0-8]\d{14}|6\d{15}(?:\d{3})?|62\d{15,16}|(?:220[0-4]|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720|35(?:2[89]|[3-8]\d))\d{12}|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11})$/;
const isCard: Check = (value, label) => {
  const digits = value.replace(/\D/g, '');
  const grouped = digits !== value;
  // 13 digits in one run are barcodes: EAN 40 to 49 is Germany and Japan, and a tenth of them satisfy Luhn.
  const known = CARD.test(digits) || (grouped && /^4\d{12}$/.test(digits));
  return known && luhnChecksumValidate(digits) && (grouped || label() !== 'no card');
};

// Numbers set aside for fiction and documentation are invalid to libphonenumber, but texts mean a phone by them.
const isPhone = (value: string, country?: CountryCode) => {
  const number = parsePhoneNumberFromString(value, country);
  return number !== undefined && (number.isValid() || /^\+(?:1555\d{7}|447700900\d{3})$/.test(number.number));
};
/** `07 12 23 34 45` is a draw of a lottery or the steps of a list; `06 12 34 56 78` is everybody's example of a phone. */
const isAscending = (value: string) => {
  const groups = value.split(/\D+/);
  return groups.every((group, i) => group.length === 2 && group <= '70' && (i === 0 || group > groups[i - 1]!));
};
// `+61.234567890` would be a number of Sydney, and is a decimal like the latitude of `+35.2736-031.1250/`.
const isInternational: Check = (value) => !/^\+\d+\.\d+(?![\d.])/.test(value) && isPhone(value);
const isZeroZero: Check = (value) => !/^00(?: \d\d)+$/.test(value) && isPhone(value.replace(/^00 ?/, '+'));
const isLabelledPhone: Check = (value, label) => {
  if (label() !== 'phone') return false;
  const digits = value.replace(/\D/g, '');
  return /^0[1-9]\d{7,10}$/.test(digits) || isPhone(digits, 'US') || (digits.length > 10 && isPhone(`+${digits}`));
};
const isLabelledId: Check = (value, label) => {
  const check = label();
  return typeof check === 'function' && check(value, label);
};

const card: Rule = ['PAYMENT_CARD', isCard];
const id = (check: Check): Rule => ['NATIONAL_ID', check];
const phone = (country: CountryCode): Rule => ['PHONE', (value) => !isAscending(value) && isPhone(value, country)];

// Shapes and what may prove them. They are one regular expression, tried where a token begins, so that a text is passed
// over once: 2 KiB of ordinary state take 30 µs (libphonenumber's own search alone: 1.4 ms), 64 KiB of it 1 ms, and 64 KiB
// of almost-phones, the slowest there is, 115 ms, all of it libphonenumber's. A national phone number counts only in a
// grouping that little else has; 3-3-3 (Spain, Poland), 5-5 (India) and ten bare digits are not. An RRN that starts
// with 20 to 39 is rather the date of an order.
const SHAPES: [shape: string, ...Rule[]][] = [
  [
    '(?<!\\d{4}[ \\u00a0-])\\d{4}(?<a>[ \\u00a0-])\\d{4}\\k<a>\\d{4}\\k<a>\\d{4}(?:\\k<a>\\d{3})?(?!\\k<a>\\d{4})',
    card,
  ],
  ['3\\d{3}(?<b>[ \\u00a0-])\\d{6}\\k<b>\\d{4,5}', card],
  ['4\\d{3}(?<c>[ \\u00a0-])\\d{3}\\k<c>\\d{3}\\k<c>\\d{3}', card],
  ['\\d{14,19}', card, id((value) => /^\d{18}$/.test(value) && ric(value).isValid), id(isNir)],
  ['\\d{17}[Xx]', id((value) => ric(value.toUpperCase()).isValid)],
  ['[12] ?\\d\\d ?\\d\\d ?(?:\\d\\d|2[AB]) ?\\d{3} ?\\d{3} ?\\d\\d', id(isNir)],
  ['\\d{3}-\\d\\d-\\d{4}', id(isSsn)],
  ['[A-Z]{2} \\d\\d \\d\\d \\d\\d [A-D]', id(passes(nino))],
  ['\\d{8}-?[A-Z]', id(isDni)],
  ['[XYZ]-?\\d{7}-?[A-Z]', id(passes(nie))],
  ['\\d{3}\\.\\d{3}\\.\\d{3}-\\d\\d', id(isCpf)],
  ['[A-Z]{6}\\d\\d[A-EHLMPRST]\\d\\d[A-Z]\\d{3}[A-Z]', id(passes(codiceFiscale))],
  ['(?![23])\\d{6}-[1-8]\\d{6}', id(passes(rrn))],
  ['[A-Z]{4}\\d{6}[HMX][A-Z]{5}[A-Z\\d]\\d', id(passes(curp))],
  ['\\d{6}[-+A-F]\\d{3}[A-Y]', id(passes(hetu))],
  ['[A-Z]{1,2}\\d{6}\\([\\dA]\\)', id(passes(hkid))],
  ['\\d{1,2}\\.\\d{3}\\.\\d{3}-[\\dkK]', id(isRut)],
  ['\\d\\d\\.\\d\\d\\.\\d\\d-\\d{3}\\.\\d\\d', id(passes(nn))],
  ['756\\.\\d{4}\\.\\d{4}\\.\\d\\d', id(passes(ahv))],
  ['(?:1[ .-])?\\(\\d{3}\\)[ -]?\\d{3}[ .-]\\d{4}', phone('US')],
  ['(?:1[.-])?\\d{3}(?<d>[.-])\\d{3}\\k<d>\\d{4}', phone('US')],
  ['(?:0\\d{4} \\d{6}|0\\d{3} \\d{3} \\d{4}|0\\d\\d \\d{4} \\d{4}|\\(0\\d{2,4}\\) \\d{3,4} \\d{3,4})', phone('GB')],
  ['(?<!\\b[\\da-f]{2}[ .-])0[1-79](?<e>[ .-])\\d\\d(?:\\k<e>\\d\\d){3}(?!\\k<e>[\\da-f]{2}\\b)', phone('FR')],
  ['(?:01[567]\\d{1,2}[ /-]\\d{7,8}|\\(0\\d{2,4}\\) ?\\d{5,8})', phone('DE')],
  ['(?:04\\d\\d \\d{3} \\d{3}|\\(0\\d\\) \\d{4} \\d{4})', phone('AU')],
  ['0\\d{1,2}-\\d{4}-\\d{4}', phone('JP'), phone('KR')],
  ['06[ -]\\d{8}', phone('NL')],
  ['\\(\\d\\d\\) ?9?\\d{4}-\\d{4}', phone('BR')],
  ['1[3-9]\\d(?<f>[ -])\\d{4}\\k<f>\\d{4}', phone('CN')],
  // The loose ones come last; a group at the end that does not belong is cut off. 00 in one run is padding or a barcode.
  ['(?<!\\b[\\da-f]{2}[ .-])00 ?[1-9]\\d{0,2}(?:[ -]\\d{1,8}){2,6}', ['PHONE', isZeroZero]],
  ['\\+[1-9](?:[ \\u00a0.()/-]{0,2}\\d){7,18}', ['PHONE', isInternational]],
  ['\\(?[A-Z]{0,2}\\d(?:[ \\u00a0.()/-]{0,2}\\d){5,14}(?: ?[A-D])?', ['PHONE', isLabelledPhone], id(isLabelledId)],
];
const LOOSE = SHAPES.length - 3;
const TOKEN = new RegExp(
  `(?<![\\w+/.]|\\w-)(?:${SHAPES.map(([shape], i) => `(?<_${i}>${shape})`).join('|')})(?!\\w|[-./]\\w)`,
  'g',
);

// Endings that are files, units of systemd and private networks, none of them a top-level domain that carries mail.
const NO_TLD =
  /^(?:png|jpe?g|gif|webp|svg|avif|ico|bmp|pdf|[cm]?jsx?|[cm]?ts|tsx|vue|svelte|jsonc?|ya?ml|toml|lock|t?gz|tar|zip|whl|jar|war|s?css|less|html?|mdx|txt|log|[ct]sv|parquet|rb|pyc|java|kt|php|bash|ps1|dll|exe|bin|dat|db|sqlite|conf|cfg|ini|env|xml|service|socket|timer|mount|target|slice|scope|device|local|localhost|localdomain|internal|intranet|lan|private|svc|cluster|docker)$/i;
const LATIN = { local: /[\p{Script=Latin}\p{N}._%+'-]/u, domain: domain('\\p{Script=Latin}') };
const ANY = { local: /[\p{L}\p{M}\p{N}._%+'-]/u, domain: domain('\\p{L}\\p{M}') };

function domain(letter: string) {
  const part = `[${letter}\\p{N}]`;
  const top = `(xn--[a-z\\d-]{2,59}|[${letter}]{2,24})`;
  return new RegExp(
    `(?:${part}(?:[${letter}\\p{N}-]{0,61}${part})?\\.)+${top}(?![${letter}\\p{N}_-]|\\.${part})`,
    'iuy',
  );
}

function findEmails(text: string, spans: Span[]) {
  for (const { 0: sign, index: at } of text.matchAll(/@|%40/g)) {
    // Scripts without spaces run into an address: `请联系a@example.com谢谢`.
    const script = LATIN.local.test(text[at - 1] ?? '') ? LATIN : ANY;
    let start = at;
    while (start > 0 && start > at - 64 && script.local.test(text[start - 1]!)) start--;
    while (start < at && /[.'%-]/.test(text[start]!)) start++;
    script.domain.lastIndex = at + sign.length;
    const host = start < at && script.domain.exec(text);
    if (!host) continue;
    const end = script.domain.lastIndex;
    const before = text.slice(Math.max(0, start - 128), start);
    const looksLikeCode =
      NO_TLD.test(host[1]!) ||
      /^(?:v?\d+\.\d|\dx\.)/i.test(host[0]) || // a version, an image for dense screens
      /^(?:this|super|return)$/.test(text.slice(start, at)) || // Kotlin's labels
      /@$|\/\/[^\s/@]*$|\b(?:ssh|sftp|mosh) $/.test(before) || // @user@fediverse, user info of a URL, a remote shell
      /^(?::(?:[/~.]|[\w.-]+\/|\d+\/)|\()/.test(text.slice(end, end + 64)); // scp's path (git@host:org/repo), a method
    if (!looksLikeCode) spans.push({ kind: 'EMAIL', start, end });
  }
}

function findTokens(text: string, key: string, spans: Span[]) {
  let keyLabel: Label | null | undefined; // null once it is known that there is none
  TOKEN.lastIndex = 0;
  for (let match = TOKEN.exec(text); match; match = TOKEN.exec(text)) {
    const start = match.index;
    const label = () => {
      const before = text.slice(Math.max(0, start - 40), start);
      if (keyLabel === undefined) keyLabel = labelOf(key) ?? null;
      return (/[\p{L}\p{M}][^\p{L}\p{N}]{0,7}$/u.test(before.slice(-8)) && labelOf(before)) || keyLabel || undefined;
    };
    const shape = SHAPES.findIndex((_, i) => match.groups![`_${i}`] !== undefined);
    const [, ...rules] = SHAPES[shape] as [string, ...Rule[]];
    let value = match[0];
    let rule = rules.find(([, check]) => check(value, label));
    for (let cuts = 0; !rule && shape >= LOOSE && cuts < 3; cuts++) {
      const shorter = value.replace(/[^\dA-Z]+[\dA-Z]+$/, '');
      if (shorter.length < 7 || shorter === value) break;
      value = shorter;
      rule = rules.find(([, check]) => check(value, label));
    }
    if (rule) spans.push({ kind: rule[0], start, end: start + value.length });
    TOKEN.lastIndex = rule ? start + value.length : start + 1;
  }
}

/** What `text` holds, in order and without overlap. `key` is the field it belongs to, and can say what a bare number is. */
export function find(text: string, key: string): Span[] {
  const spans: Span[] = [];
  if (text.includes('@') || text.includes('%40')) findEmails(text, spans);
  if (/\d\d/.test(text)) findTokens(text, key, spans);
  if (spans.length < 2) return spans;
  const merged: Span[] = [];
  for (const span of spans.sort((a, b) => a.start - b.start || b.end - a.end)) {
    const last = merged.at(-1);
    if (last && span.start < last.end) last.end = Math.max(last.end, span.end);
    else merged.push(span);
  }
  return merged;
}

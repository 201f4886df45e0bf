import type { ADDRESS } from './accumulate.ts';
import { countries } from './contact.ts';

type Field = (typeof ADDRESS)[number];

const STATES = new Set(
  `AL AK AZ AR CA CO CT DE FL GA HI ID IL IN IA KS KY LA ME MD MA MI MN MS MO MT NE NV NH NJ NM NY NC ND OH OK OR PA RI SC SD TN TX
  UT VT VA WA WV WI WY DC`.split(/\s+/),
);
// New York and Washington are rather meant as cities.
const STATE_NAMES = new Set(
  `Alabama,Alaska,Arizona,Arkansas,California,Colorado,Connecticut,Delaware,Florida,Georgia,Hawaii,Idaho,Illinois,Indiana,Iowa,Kansas,Kentucky,Louisiana,Maine,Maryland,Massachusetts,Michigan,Minnesota,Mississippi,Missouri,Montana,Nebraska,Nevada,New Hampshire,New Jersey,New Mexico,North Carolina,North Dakota,Ohio,Oklahoma,Oregon,Pennsylvania,Rhode Island,South Carolina,South Dakota,Tennessee,Texas,Utah,Vermont,Virginia,West Virginia,Wisconsin,Wyoming`.split(
    ',',
  ),
);
const CITY = `\\p{Lu}[\\p{L}\\p{M}.'’-]+(?: (?:(?:am|an der|im|de|del|della|la|le|les|sur|upon|on|of|do|da|den|aan|der) )?\\p{Lu}[\\p{L}\\p{M}.'’-]+){0,2}`;
const STREET = `(?=[^\\n]*\\d)[\\p{L}\\p{M}\\d .'’/-]{3,60}`;
const UNIT = `(?:, (?:apt|apartment|unit|suite|flat|#)\\.? ?[\\w-]{1,6})?`;

/** How addresses are written: what they end with tells the country, or at least the order. Without the country's name. */
const FORMS: [form: RegExp, country: string][] = [
  [
    new RegExp(
      `^(?<street>${STREET}${UNIT}), (?<city>${CITY}),? (?<state>[A-Z]{2})(?:,? (?<zip>\\d{5}(?:-\\d{4})?))$`,
      'u',
    ),
    'US',
  ],
  [
    new RegExp(`^(?<street>${STREET}${UNIT}), (?<city>${CITY}),? (?<zip>[A-Z]{1,2}\\d[A-Z\\d]? ?\\d[A-Z]{2})$`, 'u'),
    'GB',
  ],
  [
    new RegExp(
      `^(?<street>${STREET}), (?<zip>\\d{4} ?[A-Z]{2}|\\d{4,5}|\\d{2}-\\d{3}|\\d{3} \\d{2}),? (?<city>${CITY})$`,
      'u',
    ),
    '',
  ],
];
const PLACE = new RegExp(`^(?<city>${CITY})$`, 'u');

// Longer ones as well: who says where he lives in Germany says so in many languages.
const LANGUAGES = ['en', 'de', 'fr', 'es', 'it', 'pt', 'nl', 'sv', 'pl'];
const COLLOQUIAL: [string, string][] = [
  ['uk', 'GB'],
  ['england', 'GB'],
  ['scotland', 'GB'],
  ['wales', 'GB'],
  ['great britain', 'GB'],
  ['usa', 'US'],
  ['us', 'US'],
  ['u.s.', 'US'],
  ['u.s.a.', 'US'],
  ['the netherlands', 'NL'],
  ['holland', 'NL'],
];
let names: Map<string, string> | undefined;

/** The code of a country that is called so in one of the languages. */
function countryCalled(name: string): string | undefined {
  names ??= new Map([
    ...LANGUAGES.map((language) => new Intl.DisplayNames([language], { type: 'region' })).flatMap((display) =>
      countries.map((code): [string, string] => [display.of(code)!.toLowerCase(), code]),
    ),
    ...COLLOQUIAL,
  ]);
  return names.get(name.toLowerCase());
}

/** The address that a text begins with, up to its end: street and city in a known form, or a city with its country. */
export function readAddress(text: string): Map<string, string> | undefined {
  const whole = text
    .split(/\s+(?:and|und|et|y|e|en|och|i) (?=\p{Ll})|\n|[;!?]|\.(?= \p{Lu}|\s*$)|\((?=\p{Ll})/u)[0]!
    .trim()
    .replace(/[.,\s]+$/, '');
  const comma = whole.lastIndexOf(',');
  const named = comma > 0 ? countryCalled(whole.slice(comma + 1).trim()) : undefined;
  const rest = named ? whole.slice(0, comma).trim() : whole;
  for (const [form, country] of FORMS) {
    const parts = form.exec(rest)?.groups;
    if (!parts || (country && named && named !== country)) continue;
    if (parts.state && !STATES.has(parts.state)) continue;
    return fieldsOf({ ...parts, country: named ?? country });
  }
  const place = named ? PLACE.exec(rest)?.groups : undefined;
  if (place && named === 'US' && STATE_NAMES.has(place.city!)) return fieldsOf({ state: place.city, country: named });
  return place && fieldsOf({ ...place, country: named });
}

const fieldsOf = (parts: Record<string, string | undefined>) =>
  new Map<Field, string>(
    Object.entries(parts).flatMap(([name, value]) => (value ? [[`address.${name}` as Field, value.trim()]] : [])),
  );

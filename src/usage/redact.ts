import type { JsonObject } from '../wire/struct.ts';

const GONE = '[redacted]';

/** Keys whose values are secrets, in small letters without anything else. Counts of tokens are none. */
const SECRET_KEY =
  /password|passwd|passphrase|secret(?!ar)|(api|access|private|session|signing|encryption)key|authorization|credential|cookie|(?<!page)token$|^(auth|bearer|jwt|pwd|otp)$/;

/** Names of secrets where texts give them a value, with whatever stands before: `DB_PASSWORD=`, `"clientSecret": `. */
const SECRET_NAME =
  /(?![\w-]{0,64}page[_-]?token)[\w-]{0,64}?(?:passw(?:or)?d|passphrase|(?:api|access|private|secret|session|signing)[_-]?key|secret|[a-z0-9][_-]?token)/;
/** The names of headers, of which the whole line is one. */
const SECRET_HEADER = /(?:proxy-)?authorization|(?:set-)?cookie/;
/** What stands between a name and its value, also in JSON that is a string of JSON. */
const EQUALS = /\\{0,3}["']?\s{0,9}[:=]\s{0,9}/;

/** What secrets look like wherever they are, and what is left of them. The bounds keep each of them linear in the text. */
const SECRETS: [RegExp, string][] = [
  [
    /-----BEGIN [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----[\s\S]*?(?:-----END [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----|$)/g,
    GONE,
  ],
  [/(?<![\w-])eyJ[\w-]{8,2000}\.[\w-]{8,8000}\.[\w-]*/g, GONE], // JSON Web Tokens
  [/\b(Bearer|Basic|Digest)\s+[\w.~+/=-]{8,}/gi, `$1 ${GONE}`],
  [/(:\/\/[^\s/:@]{0,256}:)[^\s/]{1,256}@/g, `$1${GONE}@`],
  [
    /\b(?:sk|pk|rk|gsk|msk|whsec|hf|npm|pypi|dop_v1|shpat|gh[opusr]|glpat|github_pat)[-_](?=[\w-]{0,99}\d)[\w-]{16,}/g,
    GONE,
  ],
  [/\bxox[abeoprs]-[\w-]{10,}/g, GONE],
  [/\b(?:AKIA|ASIA)[0-9A-Z]{16}\b/g, GONE],
  [/\bAIza[\w-]{30,}/g, GONE],
  [/\bya29\.[\w-]{20,}/g, GONE],
  [/\bSG\.[\w-]{16,64}\.[\w-]{16,}/g, GONE],
  [new RegExp(`\\b(${SECRET_HEADER.source})(${EQUALS.source}\\\\{0,3}["']?)[^\\r\\n"'\\\\]{3,}`, 'gi'), `$1$2${GONE}`],
  // A value in quotation marks is whole between them.
  [
    new RegExp(
      `(?<![\\w-])(${SECRET_NAME.source})(${EQUALS.source})(?:(\\\\{0,3}")[^"\\\\]+|(\\\\{0,3}')[^'\\\\]+|[^\\s"'\\\\,;&}\\]]{4,})`,
      'gi',
    ),
    `$1$2$3$4${GONE}`,
  ],
];

/** A text without the secrets that can be told by their looks. */
export const redactText = (text: string): string =>
  SECRETS.reduce((left, [secret, rest]) => left.replace(secret, rest), text);

/** The same of JSON, also without what stands under a key that names a secret. */
export function redactJson(value: unknown): unknown {
  if (typeof value === 'string') return redactText(value);
  if (Array.isArray(value)) return value.map(redactJson);
  if (typeof value !== 'object' || value === null) return value;
  // As lists of headers and of variables have them: {"name": "Authorization", "value": …}.
  const { name, key: called = name } = value as { name?: unknown; key?: unknown };
  const named = typeof called === 'string' ? called : '';
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => {
      const secret = isSecret(key, inner) || (key === 'value' && isSecret(named, inner));
      return [redactText(key), secret ? GONE : redactJson(inner)];
    }),
  );
}

export const redactStruct = (value: JsonObject | undefined): JsonObject | undefined =>
  value && (redactJson(value) as JsonObject);

const isSecret = (key: string, value: unknown): boolean =>
  SECRET_KEY.test(key.toLowerCase().replace(/[^a-z]/g, '')) && value !== null && typeof value !== 'boolean';

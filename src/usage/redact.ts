import type { JsonObject } from '../wire/struct.ts';

const GONE = '[redacted]';

/** Keys whose values are secrets, in small letters without anything else. Counts of tokens are none. */
const SECRET_KEY =
  /password|passwd|passphrase|secret|apikey|accesskey|privatekey|authorization|credential|cookie|(^|[a-z])token$|^(auth|bearer|jwt|pwd|otp)$/;

/** What secrets look like wherever they are, and what is left of them. The bounds keep each of them linear in the text. */
const SECRETS: [RegExp, string][] = [
  [/-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|$)/g, GONE],
  [/(?<![\w-])eyJ[\w-]{8,2000}\.[\w-]{8,8000}\.[\w-]*/g, GONE], // JSON Web Tokens
  [/\b(Bearer|Basic|Digest)\s+[\w.~+/=-]{8,}/gi, `$1 ${GONE}`],
  [/(:\/\/[^\s/:@]{0,256}:)[^\s/@]{1,256}@/g, `$1${GONE}@`],
  [
    /\b(?:sk|pk|rk|gsk|msk|whsec|hf|npm|pypi|dop_v1|shpat|gh[opusr]|glpat|github_pat)[-_](?=[\w-]{0,99}\d)[\w-]{16,}/g,
    GONE,
  ],
  [/\bxox[abeoprs]-[\w-]{10,}/g, GONE],
  [/\b(?:AKIA|ASIA)[0-9A-Z]{16}\b/g, GONE],
  [/\bAIza[\w-]{30,}/g, GONE],
  [/\bya29\.[\w-]{20,}/g, GONE],
  [/\bSG\.[\w-]{16,64}\.[\w-]{16,}/g, GONE],
  [
    /\b(passw(?:or)?d|passphrase|api[_-]?key|secret(?:[_-]?key)?|(?:access|auth|refresh)[_-]?token)(["']?\s{0,9}[:=]\s{0,9}["']?)[^\s"',;&}\]]{4,}/gi,
    `$1$2${GONE}`,
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
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => [redactText(key), isSecret(key, inner) ? GONE : redactJson(inner)]),
  );
}

export const redactStruct = (value: JsonObject | undefined): JsonObject | undefined =>
  value && (redactJson(value) as JsonObject);

const isSecret = (key: string, value: unknown): boolean =>
  SECRET_KEY.test(key.toLowerCase().replace(/[^a-z]/g, '')) && value !== null && typeof value !== 'boolean';

/** Text as Postgres takes it: no NUL, no half of a surrogate pair. */
const clean = (text: string) => text.toWellFormed().replaceAll('\0', '\ufffd');

/** The first characters (code points) of a text, the last of them an ellipsis if it is cut. */
export function clip(text: string, most: number): string {
  if (text.length <= most) return clean(text);
  let end = 0;
  let last = 0; // where the last but one character ends
  for (let n = 0; n < most && end < text.length; n++) {
    last = end;
    end += text.codePointAt(end)! > 0xffff ? 2 : 1;
  }
  return end === text.length ? clean(text) : `${clean(text.slice(0, last))}…`;
}

/** The same, to so many bytes of UTF-8, or of JSON. */
export function clipBytes(text: string, most: number, bytes: (text: string) => number): string {
  if (bytes(text) <= most) return text;
  const characters = [...text];
  let [low, high] = [0, characters.length];
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (bytes(`${characters.slice(0, middle).join('')}…`) <= most) low = middle;
    else high = middle - 1;
  }
  return low === 0 ? '' : `${characters.slice(0, low).join('')}…`;
}

/** The length of a JSON value as Postgres writes a jsonb: with a space after each comma and colon. */
export function jsonBytes(value: unknown): number {
  if (Array.isArray(value)) return value.reduce((sum, item) => sum + jsonBytes(item) + 2, value.length > 0 ? 0 : 2);
  if (typeof value === 'object' && value !== null) {
    const entries = Object.entries(value).filter(([, item]) => item !== undefined);
    return entries.reduce((sum, [key, item]) => sum + jsonBytes(key) + jsonBytes(item) + 4, entries.length > 0 ? 0 : 2);
  }
  if (typeof value === 'number' && value !== 0 && Math.abs(value) < 1e-6) return 340; // written out, without an exponent
  return Buffer.byteLength(JSON.stringify(value));
}

/**
 * Shares `total` among those who want so much: whoever wants less than its share by weight gets it all, and the others
 * share what that leaves.
 */
export function shares(total: number, wants: { want: number; weight: number }[]): number[] {
  const granted = wants.map(() => 0);
  let left = Math.max(0, total);
  let weights = wants.reduce((sum, { weight }) => sum + weight, 0);
  const modestFirst = wants.map((wish, i) => ({ ...wish, i })).sort((a, b) => a.want / a.weight - b.want / b.weight);
  for (const { want, weight, i } of modestFirst) {
    granted[i] = Math.min(want, Math.floor((left * weight) / weights));
    left -= granted[i]!;
    weights -= weight;
  }
  return granted;
}

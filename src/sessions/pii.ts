import { find, type PiiKind } from './pii-patterns.ts';

export type { PiiKind };

/** Says where, and never the value itself. */
export interface PiiFinding {
  path: string;
  kind: PiiKind;
}

export function findPii(text: string): { kind: PiiKind; start: number; end: number }[] {
  return find(text, '');
}

function redactText(text: string, key: string) {
  let out = '';
  let from = 0;
  for (const { kind, start, end } of find(text, key)) {
    out += `${text.slice(from, start)}[${kind}]`;
    from = end;
  }
  return from === 0 ? text : out + text.slice(from);
}

const isInteger = (value: unknown) => Number.isSafeInteger(value) && (value as number) > 1e7;
const isContainer = (value: unknown): value is object =>
  typeof value === 'object' && value !== null && !ArrayBuffer.isView(value);

/**
 * Walks any JSON-like value: strings, integers, arrays, objects with their keys, and Maps. A field is named once for each
 * kind, keys that are PII themselves are redacted in the path. Depth is limited before this is called.
 */
export function scanPii(path: string, value: unknown, findings: PiiFinding[]): void {
  scan(path, '', value, findings);
}

function scan(path: string, key: string, value: unknown, findings: PiiFinding[]): void {
  if (typeof value === 'string' || isInteger(value)) {
    for (const kind of new Set(find(String(value), key).map((span) => span.kind))) findings.push({ path, kind });
  } else if (Array.isArray(value)) {
    value.forEach((item, i) => {
      scan(`${path}[${i}]`, key, item, findings);
    });
  } else if (isContainer(value)) {
    for (const [name, item] of value instanceof Map ? value : Object.entries(value)) {
      const shown = redactText(name, '');
      const inner = /^[\p{L}_$][\p{L}\p{N}_$]*$/u.test(shown)
        ? `${path}.${shown}`
        : `${path}[${JSON.stringify(shown)}]`;
      if (shown !== name) scan(inner, '', name, findings);
      scan(inner, name, item, findings);
    }
  }
}

/**
 * The same value with each finding replaced by `[EMAIL]` and the like (a number becomes that string); the same reference
 * when nothing was found. Redacted keys that collide are numbered, so that no entry is lost.
 */
export function redactPii<T>(value: T): T {
  return redact(value, '') as T;
}

function redact(value: unknown, key: string): unknown {
  if (typeof value === 'string') return redactText(value, key);
  if (isInteger(value)) {
    const text = String(value);
    const redacted = redactText(text, key);
    return redacted === text ? value : redacted;
  }
  if (Array.isArray(value)) {
    const items = value.map((item) => redact(item, key));
    return items.some((item, i) => !Object.is(item, value[i])) ? items : value;
  }
  if (!isContainer(value)) return value;
  const before: [string, unknown][] = value instanceof Map ? [...value] : Object.entries(value);
  const after = before.map(([name, item]): [string, unknown] => [redactText(name, ''), redact(item, name)]);
  if (after.every(([name, item], i) => name === before[i]![0] && Object.is(item, before[i]![1]))) return value;
  const taken = new Map(before.map(([name]) => [name, 1]));
  const result = value instanceof Map ? new Map<string, unknown>() : Object.create(Object.getPrototypeOf(value));
  after.forEach(([redacted, item], i) => {
    let name = redacted;
    // Each name remembers its last number: counting from 2 again is quadratic.
    for (let n = taken.get(redacted) ?? 1; redacted !== before[i]![0] && taken.has(name); taken.set(redacted, n)) {
      name = `${redacted} ${++n}`;
    }
    if (!taken.has(name)) taken.set(name, 1);
    // Assigning would lose `__proto__`.
    if (result instanceof Map) result.set(name, item);
    else Object.defineProperty(result, name, { value: item, enumerable: true, configurable: true, writable: true });
  });
  return result;
}

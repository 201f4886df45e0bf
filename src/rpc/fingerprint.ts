import { hash } from 'node:crypto';
import type { Keyring } from '../db/keyring.ts';
import type { Fingerprint } from '../db/transaction.ts';

/** Gives the fingerprint of a request that came in this context. */
export type Fingerprints = (context: string[], request: { requestId: string }) => Fingerprint;

/**
 * Fingerprints by the service's key, so that nobody who reads them can try what a request said: who was erased, above all.
 * Until `olderUntil` there may be servers of a version that knows only plain ones.
 */
export const fingerprints =
  (keyring: Keyring, olderUntil: number, clock = Date.now): Fingerprints =>
  (context, request) => {
    const plain = plainFingerprint(request);
    return {
      stored: clock() < olderUntil ? plain : keyring.fingerprint(context, plain),
      // What it was cannot be told without its key: then its request_id is believed, rather than a retry refused.
      is: (earlier) =>
        earlier.length === plain.length
          ? earlier.equals(plain)
          : (keyring.isFingerprint(context, plain, earlier) ?? true),
    };
  };

/** A digest of the decoded message without its request_id, whatever order its maps came in. */
export function plainFingerprint(request: { requestId: string }): Buffer {
  const { requestId: _, ...fields } = request;
  return hash('sha256', JSON.stringify(fields, sorted), 'buffer');
}

function sorted(_key: string, value: unknown): unknown {
  if (value instanceof Map) return [...value].sort(([a], [b]) => (a < b ? -1 : 1));
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return value;
  // Keys get a prefix, as an object puts keys like "1" first, and loses "__proto__".
  const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
  return Object.fromEntries(entries.map(([key, element]) => [`=${key}`, element]));
}

import { secondsOf, timestampText } from '../db/statement.ts';
import type { Duration } from '../gen/google/protobuf/duration.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import type { JsonObject } from '../wire/struct.ts';
import { invalid, MAX_VIOLATIONS, type Violation } from './errors.ts';

export const MAX_PAGE_ROWS = 500;
const STRUCT_BYTES = 64 * 1024;
const STRUCT_DEPTH = 32;
const MAX_TTL_SECONDS = 3650 * 24 * 3600;
const MIN_LEASE_SECONDS = 1;
const MAX_LEASE_SECONDS = 600;
const YEAR_1 = -62135596800;
const YEAR_10000 = 253402300800;

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;
export const SLUG = /^[a-z0-9][a-z0-9-]{0,62}$/;

/** Why a text cannot be stored, or undefined. Limits are in characters (code points). */
export function textFault(value: string, min: number, max: number): string | undefined {
  if (value.length < min) return min === 1 ? 'required' : `shorter than ${min} characters`;
  if (value.length > max && [...value].length > max) return `longer than ${max.toLocaleString('en')} characters`;
  if (value.includes('\0')) return 'contains NUL';
  if (!value.isWellFormed()) return 'contains a lone surrogate';
  return undefined;
}

/** When something is to expire, as requests say it. */
export type Expiration = { $case: 'expireTime'; value: Timestamp } | { $case: 'ttl'; value: Duration } | undefined;

/** The same as parameters of a statement. */
export const expiryOf = (expiration: Expiration) => ({
  expireTime: expiration?.$case === 'expireTime' ? timestampText(expiration.value) : undefined,
  ttlSeconds: expiration?.$case === 'ttl' ? secondsOf(expiration.value) : undefined,
});

/** Collects every violation of a request, to refuse it once with all of them. Fields are named as in the proto. */
export class Check {
  readonly violations: Violation[] = [];

  that(holds: boolean, field: string, description: string): boolean {
    if (!holds && this.violations.length < MAX_VIOLATIONS) this.violations.push({ field, description });
    return holds;
  }

  /** Throws if anything was found. */
  done(): void {
    if (this.violations.length > 0) throw invalid(this.violations);
  }

  text(field: string, value: string | undefined, max: number, min = 0): boolean {
    const fault = textFault(value ?? '', min, max);
    return this.that(!fault, field, fault ?? '');
  }

  /** One of the caller's own ids, required. */
  id(field: string, value: string): void {
    this.text(field, value, 128, 1);
  }

  optionalId(field: string, value: string | undefined): void {
    this.text(field, value, 128);
  }

  uuid(field: string, value: string): void {
    this.that(UUID.test(value), field, value ? 'not a UUID' : 'required');
  }

  optionalUuid(field: string, value: string): void {
    if (value) this.uuid(field, value);
  }

  slug(field: string, value: string): void {
    this.that(SLUG.test(value), field, value ? 'does not match [a-z0-9][a-z0-9-]{0,62}' : 'required');
  }

  etag(field: string, value: string): void {
    this.text(field, value, 64);
  }

  /** Bytes of UTF-8 rather than characters. */
  content(field: string, value: string, maxBytes: number): void {
    const fault = textFault(value, 1, Number.POSITIVE_INFINITY);
    if (fault) this.that(false, field, fault);
    this.that(Buffer.byteLength(value) <= maxBytes, field, `over ${maxBytes / 1024} KiB`);
  }

  oneOf(field: string, value: number, allowed: Record<string, number>): void {
    const known = value !== 0 && Object.values(allowed).includes(value);
    this.that(known, field, value === 0 ? 'required' : `${value} is not a known value`);
  }

  count(field: string, list: readonly unknown[], max: number, min = 0): boolean {
    const ok = list.length >= min && list.length <= max;
    return this.that(ok, field, list.length === 0 ? 'required' : `more than ${max}`);
  }

  range(field: string, value: number, min: number, max: number): void {
    this.that(value >= min && value <= max, field, `not from ${min} to ${max}`);
  }

  seq(field: string, value: number): void {
    this.that(value >= 0, field, 'negative');
  }

  fencingToken(field: string, value: number): void {
    this.that(value >= 1, field, value === 0 ? 'required' : 'negative');
  }

  page(request: { pageSize: number; pageToken: string }): void {
    this.that(request.pageSize >= 0, 'page_size', 'negative');
    this.text('page_token', request.pageToken, 4096);
  }

  time(field: string, value: Timestamp | undefined): boolean {
    if (!value) return true;
    const inRange = value.seconds >= YEAR_1 && value.seconds < YEAR_10000;
    const whole = value.nanos >= 0 && value.nanos < 1e9;
    return this.that(inRange && whole, field, 'not a time of the years 1 to 9999');
  }

  duration(field: string, value: Duration, minSeconds: number, maxSeconds: number): void {
    const seconds = secondsOf(value);
    const sameSign = value.seconds * value.nanos >= 0;
    const valid = Math.abs(value.nanos) < 1e9 && sameSign && seconds >= minSeconds && seconds <= maxSeconds;
    this.that(valid, field, `not from ${minSeconds} to ${maxSeconds} seconds`);
  }

  leaseTtl(field: string, value: Duration | undefined): void {
    if (value) this.duration(field, value, MIN_LEASE_SECONDS, MAX_LEASE_SECONDS);
  }

  expiration(value: Expiration): void {
    if (value?.$case === 'expireTime' && this.time('expire_time', value.value)) {
      this.that(value.value.seconds * 1000 + value.value.nanos / 1e6 > Date.now(), 'expire_time', 'not in the future');
    }
    if (value?.$case === 'ttl') this.duration('ttl', value.value, 0.001, MAX_TTL_SECONDS);
  }

  struct(field: string, value: JsonObject | undefined): void {
    if (value === undefined) return;
    const before = this.violations.length;
    this.#json(field, value, 1);
    if (this.violations.length > before) return;
    this.that(Buffer.byteLength(JSON.stringify(value)) <= STRUCT_BYTES, field, `over ${STRUCT_BYTES / 1024} KiB`);
  }

  #json(path: string, value: unknown, depth: number): void {
    if (typeof value === 'string') {
      const fault = textFault(value, 0, Number.POSITIVE_INFINITY);
      if (fault) this.that(false, path, fault);
    } else if (typeof value === 'number') {
      this.that(Number.isFinite(value), path, 'not a finite number');
    } else if (typeof value === 'object' && value !== null) {
      if (!this.that(depth <= STRUCT_DEPTH, path.slice(0, 200), `nested deeper than ${STRUCT_DEPTH} levels`)) return;
      if (Array.isArray(value)) {
        value.forEach((element, i) => this.#json(`${path}[${i}]`, element, depth + 1));
      } else {
        for (const [key, element] of Object.entries(value)) {
          const fault = key === '__proto__' ? 'not allowed as a key' : textFault(key, 0, 1024);
          const inner = `${path}.${key.slice(0, 64)}`;
          if (fault) this.that(false, inner, `key: ${fault}`);
          else this.#json(inner, element, depth + 1);
        }
      }
    }
  }
}

/** The stamp that a changed resource carries. */
export const etagOf = (revision: number): string => `"${revision.toString(36)}"`;

/** A revision from an etag that this service gave out. Anything else never matches. */
export function revisionOf(etag: string): number | undefined {
  if (!etag) return undefined;
  const revision = Number.parseInt(etag.replaceAll('"', ''), 36);
  return Number.isSafeInteger(revision) && etagOf(revision) === etag ? revision : 0;
}

import { createHash } from 'node:crypto';
import pg from 'pg';
import type { Duration } from '../gen/google/protobuf/duration.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';

export type Value = string | number | boolean | null | undefined | Buffer | readonly string[];

/** One SQL statement, prepared once per connection under a name derived from its text. */
export interface Statement<Row> {
  readonly name: string;
  readonly text: string;
  readonly parameterTypes: readonly number[];
  /** Cheap enough, whatever the data, to share a connection with other calls' reads. */
  readonly shared: boolean;
  /** Writes, so that the call's stamp follows the scope among the parameters. */
  readonly change: boolean;
  readonly row?: Row;
}

const TEXT = 25;
const UUID = 2950;
const BYTEA = 17;

// The leading parameters have declared types, as not every statement uses each of them.
const SCOPE_TYPES = [TEXT, TEXT, TEXT];
const STAMP_TYPES = [TEXT, TEXT, UUID, BYTEA, UUID, TEXT, TEXT];

function define<Row>(text: string, parameterTypes: number[], shared: boolean, change: boolean): Statement<Row> {
  return {
    name: `m${createHash('sha1').update(text).digest('hex').slice(0, 20)}`,
    text,
    parameterTypes,
    shared,
    change,
  };
}

/** A read in the tenant's scope: $1 tenant, $2 env, $3 user, then its own parameters from $4. */
export function query<Row>(text: string): Statement<Row> {
  return define(text, SCOPE_TYPES, false, false);
}

/** A read by key or of one bounded page of an index: see {@link Statement.shared}. */
export function pointRead<Row>(text: string): Statement<Row> {
  return define(text, SCOPE_TYPES, true, false);
}

/**
 * A write in the tenant's scope: $1 tenant, $2 env, $3 user, then the call's stamp, $4 actor, $5 method, $6 request_id,
 * $7 fingerprint, $8 event id, $9 trace id, $10 requester (the user that scopes the request_id), then its own from $11.
 */
export function change<Row>(text: string): Statement<Row> {
  return define(text, [...SCOPE_TYPES, ...STAMP_TYPES], false, true);
}

const NANOS = [1e9, 1e8, 1e7, 1e6, 1e5, 1e4, 1e3];

/** A timestamptz as Postgres writes it, in plain text or in JSON, to the microsecond. */
export function parseTimestamp(text: string): Timestamp {
  return parseUtc(text) ?? parseAnyOffset(text);
}

const digits = (text: string, at: number): number => text.charCodeAt(at) * 10 + text.charCodeAt(at + 1) - 528;

/** The common form, `2026-01-02 03:04:05.678901+00`: a session has seven of them, and a regular expression takes five times as long. */
function parseUtc(text: string): Timestamp | undefined {
  const length = text.length;
  const zone = text.endsWith('+00') ? 3 : text.endsWith('+00:00') ? 6 : 0;
  const fraction = length - zone - 20;
  if (zone === 0 || text[4] !== '-' || (fraction !== -1 && !(fraction >= 1 && fraction <= 6))) return undefined;
  const year = digits(text, 0) * 100 + digits(text, 2);
  const seconds =
    Date.UTC(year, digits(text, 5) - 1, digits(text, 8), digits(text, 11), digits(text, 14), digits(text, 17)) / 1000;
  const nanos = fraction === -1 ? 0 : Number(text.slice(20, 20 + fraction)) * NANOS[fraction]!;
  return Number.isInteger(seconds) && Number.isInteger(nanos) ? { seconds, nanos } : undefined;
}

function parseAnyOffset(text: string): Timestamp {
  const fields = /^(\d{4,6})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?([+-])(\d\d)(?::?(\d\d))?$/.exec(
    text,
  );
  if (!fields) throw new RangeError('not a timestamp of the common era');
  const [, year, month, day, hour, minute, second, fraction = '', sign, offsetHours, offsetMinutes = '0'] = fields;
  const utc =
    Date.UTC(Number(year), Number(month) - 1, Number(day), Number(hour), Number(minute), Number(second)) / 1000;
  const offset = (Number(offsetHours) * 60 + Number(offsetMinutes)) * 60;
  return {
    seconds: sign === '+' ? utc - offset : utc + offset,
    nanos: fraction ? Number(fraction) * NANOS[fraction.length]! : 0,
  };
}

/** A timestamp as a parameter, to the microsecond. */
export function timestampText(timestamp: Timestamp): string;
export function timestampText(timestamp: Timestamp | undefined): string | null;
export function timestampText(timestamp: Timestamp | undefined): string | null {
  if (!timestamp) return null;
  const micros = String(Math.floor(timestamp.nanos / 1000)).padStart(6, '0');
  return `${new Date(timestamp.seconds * 1000).toISOString().slice(0, -5)}.${micros}Z`;
}

/** A duration in seconds, as a parameter. */
export const secondsOf = ({ seconds, nanos }: Duration): number => seconds + nanos / 1e9;

/** A JSON parameter. pg would turn an array into a Postgres array. */
export function json(value: unknown): string | null {
  return value === undefined || value === null ? null : JSON.stringify(value);
}

export type Parse = (text: string) => unknown;

// Most Structs of most rows are empty.
const parseJson: Parse = (text) => (text === '{}' ? {} : text === '[]' ? [] : JSON.parse(text));

export const asText: Parse = (text) => text;
export const PARSERS = new Map<number, Parse>([
  [16, (text) => text === 't'],
  [20, Number],
  [21, Number],
  [23, Number],
  [700, Number],
  [701, Number],
  [114, parseJson],
  [3802, parseJson],
  [1184, parseTimestamp as Parse],
  ...[BYTEA, 1009, 1015, 2951].map((oid): [number, Parse] => [oid, pg.types.getTypeParser(oid) as Parse]),
]);

export const camelCase = (name: string): string =>
  name.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());

/** An object of `to_jsonb(row)` as the row itself would come: names in camelCase, columns `…_time` as timestamps. */
export function rowFromJson(object: Record<string, unknown>): any {
  const row: Record<string, unknown> = {};
  for (const name of Object.keys(object)) {
    const value = object[name];
    row[camelCase(name)] = name.endsWith('_time') && typeof value === 'string' ? parseTimestamp(value) : value;
  }
  return row;
}

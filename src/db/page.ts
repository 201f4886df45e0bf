import { createHash } from 'node:crypto';
import type { Keyring } from './keyring.ts';
import type { Scope } from './transaction.ts';

/** A page token that was not given out for this list. */
export class BadPageToken extends Error {}

export interface PageRequest {
  pageSize: number;
  pageToken: string;
}

const DEFAULT_SIZE = 50;
const MAX_SIZE = 500;
const MAX_BYTES = 1024 * 1024;

/** One page of a list by keyset: where it starts, how many rows to read, and what to make of them. */
export interface Pager {
  /** The position after which the page starts, as `token` got it, or undefined on the first page. */
  readonly after: string[] | undefined;
  /** How many rows to ask for: one more than the page holds, to know whether another page follows. */
  readonly limit: number;
  /** Cuts the rows to the page, also where they reach 1 MiB, and makes the token of the next one. */
  cut<Row>(
    rows: Row[],
    position: (row: Row) => string[],
    size?: (row: Row) => number,
  ): { rows: Row[]; nextPageToken: string };
}

/** The first rows, as many as 1 MiB holds, but at least one. */
export function within<Row>(rows: Row[], size: (row: Row) => number): Row[] {
  let bytes = 0;
  const count = rows.findIndex((row, i) => {
    bytes += size(row);
    return i > 0 && bytes > MAX_BYTES;
  });
  return count < 0 ? rows : rows.slice(0, count);
}

/** The tokens are sealed, and bound to the tenant, env, user, method and all other fields of the request. */
export function pager(keyring: Keyring, scope: Scope, method: string, request: PageRequest): Pager {
  const { pageSize, pageToken, ...others } = request;
  const fields = createHash('sha256').update(JSON.stringify(others)).digest('base64');
  const context = ['page', scope.tenant, scope.env, scope.user, method, fields];
  const wanted = Math.min(pageSize || DEFAULT_SIZE, MAX_SIZE);
  const opened = pageToken ? keyring.open(context, pageToken) : undefined;
  if (pageToken && opened === undefined) throw new BadPageToken('not a page token of this list');
  return {
    after: opened === undefined ? undefined : JSON.parse(opened),
    limit: wanted + 1,
    cut(rows, position, size = () => 0) {
      const page = within(rows.slice(0, wanted), size);
      const last = page.at(-1);
      const more = last !== undefined && rows.length > page.length;
      return { rows: page, nextPageToken: more ? keyring.seal(context, JSON.stringify(position(last))) : '' };
    },
  };
}

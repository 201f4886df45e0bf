import { promisify } from 'node:util';
import { gunzip, gzip } from 'node:zlib';
import { type ContextEntry, SessionContext } from '../gen/memory/v1/context.ts';

// Of gzip and brotli in their default or middle settings, neither is smaller by more than 4 % on such entries, nor faster
// by much; gzip ends with a checksum, so that a damaged snapshot is noticed. Both run in Node's thread pool.
const compress = promisify(gzip);
const decompress = promisify(gunzip);

/** What one snapshot may hold uncompressed, so that a page of them can end near its limit. */
const SNAPSHOT_BYTES = 256 * 1024;

/** Entries in a row, compressed. */
export interface Snapshot {
  first: number;
  last: number;
  /** Before compression: the bytes that the entries take in a response. */
  size: number;
  bytes: Buffer;
}

export interface Archived {
  ordinal: number;
  entry: ContextEntry;
}

/** Packs entries that follow each other, the oldest first. A snapshot holds their protobuf, as a response does. */
export async function pack(archived: readonly Archived[]): Promise<Snapshot[]> {
  const runs: { first: number; last: number; size: number; encoded: Uint8Array[] }[] = [];
  for (const { ordinal, entry } of archived) {
    const encoded = SessionContext.encode(SessionContext.fromPartial({ compressed: [entry] })).finish();
    const run = runs.at(-1);
    if (run && run.size + encoded.length <= SNAPSHOT_BYTES) {
      run.encoded.push(encoded);
      run.size += encoded.length;
      run.last = ordinal;
    } else {
      runs.push({ first: ordinal, last: ordinal, size: encoded.length, encoded: [encoded] });
    }
  }
  return Promise.all(
    runs.map(async ({ encoded, ...run }) => ({ ...run, bytes: await compress(Buffer.concat(encoded)) })),
  );
}

/** The entries of a snapshot, exactly as they were. */
export async function unpack(first: number, bytes: Buffer): Promise<Archived[]> {
  const { compressed } = SessionContext.decode(await decompress(bytes));
  return compressed.map((entry, i) => ({ ordinal: first + i, entry }));
}

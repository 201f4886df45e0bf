import { createHash, type Hash } from 'node:crypto';
import { createReadStream, createWriteStream } from 'node:fs';
import { open, rename, rm } from 'node:fs/promises';
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGunzip, createGzip } from 'node:zlib';
import { isLost } from '../db/failure.ts';
import { UserError } from '../errors.ts';

// An export: a line of JSON that says what it is, one for each row, and one with the counts and the SHA-256 of all bytes
// before it. A row's line is `{"env", "table", "row": {…}, "json_null": [columns that are JSON's null]}`. Rows are written and read as Postgres has them: a number that passed through JavaScript would not be the same.

export const FORMAT = 1;

export interface Header {
  memoryd_export: number;
  /** The version of the schema. */
  schema: number;
  /** What the database held at this time. Not told by older versions. */
  time?: string;
  tenant: string;
  envs: string[];
  /** Whether what belongs to all envs of the tenant, its events, is in it as well. */
  whole: boolean;
  /** '' for all projects, and what belongs to none. */
  project: string;
  /** The languages in which what it holds is searched. */
  languages: string[];
  /** The columns of each table that may have rows. */
  tables: Record<string, string[]>;
}

export interface Footer {
  rows: number;
  sha256: string;
  /** The rows of each env and table that has some. */
  counts: Record<string, Record<string, number>>;
}

/** The text of a row's line before and after the row's JSON. */
export const framed = (env: string, table: string) => ({
  before: `{"env":"${env}","table":"${table}","row":`,
  after: '}',
});
const ROW = /^\{"env":"([a-z0-9-]*)","table":"([a-z0-9_]+)","row":\{/;

/** Counts and hashes the lines of an export. */
function tally() {
  const hash: Hash = createHash('sha256');
  const counts: Footer['counts'] = {};
  let rows = 0;
  return {
    line(line: string) {
      hash.update(line).update('\n');
    },
    row(env: string, table: string) {
      rows++;
      counts[env] ??= {};
      counts[env][table] = (counts[env][table] ?? 0) + 1;
    },
    footer: (): Footer => ({ rows, sha256: hash.digest('hex'), counts }),
  };
}

/** Rows of one table and env, as lines. */
export interface Batch {
  env: string;
  table: string;
  lines: string[];
}

/** The text of an export, bit by bit. */
export async function* written(header: Header, batches: AsyncIterable<Batch>, whole: (footer: Footer) => void) {
  const sum = tally();
  const first = JSON.stringify(header);
  sum.line(first);
  yield `${first}\n`;
  for await (const { env, table, lines } of batches) {
    for (const line of lines) {
      sum.line(line);
      sum.row(env, table);
    }
    yield `${lines.join('\n')}\n`;
  }
  const footer = sum.footer();
  yield `${JSON.stringify({ end: footer })}\n`;
  whole(footer);
}

/**
 * Writes to a file that only its owner may read, or to stdout for `-`. The file has its name only when it is whole: what was
 * begun is never taken for an export.
 */
export async function store(file: string, text: AsyncIterable<string>): Promise<void> {
  if (file === '-') {
    return pipeline(text, process.stdout, { end: false }).catch((error) => {
      throw error.code === 'EPIPE' ? new UserError('nobody reads the export any more') : error;
    });
  }
  const partial = `${file}.partial`;
  try {
    await rm(partial, { force: true });
    const out = createWriteStream(partial, { flags: 'wx', mode: 0o600, flush: true });
    await (isGzip(file) ? pipeline(text, createGzip(), out) : pipeline(text, out));
    await rename(partial, file);
  } catch (error) {
    throw fileFault(error, file, 'written') ?? error;
  }
}

/** An error of a file in words. */
function fileFault(error: unknown, file: string, done: string): UserError | undefined {
  const { code, syscall } = error as NodeJS.ErrnoException;
  return code && syscall && !isLost(error) ? broken(file, `cannot be ${done}: ${code}`) : undefined;
}

const isGzip = (file: string) => file.endsWith('.gz');

const BATCH_ROWS = 500;
const BATCH_CHARACTERS = 1024 * 1024;
// No row that the service stores comes near it.
const LONGEST_LINE = 64 * 1024 * 1024;

const broken = (file: string, what: string) => new UserError(`${file} ${what}`);

/**
 * Reads an export batch by batch. What it told counts only when it resolves: only then is it known that the file is whole
 * and as it was written. `visit` is told how many bytes of the file were read.
 */
export async function read(
  file: string,
  visit: (batch: Batch, bytes: number) => Promise<void>,
  begin: (header: Header) => Promise<void> = async () => {},
): Promise<Footer> {
  const source = createReadStream(file, { highWaterMark: 256 * 1024 });
  const sum = tally();
  let header: Header | undefined;
  let footer: Footer | undefined;
  let batch: Batch = { env: '', table: '', lines: [] };
  let size = 0;
  const flush = async () => {
    const full = batch;
    batch = { ...batch, lines: [] };
    size = 0;
    if (full.lines.length > 0) await visit(full, source.bytesRead);
  };
  try {
    for await (const line of linesOf(file, isGzip(file) ? unzipped(source) : source)) {
      if (footer) throw broken(file, 'goes on after its end');
      if (!header) {
        header = parseHeader(file, line);
        sum.line(line);
        await begin(header);
        continue;
      }
      const [, env, table] = ROW.exec(line) ?? [];
      if (env === undefined || table === undefined) {
        footer = parseFooter(file, line);
        continue;
      }
      if (env !== batch.env || table !== batch.table || batch.lines.length >= BATCH_ROWS || size >= BATCH_CHARACTERS) {
        await flush();
        batch = { env, table, lines: [] };
      }
      sum.line(line);
      sum.row(env, table);
      batch.lines.push(line);
      size += line.length;
    }
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code?.startsWith('Z_')) throw broken(file, code === 'Z_BUF_ERROR' ? 'is cut off' : 'is no gzip file');
    throw fileFault(error, file, 'read') ?? error;
  }
  if (!header) throw broken(file, 'is empty');
  if (!footer) throw broken(file, 'is cut off: its last line is missing');
  const found = sum.footer();
  if (JSON.stringify(found) !== JSON.stringify(footer)) throw broken(file, 'was altered: its checksum is another');
  await flush();
  return footer;
}

/** What was compressed; an error of the file is one of the text. */
function unzipped(source: Readable): Readable {
  const gunzip = createGunzip();
  source.on('error', (error) => gunzip.destroy(error));
  return source.pipe(gunzip);
}

/** Lines, which only a line feed ends: a string in JSON may hold U+2028. */
async function* linesOf(file: string, chunks: AsyncIterable<Buffer>): AsyncGenerator<string> {
  let rest: Buffer[] = [];
  let length = 0;
  for await (const chunk of chunks) {
    let from = 0;
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, from)) {
      rest.push(chunk.subarray(from, end));
      yield Buffer.concat(rest).toString();
      rest = [];
      length = 0;
      from = end + 1;
    }
    rest.push(chunk.subarray(from));
    length += chunk.length - from;
    if (length > LONGEST_LINE) throw broken(file, 'is no export of memoryd');
  }
  if (length > 0) throw broken(file, 'is cut off in a line');
}

function parseHeader(file: string, line: string): Header {
  const header = parse(line) as Header | undefined;
  if (typeof header?.memoryd_export !== 'number') throw broken(file, 'is no export of memoryd');
  const { memoryd_export: format } = header;
  if (format > FORMAT) throw broken(file, `has format ${format}, of which this version knows only ${FORMAT}`);
  return header;
}

function parseFooter(file: string, line: string): Footer {
  const end = parse(line)?.end as Footer | undefined;
  if (typeof end?.sha256 !== 'string') throw broken(file, 'was altered: it has a line that is no row');
  return end;
}

function parse(line: string): Record<string, any> | undefined {
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}

/** What comes on stdin as a file of its own, which only its owner may read: an import reads it twice. */
export async function spool(file: string): Promise<void> {
  const handle = await open(file, 'wx', 0o600);
  await pipeline(process.stdin, handle.createWriteStream());
}

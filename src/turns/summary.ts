import { isUtf8 } from 'node:buffer';
import { jsonAt, readJson, textAt, WINDOW } from './scan.ts';
import { clip, clipBytes, jsonBytes } from './text.ts';

/** What is kept of a result. `cut` names what of it is not whole. */
export interface Summary {
  kind: 'table' | 'list' | 'object' | 'text' | 'scalar' | 'empty' | 'invalid';
  row_count?: number;
  item_count?: number;
  key_count?: number;
  column_count?: number;
  file_count?: number;
  /** Of the payload. */
  bytes?: number;
  error?: string;
  columns?: string[];
  keys?: string[];
  files?: string[];
  parts?: PartSummary[];
  preview?: string[];
  cut?: string[];
}

/** A list, table or object within an object. */
interface PartSummary {
  name: string;
  row_count?: number;
  item_count?: number;
  key_count?: number;
  columns?: string[];
}

const MAX_PREVIEWS = 5;
const PREVIEW_LENGTH = 500;
const MAX_NAMES = 64;
const NAME_LENGTH = 100;
const MAX_FILES = 20;
const MAX_PARTS = 10;
const MAX_PART_COLUMNS = 20;
/** Rows and names among which a table's columns are looked for, and files among which different ones are. */
const MAX_ROWS_READ = 1000;
const MAX_COLUMNS_READ = 10_000;
/** Levels of which the parts are known, and levels in which files are looked for. */
const DEPTH = 4;
const FILE_DEPTH = 64;

const FILE_KEY =
  /(?:^|[_-])(?:path|file|uri|filename|filepath)s?$|(?:^|[a-z])(?:Path|File|Uri|URI|FileName|Filename|FilePath)s?$/;
const COLUMNS_KEY = /^(?:columns|column_names|columnNames|headers|header|fields)$/;
const ROWS_KEY = /^(?:rows|data|values|records)$/;
const NAME_KEY = /^(?:name|column|column_name|columnName|field|key|id|label)$/;
const ERROR_KEY = /^(?:error|errors|exception|err|error_message|errorMessage)$/;
const MESSAGE_KEY = /^(?:message|detail|description|reason|error|type)$/;

/** A value near the root, by where it stands. */
interface Part {
  type: 'array' | 'object' | 'scalar';
  from: number;
  to: number;
  /** Of its items or members, of which only the first are kept. */
  count: number;
  objects: number;
  children: { name: string; part: Part }[];
  /** The keys of the objects in an array. */
  columns: Set<string>;
}

interface Outline {
  root: Part;
  files: Set<string>;
  fileCount: number;
}

const NONE: Part['children'] = [];
const NO_NAMES = new Set<string>();
const childrenOf = (depth: number) => (depth <= 1 ? MAX_NAMES : 16);

/** What stands where, or undefined if it is not JSON. */
function outlineOf(bytes: Buffer): Outline | undefined {
  const outline: Partial<Outline> & Pick<Outline, 'files' | 'fileCount'> = { files: new Set(), fileCount: 0 };
  // Of each open container: itself if it is near the root, the table that it is a row of, its last key, and whether what
  // comes next in it is a file.
  const parts: (Part | undefined)[] = [];
  const tables: (Part | undefined)[] = [];
  const keys: string[] = [];
  const names: boolean[] = [];
  const lists: boolean[] = [];
  let depth = 0;

  function enter(type: Part['type'], from: number, to: number): Part | undefined {
    const parent = parts[depth - 1];
    if (depth > 0 && !parent) return undefined;
    if (parent) {
      parent.count++;
      if (type === 'object') parent.objects++;
      if (parent.children.length >= childrenOf(depth - 1) || depth >= DEPTH) return undefined;
    }
    const container = type !== 'scalar';
    const part: Part = {
      type,
      from,
      to,
      count: 0,
      objects: 0,
      children: container ? [] : NONE,
      columns: type === 'array' ? new Set() : NO_NAMES,
    };
    if (parent) parent.children.push({ name: keys[depth - 1]!, part });
    else outline.root = part;
    return part;
  }

  const isJson = readJson(bytes, {
    open(array, at) {
      const parent = parts[depth - 1];
      const part = enter(array ? 'array' : 'object', at, at);
      if (depth++ >= FILE_DEPTH) return;
      const level = depth - 1;
      parts[level] = part;
      tables[level] = !array && parent?.type === 'array' && parent.count <= MAX_ROWS_READ ? parent : undefined;
      names[level] = array && level > 0 && names[level - 1]! && !lists[level - 1];
      lists[level] = array;
      keys[level] = '';
    },
    close(end) {
      const part = parts[--depth];
      if (part) part.to = end;
    },
    key(from, to) {
      if (depth > FILE_DEPTH) return;
      const [part, table] = [parts[depth - 1], tables[depth - 1]];
      const kept = part !== undefined && part.children.length < childrenOf(depth - 1);
      const column = table !== undefined && table.columns.size < MAX_COLUMNS_READ;
      const name = kept || column ? clip(textAt(bytes, from, to, NAME_LENGTH), NAME_LENGTH) : '';
      if (kept) keys[depth - 1] = name;
      if (column) table.columns.add(name);
      names[depth - 1] = to - from <= 40 && FILE_KEY.test(name || bytes.toString('latin1', from + 1, to - 1));
    },
    scalar(from, to) {
      enter('scalar', from, to);
      if (!names[depth - 1] || to - from <= 2 || bytes[from] !== 0x22) return;
      outline.fileCount++;
      if (outline.files.size < MAX_FILES && outline.fileCount <= MAX_ROWS_READ) {
        outline.files.add(clip(textAt(bytes, from, to, PREVIEW_LENGTH), PREVIEW_LENGTH));
      }
    },
  });
  return isJson ? (outline as Outline) : undefined;
}

/** A result's summary, at its full length. */
export function summaryOf(payload: Buffer): Summary {
  const outline = isUtf8(payload) ? outlineOf(payload) : undefined;
  if (!outline) return unreadable(payload);
  const { root, files, fileCount } = outline;
  const cut = new Set<string>();
  const summary: Summary = { ...shapeOf(payload, root, cut), bytes: payload.length };
  const error = root.type === 'object' ? errorOf(payload, root) : undefined;
  if (error) summary.error = previewOf(payload, error, 'error', cut);
  if (fileCount > 0) Object.assign(summary, { file_count: fileCount, files: [...files] });
  if (fileCount > MAX_FILES) cut.add('files');
  if (cut.size > 0) summary.cut = [...cut].sort();
  return summary;
}

function unreadable(payload: Buffer): Summary {
  const start = payload.toString('utf8', 0, 4 * (PREVIEW_LENGTH + 1));
  if (payload.length === start.length && start.trim() === '') return { kind: 'empty', bytes: payload.length };
  const preview = clip(start, PREVIEW_LENGTH);
  const whole = payload.length <= 4 * (PREVIEW_LENGTH + 1) && !preview.endsWith('…');
  return { kind: 'invalid', bytes: payload.length, preview: [preview], ...(!whole && { cut: ['preview'] }) };
}

function shapeOf(payload: Buffer, root: Part, cut: Set<string>): Summary {
  const rows = (from: Part) =>
    from.children.slice(0, MAX_PREVIEWS).map(({ part }) => previewOf(payload, part, 'preview', cut));
  const whole = () => [previewOf(payload, root, 'preview', cut)];
  const names = (field: string, list: string[], count: number) => {
    if (count > MAX_NAMES) cut.add(field);
    return list.slice(0, MAX_NAMES);
  };
  if (root.type === 'scalar') return { kind: payload[root.from] === 0x22 ? 'text' : 'scalar', preview: whole() };

  const table = tableOf(payload, root);
  if (table) {
    const { columns, columnCount } = table;
    return {
      kind: 'table',
      row_count: table.rows.count,
      column_count: columnCount,
      columns: names('columns', columns, columnCount),
      preview: rows(table.rows),
    };
  }
  if (root.type === 'array') return { kind: 'list', item_count: root.count, preview: rows(root) };
  const parts = partsOf(payload, root);
  if (parts.length > MAX_PARTS) cut.add('parts');
  return {
    kind: 'object',
    key_count: root.count,
    keys: names(
      'keys',
      root.children.map(({ name }) => name),
      root.count,
    ),
    ...(parts.length > 0 && { parts: parts.slice(0, MAX_PARTS) }),
    preview: whole(),
  };
}

function previewOf(payload: Buffer, { from, to }: Part, field: string, cut: Set<string>): string {
  const text = jsonAt(payload, from, to);
  const short = clip(text, PREVIEW_LENGTH);
  if (short.length < text.length || to - from > WINDOW) cut.add(field);
  return short;
}

const child = (part: Part, key: RegExp, ...types: Part['type'][]) =>
  part.children.find(({ name, part: inner }) => key.test(name) && types.includes(inner.type))?.part;

/** Rows as objects, or an object of columns and rows. */
function tableOf(payload: Buffer, part: Part): { rows: Part; columns: string[]; columnCount: number } | undefined {
  if (part.type === 'array') {
    if (part.count === 0 || part.objects < part.count) return undefined;
    return { rows: part, columns: [...part.columns], columnCount: part.columns.size };
  }
  const columns = child(part, COLUMNS_KEY, 'array');
  const rows = child(part, ROWS_KEY, 'array');
  if (!columns || !rows) return undefined;
  const names = columns.children.map(({ part: column }) => {
    const { from, to } = child(column, NAME_KEY, 'scalar') ?? column;
    return clip(jsonAt(payload, from, to), NAME_LENGTH);
  });
  return { rows, columns: names, columnCount: columns.count };
}

/** What an object holds, two levels deep. */
function partsOf(payload: Buffer, root: Part, prefix = ''): PartSummary[] {
  return root.children.flatMap(({ name, part }): PartSummary[] => {
    if (part.type === 'scalar') return [];
    const path = `${prefix}${name}`;
    const table = tableOf(payload, part);
    if (table) return [{ name: path, row_count: table.rows.count, columns: table.columns.slice(0, MAX_PART_COLUMNS) }];
    if (part.type === 'array') return [{ name: path, item_count: part.count }];
    const own = { name: path, key_count: part.count };
    return prefix ? [own] : [own, ...partsOf(payload, part, `${name}.`)];
  });
}

/** Where an object says what went wrong. */
function errorOf(payload: Buffer, root: Part): Part | undefined {
  const json = ({ from, to }: Part) => jsonAt(payload, from, to);
  const error = child(root, ERROR_KEY, 'scalar', 'object', 'array');
  if (error) {
    const told = child(error, MESSAGE_KEY, 'scalar') ?? error;
    return ['', 'null', 'false', '0', '[]', '{}'].includes(json(told)) ? undefined : told;
  }
  const status = child(root, /^status$/, 'scalar');
  const failed = status && /^(?:error|failed|failure)$/i.test(json(status));
  return failed ? child(root, MESSAGE_KEY, 'scalar') : undefined;
}

const COUNTS = ['row_count', 'item_count', 'key_count'] as const;
/** What is given up last comes first. */
const DETAILS = [
  'column_count',
  'file_count',
  'bytes',
  'error',
  'columns',
  'keys',
  'files',
  'parts',
  'preview',
] as const;
const CUT_BYTES = jsonBytes({ cut: DETAILS });

/** The least that is kept of a result: its kind and its count. */
export function leastOf(summary: Summary): Summary {
  const least: Summary = { kind: summary.kind };
  for (const name of COUNTS) if (summary[name] !== undefined) least[name] = summary[name];
  return { ...least, cut: ['details'] };
}

/** As much of a summary as so many bytes hold, but never less than {@link leastOf}. */
export function fitted(summary: Summary, most: number): Summary {
  if (jsonBytes(summary) <= most) return summary;
  const { cut: _, ...fit } = leastOf(summary);
  let left = most - jsonBytes(fit) - CUT_BYTES;
  if (left < 0) return leastOf(summary);
  const cut = new Set(summary.cut);
  for (const name of DETAILS) {
    const value = summary[name];
    if (value === undefined) continue;
    const room = left - name.length - 6;
    const kept = jsonBytes(value) <= room ? value : startOf(value, room);
    if (kept !== value) cut.add(name);
    if (kept === undefined) continue;
    Object.assign(fit, { [name]: kept });
    left = room - jsonBytes(kept);
  }
  return { ...fit, cut: [...cut].sort() };
}

/** The start of a list or a text that fits, or undefined if none does. */
function startOf(value: unknown, most: number): unknown {
  if (typeof value === 'string') return clipBytes(value, most, jsonBytes) || undefined;
  if (!Array.isArray(value)) return undefined;
  let bytes = 0;
  const count = value.findIndex((item) => {
    bytes += jsonBytes(item) + 2;
    return bytes > most;
  });
  if (count > 0) return value.slice(0, count);
  const [first] = value;
  const start = typeof first === 'string' ? clipBytes(first, most - 2, jsonBytes) : '';
  return start ? [start] : undefined;
}

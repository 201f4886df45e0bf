import type pg from 'pg';
import type { MessageRole } from '../gen/memory/v1/message.ts';

/** A message of another framework, as it is to be stored. */
export interface SourceMessage {
  /** Its id there, or one that it has each time it is read. */
  id: string;
  role: MessageRole;
  /** Its texts; what else it says if it has none. */
  content: string;
  toolCallId: string;
  /** What the content does not tell. */
  details: Record<string, unknown>;
  /** When it was written there, as Postgres writes times. */
  time: string | undefined;
}

/** What cannot come along. */
export interface Skipped {
  skipped: 'session' | 'message';
  id: string;
  why: string;
}

/** A conversation of another framework. */
export interface SourceSession {
  id: string;
  user: string;
  projectId: string;
  threadId: string;
  title: string;
  state: Record<string, unknown>;
  metadata: Record<string, unknown>;
  createTime: string;
  updateTime: string;
  /** From the oldest on, at most 100 at a time. */
  messages(): AsyncIterable<(SourceMessage | Skipped)[]>;
}

/** Reads the tables of a framework, one session after the other. */
export type Source = (client: pg.Client, owner: string | undefined) => AsyncIterable<SourceSession | Skipped>;

export const isSkipped = (item: object): item is Skipped => 'skipped' in item;

/** A piece of a message: its text, or a note that stands for what is no text. */
export type Piece = { text: string } | { note: string };

/** What a message says: its texts, or what stands for them if it has none. */
export function contentOf(pieces: Piece[]): string {
  const texts = pieces.flatMap((piece) => ('text' in piece && piece.text ? [piece.text] : []));
  if (texts.length > 0) return texts.join('\n');
  return pieces.flatMap((piece) => ('note' in piece ? [piece.note] : [])).join('\n');
}

/** A note for a tool that is called, and for what it gave. */
export const callNote = (name: unknown, input: unknown): string => `[calls ${name} ${JSON.stringify(input ?? {})}]`;
export const resultNote = (name: unknown, output: unknown): string =>
  `[${name} gave ${typeof output === 'string' ? output : JSON.stringify(output ?? null)}]`;

/** All rows of a statement whose last parameters are the position after the last row and the number of rows. */
export async function* rowsOf<Row>(
  client: pg.Client,
  sql: string,
  values: unknown[],
  begin: unknown[],
  position: (row: Row) => unknown[],
  size = 100,
): AsyncGenerator<Row[]> {
  for (let after = begin; ; ) {
    const { rows } = await client.query(sql, [...values, ...after, size]);
    if (rows.length > 0) yield rows as Row[];
    if (rows.length < size) return;
    after = position(rows.at(-1) as Row);
  }
}

/** An object, whatever it was. */
export const objectOf = (value: unknown): Record<string, any> =>
  typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Record<string, any>) : {};

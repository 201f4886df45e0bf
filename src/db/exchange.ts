import pg from 'pg';
import { serialize } from 'pg-protocol';
import { sqlState } from './failure.ts';
import { asText, camelCase, PARSERS, type Parse, type Statement, type Value } from './statement.ts';

interface Field {
  name: string;
  parse: Parse;
}

/** What a connection remembers: the named statements it has parsed, and the shape of their rows once told. */
interface Memory {
  parsed: Set<string>;
  shapes: Map<string, Field[]>;
}

const memories = new WeakMap<object, Memory>();

function memoryOf(connection: object): Memory {
  let memory = memories.get(connection);
  if (!memory) {
    memory = { parsed: new Set(), shapes: new Map() };
    memories.set(connection, memory);
  }
  return memory;
}

function wireValue(value: Value): string | Buffer | null {
  if (value === null || value === undefined) return null;
  if (typeof value === 'string' || Buffer.isBuffer(value)) return value;
  if (Array.isArray(value)) return `{${value.map((s) => `"${s.replace(/["\\]/g, '\\$&')}"`).join(',')}}`;
  return String(value);
}

const DESCRIBE = serialize.describe({ type: 'P' });
const EXECUTE = serialize.execute();
const SYNC = serialize.sync();

/** The wire messages that run one statement, without the Sync that ends the unit. */
function messagesOf(connection: object, { statement, values }: Call, prepared: boolean): Buffer[] {
  const memory = memoryOf(connection);
  const name = prepared ? statement.name : '';
  const messages: Buffer[] = [];
  if (!prepared || !memory.parsed.has(name)) {
    messages.push(serialize.parse({ name, text: statement.text, types: statement.parameterTypes as any }));
    if (prepared) memory.parsed.add(name);
  }
  messages.push(serialize.bind({ statement: name, values: values.map(wireValue) }));
  // Only the first use asks for the shape of the rows.
  if (!memory.shapes.has(statement.name)) messages.push(DESCRIBE);
  messages.push(EXECUTE);
  return messages;
}

// pg's pipeline takes only what descends from its own Query.
const QueryBase = pg.Query as unknown as new (text: string) => object;

/** What goes over a connection and comes back, in the form that pg's Client queues. */
abstract class Exchange<Result> extends QueryBase {
  readonly done: Promise<Result>;
  protected connection: any;
  protected resolve!: (result: Result) => void;
  protected reject!: (error: unknown) => void;

  constructor() {
    super('');
    this.done = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
    this.done.catch(() => {}); // whoever waits is told; nobody waiting is no crash
  }

  protected abstract messages(): Buffer[];
  protected write(connection: any, messages: Buffer[]): void {
    connection.stream.write(Buffer.concat(messages));
  }

  submit(connection: any): Error | null {
    this.connection = connection;
    try {
      this.write(connection, this.messages());
      return null;
    } catch (error) {
      return error as Error;
    }
  }

  handleError(error: unknown): void {
    this.reject(error);
  }

  handleRowDescription(_message: any): void {}
  handleDataRow(_message: any): void {}
  handlePortalSuspended(): void {}
  handleEmptyQuery(): void {}
}

export interface Call {
  statement: Statement<any>;
  values: Value[];
}

/** Statements of the extended protocol, sent together and ended by one Sync. Gives the rows of the last one. */
export class Unit<Row> extends Exchange<Row[]> {
  #calls: Call[];
  #prepared: boolean;
  #fresh = new Set<string>();
  #at = 0;
  #rows: Row[] = [];
  #fields: Field[] | undefined;
  #failed: unknown;

  constructor(calls: Call[], prepared: boolean) {
    super();
    this.#calls = calls;
    this.#prepared = prepared;
  }

  protected messages(): Buffer[] {
    const { parsed } = memoryOf(this.connection);
    for (const { statement } of this.#calls) if (!parsed.has(statement.name)) this.#fresh.add(statement.name);
    const messages = this.#calls.flatMap((call) => messagesOf(this.connection, call, this.#prepared));
    messages.push(SYNC);
    return messages;
  }

  override handleRowDescription(message: any): void {
    this.#fields = message.fields.map((field: any) => ({
      name: camelCase(field.name),
      parse: PARSERS.get(field.dataTypeID) ?? asText,
    }));
    memoryOf(this.connection).shapes.set(this.#calls[this.#at]!.statement.name, this.#fields!);
  }

  override handleDataRow(message: any): void {
    if (this.#at < this.#calls.length - 1 || this.#failed) return;
    try {
      const fields = this.#fields ?? memoryOf(this.connection).shapes.get(this.#calls[this.#at]!.statement.name)!;
      const row: any = {};
      for (let i = 0; i < fields.length; i++) {
        const field = fields[i]!;
        const text = message.fields[i];
        row[field.name] = text === null ? null : field.parse(text);
      }
      this.#rows.push(row);
    } catch (error) {
      this.#failed = error;
    }
  }

  handleCommandComplete(): void {
    if (this.#at < this.#calls.length - 1) {
      this.#at++;
      this.#fields = undefined;
    }
  }

  override handleError(error: unknown): void {
    if (this.connection) {
      // The server skips what follows an error, so later statements may not have been parsed. The failed one was, unless
      // the server does not know it, or refused even that because the transaction had failed before.
      const { parsed } = memoryOf(this.connection);
      const code = sqlState(error);
      if (code === '26000') parsed.delete(this.#calls[this.#at]!.statement.name);
      for (const { statement } of this.#calls.slice(code === '25P02' ? this.#at : this.#at + 1)) {
        if (this.#fresh.has(statement.name)) parsed.delete(statement.name);
      }
    }
    super.handleError(error);
  }

  handleReadyForQuery(): void {
    if (this.#failed) this.reject(this.#failed);
    else this.resolve(this.#rows);
  }
}

/** A command of the simple protocol, which may hold several statements. Gives their command tags. */
export class Command extends Exchange<string[]> {
  #text: string;
  #tags: string[] = [];

  constructor(text: string) {
    super();
    this.#text = text;
  }

  protected messages(): Buffer[] {
    return [serialize.query(this.#text)];
  }

  handleCommandComplete(message: any): void {
    this.#tags.push(message.text);
  }

  handleReadyForQuery(): void {
    this.resolve(this.#tags);
  }
}

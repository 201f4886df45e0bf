import { execFile } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import pg from 'pg';
import type { Value } from '../src/db/statement.ts';
import type { RunOrder, RunResult } from './loop.ts';
import { type Bound, boundOf, tenantOptions } from './raw.ts';
import type { Subjects } from './subjects.ts';

const execute = promisify(execFile);

export const hasPgbench = (): Promise<boolean> =>
  execute('pgbench', ['--version']).then(
    () => true,
    () => false,
  );

/**
 * The same statements by pgbench, each client on a connection of its own. It is in C, has no pool, and does not look at the
 * rows: what is left is what Postgres costs.
 */
export function pgbenchRunner(databaseUrl: string, subjects: Subjects): (order: RunOrder) => Promise<RunResult> {
  const bound = boundOf(subjects);
  const newId = 'uuid_v7(clock_timestamp())';
  // What differs between clients and between calls, by the number of the parameter.
  const expressions: Record<string, Record<number, string>> = {
    GetSession: { 4: `('{${subjects.readSessions.slice(0, 64)}}'::uuid[])[1 + :client_id::int]` },
    AppendMessages: {
      8: newId,
      11: `'append-' || :client_id`,
      12: `jsonb_set(:p12::jsonb, '{0,id}', to_jsonb(${newId}))`,
      14: newId,
    },
  };
  return async ({ operation, callers, ms }) => {
    const { statement, values } = bound[operation]!;
    const folder = await mkdtemp(join(tmpdir(), 'memoryd-pgbench-'));
    try {
      const script = join(folder, 'script.sql');
      await writeFile(script, await scriptOf(databaseUrl, statement, values, expressions[operation]!));
      const given = values.flatMap((value, i) => (value ? ['-D', `p${i + 1}=${value}`] : []));
      const times = ['-T', String(Math.ceil(ms / 1000)), '-l', `--log-prefix=${join(folder, 'log')}`];
      const load = ['-n', '-M', 'prepared', '-c', String(callers), '-f', script, ...times, ...given];
      await execute('pgbench', [...load, databaseUrl], {
        env: { ...process.env, PGOPTIONS: tenantOptions(subjects) },
      });
      return await resultIn(folder);
    } finally {
      await rm(folder, { recursive: true });
    }
  };
}

const literal = (value: Value) => (value === null || value === undefined ? 'null' : `'${value}'`);

/** The statement as a script: pgbench tells no types, and numbers its parameters by itself, so each is cast in its place. */
async function scriptOf(
  databaseUrl: string,
  { name, text, parameterTypes }: Bound['statement'],
  values: Bound['values'],
  expressions: Record<number, string>,
): Promise<string> {
  const client = new pg.Client(databaseUrl);
  await client.connect();
  try {
    const declared = await client.query('select $1::oid[]::regtype[]::text[] as types', [parameterTypes]);
    await client.query(`prepare ${name} (${declared.rows[0].types}) as ${text}`);
    const known = await client.query('select parameter_types::text[] as types from pg_prepared_statements');
    const { types } = known.rows[0];
    const script = text.replace(/\$(\d+)/g, (_, n) => {
      const value = values[n - 1] ? `:p${n}` : literal(values[n - 1]); // it takes no empty values
      return `(${expressions[n] ?? value})::${types[n - 1]}`;
    });
    return `${script.trim()};\n`;
  } finally {
    await client.end();
  }
}

/** From its logs, a line for each call: …, microseconds, …, when it ended in seconds and microseconds. */
async function resultIn(folder: string): Promise<RunResult> {
  const logs = (await readdir(folder)).filter((name) => name.startsWith('log'));
  const texts = await Promise.all(logs.map((name) => readFile(join(folder, name), 'utf8')));
  const lines = texts.flatMap((text) => text.trim().split('\n')).map((line) => line.split(' ').map(Number));
  const latencies = Float64Array.from(lines, (line) => line[2]! / 1000);
  const ends = Float64Array.from(lines, (line) => line[4]! * 1000 + line[5]! / 1000).sort();
  // Connecting and preparing, before the first call began, does not count.
  return { ms: ends.at(-1)! - ends[0]! + latencies[0]!, latencies };
}

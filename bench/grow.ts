import type pg from 'pg';
import { withClient } from '../src/preflight.ts';
import type { Subjects } from './subjects.ts';
import type { Database } from './world.ts';

type Queryable = Pick<pg.Pool | pg.Client, 'query'>;

const BATCH = 50_000;
const SAMPLE = 10_000;

/**
 * Makes the database large behind the service's back: so many sessions, and as many messages in the thread that is read. They
 * are copies of what the service stored. Gives the subjects with a sample of the sessions.
 */
export async function grow({ ownerUrl }: Database, subjects: Subjects, size: number): Promise<Subjects> {
  const { readThread, readSessions } = subjects;
  return withClient(ownerUrl, async (client) => {
    await client.query('set synchronous_commit = off');
    const id = `uuid_v7(now() + n * interval '1 microsecond')`;
    await copy(client, 'sessions', size, {
      where: `id = '${readSessions[0]}'`,
      set: { id, key_thread_id: `'grown-' || n`, thread_id: `'grown-' || n` },
    });
    await growThread(client, readThread, size);
    const { rows } = await client.query('select id from sessions order by random() limit $1', [SAMPLE]);
    return { ...subjects, readSessions: rows.map((row) => row.id) };
  });
}

/** What autovacuum does within minutes: before it has, Postgres plans as if the tables were still empty. */
export const settle = ({ ownerUrl }: Database) => withClient(ownerUrl, (client) => client.query('vacuum analyze'));

/** Copies a thread's first message until it has so many. */
export async function growThread(client: Queryable, threadId: string, size: number): Promise<void> {
  const { rows } = await client.query('select thread_uid, last_seq::int from threads where thread_id = $1', [threadId]);
  const { thread_uid, last_seq } = rows[0];
  await copy(client, 'messages', size - last_seq, {
    where: `thread_uid = '${thread_uid}' and seq = 1`,
    set: { id: 'uuid_v7(now())', seq: `${last_seq} + n` },
  });
  await client.query('update threads set last_seq = $2, revision = $2 where thread_uid = $1', [thread_uid, size]);
}

/** Copies a row so many times, in batches, with some columns as SQL expressions of the copy's number `n`. */
export async function copy(
  client: Queryable,
  table: string,
  times: number,
  { where, set }: { where: string; set: Record<string, string> },
): Promise<void> {
  const { rows } = await client.query(
    `select attname as name from pg_attribute
    where attrelid = $1::regclass and attnum > 0 and not attisdropped and attgenerated = '' and attidentity = ''`,
    [table],
  );
  const columns = rows.map(({ name }) => `"${name}"`);
  const values = rows.map(({ name }) => set[name] ?? `"${name}"`);
  for (let from = 1; from <= times; from += BATCH) {
    await client.query(
      `insert into ${table} (${columns}) select ${values}
      from (select * from ${table} where ${where} limit 1) one, generate_series($1::int, $2::int) n`,
      [from, Math.min(times, from + BATCH - 1)],
    );
  }
}

import pg from 'pg';
import { AHEAD, aheadText } from './audit/ahead.ts';
import { readSchemaState, type SchemaState, schemaFault } from './db/migrate.ts';
import { connectionSettings } from './db/pool.ts';
import { UserError } from './errors.ts';

const ROLE = `
  select current_user as role, r.rolsuper as super, r.rolbypassrls as bypass,
    (select c.relname from pg_class c
      where c.relrowsecurity and c.relnamespace = (select relnamespace from pg_class where oid = 'sessions'::regclass) and pg_has_role(r.oid, c.relowner, 'member')
      limit 1) as owned,
    (select x.rolname from pg_roles x where (x.rolsuper or x.rolbypassrls) and pg_has_role(r.oid, x.oid, 'member') limit 1) as more
  from pg_roles r where r.rolname = current_user`;

// Servers of the version before may go on for a day beside those of this one, whose schema is 25. In a new database there are none.
const OLDER = `
  select case when v.apply_time - first.apply_time > interval '1 hour'
    then extract(epoch from v.apply_time + interval '1 day' - now())::float8 * 1000 else 0 end as ms
  from schema_versions v, (select min(apply_time) as apply_time from schema_versions) first
  where v.version = 25`;

export interface UsableSchema extends SchemaState {
  /** Until when servers may be running that take only plain fingerprints of requests for their own. */
  olderUntil: number;
}

/** Refuses to start on a database that cannot be used, or that does not keep tenants apart. */
export async function checkDatabase(connectionString: string | undefined): Promise<UsableSchema> {
  return withClient(connectionString, async (client) => {
    const state = await readSchemaState((sql) => client.query(sql));
    const fault = schemaFault(state);
    if (fault) throw new UserError(fault);
    const [role] = (await client.query(ROLE)).rows;
    const refuse = (why: string) =>
      new UserError(`the database role ${role.role} ${why}: use memoryd_app or one like it`);
    if (role.super) throw refuse('is a superuser, which no row-level security holds');
    if (role.bypass) throw refuse('has BYPASSRLS');
    if (role.owned) throw refuse(`owns ${role.owned}, and could switch its row-level security off`);
    if (role.more) throw refuse(`may become ${role.more}, which no row-level security holds`);
    // What was written now would come before what is sealed, and be found as inserted for good.
    await client.query('begin; set local role memoryd_jobs');
    const [ahead] = (await client.query(AHEAD)).rows;
    await client.query('rollback');
    if (ahead) throw new UserError(aheadText(ahead));
    const [older] = (await client.query(OLDER)).rows;
    return { ...state, olderUntil: Date.now() + (older?.ms ?? 0) };
  });
}

/** A connection of its own for a command, with what goes wrong in words. */
export async function withClient<T>(
  connectionString: string | undefined,
  work: (client: pg.Client) => Promise<T>,
): Promise<T> {
  let client: pg.Client;
  try {
    client = new pg.Client(connectionSettings(connectionString));
  } catch {
    throw new UserError('DATABASE_URL is not a URL such as postgres://user:password@host:5432/database');
  }
  client.on('error', () => {}); // also rejects what waits for an answer
  try {
    await client.connect();
    return await work(client);
  } catch (error) {
    throw databaseFault(error, client) ?? error;
  } finally {
    await client.end().catch(() => {});
  }
}

/** Why the database cannot be used, in one line without any secret, or undefined if that is not the trouble. */
export function databaseFault(error: unknown, { host, port, database, user }: pg.Client): UserError | undefined {
  const { code, message } = (error instanceof AggregateError ? error.errors[0] : error) as {
    code?: string;
    message: string;
  };
  const where = `${host}:${port}`;
  if (code === '3D000') return new UserError(`there is no database "${database}" at ${where}`);
  if (code?.startsWith('28'))
    return new UserError(`the database at ${where} refuses user "${user}": ${oneLine(message)}`);
  if (code === '42501') return new UserError(`the database user "${user}" may not do this: ${oneLine(message)}`);
  const unreachable =
    /^(E[A-Z]+|08\w{3}|57P0\d|53300)$/.test(code ?? '') || /timeout|terminated|connection error|SSL/i.test(message);
  return unreachable ? new UserError(`the database at ${where} cannot be reached: ${oneLine(message)}`) : undefined;
}

const oneLine = (text: string): string => text.split('\n')[0]!.trim();

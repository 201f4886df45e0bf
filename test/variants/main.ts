import { type SpawnOptions, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { access, chmod, chown, cp, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { startPostgres } from '../../src/dev/postgres.ts';

// The tests with something else between them and the data: `postgres15`, the oldest Postgres that the service works with,
// `pgbouncer`, in transaction mode, both of them (`postgres15 pgbouncer`: what can go through the pooler goes through it), or
// `pgvector`, those of the extension that the Postgres of memoryd comes without: TEST_PGVECTOR names the folder of one for its
// version, with `lib/postgresql` and `share/postgresql`. What is not installed is skipped.

const ROOT = fileURLToPath(new URL('../..', import.meta.url));

/** Test files that a variant does not change, and so does not run. */
const WITHOUT_POSTGRES = {
  'context-assemble': 'it needs no database',
  'dev-postgres': 'it is about the Postgres that comes with memoryd',
  'erasure-snapshots': 'it is about the store, whatever the Postgres',
  erasures: 'it is about processes that are killed: erasure-rules has the statements',
  errors: 'it needs no database',
  fair: 'it needs no database',
  floods: 'it is about connections, whatever the Postgres',
  inflight: 'it needs no database',
  intake: 'it is about connections, whatever the Postgres',
  jwt: 'it needs no database',
  pii: 'it needs no database',
  'profile-merge': 'it needs no database',
  readme: 'it needs no database',
  record: 'it needs no database',
  'snapshot-stores': 'it needs no database',
  serve: 'it is about commands, whatever the Postgres',
  supply: 'it needs no database',
  'survival-checker': 'it needs no database',
  tail: 'it is about a command, whatever the Postgres',
  tracing: 'it needs no database',
  'transfer-command': 'it is about commands, whatever the Postgres',
  turnstile: 'it needs no database',
  'turn-kill': 'it is about connections that end, whatever they end at',
  uploads: 'it is about the store, whatever the Postgres',
  workers: 'it is about processes, whatever the Postgres',
};
const WITHOUT_SERVICE = {
  gather: 'it cuts connections and alters what goes over them, by a proxy of its own in the place of the pooler',
  migrate: 'migrations go past the pooler',
  rls: 'it is about the database itself',
  'rls-roles': 'it is about the database itself',
  transaction: 'it counts on a backend for each connection, which it kills and cuts',
};

/** Test files to which the extension makes a difference. */
const WITH_VECTOR = [
  'bad-fields',
  'memories',
  'memory-embeddings',
  'memory-search',
  'migrate',
  'rls',
  'isolation',
  'transfer',
];

interface Running {
  env: Record<string, string>;
  stop(): Promise<void>;
}

interface Variant {
  program: string;
  /** Where a system keeps it outside of the PATH. */
  folders: string[];
  leftOut: Record<string, string>;
  /** If not all are run. */
  only?: string[];
  /** Before or upon the Postgres of another variant, if there is one. */
  start(program: string, folder: string, postgres?: string): Promise<Running>;
}

const SETTINGS = { fsync: 'off', max_connections: '300', full_page_writes: 'off' };

const VARIANTS: Record<string, Variant> = {
  postgres15: {
    program: 'postgres',
    folders: ['/usr/lib/postgresql/15/bin', '/usr/pgsql-15/bin'],
    leftOut: WITHOUT_POSTGRES,
    start: startPostgres15,
  },
  pgbouncer: {
    program: 'pgbouncer',
    folders: ['/usr/sbin', ...(process.env.PATH ?? '').split(delimiter)],
    leftOut: { ...WITHOUT_POSTGRES, ...WITHOUT_SERVICE },
    start: startPgbouncer,
  },
  pgvector: {
    program: 'vector.so',
    folders: [join(process.env.TEST_PGVECTOR ?? '', 'lib/postgresql')],
    leftOut: {},
    only: WITH_VECTOR,
    start: startWithVector,
  },
};

async function findProgram({ program, folders }: Variant): Promise<string | undefined> {
  for (const folder of folders) {
    const path = join(folder, program);
    const there = await access(path).then(
      () => true,
      () => false,
    );
    if (there) return path;
  }
  return undefined;
}

/** Neither of the two runs as root. */
async function account(): Promise<{ uid?: number; gid?: number }> {
  if (process.getuid?.() !== 0) return {};
  const id = async (flag: string) => Number(await output('id', [flag, 'postgres']));
  return { uid: await id('-u'), gid: await id('-g') };
}

async function output(program: string, args: string[], options: SpawnOptions = {}): Promise<string> {
  const child = spawn(program, args, { ...options, stdio: ['ignore', 'pipe', 'pipe'] });
  let [out, err] = ['', ''];
  child.stdout!.on('data', (data) => {
    out += data;
  });
  child.stderr!.on('data', (data) => {
    err += data;
  });
  const [code] = await once(child, 'close');
  if (code !== 0) throw new Error(`${program} ended with ${code}: ${err}${out}`);
  return out;
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Starts a server, and waits until it says in its log that it is ready. */
async function startServer(
  program: string,
  args: string[],
  ready: RegExp,
  options: SpawnOptions,
  watch: (line: string) => void = () => {},
): Promise<() => Promise<void>> {
  const child = spawn(program, args, { ...options, stdio: ['ignore', 'ignore', 'pipe'] });
  const ended = once(child, 'close');
  const said: string[] = [];
  await new Promise<void>((resolve, reject) => {
    createInterface(child.stderr!).on('line', (line) => {
      if (said.length < 50) said.push(line);
      watch(line);
      if (ready.test(line)) resolve();
    });
    ended.then(() => reject(new Error(`${program} ended: ${said.join('\n')}`)));
  });
  return async () => {
    child.kill('SIGINT');
    await ended;
  };
}

async function startPostgres15(program: string, folder: string): Promise<Running> {
  const as = await account();
  const password = randomBytes(24).toString('base64url');
  const [data, secret] = [join(folder, 'data'), join(folder, 'password')];
  await writeSecret(secret, `${password}\n`, as);
  const given = ['-D', data, '-U', 'memoryd', '--pwfile', secret, '-A', 'scram-sha-256', '-E', 'UTF8', '--no-sync'];
  given.push('--locale=C.UTF-8'); // else it folds the case of no letter but ASCII's
  const options = { ...as, cwd: folder, env: { ...process.env, LC_ALL: 'C' } };
  await output(join(dirname(program), 'initdb'), given, options);
  const port = await freePort();
  const settings = { ...SETTINGS, listen_addresses: '127.0.0.1', port: String(port), unix_socket_directories: '' };
  const flags = Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
  const stop = await startServer(program, ['-D', data, ...flags], /ready to accept connections/, options);
  return { env: { TEST_POSTGRES_URL: `postgres://memoryd:${password}@127.0.0.1:${port}/postgres` }, stop };
}

/** The Postgres that comes with memoryd, which takes the extension from a folder that its user can read. */
async function startWithVector(program: string, folder: string): Promise<Running> {
  const extension = join(folder, 'pgvector');
  await cp(join(dirname(program), '../..'), extension, { recursive: true });
  await output('chmod', ['-R', 'a+rX', extension]);
  const postgres = await startPostgres({
    folder: join(folder, 'postgres'),
    settings: {
      ...SETTINGS,
      extension_control_path: `${join(extension, 'share/postgresql')}:$system`,
      dynamic_library_path: `${join(extension, 'lib/postgresql')}:$libdir`,
    },
  });
  return {
    env: { TEST_POSTGRES_URL: postgres.url },
    async stop() {
      await postgres.stop();
      await rm(dirname(postgres.data), { recursive: true, force: true });
    },
  };
}

/** PgBouncer before a Postgres, if none is given the one that comes with memoryd. Only the service goes through it, as the runtime role. */
async function startPgbouncer(program: string, folder: string, given?: string): Promise<Running> {
  const as = await account();
  const own = given ? undefined : await startPostgres({ folder: join(folder, 'postgres'), settings: SETTINGS });
  const postgres = given ?? own!.url;
  const port = await freePort();
  const [config, users] = [join(folder, 'pgbouncer.ini'), join(folder, 'users')];
  // The password that test/database.ts gives this role.
  await writeSecret(users, '"memoryd_app" "app"\n', as);
  await writeSecret(
    config,
    `[databases]
* = host=127.0.0.1 port=${new URL(postgres).port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = ${users}
pool_mode = transaction
default_pool_size = 40
max_client_conn = 1000
`,
    as,
  );
  let logins = 0;
  const count = (line: string) => {
    if (/login attempt: .*user=memoryd_app/.test(line)) logins++;
  };
  const stop = await startServer(program, [config], /process up/, { ...as, cwd: folder }, count);
  return {
    env: { TEST_POSTGRES_URL: postgres, TEST_POOLER: `127.0.0.1:${port}` },
    async stop() {
      await stop();
      await own?.stop();
      if (own) await rm(dirname(own.data), { recursive: true, force: true });
      if (logins === 0) throw new Error('nothing went through PgBouncer');
      console.log(`${logins} connections went through PgBouncer`);
    },
  };
}

async function writeSecret(path: string, text: string, { uid, gid }: { uid?: number; gid?: number }): Promise<void> {
  await writeFile(path, text, { mode: 0o600 });
  if (uid !== undefined && gid !== undefined) await chown(path, uid, gid);
}

async function runTests(
  { leftOut, only }: Pick<Variant, 'leftOut' | 'only'>,
  env: Record<string, string>,
): Promise<number> {
  // Files that are named would come beside those of the configuration.
  const ignored = only
    ? [`test/!(${only.join('|')}).test.ts`]
    : Object.keys(leftOut).map((name) => `test/${name}.test.ts`);
  const which = ignored.flatMap((file) => ['--ignore', file]);
  for (const [file, why] of only ? [] : Object.entries(leftOut)) console.log(`left out: ${file}.test.ts, as ${why}`);
  const child = spawn(process.execPath, ['node_modules/mocha/bin/mocha.js', ...which], {
    cwd: ROOT,
    env: { ...process.env, ...env },
    stdio: 'inherit',
  });
  const [code] = await once(child, 'close');
  return code ?? 1;
}

/** Starts a variant in a folder of its own, where it is installed. */
async function open(name: string, postgres: string | undefined): Promise<Running | undefined> {
  const variant = VARIANTS[name];
  if (!variant) throw new Error(`name one of ${Object.keys(VARIANTS).join(', ')}`);
  const program = await findProgram(variant);
  if (!program) {
    console.log(`skipped: ${name} is not installed (no ${variant.program} in ${variant.folders.join(', ')})`);
    return undefined;
  }
  const folder = await mkdtemp(join(tmpdir(), `memoryd-${name}-`));
  await chmod(folder, 0o755);
  const { uid, gid } = await account();
  if (uid !== undefined && gid !== undefined) await chown(folder, uid, gid);
  if (!program.endsWith('.so')) console.log(await output(program, ['--version']));
  const { env, stop } = await variant.start(program, folder, postgres);
  return {
    env,
    async stop() {
      await stop();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

const names = process.argv.slice(2);
const running: (Running & Variant)[] = [];
// Told to end, the tests end first, as they are told as well.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => {});
try {
  for (const name of names) {
    const opened = await open(name, running.at(-1)?.env.TEST_POSTGRES_URL);
    if (opened) running.push({ ...VARIANTS[name]!, ...opened });
  }
  const [lower, upper] = running;
  if (lower) process.exitCode = await runTests({ ...lower, ...upper }, { ...lower.env, ...upper?.env });
  // What goes past the upper one.
  const only = Object.keys(upper?.leftOut ?? {}).filter((file) => !lower!.leftOut[file]);
  if (only.length > 0) process.exitCode ||= await runTests({ leftOut: {}, only }, lower!.env);
} finally {
  for (const { stop } of running.reverse()) await stop();
}

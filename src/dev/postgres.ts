import { spawn } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { chmod, chown, lstat, mkdir, mkdtemp, open, readdir, readFile, realpath, rename, rm } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { createServer } from 'node:net';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { UserError } from '../errors.ts';
import { claimFolder, commandLine, pidIsTaken } from './owner.ts';
import { findPlace, type Place } from './place.ts';

export { UserError };

export interface EmbeddedPostgres {
  /** The superuser's URL. Its port is another at each start. */
  readonly url: string;
  readonly port: number;
  /** The cluster's folder; as root it is not inside the folder that was asked for. */
  readonly data: string;
  /** Stops Postgres, gives the folder up. May be called again. */
  stop(): Promise<void>;
}

interface Cluster extends Place {
  readonly data: string;
  readonly log: string;
  /** Shows in the postmaster's command line, so that its pid is never taken for another process's. */
  readonly name: string;
}

const USER = 'memoryd';
const MAX_LOG_BYTES = 16 * 1024 * 1024;
const RETRY_MS = 10_000;
/** Crash recovery of a large database takes its time. */
const START_SECONDS = '300';
const STOP_SECONDS = '30';

/** The old postmaster is just dying, its last children still hold its shared memory, or the port was snatched. */
const PASSING = /"postmaster\.pid" already exists|pre-existing shared memory|could not create any TCP\/IP sockets/;

/** Runs a program of Postgres to its end; what it says goes to the log, and is returned. */
async function run(cluster: Cluster, program: string, args: string[]): Promise<{ ok: boolean; output: string }> {
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(PG|LC_|LANG)/.test(name)));
  // The log is handed over open: as root, Postgres's user could not open it. No pipe, since the postmaster inherits
  // it, and no -l for the same reasons.
  const log = await open(cluster.log, 'a+', 0o600);
  try {
    const { size } = await log.stat();
    const child = spawn(join(cluster.programs, program), args, {
      // By PGDATA and not by -D, which pg_ctl would hand unquoted to a shell.
      env: { ...env, LC_ALL: 'C', PGDATA: cluster.data },
      cwd: cluster.home,
      stdio: ['ignore', log.fd, log.fd],
      // A session of its own: Ctrl-C goes to the terminal's foreground group, and the service needs Postgres to drain.
      detached: true,
      windowsHide: true,
      ...(cluster.account && { uid: cluster.account.uid, gid: cluster.account.gid }),
    });
    const [code] = await once(child, 'exit');
    const said = Buffer.alloc(Math.min((await log.stat()).size - size, 65_536));
    await log.read(said, 0, said.length, size);
    return { ok: code === 0, output: said.toString() };
  } catch (error) {
    const why = cluster.account ? ' (root must be allowed to switch to another user)' : '';
    throw new UserError(`Cannot run ${join(cluster.programs, program)}: ${(error as Error).message}${why}.`);
  } finally {
    await log.close();
  }
}

function failure(what: string, output: string, cluster: Cluster): UserError {
  const lines = output.split('\n').filter((line) => line.trim());
  const at = lines.findLastIndex((line) => /FATAL|PANIC|error:|error while/.test(line));
  const reason = lines.slice(at, at + 1).map((line) => line.replace(/^.*?(FATAL|PANIC|error): */, ''));
  const detail = lines[at + 1]?.match(/DETAIL: *(.*)/)?.[1];
  return new UserError(`${what}: ${[...reason, detail].filter(Boolean).join(': ')} (see ${cluster.log}).`);
}

/** Puts a file in place whole and for our eyes only, or not at all. */
async function writeSecret(path: string, text: string): Promise<void> {
  await rm(`${path}.new`, { force: true });
  const file = await open(`${path}.new`, 'wx', 0o600);
  await file.writeFile(text);
  await file.close();
  await rename(`${path}.new`, path);
}

/** The superuser's password, once made. Without it existing data are of no use: they are set aside, not deleted. */
async function keepPassword(folder: string, data: string, say: (line: string) => void): Promise<string> {
  const path = join(folder, 'password');
  const kept = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return '';
    throw error;
  });
  if (kept) {
    await chmod(path, 0o600);
    return kept.trim();
  }
  // As root the data lie elsewhere: whoever deletes the folder to begin anew must not find them again.
  const aside = `${data}.old-${Date.now()}`;
  await rename(data, aside).then(
    () => say(`${path} is gone, so this is a new database; the data of the old one are in ${aside}.`),
    () => {},
  );
  const password = randomBytes(24).toString('base64url');
  await writeSecret(path, `${password}\n`);
  return password;
}

/** Patiently: an initdb whose memoryd was killed may still be writing to it, until it misses what is gone. */
async function removeFolder(path: string): Promise<void> {
  await rm(path, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
}

async function initialise(cluster: Cluster, password: string, sync: boolean): Promise<void> {
  for (const name of await readdir(cluster.home)) {
    if (name.startsWith('init-')) await removeFolder(join(cluster.home, name));
  }
  // Sorting and case are Postgres's own and the same everywhere; only the words of full text search are told apart
  // by the C library, whose UTF-8 locale has no name that every system knows.
  for (const ctype of ['C.UTF-8', 'en_US.UTF-8', 'C']) {
    // Under another name until it is whole: an interrupted initdb never leaves half a cluster.
    const fresh = await mkdtemp(join(cluster.home, 'init-'));
    const pwfile = `${fresh}.password`;
    await writeSecret(pwfile, password);
    if (cluster.account) {
      await chown(fresh, cluster.account.uid, cluster.account.gid);
      await chown(pwfile, cluster.account.uid, cluster.account.gid);
    }
    const locale = ['--locale-provider=builtin', '--builtin-locale=C.UTF-8', '--locale=C', `--lc-ctype=${ctype}`];
    const access = [`--username=${USER}`, `--pwfile=${pwfile}`, '--auth=scram-sha-256'];
    const made = await run({ ...cluster, data: fresh }, 'initdb', [
      '--encoding=UTF8',
      ...locale,
      ...access,
      ...(sync ? [] : ['--no-sync']),
      '--no-instructions',
    ]).finally(() => rm(pwfile, { force: true }));
    if (made.ok) return rename(fresh, cluster.data);
    await removeFolder(fresh);
    if (!made.output.includes('locale') || ctype === 'C') {
      throw failure('Postgres could not make its database', made.output, cluster);
    }
  }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

/** pg_ctl hands its -o to a shell, on Windows to cmd. */
function quote(text: string): string {
  return process.platform === 'win32' ? `"${text}"` : `'${text.replaceAll("'", "'\\''")}'`;
}

function serverOptions(cluster: Cluster, port: number, settings: Record<string, string>): string {
  const all = {
    ...settings,
    ...(process.platform === 'win32' ? {} : { unix_socket_directories: '' }),
    cluster_name: cluster.name,
    listen_addresses: '127.0.0.1',
    port: String(port),
  };
  return Object.entries(all)
    .map(([name, value]) => `-c ${quote(`${name}=${value}`)}`)
    .join(' ');
}

/** The pid in postmaster.pid, and whether it is this cluster's postmaster: the file outlives a kill -9. */
async function postmaster(cluster: Cluster): Promise<{ pid: number; runs: boolean } | undefined> {
  const text = await readFile(join(cluster.data, 'postmaster.pid'), 'utf8').catch(() => '');
  const pid = Number.parseInt(text, 10);
  if (!(pid > 0) || !pidIsTaken(pid)) return undefined;
  // On Windows pg_ctl signals over a pipe that only a Postgres of this pid has.
  const runs = process.platform === 'win32' || (await commandLine(pid)).includes(`cluster_name=${cluster.name}`);
  return { pid, runs };
}

async function halt(cluster: Cluster): Promise<void> {
  for (const mode of ['fast', 'immediate']) {
    // Not by pg_ctl's word: it also fails when Postgres crashed and there is nothing left to stop.
    if (!(await postmaster(cluster))?.runs) return;
    const { ok, output } = await run(cluster, 'pg_ctl', ['stop', '-w', '-t', STOP_SECONDS, '-m', mode]);
    if (ok) return;
    if (mode === 'immediate' && (await postmaster(cluster))?.runs) {
      throw failure('Postgres did not stop', output, cluster);
    }
  }
}

async function clearLeftovers(cluster: Cluster, say: (line: string) => void): Promise<void> {
  const old = await postmaster(cluster);
  if (old?.runs) {
    say(`A Postgres (process ${old.pid}) was left behind by a memoryd that was killed: stopping it.`);
    await halt(cluster);
  } else if (old) {
    // A zombie that nobody reaped, or another process got the pid since, as pids come again in each start of a
    // container: Postgres would refuse to start as long as the pid is taken. That no backend of old still holds the
    // data, it also makes sure by their shared memory.
    await rm(join(cluster.data, 'postmaster.pid'), { force: true });
  }
}

async function launch(cluster: Cluster, settings: Record<string, string>, say: (line: string) => void) {
  const deadline = Date.now() + RETRY_MS;
  for (;;) {
    await clearLeftovers(cluster, say);
    const port = await freePort();
    const options = serverOptions(cluster, port, settings);
    const { ok, output } = await run(cluster, 'pg_ctl', ['start', '-w', '-t', START_SECONDS, '-o', options]);
    if (ok) return port;
    if (!PASSING.test(output) || Date.now() > deadline) throw failure('Postgres did not start', output, cluster);
    await sleep(250);
  }
}

async function openFolder(path: string): Promise<string> {
  await mkdir(path, { recursive: true, mode: 0o700 });
  return realpath(path);
}

/** Starts the Postgres that comes with memoryd, on the folder's data, which are made at the first start. */
export async function startPostgres(options: {
  folder: string;
  settings?: Record<string, string>;
  say?: (line: string) => void;
}): Promise<EmbeddedPostgres> {
  const { settings = {}, say = () => {} } = options;
  let release = async () => {};
  try {
    const folder = await openFolder(resolve(options.folder));
    release = await claimFolder(folder);
    const place = await findPlace(folder, say);
    const name = `memoryd-${createHash('sha256').update(place.home).digest('hex').slice(0, 16)}`;
    const cluster = { ...place, name, data: join(place.home, 'data'), log: join(folder, 'postgres.log') };
    const log = await lstat(cluster.log).catch(() => undefined);
    if (log && log.size > MAX_LOG_BYTES) await rename(cluster.log, `${cluster.log}.old`);

    const password = await keepPassword(folder, cluster.data, say);
    if (!(await lstat(cluster.data).catch(() => undefined))) {
      say(`Making a database in ${cluster.data}.`);
      await initialise(cluster, password, settings.fsync !== 'off');
    }
    const port = await launch(cluster, settings, say);

    let stopped: Promise<void> | undefined;
    const stop = () => {
      stopped ??= halt(cluster).then(release);
      return stopped;
    };
    return { url: `postgres://${USER}:${password}@127.0.0.1:${port}/postgres`, port, data: cluster.data, stop };
  } catch (error) {
    await release();
    const { code, message } = error as NodeJS.ErrnoException;
    if (error instanceof UserError || !code) throw error;
    throw new UserError(`Cannot keep a database in ${options.folder}: ${message}.`);
  }
}

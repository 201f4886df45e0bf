import { createHash, randomUUID } from 'node:crypto';
import { mkdir, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { type SnapshotFile, type Store, StoreError } from './store.ts';

/** What is being written: a process that is killed leaves it behind. After an hour nobody writes it any more. */
const UNFINISHED = '.unfinished-';
const LEFT_BEHIND_MS = 60 * 60_000;

const FINAL = new Set(['EACCES', 'EPERM', 'EROFS', 'ENOTDIR', 'EISDIR', 'ENAMETOOLONG', 'ENOENT']);

/** A folder on this machine, or one that is mounted. */
export function openFolder(url: URL): Store {
  const root = resolve(fileURLToPath(url));
  return {
    put: (folder, file, signal) => telling(() => write(root, join(root, folder), file, signal)),
    get: (folder, name) => telling(() => readFile(join(root, folder, name))),
    remove: (folder, name) =>
      telling(async () => {
        await rm(join(root, folder, name), { force: true });
        await syncFolder(join(root, folder)).catch(orNone);
      }),
    list: (folder) =>
      telling(async () => {
        const names = await readdir(join(root, folder)).catch(orNone);
        const whole = names.filter((name) => !name.startsWith(UNFINISHED));
        return new Map(whole.map((name) => [name, { link: pathToFileURL(join(root, folder, name)).href }]));
      }),
  };
}

function orNone(error: NodeJS.ErrnoException): string[] {
  if (error.code === 'ENOENT') return [];
  throw error;
}

/** By another name first, so that a file is there whole or not at all, and still is after the machine's power went. */
async function write(
  root: string,
  folder: string,
  { name, bytes, sha256 }: SnapshotFile,
  signal: AbortSignal,
): Promise<string> {
  const file = join(folder, name);
  const link = pathToFileURL(file).href;
  const stored = await readFile(file).catch(() => undefined);
  if (stored) {
    if (createHash('sha256').update(stored).digest('hex') === sha256) return link;
    throw new StoreError(`${link} holds something else`, true);
  }
  await mkdir(folder, { recursive: true, mode: 0o700 });
  await removeLeftBehind(folder);
  const unfinished = join(folder, `${UNFINISHED}${randomUUID()}`);
  try {
    const handle = await open(unfinished, 'wx', 0o600);
    try {
      await handle.writeFile(bytes, { signal });
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(unfinished, file);
  } catch (error) {
    await rm(unfinished, { force: true });
    throw error;
  }
  // The file's name is in its folder, and that of each folder, which may be new, in the one above.
  for (let at = folder; at.length >= root.length; at = dirname(at)) await syncFolder(at);
  return link;
}

async function removeLeftBehind(folder: string): Promise<void> {
  for (const name of await readdir(folder)) {
    if (!name.startsWith(UNFINISHED)) continue;
    const file = join(folder, name);
    // Its writer may be about to give it its name, and another server to remove it as well.
    const written = await stat(file).catch(() => undefined);
    if (written && Date.now() - written.mtimeMs > LEFT_BEHIND_MS) await rm(file, { force: true });
  }
}

async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder);
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

async function telling<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof StoreError) throw error;
    const { code = 'unknown error' } = error as NodeJS.ErrnoException;
    throw new StoreError(`the snapshot folder: ${code}`, FINAL.has(code), error);
  }
}

import { randomBytes } from 'node:crypto';
import { open, readFile, realpath, rename, rm, stat } from 'node:fs/promises';
import { type Key, lineOf, parseKeys } from './keyring.ts';

const EVERY_MS = 1000;

export interface KeyFile {
  /** As they are now. */
  readonly keys: Key[];
  stop(): void;
}

/**
 * The keys of a file, which is looked at each second: what it holds then is used from then on. While it cannot be read or
 * understood, the keys stay what they were. Each is told once.
 */
export async function followKeyFile(
  file: string,
  told: { changed(keys: Key[]): void; failed(error: Error): void },
): Promise<KeyFile> {
  let text = await readFile(file, 'utf8');
  let keys = parseKeys(text);
  let fault = '';
  let timer: NodeJS.Timeout | undefined;

  async function look(): Promise<void> {
    try {
      const found = await readFile(file, 'utf8');
      if (found === text && !fault) return;
      keys = parseKeys(found);
      text = found;
      fault = '';
      told.changed(keys);
    } catch (error) {
      const { message } = error as Error;
      if (message !== fault) told.failed(error as Error);
      fault = message;
    }
  }
  function next(): void {
    timer = setTimeout(async () => {
      await look();
      if (timer) next();
    }, EVERY_MS).unref();
  }
  next();
  return {
    get keys() {
      return keys;
    },
    stop() {
      clearTimeout(timer);
      timer = undefined;
    },
  };
}

/** Puts a new key first in the file, which is made if it is not there. It seals after so long; the first of all at once. */
export function addKey(file: string, afterMs = 0): Promise<Key[]> {
  return changeKeys(file, (old) => {
    const since = old.length > 0 ? Date.now() + afterMs : 0;
    return [{ id: randomBytes(4).toString('hex'), key: randomBytes(32), since }, ...old];
  });
}

/**
 * Puts another file in the place of the key file, with its owner and mode: whoever reads it meanwhile finds the old keys or
 * the new ones. While one change is under way another is refused.
 */
export async function changeKeys(file: string, change: (keys: Key[]) => Key[]): Promise<Key[]> {
  const there = await realpath(file).catch(orNone);
  const place = there ?? file;
  const unfinished = `${place}.new`;
  const handle = await open(unfinished, 'wx', 0o600);
  try {
    const old = there ? await readFile(there, 'utf8') : '';
    const keys = change(old.trim() ? parseKeys(old) : []);
    await handle.writeFile(keys.map((key) => `${lineOf(key)}\n`).join(''));
    if (there) {
      const { mode, uid, gid } = await stat(there);
      await handle.chown(uid, gid);
      await handle.chmod(mode);
    }
    await handle.sync();
    await rename(unfinished, place);
    return keys;
  } catch (error) {
    await rm(unfinished, { force: true });
    throw error;
  } finally {
    await handle.close();
  }
}

function orNone(error: NodeJS.ErrnoException): undefined {
  if (error.code !== 'ENOENT') throw error;
}

import { execFile } from 'node:child_process';
import { readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { UserError } from '../errors.ts';

const execute = promisify(execFile);
const LOCK_GIVEN_UP_MS = 10_000;

async function ps(pid: number, column: 'lstart' | 'command'): Promise<string> {
  if (process.platform === 'win32') return '';
  const env = { PATH: process.env.PATH, LC_ALL: 'C', TZ: 'UTC' };
  const { stdout } = await execute('ps', ['-ww', '-o', `${column}=`, '-p', String(pid)], { env }).catch(() => ({
    stdout: '',
  }));
  return stdout.trim();
}

/** Whether there is a process of this pid, be it a zombie or someone else's. */
export function pidIsTaken(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH';
  }
}

/** When a process began, as the platform tells it: '' if it does not tell, undefined if the process is dead. */
async function startOf(pid: number): Promise<string | undefined> {
  if (!pidIsTaken(pid)) return undefined;
  const line = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
  if (!line) return ps(pid, 'lstart');
  // The command, in brackets, may itself hold spaces and brackets: the fields are counted from its end.
  const [state, ...fields] = line.slice(line.lastIndexOf(')') + 2).split(' ');
  // In a container whose first process reaps nobody, a killed process stays as a zombie, with its pid.
  return state === 'Z' || state === 'X' ? undefined : fields[18];
}

/** The command line of a process; '' if it is dead, a zombie, or the platform does not tell. */
export async function commandLine(pid: number): Promise<string> {
  const text = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
  return text ? text.replaceAll('\0', ' ') : process.platform === 'linux' ? '' : ps(pid, 'command');
}

async function liveOwner(file: string): Promise<{ pid: number; certain: boolean } | undefined> {
  const [pid = 0, start = ''] = (await readFile(file, 'utf8').catch(() => ''))
    .split('\n')
    .map((text, line) => (line ? text : Number(text))) as [number, string];
  if (!Number.isInteger(pid) || pid <= 0) return undefined;
  const now = await startOf(pid);
  // Another start time: the pid was given to another process since, and the owner is dead.
  return now === undefined || (now && start && now !== start) ? undefined : { pid, certain: Boolean(now && start) };
}

/** The lock is held for milliseconds, while a file is looked at and replaced, so an old one is a dead process's. */
async function underLock<T>(lock: string, work: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      await writeFile(lock, String(process.pid), { flag: 'wx', mode: 0o600 });
      break;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      const since = await stat(lock).then(
        ({ mtimeMs }) => mtimeMs,
        () => Date.now(),
      );
      if (Date.now() - since > LOCK_GIVEN_UP_MS) await rm(lock, { force: true });
      await sleep(20);
    }
  }
  try {
    return await work();
  } finally {
    await rm(lock, { force: true });
  }
}

/** Makes this process the folder's one owner; returns what gives the folder up again. */
export async function claimFolder(folder: string): Promise<() => Promise<void>> {
  const file = join(folder, 'dev.pid');
  const mine = `${process.pid}\n${(await startOf(process.pid)) ?? ''}\n`;
  // Creating dev.pid itself with 'wx' would decide between two fresh starts, but not between two that both find a
  // dead owner: the slower one would remove the file of the faster. Looking and replacing is one step, under a lock.
  await underLock(`${file}.lock`, async () => {
    const owner = await liveOwner(file);
    if (owner) {
      const doubt = owner.certain ? '' : `, or delete ${file} if process ${owner.pid} is something else`;
      throw new UserError(
        `Another memoryd (process ${owner.pid}) uses ${folder}: stop it, or use another folder with --data${doubt}.`,
      );
    }
    await writeFile(`${file}.new`, mine, { mode: 0o600 });
    await rename(`${file}.new`, file);
  });
  return async () => {
    if ((await readFile(file, 'utf8').catch(() => '')) === mine) await rm(file, { force: true });
  };
}

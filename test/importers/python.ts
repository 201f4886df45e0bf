import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { missing } from './missing.ts';

const HERE = fileURLToPath(new URL('python/', import.meta.url));
const CACHE = fileURLToPath(new URL('../../node_modules/.cache/importers-', import.meta.url));

/** A Python with the packages of requirements.txt, installed at the first use; undefined where they are {@link missing}. */
export function python(): string | undefined {
  const requirements = join(HERE, 'requirements.txt');
  const venv = `${CACHE}${createHash('sha256').update(readFileSync(requirements)).digest('hex').slice(0, 12)}`;
  const [program, mark] = [join(venv, 'bin', 'python'), join(venv, 'complete')];
  if (existsSync(mark)) return program;
  rmSync(venv, { recursive: true, force: true });
  const steps: [string, string[]][] = [
    ['python3', ['-c', 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))']],
    ['python3', ['-m', 'venv', venv]],
    [program, ['-m', 'pip', 'install', '--quiet', '-r', requirements]],
  ];
  for (const [command, args] of steps) {
    const { status, stderr, error } = spawnSync(command, args, { encoding: 'utf8', timeout: 300_000 });
    if (status === 0) continue;
    missing('the packages of test/importers/python', error?.message ?? stderr);
    return undefined;
  }
  writeFileSync(mark, '');
  return program;
}

/** Runs one of the scripts here. */
export function runScript(program: string, name: string, ...args: string[]): void {
  const { status, stderr } = spawnSync(program, [join(HERE, name), ...args], { encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
}

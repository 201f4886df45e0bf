import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

// The importers, tried on tables that the frameworks' own packages write. These are dependencies of the bench, not of the service:
// they are installed where they are missing, and where they cannot be had, this says so and skips.

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const run = (program: string, args: string[], stdio: 'inherit' | 'ignore') =>
  spawnSync(program, args, { cwd: ROOT, stdio }).status ?? 1;

const installed = existsSync(fileURLToPath(new URL('../../bench/peers/node_modules', import.meta.url)));
if (!installed && run('npm', ['ci', '--prefix', 'bench/peers'], 'ignore') !== 0) {
  console.log('skipped: the packages of bench/peers cannot be installed');
} else {
  const options = ['--no-config', '--extension', 'ts', '--require', 'test/database.ts', '--timeout', '60000', '--exit'];
  process.exitCode = run(
    process.execPath,
    ['node_modules/mocha/bin/mocha.js', ...options, 'test/importers/frameworks.ts'],
    'inherit',
  );
}

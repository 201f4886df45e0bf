import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { missing } from './missing.ts';

// The importers, tried on tables that the frameworks' own packages write. These are dependencies of the bench, not of the service:
// they are installed where they are missing. Where they cannot be had, this fails in CI (CI=true), and elsewhere says why it skips.

const cwd = fileURLToPath(new URL('../..', import.meta.url));
const installed = existsSync(fileURLToPath(new URL('../../bench/peers/node_modules', import.meta.url)));
const install = () => spawnSync('npm', ['ci', '--prefix', 'bench/peers'], { cwd, encoding: 'utf8' });
const { status, stderr, error } = installed ? { status: 0, stderr: '', error: undefined } : install();
if (status === 0) {
  const options = ['--no-config', '--extension', 'ts', '--require', 'test/database.ts', '--timeout', '60000', '--exit'];
  const mocha = ['node_modules/mocha/bin/mocha.js', ...options, 'test/importers/frameworks.ts'];
  process.exitCode = spawnSync(process.execPath, mocha, { cwd, stdio: 'inherit' }).status ?? 1;
} else {
  missing('the packages of bench/peers', error?.message ?? stderr);
}

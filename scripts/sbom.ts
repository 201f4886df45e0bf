import { execSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

// The bill of materials (CycloneDX) of what ships, by the lockfile: `npm run sbom`. `npm sbom --omit=dev` leaves out what
// development needs as well, a seventh of it all (npm/cli#7909): npm is shown the project without development instead.
const parent = mkdtempSync(join(tmpdir(), 'sbom-'));
try {
  const { name, devDependencies: _, ...shipped } = JSON.parse(readFileSync('package.json', 'utf8'));
  const cwd = join(parent, name); // npm calls the whole by the name of its folder
  mkdirSync(cwd);
  writeFileSync(join(cwd, 'package.json'), JSON.stringify({ name, ...shipped }));
  cpSync('package-lock.json', join(cwd, 'package-lock.json'));
  const npm = (command: string) =>
    execSync(`npm ${command} --package-lock-only --offline --loglevel=error`, { cwd, encoding: 'utf8' });
  npm('prune');
  process.stdout.write(npm('sbom --sbom-format=cyclonedx --sbom-type=application'));
} finally {
  rmSync(parent, { recursive: true });
}

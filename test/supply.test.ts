import { execFileSync } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { expect } from 'chai';

interface Package {
  version?: string;
  license?: string;
  dev?: boolean;
}

type Packages = Record<string, Package>;

/** What may ship: licences that ask for no more than their text and the names of the authors. As packages name them. */
const PERMISSIVE = ['0BSD', 'Apache-2.0', 'BSD-3-Clause', 'BlueOak-1.0.0', 'ISC', 'MIT', 'Python-2.0'];
const SHIPPED = [...PERMISSIVE, '(Apache-2.0 AND BSD-3-Clause)'];

/** What only builds, tests and measures: licences that let anybody use it. */
const DEVELOPMENT = [
  ...PERMISSIVE,
  '(AFL-2.1 OR BSD-3-Clause)',
  'Apache-2.0 AND MIT',
  'BSD-2-Clause',
  'MIT OR Apache-2.0',
  'PSF-2.0',
];

/** Packages that name none of the SPDX list, and what their licence file was read to be. Another version is to be read anew. */
const READ: Record<string, string> = { 'url-template@2.0.8': 'BSD-3-Clause' };

const packagesOf = async (file: string): Promise<Packages> => {
  const { '': _, ...packages } = JSON.parse(await readFile(file, 'utf8')).packages;
  return packages;
};

/** A package by its place in `node_modules`, and version. */
const nameOf = ([place, { version }]: [string, Package]) => `${place.replace(/^.*node_modules\//, '')}@${version}`;

/** An optional peer of one that ships. It comes with development only; the lockfile does not say so. */
const isCompiler = (name: string) => /^(@typescript\/)?typescript/.test(name);

/** The packages that nobody may ship, or use, without having read their licence. */
const unlicensed = (packages: Packages, allowed: string[]): string[] =>
  Object.entries(packages).flatMap((entry) => {
    const name = nameOf(entry);
    const licence = READ[name] ?? entry[1].license ?? 'no licence';
    return allowed.includes(licence) ? [] : [`${name}: ${licence}`];
  });

describe('what ships', () => {
  const shippedOf = (packages: Packages): Packages =>
    Object.fromEntries(Object.entries(packages).filter((entry) => !entry[1].dev && !isCompiler(nameOf(entry))));

  it('is named in the SBOM, all of it and nothing else, with licences and checksums', async () => {
    const told = execFileSync(process.execPath, ['scripts/sbom.ts'], { encoding: 'utf8' });
    const { metadata, components } = JSON.parse(told);
    expect(metadata.component).to.include({ name: 'memoryd', type: 'application' });
    const shipped = Object.entries(shippedOf(await packagesOf('package-lock.json')));
    const named = components.map(({ name, version }: { name: string; version: string }) => `${name}@${version}`);
    expect(named).to.have.members([...new Set(shipped.map(nameOf))]);
    for (const { name, version, licenses, hashes } of components) {
      expect(hashes, name).to.have.length(1);
      if (!READ[`${name}@${version}`]) expect(licenses, name).to.have.length(1);
    }
  });

  it('is under licences that ask for nothing but their text, and what builds and tests under such that let anybody use it', async () => {
    const packages = await packagesOf('package-lock.json');
    const shipped = shippedOf(packages);
    expect(Object.keys(shipped)).to.include.members(['node_modules/pg', 'node_modules/diff', 'node_modules/lru-cache']);
    expect(unlicensed(shipped, SHIPPED)).to.deep.equal([]);
    const rest = Object.fromEntries(Object.entries(packages).filter(([place]) => !shipped[place]));
    expect(unlicensed(rest, DEVELOPMENT)).to.deep.equal([]);
    expect(unlicensed(await packagesOf('bench/peers/package-lock.json'), DEVELOPMENT)).to.deep.equal([]);
    // What was read ships still, in that version.
    expect(Object.entries(packages).map(nameOf)).to.include.members(Object.keys(READ));
  });

  it('may be under no other licence: copyleft, one that was made up, none, or one that a package had in another version', () => {
    const faults = (version: string, license?: string) =>
      unlicensed({ 'node_modules/a/node_modules/url-template': { version, ...(license && { license }) } }, SHIPPED);
    for (const licence of ['GPL-3.0-only', 'MIT AND GPL-2.0-or-later', 'SSPL-1.0', 'SEE LICENSE IN LICENSE', 'BSD'])
      expect(faults('9.0.0', licence)).to.deep.equal([`url-template@9.0.0: ${licence}`]);
    expect(faults('9.0.0')).to.deep.equal(['url-template@9.0.0: no licence']);
    expect(faults('9.0.0', 'MIT')).to.deep.equal([]);
    expect(faults('2.0.8', 'BSD')).to.deep.equal([]);
  });
}).timeout(30_000);

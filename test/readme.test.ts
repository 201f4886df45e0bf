import { readFile } from 'node:fs/promises';
import { expect } from 'chai';
import { settingsTable } from '../src/config.ts';

describe('README', () => {
  it('has the settings as they are', async () => {
    const readme = await readFile(new URL('../README.md', import.meta.url), 'utf8');
    const [, table] = /<!-- settings -->\n([\s\S]*?)\n?<!-- \/settings -->/.exec(readme) ?? [];
    expect(table).to.equal(settingsTable());
  });

  it('shows to clients the code that the interop tests run', async () => {
    const [doc, example] = await Promise.all(
      ['../docs/clients.md', 'interop/typescript/live.ts'].map((file) =>
        readFile(new URL(file, import.meta.url), 'utf8'),
      ),
    );
    expect(doc).to.include(`\n\`\`\`ts\n${example}\`\`\`\n`);
  });

  it('has the service config that the package brings along, where clients are told of it', async () => {
    const guide = await readFile(new URL('../docs/clients.md', import.meta.url), 'utf8');
    const [, shown] = /```json\n([\s\S]*?)```/.exec(guide) ?? [];
    expect(shown).to.equal(await readFile(new URL('../proto/memory/service_config.json', import.meta.url), 'utf8'));
  });

  it('names only files that exist', async () => {
    const readme = await readFile(new URL('../README.md', import.meta.url), 'utf8');
    for (const [, path] of readme.matchAll(/\]\(([^)#:]+)\)/g)) {
      await readFile(new URL(`../${path}`, import.meta.url)).catch((error) => {
        if (error.code !== 'EISDIR') throw error;
      });
    }
  });
});

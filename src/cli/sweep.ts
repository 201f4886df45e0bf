import { Command } from 'commander';
import { keyFileOption } from './options.ts';

export function sweepCommand(): Command {
  return new Command('sweep')
    .description(
      'Removes once what has expired, was deleted or is older than its tenant keeps it, in all tenants, and tells how many rows of each kind.',
    )
    .addOption(keyFileOption('Needed for audit events: a signed block tells that they were removed.'))
    .action(async ({ keyFile }: { keyFile?: string }) => {
      const [{ direct, keyringIn }, { sweep }] = await Promise.all([
        import('./direct.ts'),
        import('../tenants/expiry.ts'),
      ]);
      const keyring = keyFile === undefined ? undefined : await keyringIn(keyFile);
      const counts = await direct(({ database }) => sweep(database, undefined, keyring));
      for (const [kind, rows] of [...counts].sort()) console.log(`${kind}\t${rows}`);
      if (counts.size === 0) console.log('nothing to remove');
    });
}

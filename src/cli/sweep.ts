import { Command } from 'commander';

export function sweepCommand(): Command {
  return new Command('sweep')
    .description('Removes once what has expired or was deleted, in all tenants, and tells how many rows of each kind.')
    .action(async () => {
      const [{ direct }, { sweep }] = await Promise.all([import('./direct.ts'), import('../tenants/expiry.ts')]);
      const counts = await direct(({ database }) => sweep(database));
      for (const [kind, rows] of [...counts].sort()) console.log(`${kind}\t${rows}`);
      if (counts.size === 0) console.log('nothing to remove');
    });
}

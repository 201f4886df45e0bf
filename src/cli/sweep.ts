import { Command } from 'commander';

export function sweepCommand(): Command {
  return new Command('sweep')
    .description('Removes once what has expired or was deleted, in all tenants, and tells how many rows of each kind.')
    .action(async () => {
      const { UserError } = await import('../errors.ts');
      throw new UserError('there is no sweep yet');
    });
}

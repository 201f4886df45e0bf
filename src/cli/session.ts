import { Command } from 'commander';
import type { Scope } from '../db/transaction.ts';

export function sessionCommand(): Command {
  const command = new Command('session').description('Looks at sessions.');
  command
    .command('show')
    .description('Prints a session as JSON.')
    .argument('<id>', 'The session.')
    .requiredOption('--tenant <id>', 'Its tenant.')
    .requiredOption('--env <name>', 'Its env.')
    .requiredOption('--user <id>', 'Its user.')
    .action(async (id: string, scope: Scope) => {
      const [{ direct, print, requireUuid }, { reader }, { getSession }] = await Promise.all([
        import('./direct.ts'),
        import('../db/transaction.ts'),
        import('../sessions/repository.ts'),
      ]);
      requireUuid('the session', id);
      print(await direct(({ database, limits }) => getSession(reader(database, scope, limits), id)));
    });
  return command;
}

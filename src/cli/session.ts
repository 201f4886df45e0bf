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
      const [{ checked, direct, print }, { reader }, { getSession }] = await Promise.all([
        import('./direct.ts'),
        import('../db/transaction.ts'),
        import('../sessions/repository.ts'),
      ]);
      const { tenant, env, user } = scope;
      const session = await direct(async ({ database, limits }) => {
        checked((check) => {
          check.uuid('id', id);
          check.slug('tenant', tenant);
          check.slug('env', env);
        });
        return getSession(reader(database, { tenant, env, user }, limits), id);
      });
      print(session);
    });
  return command;
}

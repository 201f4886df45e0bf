import { Command } from 'commander';

export function keysCommand(): Command {
  const command = new Command('keys').description("The service's own keys, for page tokens and the like.");
  command
    .command('add')
    .description(
      'Puts a new key first in FILE, which is made if it is not there. The others still open what they sealed.',
    )
    .argument('<file>')
    .action(async (file: string) => {
      const [{ addKey }, { UserError }] = await Promise.all([import('../db/keyring.ts'), import('../errors.ts')]);
      const count = await addKey(file).catch((error) => {
        throw new UserError(`${file} cannot be written: ${error.message}`);
      });
      console.log(`${file} holds ${count === 1 ? '1 key' : `${count} keys`}; restart the service to use the new one`);
    });
  return command;
}

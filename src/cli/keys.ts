import { Command, Option } from 'commander';
import { duration } from '../config.ts';
import { orRefuse } from './options.ts';

const AFTER = new Option('--after <duration>', 'When it seals. Until then the one before it goes on.')
  .argParser(orRefuse(duration))
  .default(duration('10m'), '10m');

export function keysCommand(): Command {
  const command = new Command('keys').description(
    "The service's own keys, in a file: for page tokens, replays and signatures. Running servers look at it each second.",
  );
  command
    .command('add')
    .description(
      'Puts a new key into FILE, which is made if it is not there. It opens at once, and seals after a while: every server must have it by then.',
    )
    .argument('<file>')
    .addOption(AFTER)
    .action((file: string, { after }: { after: number }) => run((files) => files.add(file, after)));
  command
    .command('list')
    .description('Tells of each key in FILE its id and what it does, newest first.')
    .argument('<file>')
    .action((file: string) => run((files) => files.list(file)));
  command
    .command('remove')
    .description('Takes a key out of FILE. What it sealed opens no more.')
    .argument('<file>')
    .argument('<id>')
    .option('--at-once', 'Also if it has sealed within the last 24 hours: it was stolen, say.', false)
    .action((file: string, id: string, { atOnce }: { atOnce: boolean }) =>
      run((files) => files.remove(file, id, atOnce)),
    );
  return command;
}

async function run(work: (files: typeof import('./key-files.ts')) => Promise<string[]>): Promise<void> {
  for (const line of await work(await import('./key-files.ts'))) console.log(line);
}

import { Command, InvalidArgumentError, Option } from 'commander';
import type { TailOptions } from './follow.ts';

function revision(text: string): number {
  const number = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN;
  if (!Number.isSafeInteger(number)) throw new InvalidArgumentError('It is not a whole number.');
  return number;
}

export function tailCommand(): Command {
  return new Command('tail')
    .description(
      'Follows a thread or a session of a running server: readable on a terminal, a line of JSON for each event in a pipe.',
    )
    .addOption(new Option('--thread <id>', 'The thread to follow.').conflicts('session'))
    .option('--session <id>', 'The session to follow.')
    .option('--tenant <id>', 'Its tenant. A token may name it instead.')
    .option('--env <name>', 'Its env, likewise.')
    .option('--user <id>', 'Its user, likewise.')
    .option('--address <host:port>', 'Where the server is.', '127.0.0.1:50051')
    .option('--after <revision>', 'Tells only what came after this revision.', revision, 0)
    .option('--no-follow', 'Ends when everything that is there was told.')
    .addOption(
      new Option(
        '--token <jwt or file>',
        'Who calls, for a server in --auth=jwt. A file is read anew at each connection; other users see a command line.',
      ).env('MEMORYD_TOKEN'),
    )
    .option('--tls', 'Speaks TLS, and believes the certificates that the system believes.')
    .option('--tls-ca <file>', 'Speaks TLS, and believes the certificates of this CA (PEM) instead.')
    .option('--tls-cert <file>', 'Speaks TLS, and shows this certificate (PEM).')
    .option('--tls-key <file>', 'Private key of --tls-cert (PEM).')
    .action(async (options: TailOptions) => {
      const { tail } = await import('./follow.ts');
      await tail(options);
    });
}

import { Command, InvalidArgumentError, Option } from 'commander';
import type { AuditExportOptions, SealOptions, VerifyOptions } from './auditing.ts';
import { keyFileOption } from './options.ts';

function time(text: string): Date {
  const found = /^\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d{1,3})?)?(Z|[+-]\d\d:\d\d))?$/.test(text)
    ? new Date(text)
    : undefined;
  if (!found || Number.isNaN(found.getTime()))
    throw new InvalidArgumentError('It is neither a day in UTC nor a time such as 2026-11-01T12:00:00Z.');
  return found;
}

/** The audit trail, in the database. */
export function auditCommand(): Command {
  const command = new Command('audit').description('Exports, seals and verifies the audit trail, in the database.');
  command
    .command('export')
    .description(
      'Writes the audit events of a tenant and env, with those of the tenant itself, as lines of JSON, the oldest first. Leaves an event of its own.',
    )
    .argument('[file]', 'Where to, for its owner only. A name in .gz is compressed; - is stdout.', '-')
    .requiredOption('--tenant <id>', 'The tenant.')
    .requiredOption('--env <name>', 'Its env.')
    .option('--start <time>', 'Only events at or after this time, such as 2026-11-01 or 2026-11-01T12:00:00Z.', time)
    .option('--end <time>', 'Only events before this time.', time)
    .option('--user <id>', 'Only of this user.', '')
    .option('--actor <id>', 'Only what this caller did.', '')
    .option('--action <name>', 'Only this action, such as sessions.upsert.', '')
    .option('--session <id>', 'Only of this session.', '')
    .option('--resource <name>', 'Only of this resource.', '')
    .option('--trace <id>', 'Only of the call with this trace id.', '')
    .option('--request <id>', 'Only of the call with this request_id.', '')
    .addOption(new Option('--outcome <outcome>', 'Only with this outcome.').choices(['done', 'denied']))
    .action(async (file: string, options: AuditExportOptions) => {
      const { exportAudit } = await import('./auditing.ts');
      await exportAudit(file, options);
    });
  command
    .command('verify')
    .description(
      'Compares audit events with the chains in which they were sealed. Prints a line for each event and block that was changed, removed, inserted or reordered, and ends with 1 if there is any. Of a sound chain it prints the last block: note these lines where nobody who owns the database can change them.',
    )
    .option('--tenant <id>', 'One tenant instead of all.')
    .option('--env <name>', 'One of its envs instead of all and of what the tenant did itself. Needs --tenant.')
    .option(
      '--anchors <file>',
      'What verify printed earlier: each of these blocks must still be there. Else whoever owns the database could have cut off the ends.',
    )
    .addOption(keyFileOption().makeOptionMandatory())
    .action(async (options: VerifyOptions) => {
      const { verifyAudit } = await import('./auditing.ts');
      await verifyAudit(options);
    });
  command
    .command('seal')
    .description(
      'Seals once what is committed, in all tenants, as the service does each minute, and tells how many events.',
    )
    .addOption(keyFileOption().makeOptionMandatory())
    .action(async (options: SealOptions) => {
      const { seal } = await import('./auditing.ts');
      await seal(options);
    });
  return command;
}

import { Command, InvalidArgumentError } from 'commander';
import type { UsageOptions } from './usage-table.ts';

const DIMENSIONS = ['session', 'user', 'project', 'day', 'provider', 'model'];

function dimensions(text: string): string[] {
  const wanted = text.split(',').map((word) => word.trim());
  for (const one of wanted) {
    if (!DIMENSIONS.includes(one)) throw new InvalidArgumentError(`It is not one of ${DIMENSIONS.join(', ')}.`);
  }
  return [...new Set(wanted)];
}

export function usageCommand(): Command {
  return new Command('usage')
    .description(
      'Tells what a tenant used and what it cost: a table on a terminal, a line of JSON for each row in a pipe.',
    )
    .requiredOption('--tenant <id>', 'The tenant.')
    .requiredOption('--env <name>', 'Its env.')
    .option('--by <list>', `What to tell it by: any of ${DIMENSIONS.join(', ')}, with commas between.`, dimensions, [])
    .option('--from <day>', 'The first day, in UTC, such as 2026-11-01.', '')
    .option('--to <day>', 'The last day, likewise.', '')
    .option('--user <id>', 'Only of this user.', '')
    .option('--session <id>', 'Only of this session.', '')
    .option('--project <id>', 'Only of this project.', '')
    .option('--provider <name>', 'Only of this provider.', '')
    .option('--model <name>', 'Only of this model.', '')
    .action(async (options: UsageOptions) => {
      const { tellUsage } = await import('./usage-table.ts');
      await tellUsage(options);
    });
}

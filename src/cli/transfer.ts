import { Command, Option } from 'commander';
import type { FrameworkOptions } from './frameworks.ts';
import type { ExportOptions, ImportOptions } from './transfers.ts';

export function exportCommand(): Command {
  return new Command('export')
    .description(
      'Writes everything that the service holds of a tenant, or of one project, as lines of JSON: one snapshot, which only the owner of the file may read.',
    )
    .argument('<file>', 'Where to. A name in .gz is compressed; - is stdout.')
    .requiredOption('--tenant <id>', 'The tenant.')
    .option('--env <name>', 'One of its envs instead of all.')
    .option('--project <id>', 'One project instead of everything. Needs --env.')
    .action(async (file: string, options: ExportOptions) => {
      const { runExport } = await import('./transfers.ts');
      await runExport(file, options);
    });
}

export function importCommand(): Command {
  return new Command('import')
    .description(
      'Stores what an export holds, or conversations of another framework. What is there already is left alone: run it again if it was interrupted.',
    )
    .argument('[file]', 'The export. - is stdin.')
    .option('--tenant <id>', 'Into this tenant instead of the one that was exported.')
    .option('--env <name>', 'Into this env, if one env was exported.')
    .option('--dry-run', 'Only checks, compares with what is there, and reports.', false)
    .addOption(
      new Option(
        '--from <framework>',
        'Instead of a file, reads the tables of this framework. Needs --tenant and --env.',
      ).choices(['mastra', 'langgraph', 'adk']),
    )
    .addOption(new Option('--source-url <url>', 'With --from: the Postgres that has them.').env('MEMORYD_SOURCE_URL'))
    .option('--user <id>', 'With --from: whose the conversations are that name no user.')
    .option('--add-members', 'With --from: makes their users members of the env who are none.', false)
    .action(async (file: string | undefined, options: ImportOptions & FrameworkOptions) => {
      if (options.from) {
        const { runFrameworkImport } = await import('./frameworks.ts');
        await runFrameworkImport(file, options);
      } else {
        const { runImport } = await import('./transfers.ts');
        await runImport(file, options);
      }
    });
}

import { Command } from 'commander';
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
      'Stores what an export holds. What is there already is left alone: run it again if it was interrupted. It stores nothing where something else is there.',
    )
    .argument('<file>', 'The export. - is stdin.')
    .option('--tenant <id>', 'Into this tenant instead of the one that was exported.')
    .option('--env <name>', 'Into this env, if one env was exported.')
    .option('--dry-run', 'Only checks the file, and compares it with what is there.', false)
    .action(async (file: string, options: ImportOptions) => {
      const { runImport } = await import('./transfers.ts');
      await runImport(file, options);
    });
}

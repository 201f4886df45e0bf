import { Command, Option } from 'commander';
import { storeUrl } from '../snapshots/open.ts';
import { orRefuse } from './options.ts';
import type { RehydrateOptions } from './rehydrating.ts';

export function rehydrateCommand(): Command {
  return new Command('rehydrate')
    .description(
      'Rebuilds what was committed of a project from its snapshots, which are verified by their checksums. What is there already is left alone: run it again if it was interrupted.',
    )
    .requiredOption('--tenant <id>', 'The tenant, which must be there: see `memoryd tenant create`.')
    .requiredOption('--env <name>', 'Its env.')
    .requiredOption('--project <id>', 'The project.')
    .addOption(
      new Option('--from <url>', 'The snapshot store, as `serve --snapshot-store` takes it.')
        .argParser(orRefuse(storeUrl))
        .makeOptionMandatory(),
    )
    .action(async (options: RehydrateOptions) => {
      const { runRehydrate } = await import('./rehydrating.ts');
      await runRehydrate(options);
    });
}

import { Command } from 'commander';
import { databaseUrlOf } from '../config.ts';
import { UserError } from '../errors.ts';
import { directOption } from './options.ts';

interface Options {
  directDatabaseUrl?: string;
}

export function migrateCommand(): Command {
  const command = new Command('migrate').description('Brings the schema up to date, or tells how it is.');
  command
    .command('up', { isDefault: true })
    .description(
      'Applies the migrations that are missing, as the owner of the schema. Safe to run twice, also at once.',
    )
    .addOption(directOption())
    .action(async ({ directDatabaseUrl }: Options) => {
      const url = directDatabaseUrl ?? databaseUrlOf(process.env);
      const [{ migrate }, { withClient }, { sqlState }] = await Promise.all([
        import('../db/migrate.ts'),
        import('../preflight.ts'),
        import('../db/failure.ts'),
      ]);
      const applied = await withClient(url, () => migrate(url)).catch((error) => {
        if (error instanceof UserError || !sqlState(error)) throw error;
        throw new UserError(`the schema stays as it was: ${error.message}`); // it speaks of tables, not of rows
      });
      for (const file of applied) console.log(`applied ${file}`);
      if (applied.length === 0) console.log('nothing to apply');
    });
  command
    .command('status')
    .description('Tells the version of the schema. Exits with 1 if this program cannot run on it.')
    .addOption(directOption())
    .action(async ({ directDatabaseUrl }: Options) => {
      const url = directDatabaseUrl ?? databaseUrlOf(process.env);
      const [{ readSchemaState, schemaFault }, { withClient }] = await Promise.all([
        import('../db/migrate.ts'),
        import('../preflight.ts'),
      ]);
      const state = await withClient(url, (client) => readSchemaState((sql) => client.query(sql)));
      console.log(`schema version ${state.version}, needed ${state.known}`);
      const fault = schemaFault(state);
      if (fault) throw new UserError(fault);
    });
  return command;
}

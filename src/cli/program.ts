import { Command } from 'commander';
import { UserError } from '../errors.ts';
import { auditCommand } from './audit.ts';
import { keysCommand } from './keys.ts';
import { migrateCommand } from './migrate.ts';
import { rehydrateCommand } from './rehydrate.ts';
import { devCommand, serveCommand } from './serve.ts';
import { sessionCommand } from './session.ts';
import { sweepCommand } from './sweep.ts';
import { tailCommand } from './tail.ts';
import { tenantCommand } from './tenant.ts';
import { exportCommand, importCommand } from './transfer.ts';
import { usageCommand } from './usage.ts';

const ENVIRONMENT = `
Environment:
  DATABASE_URL  the Postgres to use, or the standard PG* variables
  OTEL_*        the standard variables of OpenTelemetry: traces are sent if an endpoint is set`;

const program = new Command('memoryd')
  .description('Session memory for chat and agent orchestrators: a multi-tenant gRPC service on Postgres.')
  .addHelpText('after', ENVIRONMENT);

for (const command of [
  devCommand,
  serveCommand,
  migrateCommand,
  tenantCommand,
  sweepCommand,
  exportCommand,
  importCommand,
  rehydrateCommand,
  sessionCommand,
  usageCommand,
  tailCommand,
  auditCommand,
  keysCommand,
]) {
  program.addCommand(command());
}

try {
  await program.parseAsync();
} catch (error) {
  // One line for what the user can mend; a stack for what we must.
  if (error instanceof UserError) console.error(`memoryd: ${error.message}`);
  else console.error((await import('../rpc/observe.ts')).describe(error));
  process.exit(1);
}

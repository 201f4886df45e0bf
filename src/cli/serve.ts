import { Command } from 'commander';
import { type Config, DEV_DATA, type makeConfig, warningsOf } from '../config.ts';
import { addSettings, configOf } from './options.ts';

type Options = NonNullable<Parameters<typeof makeConfig>[1]>;

export function serveCommand(): Command {
  const command = new Command('serve').description('Serves on a migrated database.');
  return addSettings(command, false).action(async (options: Options) => {
    const config = configOf(options);
    if (config.workers > 1) return serveWithWorkers(config);
    const [{ startServer }, { features }, { createLog }, { endOnUncaught, untilSignal }] = await Promise.all([
      import('../server.ts'),
      import('../features.ts'),
      import('../log.ts'),
      import('./run.ts'),
    ]);
    const log = createLog(config.logLevel);
    endOnUncaught(log);
    const server = await startServer(config, features, log);
    for (const warning of warningsOf(config)) log.warn(warning);
    const { host, port, metricsPort } = server;
    log.info(
      { host, port, ...(metricsPort && { metricsPort }), auth: config.auth, ms: Math.round(performance.now()) },
      'ready',
    );
    await untilSignal(log, server.stop);
    log.info('stopped');
    process.exit(0);
  });
}

/** The same command runs in each of the processes. */
async function serveWithWorkers(config: Config): Promise<void> {
  const { default: cluster } = await import('node:cluster');
  if (cluster.isPrimary) return (await import('./workers.ts')).superviseWorkers(config);
  return (await import('./worker.ts')).serveAsWorker(config);
}

export function devCommand(): Command {
  const command = new Command('dev')
    .description('Serves with a Postgres of its own, whose data are kept in a folder, and with tenants to try.')
    .option('--data <folder>', 'Folder of the database and the keys.', DEV_DATA);
  return addSettings(command, true, ['keyFile', 'directDatabaseUrl', 'workers']).action(
    async (options: Options & { data: string }) => {
      const { dev } = await import('./dev.ts');
      await dev(options.data, options);
    },
  );
}

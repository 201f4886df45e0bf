import { AggregatorRegistry } from 'prom-client';
import { type Config, warningsOf } from '../config.ts';
import { createLog, stdout } from '../log.ts';
import { serveMetrics } from '../rpc/endpoint.ts';
import { endOnUncaught, untilSignal } from './run.ts';
import { openTeam, type Team } from './team.ts';

/** `serve` with several processes on one port: the first one starts and watches the workers, and answers for all of them. */
export async function superviseWorkers(config: Config): Promise<void> {
  const { host, auth, workers, metricsHost, metricsPort } = config;
  const lines = stdout({ sync: false });
  const log = createLog(config.logLevel, lines);
  endOnUncaught(log);
  const team = openTeam(workers, lines, log);
  const port = await team.start().catch(() => process.exit(1)); // the worker has told why
  for (const warning of warningsOf(config)) log.warn(warning);
  let draining = false;
  const endpoint =
    metricsPort === undefined
      ? undefined
      : await serveMetrics(metricsHost, metricsPort, {
          metrics: () => metricsOf(team),
          fault: async () => (draining ? 'draining' : faultOf(team)),
        });
  const metrics = endpoint && { metricsPort: endpoint.port };
  log.info({ host, port, ...metrics, auth, workers, ms: Math.round(performance.now()) }, 'ready');
  await untilSignal(log, async () => {
    draining = true;
    await team.stop();
    await endpoint?.close();
  });
  log.info('stopped');
  process.exit(0);
}

/** Counters and gauges as sums, or as their definition has it. */
async function metricsOf(team: Team): Promise<string> {
  const states = await team.states();
  return AggregatorRegistry.aggregate(states.map(({ metrics }) => metrics)).metrics();
}

/** One worker that is well is enough: connections go to those that serve. */
async function faultOf(team: Team): Promise<string | undefined> {
  const states = await team.states();
  if (states.length === 0) return 'no worker serves';
  return states.every(({ fault }) => fault) ? states[0]!.fault : undefined;
}

import { readFile } from 'node:fs/promises';
import { ServerCredentials, setLogger } from '@grpc/grpc-js';
import type { Logger } from 'pino';
import type { Config } from './config.ts';
import { changes } from './db/changes.ts';
import { followKeyFile, type KeyFile } from './db/key-file.ts';
import { type Key, type Keyring, keyringOf, sealingKey } from './db/keyring.ts';
import { type Database, openDatabase } from './db/pool.ts';
import { UserError } from './errors.ts';
import { checkDatabase } from './preflight.ts';
import { denials } from './rpc/denials.ts';
import { type Endpoint, serveMetrics } from './rpc/endpoint.ts';
import { fingerprints } from './rpc/fingerprint.ts';
import { watchHealth } from './rpc/health.ts';
import { type Authenticate, trustHeaders } from './rpc/identity.ts';
import type { Service } from './rpc/implement.ts';
import { type InFlight, inFlight } from './rpc/inflight.ts';
import type { Kernel } from './rpc/kernel.ts';
import { memberships } from './rpc/membership.ts';
import { createMetrics, type Metrics } from './rpc/metrics.ts';
import { describe, observer } from './rpc/observe.ts';
import { reflection } from './rpc/reflection.ts';
import { openTracing, type Tracer } from './rpc/tracing.ts';
import { createTransport } from './rpc/transport.ts';
import { turnstile } from './rpc/turnstile.ts';

/** What the features are made of. */
export interface Deps {
  config: Config;
  kernel: Kernel;
  metrics: Metrics;
  log: Logger;
  /** Has something done when no call is under way any more, while the database is still there. */
  atEnd(finish: () => Promise<void>): void;
}

/** What runs beside the calls, until it is told to stop. */
export interface Background {
  stop(): Promise<void>;
}

export interface Features {
  services(deps: Deps): Service[];
  background?(deps: Deps): Promise<Background>;
}

export interface RunningServer {
  readonly host: string;
  readonly port: number;
  /** 0 if there is none. */
  readonly metricsPort: number;
  readonly kernel: Kernel;
  readonly metrics: Metrics;
  /** Why calls cannot be served, or undefined. */
  fault(): string | undefined;
  /** Drains and ends. May be called again. */
  stop(): Promise<void>;
}

/** Puts the service together and starts it. Whatever is missing is a UserError, and leaves nothing running. */
export async function startServer(config: Config, features: Features, log: Logger): Promise<RunningServer> {
  const undo: (() => unknown)[] = [];
  try {
    const keyFile = await openKeyFile(config.keyFile, log);
    undo.push(() => keyFile.stop());
    const keyring = keyringOf(() => keyFile.keys);
    const [credentials, authenticate, tracer, schema] = await Promise.all([
      credentialsOf(config),
      authenticatorOf(config, log),
      tracerOf(log),
      checkDatabase(config.databaseUrl),
    ]);
    const database = openDatabase({
      connectionString: config.databaseUrl,
      poolSize: config.poolSize,
      poolWaitMs: config.poolWait,
      sharedConnections: config.sharedConnections,
      preparedStatements: config.preparedStatements,
    });
    undo.push(() => database.close());

    const calls = inFlight(config.maxInFlight);
    const openStreams = inFlight(config.maxOpenStreams, 'open streams');
    const metrics = createMetrics(database, calls, openStreams);
    const { olderUntil } = schema;
    const parts = { config, database, keyring, olderUntil, authenticate, calls, openStreams, metrics, tracer, log };
    const kernel = kernelOf(parts);
    const finishers: (() => Promise<void>)[] = [];
    const deps = { config, kernel, metrics, log, atEnd: (finish: () => Promise<void>) => void finishers.push(finish) };

    const transport = createTransport({
      ...config,
      authenticate,
      observe: kernel.observe,
      unknownMethod: metrics.unknownMethod,
      connectionRefused: metrics.connectionRefused,
    });
    const services = features.services(deps);
    const names = [
      ...new Set(
        services.flatMap(({ definition }) => Object.values(definition).map(({ path }) => path.split('/')[1]!)),
      ),
    ];
    const health = watchHealth({ database, log, services: names, schema: schema.known });
    undo.push(() => health.close());
    for (const service of [...services, health.service, ...reflection(kernel, [...names, 'grpc.health.v1.Health'])]) {
      transport.add(service);
    }

    logGrpc(() => {}); // that the port is taken is told once, by the error
    const port = await transport.listen(config.host, config.port, credentials);
    logGrpc((line) => log.warn({ grpc: withoutValues(line) })); // of headers that callers send
    undo.push(() => transport.drain(0));
    let endpoint: Endpoint | undefined;
    if (config.metricsPort !== undefined) {
      endpoint = await serveMetrics(config.metricsHost, config.metricsPort, {
        metrics: () => metrics.registry.metrics(),
        fault: async () => health.fault,
      });
      undo.push(() => endpoint?.close());
    }
    const background = await features.background?.(deps).catch((error: Error) => {
      throw new UserError(`the background jobs cannot start: ${error.message.split('\n')[0]}`, { cause: error });
    });

    /** Not ready any more, so that no new calls are sent; then no open streams, no new calls, no open calls, no database. */
    async function drain(): Promise<void> {
      health.drain();
      await new Promise((resolve) => setTimeout(resolve, config.drainWait));
      calls.close();
      openStreams.close();
      await Promise.all([transport.drain(config.drainTimeout), background?.stop()]);
      // Streams have ended for their clients by now; what they still had to store is stored first.
      await Promise.race([
        openStreams.idle(),
        new Promise((resolve) => setTimeout(resolve, config.drainTimeout).unref()),
      ]);
      await Promise.all([endpoint?.close(), tracer?.stop(), ...finishers.map((finish) => finish())]);
      await database.close();
      keyFile.stop();
    }
    let stopped: Promise<void> | undefined;
    const stop = () => {
      stopped ??= drain();
      return stopped;
    };
    const fault = () => health.fault;
    return { host: config.host, port, metricsPort: endpoint?.port ?? 0, kernel, metrics, fault, stop };
  } catch (error) {
    for (const step of undo.reverse()) await step();
    throw error;
  }
}

/** grpc-js would write to stderr. */
function logGrpc(error: (line: string) => void): void {
  setLogger({ error: (line?: unknown) => error(String(line)), info() {}, debug() {} });
}

/** grpc-js tells the value of a header that it cannot take, which may be a token. */
const withoutValues = (line: string) => line.replace(/^(Failed to add metadata entry [^:]{1,100}).*$/s, '$1');

interface KernelParts {
  config: Config;
  database: Database;
  keyring: Keyring;
  /** See {@link fingerprints}. */
  olderUntil: number;
  authenticate: Authenticate;
  calls: InFlight;
  openStreams: InFlight;
  metrics: Metrics;
  tracer: Tracer | undefined;
  log: Logger;
}

function kernelOf(parts: KernelParts): Kernel {
  const { config, database, keyring, olderUntil, authenticate, calls, openStreams, metrics, tracer, log } = parts;
  const members = memberships(database, keyring);
  return {
    database,
    keyring,
    fingerprints: fingerprints(keyring, olderUntil),
    authenticate,
    members,
    denials: denials(database, members, log),
    inFlight: calls,
    openStreams,
    turnstile: turnstile({ calls, streams: openStreams }),
    changes: changes(),
    observe: observer(log, metrics, tracer),
    count: metrics.counted,
    refused: metrics.refused,
    callMs: config.callTimeout,
    streamMs: config.maxConnectionAge,
  };
}

async function readSecret(flag: string, file: string): Promise<Buffer> {
  return readFile(file).catch((error) => {
    throw new UserError(`${flag}: ${error.code === 'ENOENT' ? `there is no file ${file}` : error.message}`);
  });
}

async function openKeyFile(file: string | undefined, log: Logger): Promise<KeyFile> {
  if (!file) throw new UserError('--key-file is missing: make one with `memoryd keys add FILE`');
  const about = (keys: Key[]) => ({ keys: keys.map(({ id }) => id), seals: sealingKey(keys).id });
  try {
    return await followKeyFile(file, {
      changed: (keys) => log.info(about(keys), 'key file read'),
      failed: (error) => log.error({ err: describe(error) }, 'key file not read: the keys stay as they were'),
    });
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    throw new UserError(
      code === 'ENOENT'
        ? `--key-file: there is no file ${file}: make it with \`memoryd keys add ${file}\``
        : `--key-file ${file}: ${message}`,
    );
  }
}

async function authenticatorOf(config: Config, log: Logger): Promise<Authenticate> {
  if (config.auth === 'trusted') return trustHeaders;
  const { jwtAuthenticate } = await import('./rpc/jwt.ts');
  const { jwks = '', issuer = '', audience = '', algorithms } = config;
  try {
    return await jwtAuthenticate({ jwks, issuer, audience, algorithms, warn: (message) => log.warn(message) });
  } catch (error) {
    throw new UserError(`--jwks ${jwks}: ${(error as Error).message.split('\n')[0]}`);
  }
}

async function tracerOf(log: Logger): Promise<Tracer | undefined> {
  return openTracing(process.env, (message) => log.warn(message)).catch((error: Error) => {
    throw new UserError(error.message);
  });
}

async function credentialsOf({ tlsCert, tlsKey, tlsClientCa }: Config): Promise<ServerCredentials> {
  if (!tlsCert || !tlsKey) return ServerCredentials.createInsecure();
  const [cert_chain, private_key, ca] = await Promise.all([
    readSecret('--tls-cert', tlsCert),
    readSecret('--tls-key', tlsKey),
    tlsClientCa ? readSecret('--tls-client-ca', tlsClientCa) : null,
  ]);
  try {
    return ServerCredentials.createSsl(ca, [{ cert_chain, private_key }], ca !== null);
  } catch (error) {
    throw new UserError(`--tls-cert, --tls-key or --tls-client-ca cannot be used: ${(error as Error).message}`);
  }
}

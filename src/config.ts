import { UserError } from './errors.ts';
import { storeUrl } from './snapshots/open.ts';

/** One flag: how its text becomes a value, what stands if it is not given, and what it means. */
export interface Setting<T> {
  /** What the value is called in the help, as in `--port <number>`. */
  value: string;
  parse(text: string): T;
  /** As it would be given on the command line. */
  standard: string | undefined;
  meaning: string;
  /** The variable that has it where no flag does: for what holds a password, which others would see on the command line. */
  env?: string;
}

const setting = <T>(value: string, parse: (text: string) => T, standard: string, meaning: string): Setting<T> => ({
  value,
  parse,
  standard,
  meaning,
});

const optional = <T>(
  value: string,
  parse: (text: string) => T,
  meaning: string,
  env?: string,
): Setting<T | undefined> => ({
  value,
  parse,
  standard: undefined,
  meaning,
  ...(env && { env }),
});

const UNITS: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };
// Node's timers overflow past this, and then fire at once.
const MAX_MS = 2 ** 31 - 1;

/** Milliseconds of `250ms`, `30s`, `5m`, `1h`, `7d`. */
export function duration(text: string): number {
  const [, count, unit] = /^(\d{1,9})(ms|s|m|h|d)$/.exec(text) ?? [];
  const ms = Number(count) * (UNITS[unit ?? ''] ?? Number.NaN);
  if (Number.isNaN(ms) || ms > MAX_MS) {
    throw new UserError(`"${text}" is not a duration of at most 24 days, such as 250ms, 30s, 5m, 1h or 7d`);
  }
  return ms;
}

function lasting(text: string): number {
  const ms = duration(text);
  if (ms === 0) throw new UserError('it must be longer than 0');
  return ms;
}

function minutes(text: string): number {
  const ms = duration(text);
  if (ms % 60_000 !== 0 || ms > 30 * 60_000) throw new UserError(`"${text}" is not 0m to 30m in whole minutes`);
  return ms;
}

const whole =
  (min: number, max: number) =>
  (text: string): number => {
    const number = /^\d{1,10}$/.test(text) ? Number(text) : Number.NaN;
    if (!(number >= min && number <= max)) throw new UserError(`"${text}" is not a whole number from ${min} to ${max}`);
    return number;
  };

const oneOf =
  <T extends string>(...allowed: T[]) =>
  (text: string): T => {
    const found = allowed.find((name) => name === text);
    if (!found) throw new UserError(`"${text}" is not one of ${allowed.join(', ')}`);
    return found;
  };

function word(text: string): string {
  if (!text.trim()) throw new UserError('it must not be empty');
  return text;
}

const onOff = (text: string) => oneOf('on', 'off')(text) === 'on';

// Only asymmetric ones: a key that verifies must not be able to sign.
const ALGORITHM = oneOf(
  ...(['RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512', 'ES256', 'ES384', 'ES512', 'EdDSA'] as const),
);
const algorithms = (text: string) => text.split(',').map((name) => ALGORITHM(name.trim()));

const port = whole(0, 65_535);
const storeOrNone = (text: string) => (text === 'none' ? 'none' : storeUrl(text));

/** Every flag of `serve` and `dev`. The options, their help and the README's table are made of this. */
export const SETTINGS = {
  host: setting('address', word, '127.0.0.1', 'Address to listen on. `0.0.0.0` or `::` for all.'),
  port: setting('number', port, '50051', 'Port to listen on. 0: any free one.'),
  workers: setting(
    'number',
    whole(1, 64),
    '1',
    'Processes of `serve` on the port. A connection stays with its worker.',
  ),
  auth: setting('mode', oneOf('trusted', 'jwt'), 'jwt', 'Who is believed: `jwt` tokens, or `trusted` headers.'),
  jwks: optional('url or file', word, 'Keys that sign the tokens. Required by `--auth=jwt`.'),
  issuer: optional('text', word, "The tokens' `iss`. Required by `--auth=jwt`."),
  audience: optional('text', word, "The tokens' `aud`. Required by `--auth=jwt`."),
  algorithms: setting('list', algorithms, 'RS256,ES256,EdDSA', 'Signature algorithms that are accepted.'),
  tlsCert: optional('file', word, 'Certificate chain (PEM). Without it the port speaks plain text.'),
  tlsKey: optional('file', word, 'Private key of `--tls-cert` (PEM).'),
  tlsClientCa: optional('file', word, 'CA of the client certificates (PEM). With it, clients must show one.'),
  keyFile: optional('file', word, "The service's own keys: see `memoryd keys add`. Required by `serve`."),
  directDatabaseUrl: optional(
    'url',
    word,
    'The database without a pooler between, for migrations and jobs.',
    'MEMORYD_DIRECT_DATABASE_URL',
  ),
  preparedStatements: setting('on|off', onOff, 'on', 'Named statements. `off` behind PgBouncer before 1.21.'),
  sharedConnections: setting(
    'number',
    whole(0, 64),
    '2',
    'Connections that point reads share, of each worker. 0 on Citus.',
  ),
  poolSize: setting('number', whole(1, 1000), '20', 'Database connections for everything else, of each worker.'),
  poolWait: setting('duration', lasting, '30s', 'How long a call waits for a connection at most.'),
  sessionKeyTtl: setting('duration', lasting, '7d', 'Life of a session key.'),
  callTimeout: setting('duration', lasting, '30s', 'How long a call may take, whatever deadline its client sets.'),
  maxInFlight: setting(
    'number',
    whole(1, 1_000_000),
    '1000',
    'Calls under way in a worker, of one tenant three quarters; more get `RESOURCE_EXHAUSTED`.',
  ),
  maxOpenStreams: setting('number', whole(1, 1_000_000), '10000', 'Open watches and message streams, likewise.'),
  maxStreams: setting('number', whole(1, 1_000_000), '1000', 'Concurrent calls of one connection.'),
  maxConnections: setting(
    'number',
    whole(1, 1_000_000),
    '10000',
    'Open connections of a worker; more are closed at once.',
  ),
  maxConnectionAge: setting('duration', lasting, '30m', 'When a connection is asked to reconnect.'),
  maxConnectionAgeGrace: setting('duration', lasting, '5m', 'How long its calls may go on then.'),
  drainWait: setting('duration', duration, '2s', 'On a signal: how long it goes on, not ready, before it drains.'),
  drainTimeout: setting('duration', duration, '10s', 'On a signal: how long calls under way may go on.'),
  jobs: setting(
    'on|off',
    onOff,
    'on',
    'The jobs that servers share: the sweep, sums of usage, reading for profiles, words of searches. Some server must have them.',
  ),
  sweepInterval: setting('duration', minutes, '1m', 'How often what has expired is removed: up to 30m. 0m: never.'),
  snapshotStore: setting(
    'url',
    storeOrNone,
    'file:.memoryd/snapshots',
    'Where snapshots of what is committed are kept: `file:///folder`, `s3://bucket/prefix`, `gdrive://folder`, or `none`. `dev` has its own in `--data`.',
  ),
  metricsPort: optional('number', port, 'Port of `/metrics`, `/livez` and `/readyz` (HTTP). Off if not given.'),
  metricsHost: setting('address', word, '127.0.0.1', 'Address of the metrics port.'),
  logLevel: setting(
    'level',
    oneOf('debug', 'info', 'warn', 'error', 'silent'),
    'info',
    'Least severity that is logged. `info` has a line for each call.',
  ),
};

export type SettingName = keyof typeof SETTINGS;

type Settings = { readonly [Name in SettingName]: ReturnType<(typeof SETTINGS)[Name]['parse']> };

/** Everything that can be set, checked. Besides flags there are only variables that hold passwords, and the PG* and OTEL_* that pg and tracing read. */
export interface Config extends Settings {
  /** Undefined: the standard PG* variables tell. */
  readonly databaseUrl: string | undefined;
}

type Standards = Partial<Record<SettingName, string>>;

export const DEV_DATA = '.memoryd';

/** What stands where `dev`, with its data at this path of a URL, is told nothing: it is for one machine, and stops at once. */
export const devStandards = (data = DEV_DATA): Standards => ({
  auth: 'trusted',
  drainWait: '0s',
  drainTimeout: '5s',
  snapshotStore: `file:${data}/snapshots`,
});

export const flagOf = (name: string): string => `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;

/** The standard values, with others in place of some, checked against each other. */
export function makeConfig(
  databaseUrl: string | undefined,
  chosen: Partial<Settings> = {},
  standards: Standards = {},
): Config {
  const settings: Record<string, unknown> = {};
  for (const [name, { standard, parse }] of Object.entries(SETTINGS) as [SettingName, Setting<unknown>][]) {
    const text = standards[name] ?? standard;
    settings[name] = chosen[name] ?? (text === undefined ? undefined : parse(text));
  }
  const config = { ...(settings as unknown as Settings), databaseUrl };
  checkTogether(config);
  return Object.freeze(config);
}

const LOOPBACK = /^(127\.\d+\.\d+\.\d+|::1|\[::1\]|localhost)$/;

function checkTogether(config: Config): void {
  const { auth, host, jwks, issuer, audience, tlsCert, tlsKey, tlsClientCa } = config;
  if (!tlsCert !== !tlsKey) throw new UserError('--tls-cert and --tls-key go together');
  if (tlsClientCa && !tlsCert) throw new UserError('--tls-client-ca needs --tls-cert and --tls-key');
  if (auth === 'jwt' && !(jwks && issuer && audience)) {
    throw new UserError('--auth=jwt needs --jwks, --issuer and --audience');
  }
  if (auth === 'trusted' && !LOOPBACK.test(host) && !tlsClientCa) {
    throw new UserError(
      `--auth=trusted believes whoever connects: on ${host} it needs --tls-client-ca, or use --auth=jwt`,
    );
  }
}

/** What is allowed, and should not be by oversight. */
export function warningsOf({ auth, host, tlsCert, databaseUrl }: Config): string[] {
  const remote = URL.parse(databaseUrl ?? '');
  const inClear = remote?.hostname && !LOOPBACK.test(remote.hostname) && !/[?&]ssl/.test(remote.search);
  return [
    ...(auth === 'jwt' && !tlsCert && !LOOPBACK.test(host)
      ? [`tokens pass in clear to ${host}: use --tls-cert and --tls-key, or let only a proxy that does reach it`]
      : []),
    ...(inClear && !process.env.PGSSLMODE
      ? [`the database at ${remote.hostname} is reached in clear: use sslmode=verify-full in DATABASE_URL`]
      : []),
  ];
}

/** The database that the environment names. None is guessed: pg would try localhost. */
export function databaseUrlOf(env: NodeJS.ProcessEnv): string | undefined {
  const named = ['DATABASE_URL', 'PGHOST', 'PGDATABASE', 'PGUSER', 'PGPORT'].some((name) => env[name]);
  if (!named)
    throw new UserError('DATABASE_URL is not set (nor are PGHOST and the like): it names the Postgres to use');
  const url = env.DATABASE_URL || undefined;
  // Anything else pg would take as a path on a host that it makes up.
  if (url && !/^(postgres(ql)?:\/\/|socket:|\/)/.test(url)) {
    throw new UserError('DATABASE_URL is not a URL such as postgres://user:password@host:5432/database');
  }
  return url;
}

/** The README's table of settings. */
export function settingsTable(): string {
  const standards = devStandards();
  const rows = Object.entries(SETTINGS).map(([name, { value, standard, meaning }]) => {
    const dev = standards[name as SettingName] ?? standard;
    const shown = standard === undefined ? '' : `\`${standard}\`${dev === standard ? '' : ` (dev: \`${dev}\`)`}`;
    return `| \`${flagOf(name)} <${value.replace('|', '\\|')}>\` | ${shown} | ${meaning} |`;
  });
  return ['| flag | default | meaning |', '| --- | --- | --- |', ...rows].join('\n');
}

import { randomUUID } from 'node:crypto';
import {
  Channel,
  ChannelCredentials,
  type ChannelOptions,
  type ClientUnaryCall,
  Metadata,
  type ServiceError,
} from '@grpc/grpc-js';
import { expect } from 'chai';
import pg from 'pg';
import type { Logger } from 'pino';
import { makeConfig } from '../src/config.ts';
import { migrate } from '../src/db/migrate.ts';
import { features } from '../src/features.ts';
import { BadRequest, ErrorInfo, QuotaFailure, RetryInfo } from '../src/gen/google/rpc/error_details.ts';
import { Status } from '../src/gen/google/rpc/status.ts';
import * as adminTypes from '../src/gen/memory/v1/admin_service.ts';
import * as artifactTypes from '../src/gen/memory/v1/artifact_service.ts';
import * as auditTypes from '../src/gen/memory/v1/audit_service.ts';
import * as conversationTypes from '../src/gen/memory/v1/conversation_service.ts';
import * as memoryTypes from '../src/gen/memory/v1/memory_service.ts';
import * as profileTypes from '../src/gen/memory/v1/profile_service.ts';
import * as projectTypes from '../src/gen/memory/v1/project_memory_service.ts';
import * as usageTypes from '../src/gen/memory/v1/usage_service.ts';
import { createLog, silentLog } from '../src/log.ts';
import { type RunningServer, startServer } from '../src/server.ts';

/** Runs plain SQL on a connection of its own. As the owner it sees all tenants only where row-level security lets it. */
export async function runSql(url: string, sql: string, values?: unknown[]): Promise<any[]> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    return (await client.query(sql, values)).rows;
  } finally {
    await client.end();
  }
}

export const ownerUrl = (): string => process.env.MEMORYD_TEST_OWNER_URL!;
export const appUrl = (): string => process.env.MEMORYD_TEST_APP_URL!;

/**
 * How a server under test reaches a database of the test Postgres. TEST_POOLER, `host:port` of a PgBouncer in transaction
 * mode: through that, but for what a pooler cannot carry.
 */
export function serviceDatabase(direct = appUrl()) {
  const pooler = process.env.TEST_POOLER;
  if (!pooler) return { url: direct, preparedStatements: true };
  const url = new URL(direct);
  url.host = pooler;
  return { url: url.href, preparedStatements: false, directDatabaseUrl: direct };
}

type Unary<Request, Response> = (
  request: Request,
  metadata: Metadata,
  options: object,
  callback: (error: ServiceError | null, response: Response) => void,
) => ClientUnaryCall;

/** A client whose unary methods are promises, with default values for the fields left out. */
export type Promised<Client> = {
  [Name in keyof Client as Client[Name] extends Unary<any, any> ? Name : never]: Client[Name] extends Unary<
    infer Request,
    infer Response
  >
    ? (
        request?: memoryTypes.DeepPartial<Request>,
        metadata?: Metadata,
        options?: { deadline?: number },
      ) => Promise<Response>
    : never;
};

export interface Clients {
  memory: Promised<memoryTypes.MemoryServiceClient>;
  conversation: Promised<conversationTypes.ConversationServiceClient>;
  project: Promised<projectTypes.ProjectMemoryServiceClient>;
  profile: Promised<profileTypes.ProfileServiceClient>;
  artifact: Promised<artifactTypes.ArtifactServiceClient>;
  admin: Promised<adminTypes.AdminServiceClient>;
  audit: Promised<auditTypes.AuditServiceClient>;
  usage: Promised<usageTypes.UsageServiceClient>;
  /** Any method by its path, as `/memory.v1.MemoryService/GetSession`, with the bytes of the request. Of a stream the first answer, if there is one. */
  raw(path: string, bytes: Buffer, metadata?: Metadata): Promise<Buffer>;
  /** The generated clients themselves, for streams. */
  streams: {
    memory: memoryTypes.MemoryServiceClient;
    conversation: conversationTypes.ConversationServiceClient;
    usage: usageTypes.UsageServiceClient;
    audit: auditTypes.AuditServiceClient;
  };
  close(): void;
}

const same = (buffer: Buffer) => buffer;
const STREAMING = new Set(
  [
    memoryTypes.MemoryServiceService,
    conversationTypes.ConversationServiceService,
    usageTypes.UsageServiceService,
    auditTypes.AuditServiceService,
  ]
    .flatMap((definition) => Object.values(definition))
    .filter((method) => method.requestStream || method.responseStream)
    .map((method) => method.path as string),
);

/** Clients of all services over one connection, that call with these headers unless a call brings its own. */
export function connect(
  address: string,
  headers: Record<string, string> = {},
  channel: Partial<ChannelOptions> = {},
): Clients {
  const credentials = ChannelCredentials.createInsecure();
  const channelOverride = new Channel(address, credentials, channel);
  const all = {
    memory: new memoryTypes.MemoryServiceClient(address, credentials, { channelOverride }),
    conversation: new conversationTypes.ConversationServiceClient(address, credentials, { channelOverride }),
    project: new projectTypes.ProjectMemoryServiceClient(address, credentials, { channelOverride }),
    profile: new profileTypes.ProfileServiceClient(address, credentials, { channelOverride }),
    artifact: new artifactTypes.ArtifactServiceClient(address, credentials, { channelOverride }),
    admin: new adminTypes.AdminServiceClient(address, credentials, { channelOverride }),
    audit: new auditTypes.AuditServiceClient(address, credentials, { channelOverride }),
    usage: new usageTypes.UsageServiceClient(address, credentials, { channelOverride }),
  };
  const defaults = metadataOf(headers);
  const promised = (client: any, types: any) =>
    new Proxy(client, {
      get(_target, name: string) {
        const requestType = types[`${name[0]!.toUpperCase()}${name.slice(1)}Request`];
        return (request: object = {}, metadata: Metadata = defaults, options: object = {}) =>
          new Promise((resolve, reject) => {
            const settings = { deadline: Date.now() + 15_000, ...options };
            const done = (error: unknown, response: unknown) => (error ? reject(error) : resolve(response));
            client[name](requestType.fromPartial(request), metadata, settings, done);
          });
      },
    });
  return {
    memory: promised(all.memory, memoryTypes),
    conversation: promised(all.conversation, conversationTypes),
    project: promised(all.project, projectTypes),
    profile: promised(all.profile, profileTypes),
    artifact: promised(all.artifact, artifactTypes),
    admin: promised(all.admin, adminTypes),
    audit: promised(all.audit, auditTypes),
    usage: promised(all.usage, usageTypes),
    raw: (path, bytes, metadata = defaults) =>
      new Promise((resolve, reject) => {
        const options = { deadline: Date.now() + 15_000 };
        if (!STREAMING.has(path)) {
          all.memory.makeUnaryRequest(path, same, same, bytes, metadata, options, (e, r) =>
            e ? reject(e) : resolve(r!),
          );
          return;
        }
        const call = all.memory.makeBidiStreamRequest(path, same, same, metadata, options);
        call.on('error', reject); // also that it was cancelled, when nobody listens any more
        call.on('end', () => resolve(Buffer.alloc(0)));
        call.on('data', (answer) => {
          resolve(answer);
          call.cancel();
        });
        call.end(bytes);
      }),
    streams: all,
    close: () => Object.values(all).forEach((client) => client.close()),
  };
}

export function metadataOf(headers: Record<string, string>): Metadata {
  const metadata = new Metadata();
  for (const [name, value] of Object.entries(headers)) metadata.set(name, value);
  return metadata;
}

/** A database of its own, migrated, for what must not reach other tests. */
export async function newDatabase(): Promise<{ name: string; owner: string; app: string }> {
  const name = `memoryd_${randomUUID().replaceAll('-', '')}`;
  await runSql(ownerUrl(), `create database ${name}`);
  const [owner, app] = [new URL(ownerUrl()), new URL(appUrl())];
  owner.pathname = app.pathname = `/${name}`;
  await migrate(owner.href);
  return { name, owner: owner.href, app: app.href };
}

/**
 * Makes a database of its own the one of this test file, where nothing that other files do, such as sweep, can be seen. Gives
 * what undoes that, which must be called at the end, as the process goes on with other files.
 */
export async function useOwnDatabase(): Promise<() => void> {
  const use = (urls: { owner: string; app: string }) => {
    process.env.MEMORYD_TEST_OWNER_URL = urls.owner;
    process.env.MEMORYD_TEST_APP_URL = urls.app;
  };
  const shared = { owner: ownerUrl(), app: appUrl() };
  use(await newDatabase());
  return () => use(shared);
}

/** A server in this process, as `serve` makes it, on a free port; jobs run only when a test runs them. */
export async function startTestServer(
  settings: Parameters<typeof makeConfig>[1] = {},
  log: Logger = process.env.TEST_LOG ? createLog('info') : silentLog(),
  direct = appUrl(),
): Promise<RunningServer> {
  const { url, ...database } = serviceDatabase(direct);
  const chosen = {
    ...database,
    auth: 'trusted',
    port: 0,
    keyFile: process.env.MEMORYD_TEST_KEY_FILE,
    snapshotStore: 'none',
    drainWait: 0,
    jobs: false,
  } as const;
  return startServer(makeConfig(url, { ...chosen, ...settings }), features, log);
}

/** A fresh tenant with env `dev` and these members, made directly in the directory. */
export async function newTenant(
  members: string[] = ['user'],
  policies: Record<string, number | Record<string, number>> = {},
  url = ownerUrl(),
): Promise<string> {
  const tenant = `t-${randomUUID()}`;
  await runSql(url, 'insert into tenants (tenant_id, envs, policies) values ($1, $2, $3)', [
    tenant,
    ['dev', 'prod'],
    policies,
  ]);
  for (const user of members) await addMember(tenant, user, 'dev', url);
  return tenant;
}

/** Adds a member; a user id that starts with `admin` is an admin. */
export async function addMember(tenant: string, user: string, env = 'dev', url = ownerUrl()): Promise<void> {
  const role = user.startsWith('admin') ? 2 : 1;
  await runSql(url, 'insert into tenant_members (tenant_id, env, user_id, role) values ($1, $2, $3, $4)', [
    tenant,
    env,
    user,
    role,
  ]);
}

export const headersOf = (tenant: string, user = 'user', env = 'dev'): Record<string, string> => ({
  'x-tenant-id': tenant,
  'x-env': env,
  'x-user-id': user,
});

/** What a failed call told, with its google.rpc details. */
export interface Failure {
  code: number;
  message: string;
  reason: string;
  metadata: Record<string, string>;
  violations: { field: string; description: string; reason: string }[];
  retryAfterMs: number | undefined;
  /** Only where a quota or a budget refused. */
  quota?: { subject: string; description: string };
}

/** The failure of a call that must fail. */
export async function failure(call: Promise<unknown>): Promise<Failure> {
  const error = await call.then(
    () => expect.fail('the call should have failed'),
    (e: ServiceError) => e,
  );
  return failureOf(error);
}

export function failureOf(error: ServiceError): Failure {
  const result: Failure = {
    code: error.code,
    message: error.details,
    reason: '',
    metadata: {},
    violations: [],
    retryAfterMs: undefined,
  };
  const [bytes] = error.metadata?.get('grpc-status-details-bin') ?? [];
  if (!bytes) return result;
  for (const detail of Status.decode(bytes as Buffer).details) {
    if (detail.typeUrl.endsWith('ErrorInfo')) {
      const info = ErrorInfo.decode(detail.value);
      expect(info.domain).to.equal('memoryd');
      Object.assign(result, { reason: info.reason, metadata: Object.fromEntries(info.metadata) });
    }
    if (detail.typeUrl.endsWith('BadRequest')) {
      result.violations = BadRequest.decode(detail.value).fieldViolations.map(({ field, description, reason }) => ({
        field,
        description,
        reason,
      }));
    }
    if (detail.typeUrl.endsWith('QuotaFailure')) {
      const { subject, description } = QuotaFailure.decode(detail.value).violations[0]!;
      result.quota = { subject, description };
    }
    if (detail.typeUrl.endsWith('RetryInfo')) {
      const delay = RetryInfo.decode(detail.value).retryDelay;
      result.retryAfterMs = delay && delay.seconds * 1000 + delay.nanos / 1e6;
    }
  }
  return result;
}

/** Plain SQL as the runtime role, which sees this tenant and env only. */
export async function tenantSql(tenant: string, sql: string, values?: unknown[], env = 'dev'): Promise<any[]> {
  const client = new pg.Client({ connectionString: appUrl() });
  await client.connect();
  try {
    await client.query(`select set_config('app.tenant_id', $1, false), set_config('app.env', $2, false)`, [
      tenant,
      env,
    ]);
    return (await client.query(sql, values)).rows;
  } finally {
    await client.end();
  }
}

/** How many rows each of these tables holds of a tenant and env. */
export async function rowCounts(tenant: string, tables: string[], env = 'dev'): Promise<Record<string, number>> {
  const counts = tables.map((table) => `(select count(*)::int from ${table}) as ${table}`);
  const [row] = await tenantSql(tenant, `select ${counts.join(', ')}`, [], env);
  return row;
}

/** The first thing that `probe` gives that is not undefined or false. */
export async function until<T>(probe: () => Promise<T>): Promise<Exclude<T, undefined | false>> {
  for (;;) {
    const found = await probe();
    if (found !== undefined && found !== false) return found as Exclude<T, undefined | false>;
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
}

/** Everything that a list gives, page by page. */
export async function allPages<Page extends { nextPageToken: string }>(
  list: (pageToken: string) => Promise<Page>,
): Promise<Page[]> {
  const pages: Page[] = [];
  do pages.push(await list(pages.at(-1)?.nextPageToken ?? ''));
  while (pages.at(-1)!.nextPageToken);
  return pages;
}

/** A timestamp in nanoseconds, to be compared. */
export const nanosOf = (time: { seconds: number; nanos: number } | undefined): bigint =>
  BigInt(time!.seconds) * 1_000_000_000n + BigInt(time!.nanos);

import { Metadata, type ServiceError, status } from '@grpc/grpc-js';
import { RequestIdReused } from '../db/change.ts';
import { CommitUnknown, DatabaseAway, Interrupted, Overtaken, PoolExhausted, sqlState } from '../db/failure.ts';
import type { LeaseState } from '../db/lease.ts';
import { BadPageToken } from '../db/page.ts';
import { timestampText } from '../db/statement.ts';
import { BadRequest, ErrorInfo, QuotaFailure, RetryInfo } from '../gen/google/rpc/error_details.ts';
import { Status } from '../gen/google/rpc/status.ts';

import type { Caller } from './caller.ts';

export interface Violation {
  field: string;
  description: string;
  reason?: string;
}

export interface ErrorDetails {
  metadata?: Record<string, string>;
  violations?: Violation[];
  retryAfterMs?: number;
  quota?: { subject: string; description: string };
}

/** A refusal, thrown where it is found and translated once. The message is for the caller: never content, never a secret. */
export class RpcError extends Error {
  readonly code: status;
  readonly reason: string;
  readonly details: ErrorDetails;
  /** Who was refused, where that is known before the call has an identity. */
  caller?: Caller;

  constructor(code: status, reason: string, message: string, details: ErrorDetails = {}) {
    super(message);
    this.code = code;
    this.reason = reason;
    this.details = details;
  }
}

/** More are not looked for: a request of 4 MiB can hold a million. */
export const MAX_VIOLATIONS = 100;

export const invalid = (violations: Violation[]) =>
  new RpcError(
    status.INVALID_ARGUMENT,
    'INVALID_REQUEST',
    violations
      .slice(0, MAX_VIOLATIONS)
      .map((v) => `${v.field}: ${v.description}`)
      .join('; '),
    { violations },
  );

export const notFound = (what: string) => new RpcError(status.NOT_FOUND, 'NOT_FOUND', `${what} not found`);
export const deleted = (what: string) => new RpcError(status.NOT_FOUND, 'DELETED', `${what} was deleted`);
export const denied = (reason: string, message: string) => new RpcError(status.PERMISSION_DENIED, reason, message);
export const unauthenticated = (reason: string, message: string) =>
  new RpcError(status.UNAUTHENTICATED, reason, message);
export const notInstalled = (extension: string, message: string) =>
  new RpcError(status.FAILED_PRECONDITION, 'CAPABILITY_NOT_INSTALLED', message, { metadata: { extension } });
export const etagMismatch = (etag: string) =>
  new RpcError(status.ABORTED, 'ETAG_MISMATCH', 'the etag is not the current one', { metadata: { etag } });
export const staleToken = () =>
  new RpcError(status.ABORTED, 'STALE_FENCING_TOKEN', 'the fencing token is not the current one');
/** Another holds the lease: who, until when, and so when to try again. Never its token. */
export const leaseHeld = (reason: string, what: string, lease: LeaseState) =>
  new RpcError(status.FAILED_PRECONDITION, reason, `${what} is held`, {
    metadata: { holder: lease.leaseHolder ?? '', expire_time: timestampText(lease.leaseExpireTime ?? undefined) ?? '' },
    retryAfterMs: Math.max(0, lease.leaseLeftMs ?? 0),
  });
export const conflict = (message: string) => new RpcError(status.ABORTED, 'CONFLICT', message, { retryAfterMs: 10 });
export const unavailable = (reason: string, message: string, retryAfterMs = 1000) =>
  new RpcError(status.UNAVAILABLE, reason, message, { retryAfterMs });
export const drainingError = () => unavailable('DRAINING', 'this server is stopping; another one takes the call');
export const exhausted = (reason: string, message: string, retryAfterMs: number) =>
  new RpcError(status.RESOURCE_EXHAUSTED, reason, message, { retryAfterMs });

// Bounds that only the database can check: a merged value may be over a limit that neither part was.
const CONSTRAINTS: Record<string, Violation> = {
  sessions_preferences_size: { field: 'session.preferences', description: 'over 64 KiB after the merge' },
  sessions_state_size: { field: 'session.state', description: 'over 64 KiB after the merge' },
  sessions_metadata_size: { field: 'session.metadata', description: 'over 64 KiB after the merge' },
  sessions_metrics_size: { field: 'session.metrics', description: 'over 64 KiB after the merge' },
  sessions_pinned_refs_count: { field: 'session.pinned_refs', description: 'more than 200 after the merge' },
  sessions_summary_refs_count: { field: 'session.summary_refs', description: 'more than 100 after the merge' },
  sessions_size: { field: 'session', description: 'over 2 MiB after the merge' },
  project_inputs_sections_count: { field: 'section_ids', description: 'more than 1,000 with those that there are' },
  bundles_size: { field: 'selection', description: 'the messages are over 1 MiB together' },
};

/** Any error as a refusal. What is not meant for the caller becomes INTERNAL with a generic text. */
export function toRpcError(error: unknown): RpcError {
  if (error instanceof RpcError) return error;
  if (error instanceof DatabaseAway) return unavailable('DATABASE_AWAY', 'the database cannot be reached');
  if (error instanceof CommitUnknown) {
    return unavailable(
      'COMMIT_UNKNOWN',
      'the connection was lost while committing; retry with a request_id to settle it',
    );
  }
  if (error instanceof PoolExhausted)
    return exhausted('POOL_EXHAUSTED', 'no database connection came free in time', 1000);
  if (error instanceof Interrupted)
    return new RpcError(status.DEADLINE_EXCEEDED, 'DEADLINE_EXCEEDED', 'the deadline has passed');
  if (error instanceof Overtaken) return conflict('too many concurrent changes');
  if (error instanceof BadPageToken) return invalid([{ field: 'page_token', description: error.message }]);
  if (error instanceof RequestIdReused) {
    return new RpcError(status.INVALID_ARGUMENT, 'REQUEST_ID_REUSED', error.message, {
      violations: [{ field: 'request_id', description: error.message }],
    });
  }
  return fromDatabase(error) ?? new RpcError(status.INTERNAL, 'INTERNAL', 'internal error');
}

function fromDatabase(error: unknown): RpcError | undefined {
  switch (sqlState(error)) {
    case '23514': {
      const violation = CONSTRAINTS[(error as { constraint?: string }).constraint ?? ''];
      return violation && invalid([violation]);
    }
    case '22021':
    case '22P05':
      return invalid([{ field: '', description: 'text that cannot be stored' }]);
    case '40001':
    case '40P01':
      return new RpcError(status.ABORTED, 'CONFLICT', 'too many concurrent changes', { retryAfterMs: 100 });
    case '57014':
      return new RpcError(status.DEADLINE_EXCEEDED, 'DEADLINE_EXCEEDED', 'the deadline has passed');
    case '53300':
    case '57P03':
      return unavailable('DATABASE_AWAY', 'the database takes no connections');
  }
  return undefined;
}

// Clients commonly accept 8 kB of headers, in which the details come as base64 beside the percent-encoded message; larger
// ones wedge the connection (grpc-js 1.14). The limits of the texts leave room for one violation in any case.
const DETAILS_LIMIT = 4000;
const MESSAGE_LIMIT = 800;
const METADATA_LIMIT = 800;
const TEXT_LIMIT = 400;
const NAME_LIMIT = 64;

const utf8 = new TextEncoder();

/** Well-formed, without control characters, and cut to so many bytes of UTF-8. */
function text(value: string, limit = TEXT_LIMIT): string {
  const clean = value
    .slice(0, limit + 1)
    .toWellFormed()
    .replace(/[\0-\x1f\x7f]/g, '\ufffd');
  const { read } = utf8.encodeInto(clean, new Uint8Array(limit));
  return read < clean.length ? `${clean.slice(0, read)}…` : clean;
}

/** The first of these that fit into so many bytes. */
function fitting<T>(elements: Iterable<T>, limit: number, bytes: (element: T) => number): T[] {
  const fit: T[] = [];
  let left = limit;
  for (const element of elements) {
    left -= bytes(element);
    if (left < 0) break;
    fit.push(element);
  }
  return fit;
}

const any = (type: string, writer: { finish(): Uint8Array }) => ({
  typeUrl: `type.googleapis.com/google.rpc.${type}`,
  value: Buffer.from(writer.finish()),
});

function errorInfo({ reason, details: { metadata = {} } }: RpcError) {
  const entries = Object.entries(metadata).map(([key, value]) => [text(key, NAME_LIMIT), text(value)] as const);
  const fit = fitting(entries, METADATA_LIMIT, ([key, value]) => Buffer.byteLength(key) + Buffer.byteLength(value));
  return any(
    'ErrorInfo',
    ErrorInfo.encode(ErrorInfo.fromPartial({ reason, domain: 'memoryd', metadata: new Map(fit) })),
  );
}

function retryInfo(ms: number) {
  const whole = Math.ceil(ms);
  const retryDelay = { seconds: Math.floor(whole / 1000), nanos: (whole % 1000) * 1e6 };
  return any('RetryInfo', RetryInfo.encode(RetryInfo.fromPartial({ retryDelay })));
}

function quotaFailure({ subject, description }: { subject: string; description: string }) {
  const violations = [{ subject: text(subject), description: text(description) }];
  return any('QuotaFailure', QuotaFailure.encode(QuotaFailure.fromPartial({ violations })));
}

function badRequest(violations: Violation[], limit: number) {
  const clean = violations.slice(0, MAX_VIOLATIONS).map(({ field, description, reason = '' }) => ({
    field: text(field),
    description: text(description),
    reason: text(reason, NAME_LIMIT),
  }));
  // Each of its three fields and the violation itself have a tag and a length.
  const bytes = (v: (typeof clean)[0]) => 12 + Buffer.byteLength(v.field + v.description + v.reason);
  return any(
    'BadRequest',
    BadRequest.encode(BadRequest.fromPartial({ fieldViolations: fitting(clean, limit, bytes) })),
  );
}

/** No channel should hold a call back for longer than a minute: told a negative number, it gives up instead. */
const pushback = (ms: number): string => (ms <= 60_000 ? String(Math.ceil(ms)) : '-1');

/** The error as grpc-js sends it, with its google.rpc.Status, in which as many violations are named as fit. */
export function toServiceError(error: RpcError): ServiceError {
  const { code, details: of } = error;
  const message = text(error.message, MESSAGE_LIMIT);
  const details = [errorInfo(error)];
  if (of.retryAfterMs !== undefined) details.push(retryInfo(of.retryAfterMs));
  if (of.quota) details.push(quotaFailure(of.quota));
  const encode = () => Buffer.from(Status.encode({ code, message, details }).finish());
  let bytes = encode();
  if (of.violations?.length) {
    details.push(badRequest(of.violations, DETAILS_LIMIT - bytes.length - 64));
    bytes = encode();
  }
  const metadata = new Metadata();
  metadata.set('grpc-status-details-bin', bytes);
  // Channels that retry by themselves heed this rather than RetryInfo.
  if (of.retryAfterMs !== undefined) metadata.set('grpc-retry-pushback-ms', pushback(of.retryAfterMs));
  return { name: 'RpcError', message, code, details: message, metadata };
}

import { status } from '@grpc/grpc-js';
import type { TenantQuotas } from '../gen/memory/v1/tenant.ts';
import { RpcError } from './errors.ts';

/** The quotas that a tenant has, each more than 0. */
export type Quotas = Readonly<TenantQuotas>;
export type Quota = keyof TenantQuotas;

export const NO_QUOTAS: Quotas = {};

/** Each quota: its name in the API, and what it bounds. */
export const QUOTAS: Record<Quota, { name: string; bounds: string; most: number }> = {
  maxSessions: { name: 'max_sessions', bounds: 'live sessions', most: Number.MAX_SAFE_INTEGER },
  maxMessagesPerThread: {
    name: 'max_messages_per_thread',
    bounds: 'messages in a thread',
    most: Number.MAX_SAFE_INTEGER,
  },
  maxStoredBytes: { name: 'max_stored_bytes', bounds: 'bytes of content', most: Number.MAX_SAFE_INTEGER },
  maxCallsPerSecond: { name: 'max_calls_per_second', bounds: 'calls in a second', most: 1_000_000 },
  maxConcurrentCalls: { name: 'max_concurrent_calls', bounds: 'calls at once', most: 1_000_000 },
};

export const ALL_QUOTAS = Object.entries(QUOTAS) as [Quota, (typeof QUOTAS)[Quota]][];

/** When to try again what only a removal makes room for: too late for a channel to hold the call back until then. */
const ROOM_MS = 5 * 60_000;

export function overQuota(tenant: string, quota: Quota, limit: number, retryAfterMs = ROOM_MS): RpcError {
  const { name, bounds } = QUOTAS[quota];
  const description = `${name}: at most ${limit.toLocaleString('en')} ${bounds}`;
  return new RpcError(status.RESOURCE_EXHAUSTED, 'QUOTA_EXCEEDED', `the tenant's quota is used up (${description})`, {
    metadata: { quota: name, limit: String(limit) },
    retryAfterMs,
    quota: { subject: `tenants/${tenant}`, description },
  });
}

/** The methods that add content. Those that change, take away or lease what is there go on when the bytes are used up. */
export const ADDING: ReadonlySet<string> = new Set([
  'ArtifactService/CommitArtifact',
  'ArtifactService/PutProjectProfile',
  'ArtifactService/RegisterInput',
  'ArtifactService/RestoreDraft',
  'ArtifactService/SaveDraft',
  'AuditService/RecordPrompt',
  'AuditService/RecordToolCall',
  'ConversationService/AppendMessages',
  'ConversationService/BeginTurn',
  'ConversationService/CommitTurn',
  'ConversationService/StreamMessage',
  'MemoryService/AppendSessionContext',
  'MemoryService/ForwardBundle',
  'MemoryService/ResumeSession',
  'MemoryService/RestoreSessionState',
  'MemoryService/SaveBundle',
  'MemoryService/UpsertSession',
  'ProfileService/UpdateProfile',
  'ProjectMemoryService/PutMemory',
  'ProjectMemoryService/RestoreMemory',
  'UsageService/RecordLlmRequest',
]);

import { randomBytes } from 'node:crypto';
import { Metadata } from '@grpc/grpc-js';
import type { Scope } from '../src/db/transaction.ts';
import { AppendMessagesRequest, ListMessagesRequest } from '../src/gen/memory/v1/conversation_service.ts';
import { type GetSessionRequest, UpsertSessionRequest } from '../src/gen/memory/v1/memory_service.ts';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import { PinnedRef_Kind } from '../src/gen/memory/v1/session.ts';

export const OPERATIONS = ['GetSession', 'UpsertSession', 'AppendMessages', 'ListMessages'] as const;
export type Operation = (typeof OPERATIONS)[number];

/** What the calls are about: each caller has a session that it reads, and a session and a thread that it writes. */
export interface Subjects {
  scope: Scope;
  readSessions: string[];
  writtenSessions: string[];
  writtenThreads: string[];
  /** One for all, of some hundred messages. */
  readThread: string;
}

export const metadataOf = ({ tenant, env, user }: Scope): Metadata => {
  const metadata = new Metadata();
  metadata.set('x-tenant-id', tenant);
  metadata.set('x-env', env);
  metadata.set('x-user-id', user);
  return metadata;
};

/** A session as an orchestrator keeps it, of about 1.5 KiB on the wire. */
export function newSession(name: string): UpsertSessionRequest {
  return UpsertSessionRequest.fromPartial({
    session: {
      surfaceId: 'web',
      projectId: 'atlas',
      threadId: name,
      title: 'Revenue by region, second quarter',
      preferences: {
        language: 'en',
        tone: 'brief',
        units: 'metric',
        citations: true,
        model: { name: 'large-2', temperature: 0.2, tools: ['search', 'sql', 'files'] },
      },
      state: {
        goal: 'Compare revenue by region with the forecast and explain what is off by more than five percent.',
        step: 4,
        plan: ['load the ledger', 'group by region', 'join the forecast', 'explain', 'draft the report'],
        open: { region: 'emea', rows: 1824, filter: { from: '2026-04-01', to: '2026-06-30', currency: 'EUR' } },
      },
      metadata: { client: 'web/5.12.0', locale: 'en-GB' },
      pinnedRefs: [
        {
          kind: PinnedRef_Kind.FILE,
          uri: 'file:///reports/2026/q2/ledger.parquet',
          text: 'Ledger of the second quarter',
        },
        { kind: PinnedRef_Kind.FACT, text: 'The fiscal year starts in April; figures are in thousands of euros.' },
        { kind: PinnedRef_Kind.URL, uri: 'https://example.com/forecast/2026', text: 'The forecast as it was approved' },
      ],
      summaryRefs: [
        {
          text: 'The user compares revenue by region; EMEA is seven percent below the forecast, mostly in May.',
          throughSeq: 24,
        },
      ],
      toolId: 'analyst',
      workspacePath: '/home/user/atlas',
    },
  });
}

export const getSession = (sessionId: string): GetSessionRequest => ({ sessionId });

/** What an orchestrator notes after a step. */
export const touchSession = (id: string): UpsertSessionRequest =>
  UpsertSessionRequest.fromPartial({
    session: { id, state: { step: 5, open: { region: 'apac', rows: 977 } }, metadata: { client: 'web/5.12.1' } },
  });

const CONTENT = randomBytes(375).toString('base64'); // 500 characters that do not compress

export const appendMessage = (threadId: string, count = 1): AppendMessagesRequest =>
  AppendMessagesRequest.fromPartial({
    threadId,
    messages: Array.from({ length: count }, () => ({ role: MessageRole.HUMAN, content: CONTENT })),
  });

export const listLast50 = (threadId: string): ListMessagesRequest =>
  ListMessagesRequest.fromPartial({ threadId, pageSize: 50 });

import { randomBytes } from 'node:crypto';
import type { Scope } from '../src/db/transaction.ts';
import {
  AppendMessagesRequest,
  ContextOptions,
  GetContextRequest,
  ListMessagesRequest,
} from '../src/gen/memory/v1/conversation_service.ts';
import { ForwardBundleRequest, UpsertSessionRequest } from '../src/gen/memory/v1/memory_service.ts';
import { Message, MessageRole } from '../src/gen/memory/v1/message.ts';
import { UpdateProfileRequest } from '../src/gen/memory/v1/profile_service.ts';
import { PinnedRef_Kind } from '../src/gen/memory/v1/session.ts';
import { UsageDimension } from '../src/gen/memory/v1/usage.ts';
import { GetUsageRequest, RecordLlmRequestRequest } from '../src/gen/memory/v1/usage_service.ts';

/** What the calls are about. What is written is each caller's own. */
export interface Subjects {
  scope: Scope;
  readSessions: string[];
  writtenSessions: string[];
  writtenThreads: string[];
  readThread: string;
  watchedThread: string;
  /** A session of the thread that is read. */
  contextSession: string;
  /** Where turns begin and end. */
  turns: TurnSubject[];
  /** Where a turn was taken once and is committed again and again. */
  heldTurns: (TurnSubject & { fencingToken: number })[];
  /** Sections that are held all the time. */
  drafts: DraftSubject[];
}

export interface DraftSubject {
  sectionId: string;
  fencingToken: number;
}

/** What is known of a person, of about 1 KiB with where it came from. */
export const PERSON = UpdateProfileRequest.fromPartial({
  profile: {
    name: 'Ada Byron',
    phone: '+442079460018',
    email: 'ada@example.org',
    address: { street: '12 St James Square', city: 'London', country: 'GB' },
    products: ['Solar roof', 'Heat pump'],
    preferences: { tone: 'brief', units: 'metric' },
  },
});

let step = 0;
export const tellStep = (): UpdateProfileRequest =>
  UpdateProfileRequest.fromPartial({ profile: { preferences: { step: ++step } } });

export interface TurnSubject {
  sessionId: string;
  threadId: string;
}

export const STATE = {
  goal: 'Compare revenue by region with the forecast and explain what is off by more than five percent.',
  step: 4,
  plan: ['load the ledger', 'group by region', 'join the forecast', 'explain', 'draft the report'],
  open: { region: 'emea', rows: 1824, filter: { from: '2026-04-01', to: '2026-06-30', currency: 'EUR' } },
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
      state: STATE,
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

/** What an orchestrator notes after a step. */
export const STATE_PATCH = { step: 5, open: { region: 'apac', rows: 977 } };

export const touchSession = (id: string): UpsertSessionRequest =>
  UpsertSessionRequest.fromPartial({ session: { id, state: STATE_PATCH, metadata: { client: 'web/5.12.1' } } });

export const CONTENT = randomBytes(375).toString('base64'); // 500 characters that do not compress

export const newMessages = (role: 1 | 2, count = 1): Message[] =>
  Array.from({ length: count }, () => Message.fromPartial({ role, content: CONTENT }));

export const appendMessages = (threadId: string, count = 1): AppendMessagesRequest =>
  AppendMessagesRequest.fromPartial({ threadId, messages: newMessages(MessageRole.HUMAN, count) });

export const listLast = (threadId: string, pageSize: number): ListMessagesRequest =>
  ListMessagesRequest.fromPartial({ threadId, pageSize });

export const LAST_50: ContextOptions = ContextOptions.fromPartial({ limit: { $case: 'lastN', value: 50 } });

export const getContext = (sessionId: string): GetContextRequest =>
  GetContextRequest.fromPartial({ sessionId, options: LAST_50 });

export const forwardLast10 = (sourceThreadId: string, targetThreadId: string): ForwardBundleRequest =>
  ForwardBundleRequest.fromPartial({
    source: { $case: 'inline', value: { sourceThreadId, selection: { selection: { $case: 'lastN', value: 10 } } } },
    targetThreadId,
  });

const MODELS = ['large-2', 'small-2', 'embed-1'];

/** A call of one of three models. */
export const llmRequest = (): RecordLlmRequestRequest =>
  RecordLlmRequestRequest.fromPartial({
    projectId: 'atlas',
    llmRequest: {
      provider: 'acme',
      model: MODELS[Math.floor(Math.random() * MODELS.length)]!,
      promptTokens: 1200,
      cachedTokens: 800,
      completionTokens: 150,
      promptUnitCost: '0.000003',
      cachedUnitCost: '0.0000003',
      completionUnitCost: '0.000015',
      latencyMs: 1800,
      status: 'ok',
    },
  });

export const USAGE_OF_DAYS = GetUsageRequest.fromPartial({ groupBy: [UsageDimension.DAY, UsageDimension.MODEL] });

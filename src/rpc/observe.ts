import { type Metadata, status } from '@grpc/grpc-js';
import type { Logger } from 'pino';
import { sqlState } from '../db/failure.ts';
import type { Caller } from './caller.ts';
import type { About } from './context.ts';
import type { Metrics } from './metrics.ts';
import type { Tracer } from './tracing.ts';

/** One call, from its metadata to its status. */
export interface Observed {
  /** Of the call's span or, where none are made, of its traceparent; '' if it is not traced. */
  readonly traceId: string;
  caller?: Caller;
  /** What went wrong inside, for the log only. */
  error?: unknown;
  end(code: status, reason: string, about: About): void;
}

export type Observe = (method: string, metadata: Metadata) => Observed;

/** `MemoryService/GetSession`, which is what logs and metrics call a method. */
export const methodOf = (path: string): string => path.slice(path.lastIndexOf('.') + 1);

const TRACEPARENT = /^[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}$/;
const REQUEST_ID = /^[\w.:/+=-]{1,128}$/;

/** A log line, one more where a session starts or ends, the figures and, with a tracer, the span of each call. Ids only: never content, a token or an unknown header. */
export function observer(log: Logger, metrics: Metrics, tracer?: Tracer): Observe {
  return (method, metadata) => {
    const start = performance.now();
    const traceparent = String(metadata.get('traceparent')[0] ?? '');
    // Reflection is not of our package, and no part of the service's work.
    const traced = tracer && !method.startsWith('ServerReflection/');
    const span = traced
      ? tracer.start(method, { traceparent, tracestate: metadata.get('tracestate').join(',') })
      : undefined;
    const traceId = span?.traceId ?? TRACEPARENT.exec(traceparent)?.[1] ?? '';
    const [xRequestId] = metadata.get('x-request-id');
    return {
      traceId,
      end(code, reason, about) {
        const ms = performance.now() - start;
        metrics.called(method, code, ms);
        const { caller, error } = this;
        span?.end(code, {
          ...(caller?.tenant && { 'memoryd.tenant': caller.tenant, 'memoryd.env': caller.env }),
          ...(reason && { 'memoryd.reason': reason }),
        });
        // pino leaves out what is undefined. With a spread for each optional part, this line was an eighth of all that a
        // GetSession allocates.
        const line = {
          method,
          code: status[code],
          reason: reason || undefined,
          ms: Math.round(ms * 100) / 100,
          tenant: caller?.tenant || undefined,
          env: caller?.tenant ? caller.env : undefined,
          user: caller?.user || undefined,
          actor: caller && caller.actor !== caller.user ? caller.actor : undefined,
          sessionId: about.sessionId,
          threadId: about.threadId,
          requestId: about.requestId,
          replayed: about.replayed,
          xRequestId: xRequestId !== undefined && REQUEST_ID.test(String(xRequestId)) ? String(xRequestId) : undefined,
          traceId: traceId || undefined,
        };
        const { tenant, env, user, sessionId } = line;
        if (code === status.OK && about.session && !about.replayed)
          log.info({ tenant, env, user, sessionId, method }, `session ${about.session}`);
        if (error === undefined) log.info(line, 'call');
        else log.error({ ...line, err: describe(error) }, 'call');
      },
    };
  };
}

/**
 * An error for the log. What Postgres says may quote the values that it was given, and what a parser says the text: of these
 * only codes and places are told.
 */
export function describe(error: unknown): Record<string, unknown> {
  if (!(error instanceof Error)) return { type: typeof error };
  const quotes = sqlState(error) !== '' || error instanceof SyntaxError;
  const { code, routine, constraint, table, column, position } = error as unknown as Record<string, unknown>;
  return {
    ...(sqlState(error)
      ? { type: 'DatabaseError', code, routine, constraint, table, column, position }
      : { type: error.name }),
    ...(quotes ? { stack: framesOf(error) } : { message: error.message, stack: error.stack }),
    ...(error.cause ? { cause: describe(error.cause) } : {}),
  };
}

/** The stack without the message at its head. */
const framesOf = ({ stack = '' }: Error): string =>
  stack
    .split('\n')
    .filter((line) => /^\s+at /.test(line))
    .join('\n');

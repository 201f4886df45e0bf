import { status } from '@grpc/grpc-js';
import type { Context, DiagLogFunction } from '@opentelemetry/api';
import type { Sampler } from '@opentelemetry/sdk-trace';

export interface Tracer {
  /** `method` as `MemoryService/GetSession`; a parent that is malformed or '' starts a new trace. */
  start(method: string, parent: { traceparent: string; tracestate?: string }): Span;
  /** Sends what is left, for at most a few seconds. */
  stop(): Promise<void>;
}

export interface Span {
  readonly traceId: string;
  /** Ids and figures only, never content. */
  end(code: number, attributes: Record<string, string | number>): void;
}

const TRACEPARENT = /^(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$/;

// Of the statuses, those that tell of a fault of the server rather than of the call.
const SERVER_FAULTS: ReadonlySet<number> = new Set([
  status.UNKNOWN,
  status.DEADLINE_EXCEEDED,
  status.UNIMPLEMENTED,
  status.INTERNAL,
  status.UNAVAILABLE,
  status.DATA_LOSS,
]);

const STOP_MS = 5000;
const QUIET_MS = 60_000;

/**
 * Spans of calls, sent by OTLP over HTTP where the standard OTEL_* environment names a collector. Otherwise undefined, and
 * nothing is loaded. `warn` is told, at most once a minute, that spans cannot be sent.
 */
export async function openTracing(
  env: NodeJS.ProcessEnv = process.env,
  warn: (message: string) => void = () => {},
): Promise<Tracer | undefined> {
  const url = collector(env);
  if (!url) return undefined;
  // gRPC is what a collector's other port speaks: failing at the start beats spans that never arrive.
  const protocol = env.OTEL_EXPORTER_OTLP_TRACES_PROTOCOL || env.OTEL_EXPORTER_OTLP_PROTOCOL || 'http/protobuf';
  if (protocol !== 'http/protobuf')
    throw new Error(`OTEL_EXPORTER_OTLP_PROTOCOL: only http/protobuf is supported, not ${protocol}`);
  const [api, sdk, { OTLPTraceExporter }, resources] = await Promise.all([
    import('@opentelemetry/api'),
    import('@opentelemetry/sdk-trace'),
    import('@opentelemetry/exporter-trace-otlp-proto'),
    import('@opentelemetry/resources'),
  ]);

  // The SDK tells of failed exports only here.
  const say = seldom(warn);
  const silent = () => {};
  api.diag.setLogger({ error: say, warn: say, info: silent, debug: silent, verbose: silent }, api.DiagLogLevel.WARN);

  const { serviceNameEnvDetector, resourceAttributesEnvDetector, detectResources } = resources;
  const provider = new sdk.TracerProvider({
    resource: resources
      .defaultResource()
      .merge(resources.resourceFromAttributes({ 'service.name': 'memoryd' }))
      .merge(detectResources({ detectors: [resourceAttributesEnvDetector, serviceNameEnvDetector] })),
    sampler: samplerOf(sdk, env),
    spanProcessors: [
      new sdk.BatchSpanProcessor({
        exporter: new OTLPTraceExporter({ url }),
        maxQueueSize: positive(env.OTEL_BSP_MAX_QUEUE_SIZE),
        maxExportBatchSize: positive(env.OTEL_BSP_MAX_EXPORT_BATCH_SIZE),
        scheduledDelayMillis: positive(env.OTEL_BSP_SCHEDULE_DELAY),
        exportTimeoutMillis: positive(env.OTEL_BSP_EXPORT_TIMEOUT),
      }),
    ],
  });
  const tracer = provider.getTracer('memoryd');

  /** The caller's span as the parent. The API's propagator is not used: it would need a global context manager. */
  function parentOf({ traceparent, tracestate }: { traceparent: string; tracestate?: string }): Context {
    const [, traceId, spanId, flags] = TRACEPARENT.exec(traceparent) ?? [];
    const parent = {
      traceId: traceId ?? '',
      spanId: spanId ?? '',
      traceFlags: Number.parseInt(flags ?? '0', 16) & api.TraceFlags.SAMPLED,
      isRemote: true,
      ...(tracestate && { traceState: api.createTraceState(tracestate) }),
    };
    return api.isSpanContextValid(parent) ? api.trace.setSpanContext(api.ROOT_CONTEXT, parent) : api.ROOT_CONTEXT;
  }

  return {
    start(method, parent) {
      const name = `memory.v1.${method}`;
      const attributes = { 'rpc.system.name': 'grpc', 'rpc.method': name };
      const span = tracer.startSpan(name, { kind: api.SpanKind.SERVER, attributes }, parentOf(parent));
      return {
        traceId: span.spanContext().traceId,
        end(code, more) {
          const text = status[code] ?? String(code);
          span.setAttributes({ ...more, 'rpc.response.status_code': text });
          if (code !== status.OK) span.setAttribute('error.type', text);
          if (SERVER_FAULTS.has(code)) span.setStatus({ code: api.SpanStatusCode.ERROR });
          span.end();
        },
      };
    },
    async stop() {
      // A collector that is away must not hold up the end of the process.
      let timer: NodeJS.Timeout | undefined;
      const late = new Promise<void>((resolve) => {
        timer = setTimeout(resolve, STOP_MS);
      });
      const sent = provider.shutdown().catch((error) => say(String(error?.message ?? error)));
      await Promise.race([sent, late]);
      clearTimeout(timer);
    },
  };
}

/** Where traces go, or undefined. */
function collector(env: NodeJS.ProcessEnv): string | undefined {
  if (env.OTEL_SDK_DISABLED?.trim().toLowerCase() === 'true') return undefined;
  const exporters = (env.OTEL_TRACES_EXPORTER || 'otlp').split(',').map((name) => name.trim().toLowerCase());
  if (!exporters.includes('otlp')) return undefined;
  const own = env.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT?.trim();
  if (own) return own;
  const base = env.OTEL_EXPORTER_OTLP_ENDPOINT?.trim();
  return base && `${base.replace(/\/+$/, '')}/v1/traces`;
}

/** OTEL_TRACES_SAMPLER, which this SDK does not read by itself. Unknown ones are the standard's default. */
function samplerOf(sdk: typeof import('@opentelemetry/sdk-trace'), env: NodeJS.ProcessEnv): Sampler {
  const name = env.OTEL_TRACES_SAMPLER?.trim() || 'parentbased_always_on';
  const share = Number.parseFloat(env.OTEL_TRACES_SAMPLER_ARG ?? '');
  const ratio = share >= 0 && share <= 1 ? share : 1;
  const kind = name.replace(/^parentbased_/, '');
  const root =
    kind === 'always_off'
      ? new sdk.AlwaysOffSampler()
      : kind === 'traceidratio'
        ? new sdk.TraceIdRatioBasedSampler(ratio)
        : new sdk.AlwaysOnSampler();
  return ['always_on', 'always_off', 'traceidratio'].includes(name) ? root : new sdk.ParentBasedSampler({ root });
}

function positive(value: string | undefined): number | undefined {
  const number = Number(value);
  return number > 0 ? number : undefined;
}

/** Says what goes wrong once in a while only: each batch would otherwise say it. */
function seldom(warn: (message: string) => void): DiagLogFunction {
  let quietUntil = 0;
  return (message) => {
    if (Date.now() < quietUntil) return;
    quietUntil = Date.now() + QUIET_MS;
    warn(`OpenTelemetry: ${message.slice(0, 500)}`);
  };
}

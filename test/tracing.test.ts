import { execFile } from 'node:child_process';
import { createServer, type IncomingMessage, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { promisify } from 'node:util';
import { BinaryReader, WireType } from '@bufbuild/protobuf/wire';
import { Metadata, status } from '@grpc/grpc-js';
import { expect } from 'chai';
import pino from 'pino';
import type { Metrics } from '../src/rpc/metrics.ts';
import { observer } from '../src/rpc/observe.ts';
import { openTracing, type Tracer } from '../src/rpc/tracing.ts';

const TRACE_ID = '0af7651916cd43dd8448eb211c80319c';
const PARENT_ID = 'b7ad6b7169203331';
const TRACEPARENT = `00-${TRACE_ID}-${PARENT_ID}-01`;

/** The fields of one protobuf message by number: bytes, or numbers. */
function fields(bytes: Uint8Array): Map<number, (Uint8Array | number)[]> {
  const reader = new BinaryReader(bytes);
  const found = new Map<number, (Uint8Array | number)[]>();
  while (reader.pos < reader.len) {
    const [number, type] = reader.tag();
    let value: Uint8Array | number = 0;
    if (type === WireType.LengthDelimited) value = reader.bytes();
    else if (type === WireType.Varint) value = Number(reader.uint64());
    else reader.skip(type);
    found.set(number, [...(found.get(number) ?? []), value]);
  }
  return found;
}

const messages = (bytes: Uint8Array, number: number) => (fields(bytes).get(number) ?? []) as Uint8Array[];
const text = (bytes: Uint8Array | undefined) => Buffer.from(bytes ?? []).toString();
const hex = (bytes: Uint8Array | undefined) => Buffer.from(bytes ?? []).toString('hex');

/** KeyValue {key = 1, value = 2 {string_value = 1}} */
const attributes = (list: Uint8Array[]) =>
  Object.fromEntries(list.map((pair) => [text(messages(pair, 1)[0]), text(messages(messages(pair, 2)[0]!, 1)[0])]));

/** The spans of an ExportTraceServiceRequest, by the field numbers of opentelemetry/proto/trace/v1/trace.proto. */
function spansOf(request: Uint8Array) {
  return messages(request, 1).flatMap((resourceSpans) => {
    const resource = attributes(messages(messages(resourceSpans, 1)[0]!, 1));
    return messages(resourceSpans, 2)
      .flatMap((scopeSpans) => messages(scopeSpans, 2))
      .map((span) => ({
        resource,
        traceId: hex(messages(span, 1)[0]),
        traceState: text(messages(span, 3)[0]),
        parentId: hex(messages(span, 4)[0]),
        name: text(messages(span, 5)[0]),
        kind: fields(span).get(6)?.[0],
        attributes: attributes(messages(span, 9)),
        status: fields(messages(span, 15)[0] ?? new Uint8Array()).get(3)?.[0] ?? 0,
      }));
  });
}

async function bodyOf(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks);
}

describe('tracing', () => {
  let server: Server;
  let origin: string;
  let code: number;
  let received: { path: string; spans: ReturnType<typeof spansOf> }[];
  let tracer: Tracer | undefined;

  const spans = () => received.flatMap((request) => request.spans);
  const open = async (env: NodeJS.ProcessEnv = {}, warn?: (message: string) => void): Promise<Tracer> => {
    tracer = await openTracing({ OTEL_EXPORTER_OTLP_ENDPOINT: origin, ...env }, warn);
    return tracer!;
  };

  beforeEach(async () => {
    received = [];
    code = 200;
    server = createServer(async (request, response) => {
      received.push({ path: request.url ?? '', spans: spansOf(await bodyOf(request)) });
      response.writeHead(code).end();
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });

  afterEach(async () => {
    await tracer?.stop();
    tracer = undefined;
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });

  describe('without a collector', () => {
    const endpoint = 'http://127.0.0.1:1';
    const off: NodeJS.ProcessEnv[] = [
      {},
      { OTEL_EXPORTER_OTLP_ENDPOINT: '' },
      { OTEL_EXPORTER_OTLP_METRICS_ENDPOINT: endpoint },
      { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint, OTEL_SDK_DISABLED: 'true' },
      { OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: endpoint, OTEL_TRACES_EXPORTER: 'none' },
    ];
    for (const env of off) {
      it(`is off: ${JSON.stringify(env)}`, async () => {
        expect(await openTracing(env)).to.equal(undefined);
      });
    }

    it('loads nothing', async () => {
      // What a process has loaded is seen by a hook in one of its own.
      const script = `
        import { registerHooks } from 'node:module';
        registerHooks({ load(url, context, next) {
          if (url.includes('opentelemetry')) console.log(url);
          return next(url, context);
        } });
        const { openTracing } = await import('./src/rpc/tracing.ts');
        const tracer = await openTracing();
        console.log(tracer === undefined ? 'off' : 'on');`;
      const { OTEL_EXPORTER_OTLP_ENDPOINT: _1, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: _2, ...rest } = process.env;
      const run = async (env: NodeJS.ProcessEnv) => {
        const options = { cwd: new URL('..', import.meta.url), env };
        const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', script], options);
        return stdout.trim().split('\n');
      };
      expect(await run(rest)).to.deep.equal(['off']);
      const on = await run({ ...rest, OTEL_EXPORTER_OTLP_ENDPOINT: endpoint });
      expect(on.length).to.be.greaterThan(1);
      expect(on.at(-1)).to.equal('on');
    });

    it('refuses a protocol that it does not speak', async () => {
      const env = { OTEL_EXPORTER_OTLP_ENDPOINT: origin, OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc' };
      const error = await openTracing(env).then(
        () => undefined,
        (reason) => reason,
      );
      expect(error?.message).to.contain('http/protobuf');
    });
  });

  it('sends a span as a child of the caller', async () => {
    const { start, stop } = await open({});
    const span = start('MemoryService/GetSession', { traceparent: TRACEPARENT, tracestate: 'vendor=1' });
    expect(span.traceId).to.equal(TRACE_ID);
    span.end(status.OK, { 'memoryd.tenant': 'acme', 'memoryd.env': 'dev' });
    await stop();
    expect(received.map((request) => request.path)).to.deep.equal(['/v1/traces']);
    const [sent] = spans();
    expect(sent).to.deep.include({
      traceId: TRACE_ID,
      parentId: PARENT_ID,
      traceState: 'vendor=1',
      name: 'memory.v1.MemoryService/GetSession',
      kind: 2,
      status: 0,
      attributes: {
        'rpc.system.name': 'grpc',
        'rpc.method': 'memory.v1.MemoryService/GetSession',
        'rpc.response.status_code': 'OK',
        'memoryd.tenant': 'acme',
        'memoryd.env': 'dev',
      },
    });
    expect(sent!.resource).to.include({ 'service.name': 'memoryd' });
  });

  it('starts a new trace without a caller that can be understood', async () => {
    const { start, stop } = await open();
    const parents = [
      '',
      'hello',
      `ff-${TRACE_ID}-${PARENT_ID}-01`,
      `00-${'0'.repeat(32)}-${PARENT_ID}-01`,
      `${TRACEPARENT}-x`,
    ];
    for (const traceparent of parents) {
      const span = start('MemoryService/GetSession', { traceparent, tracestate: ',,=' });
      expect(span.traceId)
        .to.match(/^[0-9a-f]{32}$/)
        .and.not.match(/^0+$/)
        .and.not.equal(TRACE_ID);
      span.end(status.OK, {});
    }
    await stop();
    expect(spans().map((span) => span.parentId)).to.deep.equal(parents.map(() => ''));
  });

  it("tells the server's faults from the callers'", async () => {
    const { start, stop } = await open();
    const codes = [status.NOT_FOUND, status.ABORTED, status.INTERNAL, status.UNAVAILABLE, status.DEADLINE_EXCEEDED];
    for (const each of codes) start('MemoryService/GetSession', { traceparent: '' }).end(each, {});
    await stop();
    expect(spans().map((span) => span.status)).to.deep.equal([0, 0, 2, 2, 2]);
    expect(spans().map((span) => span.attributes['error.type'])).to.deep.equal(codes.map((each) => status[each]));
  });

  it('follows the sampling that the caller and the environment ask for', async () => {
    const unsampled = `00-${TRACE_ID}-${PARENT_ID}-00`;
    const sent = async (env: NodeJS.ProcessEnv, traceparent: string) => {
      received = [];
      const { start, stop } = await open(env);
      const span = start('MemoryService/GetSession', { traceparent });
      if (traceparent) expect(span.traceId).to.equal(TRACE_ID);
      span.end(status.OK, {});
      await stop();
      return spans().length;
    };
    expect(await sent({}, unsampled)).to.equal(0);
    expect(await sent({ OTEL_TRACES_SAMPLER: 'always_on' }, unsampled)).to.equal(1);
    expect(await sent({ OTEL_TRACES_SAMPLER: 'always_off' }, TRACEPARENT)).to.equal(0);
    const none = { OTEL_TRACES_SAMPLER: 'parentbased_traceidratio', OTEL_TRACES_SAMPLER_ARG: '0' };
    expect(await sent(none, '')).to.equal(0);
    expect(await sent(none, TRACEPARENT)).to.equal(1);
  });

  it('takes the endpoint of traces as it is, and the resource from the environment', async () => {
    process.env.OTEL_RESOURCE_ATTRIBUTES = 'deployment.environment.name=staging';
    try {
      const { start, stop } = await open({ OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: `${origin}/ingest` });
      start('MemoryService/GetSession', { traceparent: '' }).end(status.OK, {});
      await stop();
    } finally {
      delete process.env.OTEL_RESOURCE_ATTRIBUTES;
    }
    expect(received.map((request) => request.path)).to.deep.equal(['/ingest']);
    expect(spans()[0]!.resource).to.include({ 'deployment.environment.name': 'staging', 'service.name': 'memoryd' });
  });

  it('warns once of a collector that refuses, and harms nothing', async () => {
    code = 400;
    const warnings: string[] = [];
    const { start, stop } = await open({ OTEL_BSP_SCHEDULE_DELAY: '20' }, (message) => warnings.push(message));
    for (let batch = 1; batch <= 2; batch++) {
      start('MemoryService/GetSession', { traceparent: '' }).end(status.OK, {});
      while (received.length < batch) await new Promise((resolve) => setTimeout(resolve, 10));
    }
    await stop();
    expect(warnings).to.have.lengthOf(1);
    expect(warnings[0]).to.contain('OpenTelemetry');
  });

  describe('an observed call', () => {
    const called: unknown[] = [];
    const metrics = { called: (...all: unknown[]) => called.push(all) } as unknown as Metrics;
    const lines: Record<string, unknown>[] = [];
    const log = pino({}, { write: (line: string) => lines.push(JSON.parse(line)) });

    function call(name: string, tracing: Tracer | undefined, traceparent?: string): string {
      const metadata = new Metadata();
      if (traceparent) metadata.set('traceparent', traceparent);
      metadata.set('tracestate', 'vendor=1');
      const observed = observer(log, metrics, tracing)(name, metadata);
      observed.caller = { tenant: 'acme', env: 'dev', user: 'ann', actor: 'ann', scopes: new Set(), vouched: true };
      observed.end(status.NOT_FOUND, 'DELETED', { threadId: 'a thread' });
      return observed.traceId;
    }

    it('has the trace of its span, in the log too', async () => {
      const tracing = await open();
      const traceId = call('MemoryService/GetSession', tracing);
      await tracing.stop();
      expect(traceId).to.match(/^[0-9a-f]{32}$/);
      expect(lines.at(-1)).to.include({ traceId, method: 'MemoryService/GetSession' });
      expect(spans()).to.have.lengthOf(1);
      expect(spans()[0]).to.deep.include({ traceId, name: 'memory.v1.MemoryService/GetSession' });
      expect(spans()[0]!.attributes).to.deep.equal({
        'rpc.system.name': 'grpc',
        'rpc.method': 'memory.v1.MemoryService/GetSession',
        'rpc.response.status_code': 'NOT_FOUND',
        'error.type': 'NOT_FOUND',
        'memoryd.tenant': 'acme',
        'memoryd.env': 'dev',
        'memoryd.reason': 'DELETED',
      });
    });

    it('continues the trace of its caller', async () => {
      const tracing = await open();
      expect(call('MemoryService/GetSession', tracing, TRACEPARENT)).to.equal(TRACE_ID);
      await tracing.stop();
      expect(spans()[0]).to.include({ parentId: PARENT_ID, traceState: 'vendor=1' });
    });

    it('has that of its caller where no spans are made, or none', async () => {
      expect(call('MemoryService/GetSession', undefined, TRACEPARENT)).to.equal(TRACE_ID);
      expect(call('MemoryService/GetSession', undefined)).to.equal('');
      expect(lines.at(-1)).not.to.have.property('traceId');
      expect(call('ServerReflection/ServerReflectionInfo', await open())).to.equal('');
    });
  });
});

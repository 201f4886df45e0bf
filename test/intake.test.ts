import { once } from 'node:events';
import { type ClientHttp2Session, type ClientHttp2Stream, connect as connectHttp2, constants } from 'node:http2';
import { gzipSync } from 'node:zlib';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import fc from 'fast-check';
import { assembly, MOST_OF_CONNECTION } from '../src/rpc/intake.ts';
import type { RunningServer } from '../src/server.ts';
import { connect, headersOf, newTenant, startTestServer, until } from './support.ts';

const MIB = 1024 * 1024;
const MOST = 4 * MIB;

/** A message as it goes over the wire: whether it is compressed, its length, itself. */
function framed(message: Buffer, compressed = false): Buffer {
  const head = Buffer.from([Number(compressed), 0, 0, 0, 0]);
  head.writeUInt32BE(message.length, 1);
  return Buffer.concat([head, message]);
}

describe('the intake', () => {
  describe('of bytes', () => {
    it('makes the same messages of them, however they are cut', () => {
      const messages = fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 6 });
      const cuts = fc.infiniteStream(fc.integer({ min: 1, max: 400 }));
      const same = fc.property(messages, cuts, (given, sizes) => {
        const wire = Buffer.concat(given.map((bytes) => framed(Buffer.from(bytes))));
        const { write } = assembly(300, () => {});
        const found: Buffer[] = [];
        for (let at = 0; at < wire.length; ) {
          const end = at + sizes.next().value;
          found.push(...write(wire.subarray(at, end)));
          at = end;
        }
        expect(found).to.deep.equal(given.map((bytes) => framed(Buffer.from(bytes))));
      });
      fc.assert(same, { numRuns: 300, seed: 20_261_121 });
    });

    it('holds what has come and as much again at most, be it byte by byte, and nothing for what is only announced', () => {
      let held = 0;
      const { write } = assembly(MOST, (bytes) => {
        held = bytes;
      });
      const wire = framed(Buffer.alloc(MOST));
      write(wire.subarray(0, 5));
      expect(held).to.equal(5);
      for (let at = 5; at < 100_000; at++) {
        write(wire.subarray(at, at + 1));
        expect(held).to.be.within(at + 1, 2 * (at + 1));
      }
      expect(() => assembly(MOST - 1, () => {}).write(wire.subarray(0, 5))).to.throw('larger than max');
    });
  });

  describe('of requests', () => {
    let server: RunningServer;
    let tenant: string;
    let session: ClientHttp2Session;

    before(async () => {
      server = await startTestServer();
      tenant = await newTenant();
    });
    after(() => server.stop());
    beforeEach(() => {
      session = dial(server.port);
    });
    afterEach(() => session.destroy());

    /** A connection that may queue more than Node lets one. */
    const dial = (port: number) => connectHttp2(`http://127.0.0.1:${port}`, { maxSessionMemory: 1000 });
    const open = (more: Record<string, string> = {}) => {
      const path = '/memory.v1.MemoryService/ListSessions';
      const headers = { ':method': 'POST', ':path': path, 'content-type': 'application/grpc', te: 'trailers' };
      const stream = session.request({ ...headers, ...headersOf(tenant), ...more });
      stream.on('error', () => {});
      stream.resume();
      return stream;
    };
    const statusOf = async (stream: ClientHttp2Stream): Promise<string> => {
      const [headers] = await once(stream, 'response');
      if (headers['grpc-status'] !== undefined) return status[Number(headers['grpc-status'])]!;
      const [trailers] = await once(stream, 'trailers');
      return status[Number(trailers['grpc-status'])]!;
    };
    /** So many requests that are not ended, and how many of them are refused as too much. */
    const refusals = (count: number, bytes: Buffer, more: Record<string, string> = {}) => {
      let refused = 0;
      const sent = Array.from({ length: count }, () => {
        const stream = open(more);
        stream.on('response', (headers) => {
          if (Number(headers['grpc-status']) === status.RESOURCE_EXHAUSTED) refused++;
        });
        return new Promise((resolve) => stream.write(bytes, resolve));
      });
      return { refused: () => refused, sent: Promise.all(sent) };
    };
    /** Calls of `ListSessions` that a server has counted with this status. */
    const counted = async ({ metrics }: RunningServer, code: string): Promise<number> => {
      const { values } = await metrics.registry.getSingleMetric('memoryd_calls_total')!.get();
      const are = { method: 'MemoryService/ListSessions', code };
      return values.find(({ labels }) => labels.method === are.method && labels.code === are.code)?.value ?? 0;
    };
    const others = () => connect(`127.0.0.1:${server.port}`, headersOf(tenant));

    it('ends those that do not end in time: that never began, broke off, or were not closed', async () => {
      const hasty = await startTestServer({ callTimeout: 1000 });
      session.destroy();
      session = dial(hasty.port);
      const whole = framed(Buffer.alloc(0));
      const part = framed(Buffer.alloc(100)).subarray(0, 50);
      const streams = [undefined, part, whole].map((bytes) => {
        const stream = open();
        if (bytes) stream.write(bytes);
        return stream;
      });
      const ended = Promise.all(streams.map((stream) => once(stream, 'close')));
      expect(await Promise.all(streams.map(statusOf))).to.deep.equal(Array(3).fill('DEADLINE_EXCEEDED'));
      await ended; // nor do they stay open
      expect(await counted(hasty, 'DEADLINE_EXCEEDED')).to.equal(3);
      const next = open();
      next.end(whole);
      expect(await statusOf(next)).to.equal('OK');
      await hasty.stop();
    });

    it('drops a response that its caller does not read', async () => {
      const hasty = await startTestServer({ callTimeout: 1000 });
      session.destroy();
      session = connectHttp2(`http://127.0.0.1:${hasty.port}`, { settings: { initialWindowSize: 0 } });
      const stream = open();
      stream.end(framed(Buffer.alloc(0)));
      const [headers] = await once(stream, 'response');
      expect(headers['grpc-status']).to.equal(undefined);
      await once(stream, 'close');
      expect(stream.rstCode).to.equal(constants.NGHTTP2_CANCEL);
      await hasty.stop();
    });

    const SHAPES: [string, Buffer, Record<string, string>][] = [
      ['in parts', framed(Buffer.alloc(MOST)).subarray(0, -1), {}],
      [
        'that are small only while they are compressed',
        framed(gzipSync(Buffer.alloc(MOST)), true),
        { 'grpc-encoding': 'gzip' },
      ],
    ];
    for (const [what, bytes, more] of SHAPES) {
      it(`holds only so much of a connection's unfinished ones ${what}, and serves the others`, async () => {
        const fit = Math.floor(MOST_OF_CONNECTION / framed(Buffer.alloc(MOST)).length);
        const before = await counted(server, 'RESOURCE_EXHAUSTED');
        const { refused } = refusals(2 * fit, bytes, more);
        await until(async () => refused() >= fit);
        expect(refused()).to.be.below(2 * fit);
        expect((await counted(server, 'RESOURCE_EXHAUSTED')) - before).to.be.within(refused(), 2 * fit - 1);
        const client = others();
        await client.conversation.appendMessages({
          threadId: `beside ${what}`,
          messages: Array.from({ length: 10 }, () => ({ role: 1, content: 'x'.repeat(200_000) })),
        });
        client.close();
      });
    }

    it('holds nothing of who has no identity', async () => {
      const probe = open({ 'x-env': '?', ':path': '/grpc.health.v1.Health/Check', 'grpc-encoding': 'gzip' });
      probe.end(framed(gzipSync(Buffer.alloc(0)), true));
      expect(await statusOf(probe), 'health is for anybody').to.equal('OK');
      const stream = open({ 'x-env': '?' });
      stream.write(framed(Buffer.alloc(MOST)).subarray(0, 100_000));
      expect(await statusOf(stream)).to.equal('UNAUTHENTICATED');
      await once(stream, 'close');
      expect(await counted(server, 'UNAUTHENTICATED')).to.equal(1);
    });

    it('gives back what a request held when it ends', async () => {
      for (let round = 0; round < 30; round++) {
        const stream = open();
        stream.end(framed(Buffer.alloc(MOST)));
        expect(await statusOf(stream)).to.equal('INVALID_ARGUMENT');
      }
    });

    it('gives back what a message of a stream held when it is there, while the stream stays open', async () => {
      const name = Buffer.alloc(1.5 * MIB, 'x'); // it comes back twice
      const length = Buffer.from([0x80, 0x80, 0x60]); // 1.5 MiB, as a varint
      const request = framed(Buffer.concat([Buffer.from([0x0a]), length, name, Buffer.from([0x3a, 0])])); // host, list_services
      for (let i = 0; i * name.length <= MOST_OF_CONNECTION; i++) {
        const stream = open({ ':path': '/grpc.reflection.v1.ServerReflection/ServerReflectionInfo' });
        stream.write(request);
        const [headers] = await once(stream, 'response');
        expect(headers['grpc-status'], `stream ${i} ${headers['grpc-message']}`).to.equal(undefined);
      }
    });

    it('gives back what a connection held when it goes', async () => {
      const bytes = framed(Buffer.alloc(MOST)).subarray(0, -1);
      for (let round = 0; round < 8; round++) {
        const { refused, sent } = refusals(12, bytes);
        await sent;
        expect(refused()).to.equal(0);
        session.destroy();
        session = dial(server.port);
      }
    });
  });
});

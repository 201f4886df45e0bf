import { once } from 'node:events';
import { connect as connectHttp2 } from 'node:http2';
import { connect as connectTcp, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  ChannelCredentials,
  type ClientReadableStream,
  makeClientConstructor,
  type ServiceError,
  status,
} from '@grpc/grpc-js';
import { expect } from 'chai';
import { service as healthDefinition } from 'grpc-health-check';
import pg from 'pg';
import { pino } from 'pino';
import { makeConfig } from '../src/config.ts';
import { features } from '../src/features.ts';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import { silentLog } from '../src/log.ts';
import { type RunningServer, startServer } from '../src/server.ts';
import {
  connect,
  failure,
  failureOf,
  headersOf,
  newDatabase,
  newTenant,
  ownerUrl,
  runSql,
  startTestServer,
} from './support.ts';

const HealthClient = makeClientConstructor(healthDefinition as never, 'Health');

function healthOf(port: number) {
  const client = new HealthClient(`127.0.0.1:${port}`, ChannelCredentials.createInsecure()) as any;
  return {
    check: (service: string): Promise<string> =>
      new Promise((resolve, reject) => {
        const deadline = Date.now() + 5000;
        client.check({ service }, { deadline }, (error: unknown, reply: any) =>
          error ? reject(error) : resolve(reply.status),
        );
      }),
    watch: (service: string): ClientReadableStream<{ status: string }> => client.watch({ service }),
    close: () => client.close(),
  };
}

async function eventually(holds: () => Promise<boolean>, ms: number): Promise<void> {
  const end = Date.now() + ms;
  while (!(await holds())) {
    if (Date.now() > end) expect.fail(`did not come true in ${ms} ms`);
    await sleep(50);
  }
}

describe('server', () => {
  let server: RunningServer;
  let health: ReturnType<typeof healthOf>;

  before(async () => {
    server = await startTestServer({ metricsPort: 0 });
    health = healthOf(server.port);
  });
  after(async () => {
    health.close();
    await server.stop();
  });

  it('tells its health for the whole, each service and liveness, and nothing else', async () => {
    for (const service of [
      '',
      'memory.v1.MemoryService',
      'memory.v1.ConversationService',
      'memory.v1.AdminService',
      'liveness',
    ]) {
      expect(await health.check(service), service).to.equal('SERVING');
    }
    expect((await failure(health.check('memory.v1.NoService'))).code).to.equal(status.NOT_FOUND);
  });

  it('survives a service name that is not UTF-8', async () => {
    const { raw, close } = connect(`127.0.0.1:${server.port}`);
    const surrogate = Buffer.from([0x0a, 3, 0xed, 0xa0, 0x80]);
    expect((await failure(raw('/grpc.health.v1.Health/Check', surrogate))).code).not.to.equal(status.OK);
    expect(await health.check('')).to.equal('SERVING');
    close();
  });

  it('answers and counts calls of methods that do not exist', async () => {
    const { raw, close } = connect(`127.0.0.1:${server.port}`);
    expect((await failure(raw('/memory.v1.MemoryService/NoMethod', Buffer.alloc(0)))).code).to.equal(
      status.UNIMPLEMENTED,
    );
    expect(await server.metrics.registry.metrics()).to.match(/^memoryd_unknown_methods_total 1$/m);
    close();
  });

  it('never logs the value of a header that it cannot take', async () => {
    const lines: string[] = [];
    const talkative = await startTestServer({}, pino({}, { write: (line: string) => void lines.push(line) }));
    const session = connectHttp2(`http://127.0.0.1:${talkative.port}`);
    const path = '/memory.v1.MemoryService/GetSession';
    const headers = { ':method': 'POST', ':path': path, te: 'trailers', 'content-type': 'application/grpc' };
    const stream = session.request({ ...headers, authorization: 'Bearer hidden\u00e9' });
    await once(stream.resume().end(), 'close');
    session.close();
    await talkative.stop();
    expect(lines.join('')).to.include('Failed to add metadata entry authorization');
    expect(lines.join('')).not.to.include('hidden');
  });

  it('has an HTTP port for metrics and probes', async () => {
    const get = (path: string) => fetch(`http://127.0.0.1:${server.metricsPort}${path}`);
    expect(await (await get('/livez')).text()).to.equal('ok\n');
    expect((await get('/readyz')).status).to.equal(200);
    expect(await (await get('/metrics')).text()).to.include('memoryd_calls_in_flight 0');
    expect((await get('/other')).status).to.equal(404);
  });

  it('closes connections that are too many, counts them, and takes others when some have gone', async () => {
    const small = await startTestServer({ maxConnections: 2 });
    const dial = () => connectTcp(small.port, '127.0.0.1').on('error', () => {});
    /** Whether the server speaks, as it does at once, or closes. */
    const taken = (socket: Socket) =>
      Promise.race([once(socket, 'data').then(() => true), once(socket, 'close').then(() => false)]);
    const open = [dial(), dial()];
    expect(await Promise.all(open.map(taken))).to.deep.equal([true, true]);
    expect(await taken(dial())).to.equal(false);
    expect(await small.metrics.registry.metrics()).to.match(/^memoryd_refused_connections_total 1$/m);
    for (const socket of open) socket.destroy();
    await eventually(() => taken(dial()), 5000);
    await small.stop();
  });

  it('refuses messages over 4 MiB', async () => {
    const { raw, close } = connect(`127.0.0.1:${server.port}`);
    const { code } = await failure(raw('/memory.v1.MemoryService/GetSession', Buffer.alloc(4 * 1024 * 1024 + 1)));
    expect(code).to.equal(status.RESOURCE_EXHAUSTED);
    close();
  });

  it('is not ready while its database is away or its schema too new, stays alive, and comes back', async () => {
    const { name, owner, app } = await newDatabase();
    const config = {
      auth: 'trusted',
      port: 0,
      keyFile: process.env.MEMORYD_TEST_KEY_FILE,
      snapshotStore: 'none',
      drainWait: 0,
      jobs: false,
    } as const;
    const own = await startServer(makeConfig(app, { ...config, metricsPort: 0 }), features, silentLog());
    const probe = healthOf(own.port);
    const is = (wanted: string) => async () => (await probe.check('memory.v1.MemoryService')) === wanted;
    const readyz = async () => (await fetch(`http://127.0.0.1:${own.metricsPort}/readyz`)).status;
    const client = connect(`127.0.0.1:${own.port}`, headersOf('t'));
    try {
      await runSql(ownerUrl(), `alter database ${name} allow_connections false`);
      await runSql(ownerUrl(), 'select pg_terminate_backend(pid) from pg_stat_activity where datname = $1', [name]);
      const away = await failure(client.memory.getSession({ sessionId: '00000000-0000-7000-8000-000000000000' }));
      expect([away.code, away.reason]).to.deep.equal([status.UNAVAILABLE, 'DATABASE_AWAY']);
      expect(away.retryAfterMs).to.be.above(0);
      await eventually(is('NOT_SERVING'), 7000);
      expect(await readyz()).to.equal(503);
      expect(await probe.check('liveness')).to.equal('SERVING');

      await runSql(ownerUrl(), `alter database ${name} allow_connections true`);
      await eventually(is('SERVING'), 3000);
      expect(await readyz()).to.equal(200);

      await runSql(owner, 'insert into schema_versions (version, compatible_from) values (900, 900)');
      await eventually(is('NOT_SERVING'), 7000);
    } finally {
      client.close();
      probe.close();
      await own.stop();
      await runSql(ownerUrl(), `drop database ${name} with (force)`);
    }
  });
});

describe('drain', () => {
  /** A server with an append that waits for a lock, which `unlock` gives it. */
  async function withOpenCall(drainTimeout: number) {
    const server = await startTestServer({ drainTimeout });
    const tenant = await newTenant();
    const client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
    const append = () =>
      client.conversation.appendMessages({ threadId: 't', messages: [{ role: MessageRole.HUMAN, content: 'hello' }] });
    await append();
    const locker = new pg.Client(ownerUrl());
    await locker.connect();
    await locker.query('begin');
    await locker.query('select from threads where tenant_id = $1 for update', [tenant]);
    const open = append();
    open.catch(() => {});
    await eventually(async () => server.kernel.inFlight.count === 1, 2000);
    return { server, client, append, open, unlock: () => locker.end() };
  }

  it('tells it is not ready, ends open streams, refuses new calls, and lets those under way finish', async () => {
    const { server, client, append, open, unlock } = await withOpenCall(10_000);
    const health = healthOf(server.port);
    const watch = health.watch('');
    const seen: string[] = [];
    watch.on('data', (reply) => seen.push(reply.status));
    const ended = new Promise<ServiceError>((resolve) => watch.on('error', resolve as never));
    await eventually(async () => seen.length === 1, 2000);

    let over = false;
    const stopped = server.stop().then(() => {
      over = true;
    });
    const end = failureOf(await ended);
    expect(seen).to.deep.equal(['SERVING', 'NOT_SERVING']);
    expect([end.code, end.reason]).to.deep.equal([status.UNAVAILABLE, 'DRAINING']);
    expect(end.retryAfterMs).to.be.above(0);
    expect((await failure(append())).code).to.equal(status.UNAVAILABLE);
    expect(() => server.kernel.inFlight.enter()).to.throw();
    expect(over).to.equal(false);

    await unlock();
    expect((await open).messages[0]!.seq).to.equal(2);
    await stopped;
    client.close();
    health.close();
  });

  it('cuts off what takes longer than it may, and cancels it in the database', async () => {
    const { server, client, open, unlock } = await withOpenCall(200);
    await server.stop();
    expect((await failure(open)).code).not.to.equal(status.OK);
    await unlock(); // until now it would have waited
    client.close();
  });
});

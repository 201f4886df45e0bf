import { randomUUID } from 'node:crypto';
import { expect } from 'chai';
import pg from 'pg';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import { type ServerProcess, startProcess } from './fixtures/process.ts';
import { appUrl, type Clients, connect, headersOf, newTenant, ownerUrl, runSql, until } from './support.ts';

describe('serve --workers', function () {
  this.timeout(60_000);
  let server: ServerProcess;
  let tenant: string;
  let clients: Clients[] = [];

  const start = async (...more: string[]) => {
    server = await startProcess({ flags: ['--workers', '2', '--metrics-port', '0', ...more], callLines: true });
    tenant = await newTenant();
    // Names of their own, as clients of the same name would share a connection: these go to the workers in turn.
    const names = ['', 'ipv4:', 'dns:'].map((scheme) => `${scheme}127.0.0.1:${server.port}`);
    clients = names.map((name) => connect(name, headersOf(tenant)));
  };
  afterEach(async () => {
    for (const client of clients) client.close();
    await server.stop();
  });

  const lines = () => server.logLines.map((line) => JSON.parse(line));
  const logged = (msg: string) => lines().filter((line) => line.msg === msg);
  const workers = () => logged('worker ready').map(({ pid }): number => pid);
  const append = (client: Clients, content: string) =>
    client.conversation.appendMessages({ threadId: 't', messages: [{ role: MessageRole.HUMAN, content }] });
  const get = (path: string) => fetch(`http://127.0.0.1:${logged('ready')[0].metricsPort}${path}`);

  it('serves as one, counts as one, and logs every call in a line of its own', async () => {
    await start();
    const each = 40;
    const calls = clients.flatMap((client) => Array.from({ length: each }, (_, i) => append(client, `é👋 ${i}`)));
    const seqs = (await Promise.all(calls)).map(({ messages }) => messages[0]!.seq);
    expect(seqs.sort((a, b) => a - b)).to.deep.equal(Array.from({ length: 3 * each }, (_, i) => i + 1));

    const metrics = await (await get('/metrics')).text();
    const count = `memoryd_calls_total{method="ConversationService/AppendMessages",code="OK"} ${3 * each}`;
    expect(metrics.split('\n')).to.include(count);
    expect((await get('/readyz')).status).to.equal(200);
    await server.stop();
    expect(await server.exited).to.equal(0);
    expect(logged('call')).to.have.length(3 * each);
    expect(lines().at(-1).msg).to.equal('stopped');
  });

  it('lets the calls of all workers finish when it is told to stop', async () => {
    await start();
    await append(clients[0]!, 'first');
    const holder = new pg.Client({ connectionString: appUrl() });
    await holder.connect();
    await holder.query(`begin; set local app.tenant_id = '${tenant}'; set local app.env = 'dev'`);
    await holder.query('select from threads where tenant_id = $1 for update', [tenant]);
    const held = clients.map((client) => append(client, 'held'));
    const underWay = async () => /^memoryd_calls_in_flight (\d+)$/m.exec(await (await get('/metrics')).text())![1];
    await until(async () => (await underWay()) === '3');
    process.kill(server.pid, 'SIGTERM');
    await until(async () => (await get('/readyz').catch(() => undefined))?.status === 503);
    await holder.end();
    const seqs = (await Promise.all(held)).map(({ messages }) => messages[0]!.seq);
    expect(seqs.sort()).to.deep.equal([2, 3, 4]);
    expect(await server.exited).to.equal(0);
  });

  it('goes on without a worker that was killed, and with another in its place', async () => {
    await start();
    const [killed, other] = workers();
    process.kill(killed!, 'SIGKILL');
    await until(async () => workers().length === 3);
    expect(logged('a worker ended')).to.have.length(1);
    expect(logged('a worker ended')[0]).to.include({ pid: killed, signal: 'SIGKILL' });
    expect(new Set([...workers().slice(1), other]).size).to.equal(2);
    const fresh = connect(`dns:///127.0.0.1:${server.port}`, headersOf(tenant));
    clients.push(fresh);
    for (const client of clients) await until(() => append(client, 'x').catch(() => false as const));
    expect((await get('/readyz')).status).to.equal(200);
  });

  it('has one worker run the background jobs', async () => {
    const url = new URL(appUrl());
    const name = `jobs-${randomUUID()}`;
    url.searchParams.set('application_name', name);
    await start('--jobs', 'on', '--sweep-interval', '30m', '--direct-database-url', url.href);
    const listening = `select count(*)::int as n from pg_stat_activity where application_name = $1 and query ilike 'listen %'`;
    expect(await runSql(ownerUrl(), listening, [name])).to.deep.equal([{ n: 1 }]);
  });

  it('leaves no worker behind when the first process is killed', async () => {
    await start();
    const pids = workers();
    process.kill(server.pid, 'SIGKILL');
    await server.exited;
    await until(async () => pids.every((pid) => !alive(pid)));
  });
});

function alive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}

import type { Worker } from 'node:worker_threads';
import { expect } from 'chai';
import { Interrupted } from '../src/db/failure.ts';
import { RpcError } from '../src/rpc/errors.ts';
import { times } from './fixtures/results.ts';

/** Takes a second to read: each of its lines is wrong. */
const SLOW = ': - '.repeat(50_000);
const TENANT = { tenant: 'acme' };
const inTime = (identity = TENANT) => ({ identity, limits: { deadline: Date.now() + 60_000 } });
const within = (ms: number) => ({ identity: TENANT, limits: { deadline: Date.now() + ms } });
const refusalOf = (job: Promise<unknown>) => job.then(() => undefined).catch((error) => error);

// A module of this test's own, as another one may have started the thread of the process before.
const OWN: string = '../src/projects/thread.ts?own';
const threads: Worker[] = [];
process.on('worker', (worker: Worker & { threadName?: string }) => {
  if (worker.threadName === 'documents') threads.push(worker);
});

describe('the threads of documents', () => {
  let inThread: typeof import('../src/projects/thread.ts').inThread;
  before(async () => {
    ({ inThread } = await import(OWN));
  });

  it('do one thing of a tenant after the other, and keep nobody waiting for longer than the call may take', async () => {
    const slow = inThread(inTime(), 'check', SLOW);
    const next = inThread(inTime(), 'check', 'a: 1\n');
    let slowIsDone = false;
    slow.then(() => {
      slowIsDone = true;
    });
    expect(await refusalOf(inThread(within(50), 'check', 'a: 1\n'))).to.be.instanceOf(Interrupted);
    expect(slowIsDone).to.equal(false);
    expect(await next).to.deep.equal([]);
    expect(slowIsDone).to.equal(true);
    expect(await slow).to.not.be.empty;
  });

  it('refuse what comes when too much of its tenant waits, and take it later', async () => {
    const slow = inThread(inTime(), 'check', SLOW);
    const waiting = Array.from({ length: 100 }, () => inThread(inTime(), 'check', 'a: 1\n'));
    const refused = await refusalOf(inThread(inTime(), 'check', 'a: 1\n'));
    expect(refused).to.be.instanceOf(RpcError).and.include({ reason: 'DOCUMENTS_BUSY' });
    expect(await inThread(inTime({ tenant: 'other' }), 'check', 'a: 1\n')).to.deep.equal([]);
    await Promise.all([slow, ...waiting]);
    expect(await inThread(inTime(), 'check', 'a: 1\n')).to.deep.equal([]);
  });

  it('serve tenants in turn, none of which keeps the others waiting', async () => {
    const ended: string[] = [];
    const have = (tenant: string, yaml: string) =>
      inThread(inTime({ tenant }), 'check', yaml).then(() => ended.push(tenant));
    const all = [
      ...times(3, () => have('hog', SLOW)),
      ...times(3, () => have('second', 'a: 1\n')),
      ...times(3, () => have('third', 'a: 1\n')),
    ];
    await Promise.all(all);
    expect(ended.at(-1)).to.equal('hog');
    expect(ended.indexOf('third')).to.be.lessThan(ended.lastIndexOf('second'));
  });

  it('leave out what nobody waits for any more', async () => {
    const slow = inThread(inTime(), 'check', SLOW);
    const given = times(100, () => refusalOf(inThread(within(20), 'check', 'a: 1\n')));
    await Promise.all(given);
    // All of them have left the line, which is full otherwise.
    const next = times(100, () => inThread(inTime(), 'check', 'a: 1\n'));
    await Promise.all([slow, ...next]);
  });

  it('are replaced when they die, which only the call under way is told', async () => {
    // With one thread so far, which is the one at work.
    const { inThread }: typeof import('../src/projects/thread.ts') = await import(`${OWN}-and-new`);
    await inThread(inTime(), 'check', '{}');
    const before = threads.length;
    const slow = refusalOf(inThread(inTime(), 'check', SLOW));
    const next = inThread(inTime(), 'check', 'a: [');
    await inThread(within(10), 'check', '').catch(() => {}); // by then it has begun
    await threads.at(-1)!.terminate();
    expect(await slow)
      .to.be.instanceOf(RpcError)
      .and.include({ reason: 'DOCUMENTS_AWAY' });
    expect(await next).to.have.length(1);
    expect(threads.length).to.equal(before + 1);
  });
}).timeout(30_000);

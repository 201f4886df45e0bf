import type { Worker } from 'node:worker_threads';
import { expect } from 'chai';
import { Interrupted } from '../src/db/failure.ts';
import { RpcError } from '../src/rpc/errors.ts';

/** Takes a second to read: each of its lines is wrong. */
const SLOW = ': - '.repeat(50_000);
const inTime = () => ({ deadline: Date.now() + 60_000 });
const refusalOf = (job: Promise<unknown>) => job.then(() => undefined).catch((error) => error);

// A module of this test's own, as another one may have started the thread of the process before.
const OWN: string = '../src/projects/thread.ts?own';
const threads: Worker[] = [];
process.on('worker', (worker: Worker & { threadName?: string }) => {
  if (worker.threadName === 'documents') threads.push(worker);
});

describe('the thread of documents', () => {
  let inThread: typeof import('../src/projects/thread.ts').inThread;
  before(async () => {
    ({ inThread } = await import(OWN));
  });

  it('does one thing after the other, and keeps nobody waiting for longer than the call may take', async () => {
    const slow = inThread(inTime(), 'check', SLOW);
    const next = inThread(inTime(), 'check', 'a: 1\n');
    let slowIsDone = false;
    slow.then(() => {
      slowIsDone = true;
    });
    expect(await refusalOf(inThread({ deadline: Date.now() + 50 }, 'check', 'a: 1\n'))).to.be.instanceOf(Interrupted);
    expect(slowIsDone).to.equal(false);
    expect(await next).to.deep.equal([]);
    expect(slowIsDone).to.equal(true);
    expect(await slow).to.not.be.empty;
  });

  it('refuses what comes when too much waits, and takes it later', async () => {
    const slow = inThread(inTime(), 'check', SLOW);
    const waiting = Array.from({ length: 199 }, () => inThread(inTime(), 'check', 'a: 1\n'));
    const refused = await refusalOf(inThread(inTime(), 'check', 'a: 1\n'));
    expect(refused).to.be.instanceOf(RpcError).and.include({ reason: 'DOCUMENTS_BUSY' });
    await Promise.all([slow, ...waiting]);
    expect(await inThread(inTime(), 'check', 'a: 1\n')).to.deep.equal([]);
  });

  it('is replaced when it dies, which only the call under way is told', async () => {
    await inThread(inTime(), 'check', '{}');
    const before = threads.length;
    const slow = refusalOf(inThread(inTime(), 'check', SLOW));
    const next = inThread(inTime(), 'check', 'a: [');
    await inThread({ deadline: Date.now() + 10 }, 'check', '').catch(() => {}); // by then it has begun
    await threads.at(-1)!.terminate();
    expect(await slow)
      .to.be.instanceOf(RpcError)
      .and.include({ reason: 'DOCUMENTS_AWAY' });
    expect(await next).to.have.length(1);
    expect(threads.length).to.equal(before + 1);
  });
}).timeout(30_000);

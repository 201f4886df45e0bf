import { expect } from 'chai';
import { PoolExhausted } from '../src/db/failure.ts';
import { fairShare } from '../src/db/fair.ts';

const WAIT_MS = 60_000;

describe('shares of what is bounded', () => {
  /** Who got one, in this order. */
  let got: string[];
  let shares: ReturnType<typeof fairShare>;
  beforeEach(() => {
    got = [];
    shares = fairShare(8, WAIT_MS);
  });

  const ask = (who: string) => {
    const taken = shares.take(who).then(() => void got.push(who));
    taken.catch(() => {});
    return taken;
  };
  const askFor = (who: string, count: number) => Array.from({ length: count }, () => ask(who));
  const settled = () => new Promise((resolve) => setImmediate(resolve));

  it('are for one who is alone nearly all of it, and for who comes next at once', async () => {
    askFor('noisy', 100);
    await settled();
    expect(got).to.have.length(7);
    askFor('quiet', 1);
    await settled();
    expect(got.at(-1)).to.equal('quiet');
    expect(shares.waiting).to.equal(93);
  });

  it('come in turns to those who wait, however much one of them asked for before', async () => {
    askFor('noisy', 100);
    for (const other of ['b', 'c', 'd']) askFor(other, 3);
    await settled();
    const before = got.length;
    for (let n = 0; n < 6; n++) {
      shares.give('noisy');
      await settled();
    }
    const served = got.slice(before);
    for (const other of ['b', 'c', 'd']) expect(served, served.join()).to.include(other);
    expect(served.filter((who) => who === 'noisy').length).to.be.at.most(3);
  });

  it('are never more than there are, and none is lost', async () => {
    let held = 0;
    let most = 0;
    const worker = async (who: string) => {
      for (let n = 0; n < 200; n++) {
        await shares.take(who);
        most = Math.max(most, ++held);
        await settled();
        held--;
        shares.give(who);
      }
    };
    await Promise.all(['a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'b', 'b', 'c'].map(worker));
    expect(most).to.be.within(6, 8);
    expect([held, shares.waiting]).to.deep.equal([0, 0]);
    askFor('d', 6);
    await settled();
    expect(got).to.have.length(6);
  });

  it('are not waited for longer than one may', async () => {
    shares = fairShare(1, 5);
    await shares.take('a');
    const late = await shares.take('b').then(
      () => undefined,
      (error) => error,
    );
    expect(late).to.be.instanceOf(PoolExhausted);
    expect(shares.waiting).to.equal(0);
    shares.give('a');
    await shares.take('b');
  });
});

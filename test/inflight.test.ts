import { expect } from 'chai';
import { RpcError } from '../src/rpc/errors.ts';
import { inFlight } from '../src/rpc/inflight.ts';

const LIMIT = 50;

describe('the bound on calls under way', () => {
  let time: number;
  let bound: ReturnType<typeof inFlight>;
  beforeEach(() => {
    time = 1_000_000;
    bound = inFlight(LIMIT, undefined, () => time);
  });

  /** When a refused caller is told to come again. */
  function refused(): number {
    try {
      bound.enter();
    } catch (error) {
      if (error instanceof RpcError && error.reason === 'TOO_MANY_CALLS') return error.details.retryAfterMs!;
      throw error;
    }
    return expect.fail('it should have been refused');
  }

  const fill = () => {
    while (bound.count < LIMIT) bound.enter();
  };

  it('lets the next call in when one leaves', () => {
    fill();
    refused();
    expect(bound.count).to.equal(LIMIT);
    bound.leave();
    bound.enter();
    expect(bound.count).to.equal(LIMIT);
  });

  it('tells callers to come later the more of them are refused, and soon again once that is over', () => {
    fill();
    expect(refused()).to.be.within(100, 320);
    for (let n = 0; n < 9 * LIMIT; n++) refused();
    expect(refused(), 'nine times as many at once').to.be.within(1800, 5800);
    for (const end = time + 60_000; time < end; time += 10) refused();
    expect(refused(), 'it grows to a limit').to.be.within(2500, 7500);
    time += 60_000;
    expect(refused()).to.be.within(100, 320);
  });

  it('tells callers to come soon while few are refused', () => {
    fill();
    for (const end = time + 60_000; time < end; time += 1000) expect(refused()).to.be.within(100, 400);
  });
});

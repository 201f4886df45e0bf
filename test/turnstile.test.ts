import { expect } from 'chai';
import type { Identity } from '../src/rpc/context.ts';
import { RpcError } from '../src/rpc/errors.ts';
import { inFlight } from '../src/rpc/inflight.ts';
import { NOBODY } from '../src/rpc/membership.ts';
import type { Quotas } from '../src/rpc/quotas.ts';
import { turnstile } from '../src/rpc/turnstile.ts';

const LIMIT = 100;

describe('the turnstile', () => {
  let time: number;
  let calls: ReturnType<typeof inFlight>;
  let streams: ReturnType<typeof inFlight>;
  let gate: ReturnType<typeof turnstile>;

  beforeEach(() => {
    time = 1_000_000;
    const clock = () => time;
    calls = inFlight(LIMIT, undefined, clock);
    streams = inFlight(LIMIT, 'open streams', clock);
    gate = turnstile({ calls, streams }, clock);
  });

  const identity = (tenant: string, quotas: Quotas = {}, stored = NOBODY.stored): Identity => ({
    ...{ tenant, env: 'dev', user: 'user', actor: 'user', scopes: new Set<string>(), vouched: true },
    membership: { ...NOBODY, quotas, stored },
  });

  /** A call that goes in, and gives what ends it, or how it was refused. */
  function call(of: Identity, kind: 'calls' | 'streams' = 'calls'): (() => void) | RpcError {
    const entrance = kind === 'calls' ? calls : streams;
    try {
      entrance.enter();
    } catch (error) {
      return error as RpcError;
    }
    try {
      const leave = gate.enter(of, kind);
      return () => {
        leave();
        entrance.leave();
      };
    } catch (error) {
      entrance.leave();
      return error as RpcError;
    }
  }
  const goesIn = (of: Identity, kind: 'calls' | 'streams' = 'calls') => {
    const leave = call(of, kind);
    if (leave instanceof RpcError) throw leave;
    return leave;
  };
  const refused = (of: Identity, kind: 'calls' | 'streams' = 'calls') => {
    const error = call(of, kind);
    if (error instanceof RpcError) return error;
    return expect.fail('it should have been refused');
  };
  /** As many as get in of so many at once. */
  const through = (of: Identity, count: number, kind: 'calls' | 'streams' = 'calls') =>
    Array.from({ length: count }, () => call(of, kind)).filter((leave) => !(leave instanceof RpcError)).length;

  it('lets a second’s worth of calls in at once after a pause, and then each at its time', () => {
    const rated = identity('a', { maxCallsPerSecond: 10 });
    const at = () => {
      const leave = call(rated);
      if (leave instanceof RpcError) return false;
      leave();
      return true;
    };
    expect(Array.from({ length: 20 }, at).filter(Boolean)).to.have.length(10);
    const times: number[] = [];
    for (const end = time + 1000; time < end; time += 5) if (at()) times.push(time - 1_000_000);
    expect(times).to.deep.equal([100, 200, 300, 400, 500, 600, 700, 800, 900]);
    time += 60_000;
    expect(Array.from({ length: 20 }, at).filter(Boolean)).to.have.length(10);
  });

  it('tells who is refused for the rate when the next call fits, each a time of its own', () => {
    const rated = identity('a', { maxCallsPerSecond: 4 });
    for (let n = 0; n < 4; n++) goesIn(rated)();
    const told = Array.from({ length: 5 }, () => refused(rated));
    expect(told.map(({ details }) => details.retryAfterMs)).to.deep.equal([250, 500, 750, 1000, 1250]);
    expect(told[0]).to.include({ reason: 'QUOTA_EXCEEDED' });
    expect(told[0]!.details).to.deep.include({
      metadata: { quota: 'max_calls_per_second', limit: '4' },
      quota: { subject: 'tenants/a', description: 'max_calls_per_second: at most 4 calls in a second' },
    });
    for (let n = 0; n < 5; n++) {
      time += 250;
      goesIn(rated)();
      refused(rated);
    }
    for (let n = 0; n < 100; n++) refused(rated);
    expect(refused(rated).details.retryAfterMs, 'it grows to a limit').to.equal(5000);
  });

  it('counts the rate of each tenant for itself, and what opens a stream as a call', () => {
    const rated = identity('a', { maxCallsPerSecond: 1 });
    goesIn(rated, 'streams');
    expect(refused(rated).details.metadata!.quota).to.equal('max_calls_per_second');
    goesIn(identity('b', { maxCallsPerSecond: 1 }));
    goesIn(identity('c'));
  });

  it('bounds the calls of a tenant at once, but not its streams', () => {
    const bounded = identity('a', { maxConcurrentCalls: 3 });
    for (let n = 0; n < 5; n++) goesIn(bounded, 'streams');
    const [leave] = [goesIn(bounded), goesIn(bounded), goesIn(bounded)];
    const { reason, details } = refused(bounded);
    expect([reason, details.metadata!.quota, details.quota!.subject]).to.deep.equal([
      'QUOTA_EXCEEDED',
      'max_concurrent_calls',
      'tenants/a',
    ]);
    expect(details.retryAfterMs).to.be.within(100, 5000);
    goesIn(identity('b', { maxConcurrentCalls: 3 }));
    leave!();
    goesIn(bounded);
    refused(bounded);
  });

  it('takes nothing of the rate for a call that it refuses otherwise', () => {
    const both = identity('a', { maxConcurrentCalls: 1, maxCallsPerSecond: 2 });
    const leave = goesIn(both);
    for (let n = 0; n < 10; n++) refused(both);
    leave();
    goesIn(both);
  });

  it('leaves others a part of the calls under way, and of the streams, whatever one tenant asks for', () => {
    const mine = through(identity('a'), 2 * LIMIT);
    expect(mine).to.be.within(0.7 * LIMIT, 0.8 * LIMIT);
    expect(refused(identity('a'))).to.include({ reason: 'TOO_MANY_CALLS' });
    const theirs = through(identity('b'), 2 * LIMIT);
    expect(theirs).to.be.within(0.1 * LIMIT, 0.25 * LIMIT);
    goesIn(identity('c'));
    expect(through(identity('a'), 2 * LIMIT, 'streams')).to.equal(mine);
    goesIn(identity('b'), 'streams');
  });

  it('gives tenants that ask for all of it alike as much', () => {
    const tenants = ['a', 'b', 'c'].map((tenant) => ({ of: identity(tenant), held: [] as (() => void)[] }));
    // One after the other ends a call and asks for more.
    for (let round = 0; round < 2000; round++) {
      const { of, held } = tenants[round % 3]!;
      held.shift()?.();
      for (let more = call(of); !(more instanceof RpcError); more = call(of)) held.push(more);
    }
    const held = tenants.map((tenant) => tenant.held.length);
    expect(Math.max(...held) - Math.min(...held), held.join()).to.be.at.most(2);
    expect(calls.count).to.be.within(0.8 * LIMIT, LIMIT);
  });

  it('is free for who names no tenant', () => {
    for (let n = 0; n < LIMIT; n++) goesIn(identity(''));
    expect(refused(identity(''))).to.include({ reason: 'TOO_MANY_CALLS' });
  });

  it('adds what came to be stored to what was measured, and begins anew with the next measure', () => {
    const stores = (bytes: number, stored: { bytes: number; time: number }) =>
      gate.store(identity('a', { maxStoredBytes: 1000 }, stored), bytes).full;
    const first = { bytes: 400, time: 1 };
    expect(stores(500, first)).to.equal(undefined);
    const full = stores(101, first)!;
    expect([full.reason, full.details.metadata, full.details.retryAfterMs]).to.deep.equal([
      'QUOTA_EXCEEDED',
      { quota: 'max_stored_bytes', limit: '1000' },
      300_000,
    ]);
    expect(stores(100, first), 'what was refused takes no room').to.equal(undefined);
    expect(stores(1, first)).to.be.instanceOf(RpcError);
    expect(stores(200, { bytes: 800, time: 2 })).to.equal(undefined);
    expect(stores(1, { bytes: 800, time: 2 })).to.be.instanceOf(RpcError);
    expect(stores(1, first), 'who knows only the measure before is no new measure').to.be.instanceOf(RpcError);
    expect(gate.store(identity('a'), 10_000).full, 'without the quota').to.equal(undefined);
  });

  it('puts what a call really stored in the place of its request, also when it was measured meanwhile', () => {
    const storing = (bytes: number, stored = { bytes: 0, time: 1 }) =>
      gate.store(identity('a', { maxStoredBytes: 1000 }, stored), bytes);
    const room = (stored?: { bytes: number; time: number }) => {
      for (let bytes = 1000; bytes > 0; bytes--) {
        const { full, end } = storing(bytes, stored);
        end(0);
        if (!full) return bytes;
      }
      return 0;
    };
    const replay = storing(600);
    expect(room()).to.equal(400);
    replay.end(0);
    expect(room(), 'it stored nothing').to.equal(1000);
    storing(10).end(700);
    expect(room(), 'it copied').to.equal(300);
    const refused = storing(301);
    expect(refused.full).to.be.instanceOf(RpcError);
    refused.end(0);
    expect(room()).to.equal(300);
    const slow = storing(200);
    const second = { bytes: 700, time: 2 };
    expect(room(second)).to.equal(300);
    slow.end(250);
    expect(room(second)).to.equal(50);
  });
});

import { expect } from 'chai';
import { LAST_DUE } from '../src/audit/prune.ts';
import { query } from '../src/db/statement.ts';
import { reader, transaction } from '../src/db/transaction.ts';
import { expiryStats, sweep } from '../src/tenants/expiry.ts';
import { keep } from './fixtures/aging.ts';
import { expectSound, openChaining, plantEvents, sealed, tamper } from './fixtures/audit.ts';
import { newTenant, useOwnDatabase } from './support.ts';

describe('retention of audit events', () => {
  let leave: () => void;
  let chaining: Awaited<ReturnType<typeof openChaining>>;
  let tenant: string;

  before(async () => {
    leave = await useOwnDatabase(); // where nobody else seals
    chaining = await openChaining();
  });
  after(async () => {
    await chaining.close();
    leave();
  });
  beforeEach(async () => {
    tenant = await newTenant();
  });

  // Of chains that a test broke the sweeps of others know nothing.
  afterEach(() => tamper(`update tenants set policies = '{}'`, []));

  const sweepAll = () => sweep(chaining.database, undefined, chaining.keyring);
  const place = (env = 'dev', of = tenant) => ({ tenant: of, env });
  const chains = (of = tenant) => ['', 'dev', 'prod'].map((env) => place(env, of));
  const left = async (env = 'dev', of = tenant): Promise<string[]> =>
    (await tamper('select id from audit_events where tenant_id = $1 and env = $2 order by id', [of, env])).map(
      ({ id }) => id,
    );
  const statOf = async (env = 'dev') => {
    const db = reader(chaining.database, { ...place(env), user: '' }, { deadline: Date.now() + 20_000 });
    const { sweptCount, pendingCount } = (await expiryStats(db)).find(({ kind }) => kind === 'retention_audit')!;
    return { sweptCount, pendingCount };
  };
  /** A block of so many events that are so old. */
  async function block(scope: { tenant: string; env: string }, count: number, days: number): Promise<string[]> {
    const ids = await plantEvents(scope, count);
    await tamper(`update audit_events set create_time = now() - interval '24 hours' * $2 where id = any ($1)`, [
      ids,
      days,
    ]);
    await sealed(chaining, scope);
    return ids;
  }

  it('is due at its age to the microsecond, by the clock of the database', async () => {
    await keep(tenant, { audit_days: 30 });
    // Four blocks, of which the second is as old as it may be, and the third a microsecond younger.
    const plant =
      query(`insert into audit_blocks (tenant_id, env, block_no, kind, upto, upto_id, newest_micros, ids, leaves, salts, prev, hash, signature)
      select $1, $2, n, 1, '1', gen_random_uuid(), extract(epoch from now() - interval '720 hours') * 1000000 + n - 2, array[gen_random_uuid()], '', '', '', '', ''
      from generate_series(1, 4) n`);
    const scope = { ...place(), user: '' };
    const limits = { deadline: Date.now() + 20_000 };
    const due = await transaction(chaining.database, scope, undefined, limits, { repeatable: false }, async (tx) => {
      await tx.query(plant);
      const last = await tx.query(LAST_DUE, [4]);
      return [
        last.map(({ blockNo }) => blockNo),
        (await expiryStats(tx)).find(({ kind }) => kind === 'retention_audit'),
      ];
    });
    expect(due[0]).to.deep.equal([2]);
    expect(due[1]).to.include({ pendingCount: 2 });
  });

  it('removes what is due in each env and of the tenant itself, counts it, and leaves all else and chains that verify', async () => {
    const others = [await newTenant(), await newTenant()];
    await keep(others[0]!, { audit_days: 41, usage_days: 1 });
    const kept: Record<string, string[]> = {};
    const all = [tenant, ...others].flatMap((one) => chains(one));
    // At once, as each waits for whatever is being written in this Postgres.
    const old = await Promise.all(all.map((scope) => block(scope, 3, 40)));
    const young = await Promise.all(all.map((scope) => block(scope, 2, 20)));
    for (const [i, scope] of all.entries()) {
      kept[`${scope.tenant}/${scope.env}`] = scope.tenant === tenant ? young[i]! : [...old[i]!, ...young[i]!];
    }
    expect(await statOf()).to.deep.equal({ sweptCount: 0, pendingCount: 0 });
    await keep(tenant, { audit_days: 30 });
    expect(await statOf()).to.deep.equal({ sweptCount: 0, pendingCount: 6 });
    expect([...(await sweepAll())]).to.deep.equal([['retention_audit', 9]]);
    for (const env of ['dev', 'prod']) expect(await statOf(env)).to.deep.equal({ sweptCount: 6, pendingCount: 0 });
    expect((await sweepAll()).size).to.equal(0);
    await keep(tenant, null);
    expect((await sweepAll()).size).to.equal(0);
    for (const scope of all) {
      expect(await left(scope.env, scope.tenant)).to.deep.equal(kept[`${scope.tenant}/${scope.env}`]);
      await expectSound(chaining, scope);
    }
  });

  it('removes nothing without a key to sign what is left', async () => {
    await block(place(), 3, 40);
    await keep(tenant, { audit_days: 30 });
    expect((await sweep(chaining.database)).size).to.equal(0);
    expect(await left()).to.have.length(3);
  });

  it('keeps events that no block has sealed', async () => {
    await block(place(), 3, 40);
    const waiting = await plantEvents(place(), 2);
    await tamper(`update audit_events set create_time = now() - interval '1000 hours' where id = any ($1)`, [waiting]);
    await keep(tenant, { audit_days: 30 });
    await sweepAll();
    expect(await left()).to.deep.equal(waiting);
  });

  it('goes on with the others when one chain ends in a block that nobody signed, and says so', async () => {
    const other = await newTenant();
    for (const one of [tenant, other]) {
      await block(place('dev', one), 3, 40);
      await keep(one, { audit_days: 30 });
    }
    const [first, second] = [tenant, other].sort() as [string, string];
    await tamper(`update audit_blocks set signature = 'x' where tenant_id = $1`, [first]);
    const failure = await sweepAll().catch((error) => error);
    expect(failure.message).to.match(
      /^block 1 of the audit trail of .* is not signed with a key of the key file: it names none$/,
    );
    expect([await left('dev', first), await left('dev', second)].map(({ length }) => length)).to.deep.equal([3, 0]);
  });

  it('counts once what several sweeps remove at once', async () => {
    await block(place(), 2500, 40);
    await keep(tenant, { audit_days: 30 });
    await Promise.all([sweepAll(), sweepAll(), sweepAll()]);
    expect(await statOf()).to.deep.equal({ sweptCount: 2500, pendingCount: 0 });
    await expectSound(chaining, place());
  });
});

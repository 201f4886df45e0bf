import { randomUUID } from 'node:crypto';
import { expect } from 'chai';
import { changeOnce, requested } from '../src/db/change.ts';
import { CommitUnknown, DatabaseAway, PoolExhausted, sqlState } from '../src/db/failure.ts';
import { type Database, openDatabase } from '../src/db/pool.ts';
import { change, pointRead, query } from '../src/db/statement.ts';
import { reader, type Scope, type Stamp, together, transaction, transactionOnce } from '../src/db/transaction.ts';
import { type Interposed, replaced, startProxy } from './proxy.ts';
import { appUrl, newTenant, ownerUrl, runSql } from './support.ts';

const PUT = change<{ userId: string }>(`
  with saved as (
    insert into tenant_members (tenant_id, env, user_id, role) values ($1, $2, $11, 1) returning user_id
  ), ${requested('saved')}
  select user_id from saved`);
const ME = query<{ pid: number; tenant: string; env: string }>(
  `select pg_backend_pid() as pid, current_setting('app.tenant_id') as tenant, current_setting('app.env') as env`,
);
const WHO = pointRead<{ tenant: string; pid: number }>(
  `select current_setting('app.tenant_id') as tenant, pg_backend_pid() as pid from (select pg_sleep(0)) s`,
);
const BAD = query(`select 1 / $4::int`);
const BAD_READ = pointRead(`select 1 / $4::int as x`);
const SLEEP = query(`select pg_sleep(30)`);

describe('transaction', () => {
  let scope: Scope;
  let proxy: Interposed;
  let database: Database;

  const open = (url: string, poolSize = 2, poolWaitMs = 5000) =>
    openDatabase({ connectionString: url, poolSize, poolWaitMs, sharedConnections: 1, preparedStatements: true });
  const limits = (ms = 10_000, signal?: AbortSignal) => ({ deadline: Date.now() + ms, signal });
  const stamp = (requestId: string | null = null): Stamp => ({
    actor: 'user',
    method: 'Test/Put',
    requestId,
    fingerprint: requestId ? { stored: Buffer.from('same'), is: () => true } : null,
    eventId: randomUUID(),
    traceId: '',
    requester: 'user',
  });
  const put = (user: string, requestId: string | null = null, ms = 10_000) =>
    changeOnce(database, scope, stamp(requestId), limits(ms), (tx) => tx.final(PUT, [user]));
  const me = () => transactionOnce(database, scope, undefined, limits(), (tx) => tx.final(ME));
  const failureOf = (work: Promise<unknown>) =>
    work.then(
      () => expect.fail('it should have failed'),
      (e: unknown) => e,
    );
  const members = async () =>
    (
      await runSql(ownerUrl(), 'select user_id from tenant_members where tenant_id = $1 order by 1', [scope.tenant])
    ).map((r) => r.user_id);

  beforeEach(async () => {
    scope = { tenant: await newTenant(['user']), env: 'dev', user: 'user' };
    proxy = await startProxy(appUrl());
    database = open(proxy.url);
  });
  afterEach(async () => {
    await database.close();
    await proxy.close();
  });

  it('plans a point read once, also one that is cheaper for a limit that is known', async () => {
    const page = pointRead<{ user: string }>(
      'select user_id from tenant_members where tenant_id >= $1 order by tenant_id, env, user_id limit $4::int',
    );
    const plans = pointRead<{ custom: number; generic: number }>(
      'select custom_plans as custom, generic_plans as generic from pg_prepared_statements where name = $4::text',
    );
    const db = reader(database, scope, limits());
    for (let i = 0; i < 8; i++) await db.query(page, [1]);
    expect(await db.query(plans, [page.name])).to.deep.equal([{ custom: 0, generic: 8 }]);
  });

  it('sets the scope for itself alone, with 200 at once over a pool of 10', async () => {
    const wide = open(appUrl(), 10);
    const tenants = await Promise.all([newTenant(), newTenant(), newTenant()]);
    const seen = await Promise.all(
      Array.from({ length: 200 }, async (_, i) => {
        const own = { tenant: tenants[i % 3]!, env: i % 2 ? 'dev' : 'prod', user: 'user' };
        const [row] = await transactionOnce(wide, own, undefined, limits(), (tx) => tx.final(ME));
        return row!.tenant === own.tenant && row!.env === own.env;
      }),
    );
    expect(seen.every(Boolean)).to.equal(true);
    const client = await wide.acquire(limits(), '');
    expect((await client.query(`select current_setting('app.tenant_id', true) as t`)).rows[0].t).to.be.oneOf([
      '',
      null,
    ]);
    wide.release(client);
    expect(wide.usage().used).to.equal(0);
    await wide.close();
  });

  it('does not succeed when the prologue failed, although the statement and COMMIT went well', async () => {
    proxy.toServer = (bytes) => replaced(bytes, 'begin;', 'begim;');
    expect(sqlState(await failureOf(put('outside')))).to.equal('42601');
  });

  it('does not succeed when COMMIT was answered with a rollback', async () => {
    proxy.toServer = (bytes) => replaced(bytes, 'commit', 'abort ');
    expect(String(await failureOf(put('lost')))).to.match(/COMMIT was answered with a rollback/);
    expect(await members()).to.deep.equal(['user']);
  });

  it('does not succeed when its work goes on after a statement failed', async () => {
    const work = transactionOnce(database, scope, stamp(), limits(), async (tx) => {
      await tx.query(PUT, ['lost']);
      await tx.query(BAD, [0]).catch(() => {});
      return 'fine';
    });
    expect(sqlState(await failureOf(work))).to.equal('22012');
    expect(await members()).to.deep.equal(['user']);
  });

  it('rolls back what was thrown away, and gives the connection back', async () => {
    const refusal = new Error('refused');
    const [before] = await me();
    const work = transaction(database, scope, stamp(), limits(), { repeatable: false }, async (tx) => {
      await tx.query(PUT, ['refused']);
      throw refusal;
    });
    expect(await failureOf(work)).to.equal(refusal);
    expect(await members()).to.deep.equal(['user']);
    expect((await me())[0]!.pid).to.equal(before!.pid);
  });

  it('sends queries that nobody waits between in one write, and runs them in their order', async () => {
    const ROLE = query<{ role: number }>('select role from tenant_members where tenant_id = $1 and user_id = $4');
    await me(); // connects
    let writes = 0;
    proxy.toServer = (bytes) => {
      writes++;
      return bytes;
    };
    const rows = await transactionOnce(database, scope, stamp(), limits(), (tx) =>
      together([tx.query(ROLE, ['new']), tx.step.query(PUT, ['new']), tx.query(ROLE, ['new']), tx.final(ME)]),
    );
    expect(rows.slice(0, 3)).to.deep.equal([[], [{ userId: 'new' }], [{ role: 1 }]]);
    expect(rows[3][0]).to.include({ tenant: scope.tenant });
    expect(writes).to.equal(1);
    expect(await members()).to.deep.equal(['new', 'user']);
  });

  it('fails with the first of several that fails, does none of them, and goes on with what it had not prepared', async () => {
    const outcomes = await transactionOnce(database, scope, stamp(), limits(), (tx) =>
      Promise.allSettled([tx.query(PUT, ['new']), tx.query(BAD, [0]), tx.query(BAD_READ, [0]), tx.query(ME)]),
    ).catch((error) => error);
    expect(sqlState(outcomes)).to.equal('22012');
    expect(await members()).to.deep.equal(['user']);
    const [row] = await me();
    expect(row).to.include({ tenant: scope.tenant });
    expect(database.usage()).to.deep.equal({ used: 0, free: 1, waiting: 0 });
  });

  it('takes nothing after its last statement', async () => {
    const work = transactionOnce(database, scope, undefined, limits(), (tx) => together([tx.final(ME), tx.query(ME)]));
    expect(((await failureOf(work)) as Error).message).to.match(/the transaction is over/);
  });

  it('closes a connection that is not idle on release', async () => {
    const [before] = await me();
    proxy.toServer = (bytes) => replaced(bytes, 'commit\0', 'commix\0');
    expect(sqlState(await failureOf(put('never')))).to.equal('42601');
    proxy.toServer = (bytes) => bytes;
    expect((await me())[0]!.pid).not.to.equal(before!.pid);
    expect(await members()).to.deep.equal(['user']);
  });

  it('cancels the statement of a caller that is gone, and never the next one on the connection', async () => {
    const used = new Set<unknown>();
    for (let i = 0; i < 30; i++) {
      const ending = new AbortController();
      const sleeping = transactionOnce(database, scope, undefined, limits(10_000, ending.signal), (tx) =>
        tx.final(SLEEP),
      );
      setImmediate(() => ending.abort());
      expect(await failureOf(sleeping)).to.be.instanceOf(Error);
      const [next] = await me();
      expect(next!.tenant).to.equal(scope.tenant);
      used.add(next!.pid);
    }
    // The connection is kept. Only where the cancel comes between two answers, as it may, it is given up.
    expect(used.size).to.be.below(10);
  });

  it('acknowledges no write whose COMMIT was cancelled', async () => {
    for (let i = 0; i < 40; i++) {
      const ending = new AbortController();
      const user = `u${i}`;
      const work = transactionOnce(database, scope, stamp(), limits(10_000, ending.signal), (tx) =>
        tx.final(PUT, [user]),
      );
      setTimeout(() => ending.abort(), i / 20);
      const done = await work.then(
        () => true,
        () => false,
      );
      if (done) expect(await members()).to.include(user);
    }
  });

  it('is bounded by the deadline, in the database', async () => {
    const work = transactionOnce(database, scope, undefined, limits(100), (tx) => tx.final(SLEEP));
    expect(sqlState(await failureOf(work))).to.equal('57014');
    expect((await me())[0]!.tenant).to.equal(scope.tenant);
  });

  it('gives up on a connection that answers nothing, and goes on with another', async () => {
    await me();
    proxy.toServer = (bytes, connection) => {
      connection.deafen();
      return bytes;
    };
    expect(await failureOf(put('silent', null, 500))).to.be.instanceOf(Error);
    proxy.toServer = (bytes) => bytes;
    expect((await me())[0]!.tenant).to.equal(scope.tenant);
  });

  it('tells that the outcome is unknown when the connection is cut after COMMIT', async () => {
    await me();
    proxy.toServer = cutAfterCommit();
    expect(await failureOf(put('unknown'))).to.be.instanceOf(CommitUnknown);
  });

  it('settles an unknown outcome by the request_id: done once, answered with the first result', async () => {
    await me();
    proxy.toServer = cutAfterCommit();
    const rows = await put('once', randomUUID());
    expect(rows.map((r) => r.userId)).to.deep.equal(['once']);
    expect(await members()).to.deep.equal(['once', 'user']);
  });

  /** Lets one COMMIT through to the server and its answer not back. */
  function cutAfterCommit(): Interposed['toServer'] {
    let cut = false;
    return (bytes, connection) => {
      if (!cut && bytes.includes('commit\0')) {
        cut = true;
        connection.deafen();
        setTimeout(connection.cut, 100);
      }
      return bytes;
    };
  }

  it('survives a terminated backend: a read goes on, a write without request_id fails, and with one happens once', async () => {
    const kill = async (pid: number) => runSql(ownerUrl(), 'select pg_terminate_backend($1)', [pid]);
    const [read] = await transaction(database, scope, undefined, limits(), { repeatable: true }, async (tx) => {
      const rows = await tx.query(ME);
      if (!killed) await kill(rows[0]!.pid);
      killed = true;
      return tx.final(ME);
    });
    expect(read!.tenant).to.equal(scope.tenant);
    const writing = (requestId: string | null) => {
      let first = true;
      return changeOnce(database, scope, stamp(requestId), limits(), async (tx) => {
        const [row] = await tx.query(ME);
        if (first) await kill(row!.pid);
        first = false;
        return tx.final(PUT, [`w${requestId ? 1 : 0}`]);
      });
    };
    const lost = await failureOf(writing(null));
    expect(lost instanceof DatabaseAway || lost instanceof CommitUnknown).to.equal(true);
    expect(await writing(randomUUID())).to.have.length(1);
    expect((await members()).filter((m) => m === 'w1')).to.have.length(1);
  });
  let killed = false;

  it('runs a deadlocked transaction again', async () => {
    const lock = change(
      `update tenant_members set role = role where tenant_id = $1 and env = $2 and user_id = $11 returning 1`,
    );
    for (const user of ['a', 'b']) await put(user);
    let attempts = 0;
    let meet = () => {};
    const met = new Promise<void>((resolve) => {
      meet = resolve;
    });
    const both = (first: string, second: string) =>
      transaction(database, scope, stamp(), limits(), { repeatable: false }, async (tx) => {
        await tx.query(lock, [first]);
        if (++attempts === 2) meet(); // each holds one row, and waits for the other's
        await met;
        return tx.final(lock, [second]);
      });
    await Promise.all([both('a', 'b'), both('b', 'a')]);
    expect(attempts).to.be.greaterThan(2);
  });

  it('refuses when no connection comes free in time', async () => {
    // Long enough to open a connection on a busy machine.
    const narrow = open(appUrl(), 1, 2000);
    const held = await narrow.acquire(limits(), '');
    expect(await failureOf(transactionOnce(narrow, scope, undefined, limits(), (tx) => tx.final(ME)))).to.be.instanceOf(
      PoolExhausted,
    );
    narrow.release(held);
    expect(await transactionOnce(narrow, scope, undefined, limits(), (tx) => tx.final(ME))).to.have.length(1);
    await narrow.close();
  });

  it('fails at once with DatabaseAway when there is no database', async () => {
    const away = open('postgres://memoryd_app:app@127.0.0.1:1/nothing');
    expect(await failureOf(transactionOnce(away, scope, undefined, limits(), (tx) => tx.final(ME)))).to.be.instanceOf(
      DatabaseAway,
    );
    expect(await failureOf(reader(away, scope, limits()).query(WHO))).to.be.instanceOf(DatabaseAway);
    await away.close();
  });

  it('prepares anew when the type of a result changed under a prepared statement', async () => {
    const table = `plan_${randomUUID().slice(0, 8)}`;
    await runSql(
      ownerUrl(),
      `create table ${table} (v int); insert into ${table} values (1); grant select on ${table} to memoryd_app`,
    );
    const select = pointRead<{ v: unknown }>(`select v from ${table}`);
    const db = reader(database, scope, limits());
    const slow = query<{ v: unknown }>(`select v from ${table} where true`);
    expect([await db.query(select), await db.query(slow)]).to.deep.equal([[{ v: 1 }], [{ v: 1 }]]);
    await runSql(ownerUrl(), `alter table ${table} alter v type text`);
    expect([await db.query(select), await db.query(slow)]).to.deep.equal([[{ v: '1' }], [{ v: '1' }]]);
    await runSql(ownerUrl(), `drop table ${table}`);
  });

  describe('shared reads', () => {
    it('never mix the tenants of concurrent calls, and outlive a unit that fails', async () => {
      const tenants = await Promise.all([newTenant(), newTenant()]);
      const seen = await Promise.all(
        Array.from({ length: 300 }, async (_, i) => {
          const tenant = tenants[i % 2]!;
          const db = reader(database, { ...scope, tenant }, limits());
          if (i % 7 === 0) return sqlState(await failureOf(db.query(BAD_READ, [0]))) === '22012';
          return (await db.query(WHO))[0]!.tenant === tenant;
        }),
      );
      expect(seen.every(Boolean)).to.equal(true);
    });

    it('are timed out by the server at the deadline of their call', async () => {
      const nap = pointRead(`select pg_sleep(5)`);
      expect(sqlState(await failureOf(reader(database, scope, limits(100)).query(nap)))).to.equal('57014');
      expect((await reader(database, scope, limits()).query(WHO))[0]!.tenant).to.equal(scope.tenant);
    });

    it('go on over a new connection when theirs is terminated', async () => {
      const db = reader(database, scope, limits());
      const { pid } = (await db.query(WHO))[0]!;
      await runSql(ownerUrl(), 'select pg_terminate_backend($1)', [pid]);
      expect((await db.query(WHO))[0]!.pid).not.to.equal(pid);
    });
  });
});

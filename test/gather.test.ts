import { randomUUID } from 'node:crypto';
import { expect } from 'chai';
import { changeAmongOthers, requested } from '../src/db/change.ts';
import { CommitUnknown, Interrupted, PoolExhausted, sqlState } from '../src/db/failure.ts';
import { type Database, openDatabase } from '../src/db/pool.ts';
import { change } from '../src/db/statement.ts';
import type { Scope, Stamp } from '../src/db/transaction.ts';
import { withClient } from '../src/preflight.ts';
import { type Interposed, replaced, startProxy } from './proxy.ts';
import { appUrl, newTenant, ownerUrl, runSql, until } from './support.ts';

// A member whose role counts the changes. A divisor of 0 fails, and a key of its own tells in which transaction it was.
const ADD = change<{ userId: string; role: number; xid: string; tenant: string }>(`
  with saved as (
    insert into tenant_members as m (tenant_id, env, user_id, role) values ($1, $2, $11, 1 / $12::int)
    on conflict (tenant_id, env, user_id) do update set role = m.role + 1
    returning user_id, role, pg_current_xact_id()::text as xid, current_setting('app.tenant_id') as tenant
  ), ${requested('saved')}
  select * from saved`);

describe('changes that commit together', () => {
  let scope: Scope;
  let proxy: Interposed;
  let database: Database;

  const open = (url: string, poolWaitMs = 5000) =>
    openDatabase({ connectionString: url, poolSize: 4, poolWaitMs, sharedConnections: 1, preparedStatements: true });
  const stamp = (requestId: string | null): Stamp => ({
    actor: 'user',
    method: 'Test/Add',
    requestId,
    fingerprint: requestId ? { stored: Buffer.from('same'), is: () => true } : null,
    eventId: randomUUID(),
    traceId: '',
    requester: 'user',
  });
  const add = async (
    user: string,
    {
      divisor = 1,
      requestId = null as string | null,
      ms = 10_000,
      within = scope,
      via = database,
      signal = undefined as AbortSignal | undefined,
    } = {},
  ) => {
    const limits = { deadline: Date.now() + ms, signal };
    const [row] = await changeAmongOthers(via, within, stamp(requestId), limits, user, (tx) =>
      tx.final(ADD, [user, divisor]),
    );
    return row!;
  };
  const failureOf = (work: Promise<unknown>) =>
    work.then(
      () => expect.fail('it should have failed'),
      (e: unknown) => e,
    );
  const roles = async () => {
    const rows = await runSql(
      ownerUrl(),
      `select user_id, role from tenant_members where tenant_id = $1 and user_id <> 'user'`,
      [scope.tenant],
    );
    return new Map(rows.map(({ user_id, role }) => [user_id, role]));
  };
  const names = (n: number) => Array.from({ length: n }, (_, i) => `u${i}`);

  beforeEach(async () => {
    scope = { tenant: await newTenant(), env: 'dev', user: 'user' };
    proxy = await startProxy(appUrl());
    database = open(proxy.url);
  });
  afterEach(async () => {
    await database.close();
    await proxy.close();
  });

  it('are few transactions for many callers, and each is told its own', async () => {
    const users = names(64);
    const rows = await Promise.all(users.map((user) => add(user)));
    expect(rows.map(({ userId }) => userId)).to.deep.equal(users);
    expect(new Set(rows.map(({ xid }) => xid)).size).to.equal(4);
    expect(await roles()).to.deep.equal(new Map(users.map((user) => [user, 1])));
  });

  it('are of one tenant and env', async () => {
    const tenants = [scope.tenant, await newTenant()];
    const scopes = Array.from({ length: 64 }, (_, i) => ({
      ...scope,
      tenant: tenants[i % 2]!,
      env: i % 4 < 2 ? 'dev' : 'prod',
    }));
    const rows = await Promise.all(scopes.map((within, i) => add(`u${i}`, { within })));
    expect(rows.map(({ tenant }) => tenant)).to.deep.equal(scopes.map(({ tenant }) => tenant));
    const placesOf = new Map(rows.map(({ xid }, i) => [xid, `${scopes[i]!.tenant}/${scopes[i]!.env}`]));
    rows.forEach(({ xid }, i) => expect(placesOf.get(xid)).to.equal(`${scopes[i]!.tenant}/${scopes[i]!.env}`));
  });

  it('do not fail with one that fails', async () => {
    const outcomes = await Promise.allSettled(names(40).map((user, i) => add(user, { divisor: i % 8 === 5 ? 0 : 1 })));
    outcomes.forEach((outcome, i) => {
      if (i % 8 !== 5) expect(outcome.status).to.equal('fulfilled');
      else expect(sqlState((outcome as PromiseRejectedResult).reason)).to.equal('22012');
    });
    expect(await roles()).to.deep.equal(
      new Map(
        names(40)
          .filter((_, i) => i % 8 !== 5)
          .map((user) => [user, 1]),
      ),
    );
  });

  it('do not wait for a lock that one of them waits for', async () => {
    await add('u3');
    await withClient(ownerUrl(), async (holder) => {
      await holder.query('begin');
      await holder.query(`update tenant_members set role = role where tenant_id = $1 and user_id = 'u3'`, [
        scope.tenant,
      ]);
      let held = true;
      const outcomes = new Map<string, boolean>();
      const adding = names(16).map((user) => add(user).then(() => outcomes.set(user, held)));
      await until(async () => outcomes.size === 15);
      // Those that come now are not held up either, whatever else waits for the lock.
      const later = [add('u3'), ...names(3).map((user) => add(user).then(() => outcomes.set(`${user} again`, held)))];
      await until(async () => outcomes.size === 18);
      held = false;
      await holder.query('commit');
      await Promise.all([...adding, ...later]);
      expect([...outcomes].filter(([, whileHeld]) => !whileHeld).map(([user]) => user)).to.deep.equal(['u3']);
    });
    expect((await roles()).get('u3')).to.equal(3);
  }).timeout(20_000);

  it('are all done once where rows are locked by two processes in any order', async () => {
    const other = open(appUrl());
    const users = names(6);
    await Promise.all(
      [database, other].flatMap((via, n) =>
        Array.from({ length: 120 }, (_, i) => add(users[(n ? 5 * i : i) % 6]!, { via })),
      ),
    );
    expect(await roles()).to.deep.equal(new Map(users.map((user) => [user, 40])));
    await other.close();
  });

  it('are all unknown when the connection is lost around COMMIT, or done once with a request_id', async () => {
    let cuts = 0;
    proxy.toServer = (bytes, connection) => {
      if (cuts > 0 && bytes.includes('commit')) {
        cuts--;
        setImmediate(() => connection.cut());
      }
      return bytes;
    };
    cuts = 1;
    const unknown = await Promise.all(names(10).map((user) => failureOf(add(user))));
    for (const failure of unknown) expect(failure).to.be.instanceOf(CommitUnknown);
    cuts = 1;
    await Promise.all(names(10).map((user) => add(`${user}x`, { requestId: randomUUID() })));
    const after = await roles();
    for (const user of names(10)) expect(after.get(`${user}x`), user).to.equal(1);
  });

  it('have not happened when COMMIT was answered with a rollback', async () => {
    proxy.toServer = (bytes) => replaced(bytes, 'commit', 'abort ');
    for (const failure of await Promise.all(names(10).map((user) => failureOf(add(user))))) {
      expect(String(failure)).to.match(/COMMIT was answered with a rollback/);
    }
    expect((await roles()).size).to.equal(0);
  });

  it('leave out who is gone, and tell who has waited too long', async () => {
    const gone = AbortSignal.abort();
    const failures = await Promise.all([failureOf(add('gone', { signal: gone })), add('there').then(() => undefined)]);
    expect(failures[0]).to.be.instanceOf(Interrupted);
    const impatient = open(appUrl(), 200);
    const holding = await Promise.all(names(4).map(() => impatient.acquire({ deadline: Date.now() + 10_000 }, '')));
    for (const failure of await Promise.all(names(80).map((user) => failureOf(add(user, { via: impatient }))))) {
      expect(failure).to.be.instanceOf(PoolExhausted);
    }
    for (const client of holding) impatient.release(client);
    expect((await add('there', { via: impatient })).role).to.equal(2);
    expect([...(await roles()).keys()]).to.deep.equal(['there']);
    await impatient.close();
  });

  it('end at their deadlines, each at its own', async () => {
    await add('u1');
    await withClient(ownerUrl(), async (holder) => {
      await holder.query('begin');
      await holder.query(`update tenant_members set role = role where tenant_id = $1 and user_id = 'u1'`, [
        scope.tenant,
      ]);
      const [late, , never] = await Promise.all([
        failureOf(add('u1', { ms: 900 })),
        add('u2', { ms: 1000 }),
        failureOf(add('u1', { ms: 100 })),
      ]);
      expect([sqlState(late), sqlState(never)]).to.deep.equal(['57014', '57014']);
    });
    expect(await roles()).to.deep.equal(
      new Map([
        ['u1', 1],
        ['u2', 1],
      ]),
    );
  });
});

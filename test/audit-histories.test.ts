import { expect } from 'chai';
import pg from 'pg';
import { v7 as uuidv7 } from 'uuid';
import { forgetInAudit } from '../src/audit/forget.ts';
import { pruneAll, pruneAudit } from '../src/audit/prune.ts';
import { sealAll, sealPlace } from '../src/audit/seal.ts';
import type { TenantScope } from '../src/db/transaction.ts';
import { openChaining, verified } from './fixtures/audit.ts';
import { appUrl, ownerUrl, runSql, until, useOwnDatabase } from './support.ts';
import { makeRandom } from './survival/random.ts';
import type { Random } from './survival/scenario.ts';

const seed = Number(process.env.TEST_SEED ?? 20_260_727);
const RUNS = Number(process.env.TEST_RUNS ?? 1);
const HISTORIES = 1000 * RUNS;
/** So many at a time. A transaction of one holds up the sealers of all. */
const AT_ONCE = 8;
const STEPS = 8;

const USERS = ['ada', 'bob', 'zoë/𝔷', `o'hara "`];
const METADATA = [
  null,
  {},
  { count: 1, list: ['ada', null, 1.5], nested: { bob: true } },
  { text: 'é\u2028"\\', figure: 123456789.25 },
];
const INSERT = `insert into audit_events (tenant_id, env, id, user_id, actor, action, outcome, resource, session_id, request_id, trace_id, metadata, create_time)
  select $1, $2, id, user_id, actor, action, outcome, resource, session_id, request_id, trace_id, metadata, clock_timestamp() - interval '1 hour' * hours
  from jsonb_to_recordset($3) as e (id uuid, user_id text, actor text, action text, outcome smallint, resource text, session_id uuid, request_id uuid, trace_id text, metadata jsonb, hours float)`;

describe(`the chain of the audit trail, by random histories (seed ${seed})`, function () {
  this.timeout(240_000 * RUNS);
  let leave: () => void;
  let chaining: Awaited<ReturnType<typeof openChaining>>;

  before(async () => {
    leave = await useOwnDatabase(); // where nobody else seals
    chaining = await openChaining(2 * AT_ONCE);
    await runSql(
      ownerUrl(),
      `insert into tenants (tenant_id, envs, policies)
       select 'h-' || n, '{dev}', '{"retention": {"audit_days": 1}}' from generate_series(1, $1) n`,
      [HISTORIES],
    );
  });
  after(async () => {
    await chaining.close();
    leave();
  });

  const someEvents = (random: Random, hours: number[]) =>
    Array.from({ length: 1 + random.int(4) }, () => {
      const user = random.pick(USERS);
      return {
        id: uuidv7(),
        user_id: random.chance(0.1) ? '' : user,
        actor: random.chance(0.2) ? random.pick(USERS) : user,
        action: random.pick(['sessions.upsert', 'messages.append', 'members.put']),
        outcome: 1 + random.int(2),
        resource: random.pick(['sessions/1', `members/${user}`, 'threads/my diary']),
        session_id: random.chance(0.5) ? uuidv7() : null,
        request_id: random.chance(0.5) ? uuidv7() : null,
        trace_id: random.chance(0.5) ? '0af7651916cd43dd8448eb211c80319c' : '',
        metadata: random.pick(METADATA),
        hours: random.pick(hours),
      };
    });

  const forgetIn = (scope: TenantScope, user: string) =>
    forgetInAudit(chaining, scope, { user, pseudonym: `erased-${uuidv7()}` });

  /** What may happen to a chain, with two transactions at a time that write to it. Resolves to the events that were committed. */
  async function live(n: number, clients: pg.Client[]): Promise<Set<string>> {
    const random = makeRandom(seed, `history ${n}`);
    const scope = { tenant: `h-${n}`, env: 'dev' };
    const committed = new Set<string>();
    // Of every fourth all events are old enough to be removed, of the others the first ones.
    let old = true;
    const open: (string[] | undefined)[] = clients.map(() => undefined);
    const write = async (which: number) => {
      const client = clients[which]!;
      if (!open[which])
        await client.query(`begin; set local app.tenant_id = '${scope.tenant}'; set local app.env = '${scope.env}'`);
      const events = someEvents(random, old ? [24.01, 100] : [0, 23.99, 100]);
      await client.query(INSERT, [scope.tenant, scope.env, JSON.stringify(events)]);
      open[which] = [...(open[which] ?? []), ...events.map(({ id }) => id)];
    };
    const end = async (which: number, how = random.pick(['commit', 'commit', 'commit', 'rollback'])) => {
      if (!open[which]) return;
      await clients[which]!.query(how);
      if (how === 'commit') for (const id of open[which]) committed.add(id);
      open[which] = undefined;
    };
    const seal = () => sealPlace(chaining, scope);
    const steps = [
      () => write(0),
      () => write(0),
      () => write(1),
      () => write(1),
      () => end(0),
      () => end(1),
      seal,
      seal,
      () => Promise.all([seal(), seal(), write(random.int(2))]),
      () => forgetIn(scope, random.pick(USERS)),
      () => pruneAudit(chaining, scope),
      async () => expect((await verified(chaining, scope)).findings).to.deep.equal([]),
    ];
    for (let i = 0; i < STEPS; i++) {
      old = i < STEPS / 2 || n % 4 === 0;
      await random.pick(steps)();
    }
    for (const which of open.keys()) await end(which);
    return committed;
  }

  it(`verifies after each of ${HISTORIES}, and has sealed every event once that was committed and not removed`, async () => {
    const committed = new Map<number, Set<string>>();
    let next = 1;
    await Promise.all(
      Array.from({ length: AT_ONCE }, async () => {
        const clients = [0, 1].map(() => new pg.Client({ connectionString: appUrl() }));
        for (const client of clients) await client.connect();
        for (let n = next++; n <= HISTORIES; n = next++) committed.set(n, await live(n, clients));
        for (const client of clients) await client.end();
      }),
    );
    await until(async () => {
      await Promise.all([sealAll(chaining), sealAll(chaining)]);
      const waiting = `select from audit_events e where not exists (
        select from audit_blocks b where b.tenant_id = e.tenant_id and b.env = e.env and b.kind = 1 and e.id = any (b.ids))`;
      return (await runSql(ownerUrl(), waiting)).length === 0;
    });
    // While histories run, much of this finds nothing sealed: others' transactions hold it up.
    for (let n = 8; n <= HISTORIES; n += 8)
      await forgetIn({ tenant: `h-${n}`, env: 'dev' }, USERS[(n / 8) % USERS.length]!);
    await pruneAll(chaining, () => {});
    const sum = { events: 0, sealed: 0, removed: 0, erasures: 0 };
    for (let n = 1; n <= HISTORIES; n++) {
      const scope = { tenant: `h-${n}`, env: 'dev' };
      const { findings, events, waiting } = await verified(chaining, scope);
      expect({ findings, waiting }, `history ${n}`).to.deep.equal({ findings: [], waiting: 0 });
      sum.sealed += events;
    }
    const left = await runSql(ownerUrl(), `select tenant_id, id from audit_events where env = 'dev'`);
    for (const { tenant_id: tenant, id } of left)
      expect(committed.get(Number(tenant.slice(2)))!.has(id), `${tenant} ${id}`).to.equal(true);
    sum.events = left.length;
    sum.removed = [...committed.values()].reduce((all, ids) => all + ids.size, 0) - left.length;
    sum.erasures = (await runSql(ownerUrl(), 'select from audit_blocks where kind = 2')).length;
    expect(sum.sealed).to.equal(sum.events);
    // What is not in the histories shows nothing.
    expect(sum.events).to.be.greaterThan(3 * HISTORIES);
    expect(sum.removed).to.be.greaterThan(HISTORIES / 20);
    expect(sum.erasures).to.be.greaterThan(HISTORIES / 20);
  });
});

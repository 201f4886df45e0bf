import { randomUUID } from 'node:crypto';
import { expect } from 'chai';
import pg from 'pg';
import type { Chaining } from '../src/audit/blocks.ts';
import { ForeignNumbers, UnknownHead } from '../src/audit/blocks.ts';
import { BlockKind, CHAINED, hashOf, leavesOf } from '../src/audit/chain.ts';
import { forgetInAudit } from '../src/audit/forget.ts';
import { pruneAudit } from '../src/audit/prune.ts';
import { sealAll, sealPlace } from '../src/audit/seal.ts';
import { type Key, keyringOf } from '../src/db/keyring.ts';
import { query } from '../src/db/statement.ts';
import { UserError } from '../src/errors.ts';
import { keep } from './fixtures/aging.ts';
import { EVENT, expectSound, newKey, openChaining, plantEvents, sealed, tamper, verified } from './fixtures/audit.ts';
import { newTenant, ownerUrl, runSql, startTestServer, until, useOwnDatabase } from './support.ts';

describe('the chain of the audit trail', () => {
  let leave: () => void;
  let chaining: Awaited<ReturnType<typeof openChaining>>;
  let scope: { tenant: string; env: string };
  let ids: string[];

  before(async () => {
    leave = await useOwnDatabase(); // where nobody else seals
    chaining = await openChaining();
  });
  after(async () => {
    await chaining.close();
    leave();
  });
  beforeEach(async () => {
    scope = { tenant: await newTenant(), env: 'dev' };
  });

  /** Three blocks with four events each. */
  async function threeBlocks(): Promise<void> {
    ids = [];
    for (let block = 0; block < 3; block++) {
      ids.push(...(await plantEvents(scope, 2)), ...(await plantEvents(scope, 2, { user: 'other' })));
      await sealed(chaining, scope);
    }
  }
  const place = () => [scope.tenant, scope.env];
  const events = (sql: string, ...values: unknown[]) =>
    tamper(`${sql} and tenant_id = $1 and env = $2`, [...place(), ...values]);
  const findings = async () => (await verified(chaining, scope)).findings;
  const rowOf = async (id: string) =>
    (await runSql(ownerUrl(), 'select xid::text, create_time::text from audit_events where id = $1', [id]))[0];

  it('seals what is committed, once, and verifies', async () => {
    await threeBlocks();
    expect(await sealPlace(chaining, scope)).to.equal(0);
    const { head, ...counts } = await expectSound(chaining, scope);
    expect(counts).to.deep.equal({ blocks: 3, events: 12, waiting: 0 });
    expect(head.blockNo).to.equal(3);
    expect(head.hash).to.match(/^[0-9a-f]{64}$/);
  });

  it('seals nothing that an older transaction may still come before, and then both in their order', async () => {
    const client = new pg.Client({ connectionString: ownerUrl() });
    await client.connect();
    const late = randomUUID();
    try {
      await client.query('begin');
      await client.query(EVENT, [...place(), late, 'user', 'late', 'sessions/s', {}]);
      const [next] = await plantEvents(scope, 1);
      expect(await sealPlace(chaining, scope)).to.equal(0);
      await client.query('commit');
      await sealed(chaining, scope);
      const blocks = await tamper('select ids from audit_blocks where tenant_id = $1 order by block_no', [
        scope.tenant,
      ]);
      expect(blocks.flatMap((block) => block.ids)).to.deep.equal([late, next]);
    } finally {
      await client.end();
    }
    expect(await expectSound(chaining, scope)).to.deep.include({ events: 2, waiting: 0 });
  });

  it('cuts a transaction of many events into blocks of a thousand', async () => {
    await plantEvents(scope, 2100);
    await sealed(chaining, scope);
    const blocks = await runSql(
      ownerUrl(),
      'select cardinality(ids) as n from audit_blocks where tenant_id = $1 order by block_no',
      [scope.tenant],
    );
    expect(blocks.map(({ n }) => n)).to.deep.equal([1000, 1000, 100]);
    await expectSound(chaining, scope);
  });

  for (const [column, change] of Object.entries({
    user_id: `'mallory'`,
    actor: `'mallory'`,
    action: `'sessions.end'`,
    outcome: '2',
    resource: `'sessions/t'`,
    session_id: 'gen_random_uuid()',
    request_id: 'gen_random_uuid()',
    trace_id: `'x'`,
    metadata: `'{"count": 2}'`,
    create_time: `create_time + interval '1 microsecond'`,
  })) {
    it(`tells an event whose ${column} was changed`, async () => {
      await threeBlocks();
      await events(`update audit_events set ${column} = ${change} where id = $3`, ids[5]);
      expect(await findings()).to.deep.equal([{ blockNo: 2, eventId: ids[5], what: 'changed' }]);
    });
  }

  it('tells an event that was removed', async () => {
    await threeBlocks();
    await events('delete from audit_events where id = $3', ids[11]);
    expect(await findings()).to.deep.equal([{ blockNo: 3, eventId: ids[11], what: 'removed' }]);
  });

  it('tells events that were inserted among those of a block, or before all others', async () => {
    await threeBlocks();
    const insert = `insert into audit_events (tenant_id, env, id, xid, user_id, actor, action, outcome, resource)
      values ($1, $2, $3, $4, 'user', 'user', 'x', 1, 'x')`;
    const [between, first] = [randomUUID(), randomUUID()];
    await tamper(insert, [...place(), between, (await rowOf(ids[4]!)).xid]);
    await tamper(insert, [...place(), first, '3']);
    expect(await findings()).to.deep.equal([
      { blockNo: 1, eventId: first, what: 'inserted' },
      { blockNo: 2, eventId: between, what: 'inserted' },
    ]);
    expect(await sealPlace(chaining, scope)).to.equal(0);
  });

  it('tells events that have changed places: by their transactions, their times or their ids', async () => {
    await threeBlocks();
    const both = [ids[4]!, ids[6]!];
    const [one, other] = [await rowOf(both[0]!), await rowOf(both[1]!)];
    const reordered = both.map((eventId) => ({ blockNo: 2, eventId, what: 'reordered' }));
    const swap = async (column: string, a: string, b: string) => {
      const sql = `update audit_events set ${column} = $4 where id = $3 and tenant_id = $1 and env = $2`;
      await tamper(sql, [...place(), both[0], a]);
      await tamper(sql, [...place(), both[1], b]);
    };
    await swap('xid', other.xid, one.xid);
    expect(await findings()).to.have.deep.members(reordered);
    await swap('xid', one.xid, other.xid);
    await swap('create_time', other.create_time, one.create_time);
    expect(await findings()).to.have.deep.members(reordered);
    await swap('create_time', one.create_time, other.create_time);
    expect(await findings()).to.deep.equal([]);
    const rename = 'update audit_events set id = $4 where id = $3 and tenant_id = $1 and env = $2';
    const aside = randomUUID();
    await tamper(rename, [...place(), both[0], aside]);
    await tamper(rename, [...place(), both[1], both[0]]);
    await tamper(rename, [...place(), aside, both[1]]);
    expect(await findings()).to.have.deep.members(reordered);
  });

  it('tells an event that was moved behind those of later blocks', async () => {
    await threeBlocks();
    await events('update audit_events set xid = $4 where id = $3', ids[0], (await rowOf(ids[11]!)).xid);
    expect(await findings()).to.deep.equal([{ blockNo: 1, eventId: ids[0], what: 'changed' }]);
  });

  it('tells blocks that were removed: the first, one between, and, against an anchor, the last', async () => {
    await threeBlocks();
    const { head } = await verified(chaining, scope);
    const remove = 'delete from audit_blocks where block_no = $3';
    await events(remove, 2);
    expect(await findings()).to.deep.equal([{ blockNo: 2, eventId: '', what: 'removed' }]);
    await events(remove, 1);
    expect(await findings()).to.deep.equal([{ blockNo: 1, eventId: '', what: 'removed (up to block 2)' }]);

    scope = { tenant: await newTenant(), env: 'dev' };
    await threeBlocks();
    const whole = await verified(chaining, scope);
    expect((await verified(chaining, scope, whole.head)).findings).to.deep.equal([]);
    await events(remove, 3);
    await events('delete from audit_events where id = any ($3)', ids.slice(8));
    expect(await findings()).to.deep.equal([]);
    const shorter = { eventId: '', what: 'removed: the chain is shorter than the anchor' };
    expect((await verified(chaining, scope, whole.head)).findings).to.deep.equal([{ blockNo: 3, ...shorter }]);
    await plantEvents(scope, 1);
    await sealed(chaining, scope);
    expect((await verified(chaining, scope, whole.head)).findings).to.deep.equal([
      { blockNo: 3, eventId: '', what: 'is not that of the anchor' },
    ]);
    expect(head.blockNo).to.equal(3);
  });

  it('tells a block that was changed, and one that was rewritten with the right hashes but without the key', async () => {
    await threeBlocks();
    await events(`update audit_blocks set upto = '7' where block_no = $3`, 2);
    expect((await findings())[0]).to.deep.equal({ blockNo: 2, eventId: '', what: 'the block was changed' });

    for (const signature of ['as it was', 'of a foreign key', 'of a key with a known name']) {
      scope = { tenant: await newTenant(), env: 'dev' };
      await threeBlocks();
      await events('delete from audit_events where id = $3', ids[4]);
      const foreign = keyringOf(() => [newKey()]);
      const [id] = chaining.keyring.sign([], '').split('.') as [string];
      const known = keyringOf(() => [{ ...newKey(), id }]);
      await rewrite(2, (hash, old) => {
        if (signature === 'as it was') return old;
        return (signature === 'of a foreign key' ? foreign : known).sign(
          ['audit block', ...place()],
          hash.toString('hex'),
        );
      });
      const told = (await findings()).filter(({ eventId }) => !eventId);
      if (signature === 'of a foreign key') {
        expect(told, signature).to.deep.equal([
          { blockNo: 3, eventId: '', what: 'does not follow from block 2, or that was rewritten' },
        ]);
      } else {
        expect(told, signature).to.deep.equal([{ blockNo: 2, eventId: '', what: 'the block has a bad signature' }]);
      }
    }
  });

  /** Takes the first event out of a block, and makes it follow from the one before again. */
  async function rewrite(blockNo: number, signed: (hash: Buffer, old: string) => string): Promise<void> {
    const columns = `*, upto::text as xid, newest_micros::float8 as newest`;
    const where = 'where tenant_id = $1 and env = $2 and block_no = $3';
    const [row] = await runSql(ownerUrl(), `select ${columns} from audit_blocks ${where}`, [...place(), blockNo]);
    const body = {
      kind: row.kind,
      about: row.about,
      upto: { xid: row.xid, id: row.upto_id },
      newestMicros: row.newest,
      ids: row.ids.slice(1),
      leaves: row.leaves.subarray(32),
    };
    const hash = hashOf(scope, blockNo, row.prev, body);
    await tamper(`update audit_blocks set ids = $4, leaves = $5, salts = $6, hash = $7, signature = $8 ${where}`, [
      ...place(),
      blockNo,
      body.ids,
      body.leaves,
      row.salts.subarray(16),
      hash,
      signed(hash, row.signature),
    ]);
  }

  /** A sealer with keys of its own. */
  const forger = (): Chaining => ({ database: chaining.database, keyring: keyringOf(() => [newKey()]) });
  const unknown = { eventId: '', what: 'the last block was signed with a key that is not in the key file' };
  const refused = (work: Promise<unknown>): Promise<Error> =>
    work.then(
      () => expect.fail('it should have failed'),
      (error) => error,
    );

  it('tells a whole chain that was made anew with a key of another', async () => {
    await threeBlocks();
    await tamper('delete from audit_blocks where tenant_id = $1 and env = $2', place());
    await sealed(forger(), scope);
    expect(await findings()).to.deep.equal([{ blockNo: 1, ...unknown }]);
  });

  it('goes on with no chain whose end is signed by nobody it knows', async () => {
    await threeBlocks();
    await plantEvents(scope, 1);
    expect(await refused(sealPlace(forger(), scope))).to.be.instanceOf(UnknownHead);
    await events(`update audit_blocks set signature = $4 where block_no = $3`, 3, `${chaining.keyring.newest}.x`);
    expect((await refused(sealPlace(chaining, scope))).message).to.match(/ has a bad signature$/);
    await events(`update audit_blocks set signature = 'lost.x' where block_no = $3`, 3);
    const refusal = await refused(sealPlace(chaining, scope));
    expect(refusal).to.be.instanceOf(UnknownHead);
    expect(refusal.message).to.match(/ is not signed with a key of the key file: it names lost$/);
    expect(await findings()).to.deep.equal([{ blockNo: 3, ...unknown }]);
  });

  it('verifies without an old key once a block was signed with a newer one, though there was nothing to seal', async () => {
    const [old, fresh] = [newKey(), newKey()];
    const with_ = (...keys: Key[]): Chaining => ({ ...chaining, keyring: keyringOf(() => keys) });
    await plantEvents(scope, 3);
    await sealed(with_(old), scope);
    await sealAll(with_(fresh, old)).catch(() => {}); // other tenants are signed with a key that it does not know
    await expectSound(with_(fresh), scope);
    await plantEvents(scope, 3);
    await sealed(with_(fresh), scope);
    expect(await expectSound(with_(fresh), scope)).to.deep.include({ blocks: 3, events: 6 });
  });

  it('is refused where the database counts its transactions anew, and no server starts there', async () => {
    await threeBlocks();
    const raise = (by: number) =>
      tamper(`update audit_blocks set upto = (upto::text::bigint + $3)::text::xid8 where tenant_id = $1 and env = $2`, [
        ...place(),
        by,
      ]);
    await raise(1_000_000);
    await plantEvents(scope, 1);
    expect(await refused(sealPlace(chaining, scope))).to.be.instanceOf(ForeignNumbers);
    const fault = await refused(startTestServer());
    expect(fault).to.be.instanceOf(UserError);
    expect(fault.message).to.contain(`the audit trail of ${scope.tenant}/dev goes up to transaction`);
    await raise(-1_000_000);
    await (await startTestServer()).stop();
  });

  it('belongs to its tenant and env', async () => {
    await threeBlocks();
    const other = { tenant: scope.tenant, env: 'prod' };
    for (const table of ['audit_events', 'audit_blocks'])
      await tamper(`update ${table} set env = $3 where tenant_id = $1 and env = $2`, [...place(), other.env]);
    const { findings: told } = await verified(chaining, other);
    expect(told).to.deep.include({ blockNo: 1, eventId: '', what: 'the block was changed' });
  });

  describe('after an erasure', () => {
    const pseudonym = `erased-${randomUUID()}`;
    const forget = () => forgetInAudit(chaining, scope, { user: 'other', pseudonym });

    it('holds nothing of the user and verifies', async () => {
      await threeBlocks();
      await plantEvents(scope, 1, {
        resource: 'members/other',
        metadata: { from_user_id: 'other', into_user_id: 'third' },
      });
      await plantEvents(scope, 1, {
        user: 'other',
        resource: 'threads/my diary',
        metadata: { holder: 'mine', count: 2 },
      });
      await plantEvents(scope, 1, { resource: 'budgets/3/other/2' });
      await plantEvents(scope, 1, { resource: 'profiles/other' });
      await sealed(chaining, scope);
      expect(await forget()).to.deep.equal({ events: 10, complete: true });
      await expectSound(chaining, scope);
      const rows = await runSql(
        ownerUrl(),
        `select e::text as row, resource, metadata from audit_events e where tenant_id = $1 order by id`,
        [scope.tenant],
      );
      expect(rows.filter(({ row }) => /other|diary|mine/.test(row))).to.deep.equal([]);
      expect(rows.slice(-4).map(({ resource, metadata }) => [resource, metadata])).to.deep.equal([
        [`members/${pseudonym}`, { from_user_id: pseudonym, into_user_id: 'third' }],
        [`threads/${pseudonym}`, { count: 2 }],
        [`budgets/3/${pseudonym}/2`, { count: 1 }],
        [`profiles/${pseudonym}`, { count: 1 }],
      ]);
      expect(await forget()).to.deep.equal({ events: 0, complete: true });
      await plantEvents(scope, 1);
      await sealed(chaining, scope);
      await expectSound(chaining, scope);
    });

    it('is counted with each block, or that block is as it was', async () => {
      await threeBlocks();
      const counts: number[] = [];
      const work = (failing: boolean) =>
        forgetInAudit(chaining, scope, { user: 'other', pseudonym }, undefined, async (tx, count) => {
          expect(
            await tx.query(query('select from audit_events where tenant_id = $1 and user_id = $4'), [pseudonym]),
          ).to.have.length(2 * (counts.length + 1));
          if (failing && counts.length === 1) throw new Error('another has it');
          counts.push(count);
        });
      expect((await refused(work(true))).message).to.equal('another has it');
      const left = `select from audit_events where tenant_id = $1 and user_id = 'other'`;
      expect(await runSql(ownerUrl(), left, [scope.tenant])).to.have.length(4);
      await expectSound(chaining, scope);
      expect(await work(false)).to.deep.equal({ events: 4, complete: true });
      expect(counts).to.deep.equal([2, 2, 2]);
      await expectSound(chaining, scope);
    });

    it('leaves alone what others named alike, and who did something to the tenant itself', async () => {
      const alike = [
        { resource: 'projects/other/memories/m', metadata: { other: 1, holder: 'other' } },
        { resource: 'projects/p/drafts/other/other' },
        { resource: 'budgets/2/other/2' },
        { user: 'other', resource: 'projects/other/drafts/other', metadata: { other: 1 } },
      ];
      for (const one of alike) await plantEvents(scope, 1, one);
      await plantEvents({ ...scope, env: '' }, 1, { user: 'other', resource: `tenants/${scope.tenant}` });
      await sealed(chaining, scope);
      expect(await forget()).to.deep.equal({ events: 1, complete: true });
      await expectSound(chaining, scope);
      const rows = await runSql(
        ownerUrl(),
        'select user_id, actor, resource, metadata from audit_events where tenant_id = $1 order by id',
        [scope.tenant],
      );
      expect(rows.map(({ resource }) => resource)).to.deep.equal([
        ...alike.map(({ resource }) => resource),
        `tenants/${scope.tenant}`,
      ]);
      expect(rows[0].metadata).to.deep.equal(alike[0]!.metadata);
      expect(rows.slice(-2).map((row) => [row.user_id, row.actor])).to.deep.equal([
        [pseudonym, pseudonym],
        ['other', 'other'],
      ]);
    });

    it('has no salt left by which what was erased could be guessed', async () => {
      await threeBlocks();
      await forget();
      const blocks = await runSql(
        ownerUrl(),
        'select block_no::int, ids, salts from audit_blocks where tenant_id = $1 and kind = 1 order by block_no',
        [scope.tenant],
      );
      for (const { ids: sealedIds, salts } of blocks)
        for (const [i, id] of sealedIds.entries()) {
          const gone = salts.subarray(i * 16, (i + 1) * 16).equals(Buffer.alloc(16));
          expect(gone, id).to.equal([2, 3].includes(ids.indexOf(id) % 4));
        }
      await forgetInAudit(chaining, scope, { user: pseudonym, pseudonym: `erased-${randomUUID()}` });
      const left = await runSql(
        ownerUrl(),
        `select distinct encode(salts, 'hex') = repeat('00', 32) as empty from audit_blocks
         where tenant_id = $1 and kind = 2 and block_no <= 6`,
        [scope.tenant],
      );
      expect(left).to.deep.equal([{ empty: true }]);
      await expectSound(chaining, scope);
    });

    it('tells what was changed before, meanwhile and since', async () => {
      await threeBlocks();
      await events(`update audit_events set action = 'x' where id = $3`, ids[2]);
      await forget();
      await events(`update audit_events set action = 'x' where id = $3`, ids[6]);
      await events(`update audit_events set user_id = 'erased-' || gen_random_uuid() where id = $3`, ids[8]);
      expect(await findings()).to.have.deep.members([
        { blockNo: 1, eventId: ids[2], what: 'changed' },
        { blockNo: 2, eventId: ids[6], what: 'changed' },
        { blockNo: 3, eventId: ids[8], what: 'changed' },
      ]);
    });

    it('tells a change that passes itself off as an erasure', async () => {
      await threeBlocks();
      const [row] = await runSql(
        ownerUrl(),
        'select *, upto::text as xid from audit_blocks where tenant_id = $1 and env = $2 and block_no = 3',
        place(),
      );
      await events(`update audit_events set actor = 'x' where id = $3`, ids[0]);
      const event = (await tamper(`select ${CHAINED} from audit_events where id = $1`, [ids[0]]))[0];
      const [userId, sessionId, requestId, traceId] = [event.user_id, null, null, ''];
      const { salts, ...said } = leavesOf([{ ...event, userId, sessionId, requestId, traceId }]);
      const upto = { xid: row.xid, id: row.upto_id };
      const body = { kind: BlockKind.ERASURE, about: 1, upto, newestMicros: 1, ...said };
      const hash = hashOf(scope, 4, row.hash, body);
      const forge = (signature: string) =>
        tamper(
          `insert into audit_blocks (tenant_id, env, block_no, kind, about, upto, upto_id, newest_micros, ids, leaves, salts, prev, hash, signature)
           values ($1, $2, 4, 2, 1, $3, $4, 1, $5, $6, $7, $8, $9, $10)`,
          [...place(), upto.xid, upto.id, said.ids, said.leaves, salts, row.hash, hash, signature],
        );
      await forge(row.signature);
      expect(await findings()).to.have.deep.members([
        { blockNo: 1, eventId: ids[0], what: 'changed' },
        { blockNo: 4, eventId: '', what: 'the block has a bad signature' },
      ]);
      await events('delete from audit_blocks where block_no = $3', 4);
      await forge(forger().keyring.sign(['audit block', ...place()], hash.toString('hex')));
      expect(await findings()).to.deep.equal([{ blockNo: 4, ...unknown }]);
    });

    it('is not complete as long as a transaction holds back what it must change', async () => {
      await threeBlocks();
      const client = new pg.Client({ connectionString: ownerUrl() });
      await client.connect();
      try {
        await client.query('begin');
        await client.query('select pg_current_xact_id()');
        await plantEvents(scope, 1, { user: 'other' });
        expect(await forget()).to.deep.equal({ events: 6, complete: false });
        await client.query('commit');
      } finally {
        await client.end();
      }
      await until(async () => (await forget()).complete);
      expect(
        await runSql(ownerUrl(), `select from audit_events where tenant_id = $1 and user_id = 'other'`, [scope.tenant]),
      ).to.deep.equal([]);
      await expectSound(chaining, scope);
    });
  });

  describe('after retention', () => {
    const age = (eventIds: string[], days: string) =>
      events(
        `update audit_events set create_time = now() - interval '24 hours' * $4::numeric where id = any ($3)`,
        eventIds,
        days,
      );
    /** Three blocks whose events are this old. */
    async function blocksOf(...days: string[]): Promise<void> {
      ids = [];
      for (const old of days) {
        const planted = await plantEvents(scope, 4);
        await age(planted.slice(1), old);
        await age(planted.slice(0, 1), '100');
        ids.push(...planted);
        await sealed(chaining, scope);
      }
    }
    const prune = async (days: number, as: Chaining = chaining) => {
      await keep(scope.tenant, { audit_days: days });
      return pruneAudit(as, scope);
    };
    const left = async () =>
      (await runSql(ownerUrl(), 'select id from audit_events where tenant_id = $1 order by id', [scope.tenant])).map(
        ({ id }) => id,
      );

    it('verifies from where the oldest blocks were removed, and goes on', async () => {
      await blocksOf('31', '30.001', '29.999', '31');
      expect(await prune(30)).to.equal(8);
      expect(await left()).to.deep.equal(ids.slice(8));
      expect(await prune(30)).to.equal(0);
      expect(await expectSound(chaining, scope)).to.deep.include({ blocks: 3, events: 8 });
      await plantEvents(scope, 2);
      await sealed(chaining, scope);
      await forgetInAudit(chaining, scope, { user: 'user', pseudonym: 'erased-x' });
      await expectSound(chaining, scope);
      expect(await prune(29)).to.equal(8);
      await expectSound(chaining, scope);
    });

    it('removes thousands of events in batches, whatever the size of their blocks', async () => {
      await plantEvents(scope, 2500);
      await age(await left(), '2');
      await sealed(chaining, scope);
      expect(await prune(1)).to.equal(2500);
      expect(await expectSound(chaining, scope)).to.deep.include({ blocks: 1, events: 0 });
    });

    it('goes on where it was interrupted', async () => {
      await blocksOf('31', '31', '31');
      let transactions = 0;
      const acquire: typeof chaining.database.acquire = async (limits) => {
        if (++transactions > 1) throw new Error('killed');
        return chaining.database.acquire(limits, '');
      };
      const dying = { ...chaining, database: { ...chaining.database, acquire } };
      expect((await refused(prune(30, dying))).message).to.equal('killed');
      expect(await left()).to.have.length(12);
      expect(await expectSound(chaining, scope)).to.deep.include({ blocks: 4 });
      // A batch that was not the last.
      await events('delete from audit_events where id = any ($3)', ids.slice(0, 4));
      await events('delete from audit_blocks where block_no = $3', 1);
      await expectSound(chaining, scope);
      expect(await prune(30)).to.equal(8);
      await expectSound(chaining, scope);
    });

    it('tells blocks that somebody else removed, and events that appear where some were removed', async () => {
      await blocksOf('31', '1', '1');
      const { xid } = await rowOf(ids[1]!);
      await prune(30);
      const id = randomUUID();
      await tamper(
        `insert into audit_events (tenant_id, env, id, xid, user_id, actor, action, outcome, resource) values ($1, $2, $3, $4, 'u', 'u', 'x', 1, 'x')`,
        [...place(), id, xid],
      );
      expect(await findings()).to.deep.equal([{ blockNo: 2, eventId: id, what: 'inserted' }]);
      await events('delete from audit_events where id = $3', id);
      await events('delete from audit_events where id = any ($3)', ids.slice(4, 8));
      await events('delete from audit_blocks where block_no = $3', 2);
      expect(await findings()).to.deep.equal([{ blockNo: 2, eventId: '', what: 'removed' }]);
    });
  });
});

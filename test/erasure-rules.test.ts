import { createHash, randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import pg from 'pg';
import { readKeyring } from '../src/db/keyring.ts';
import { type Erasure, Erasure_State } from '../src/gen/memory/v1/erasure.ts';
import { Member_Role, TenantPolicies_Membership } from '../src/gen/memory/v1/tenant.ts';
import { Budget_Period, Budget_Scope } from '../src/gen/memory/v1/usage.ts';
import type { RunningServer } from '../src/server.ts';
import { commitOf, writeDocument } from './fixtures/documents.ts';
import { importFile, transferFolder } from './fixtures/transfer.ts';
import {
  appUrl,
  type Clients,
  connect,
  failure,
  headersOf,
  metadataOf,
  newTenant,
  ownerUrl,
  runSql,
  startTestServer,
  tenantSql,
  until,
  useOwnDatabase,
} from './support.ts';

const { DONE } = Erasure_State;
const { NOT_FOUND, PERMISSION_DENIED, FAILED_PRECONDITION } = status;

describe('erasures', function () {
  this.timeout(90_000);
  let restore = () => {};
  let server: RunningServer;
  let second: RunningServer;
  let client: Clients;
  let elsewhere: Clients;
  let tenant: string;

  before(async () => {
    restore = await useOwnDatabase();
    [server, second] = [await startTestServer({ callTimeout: 3000 }), await startTestServer({ callTimeout: 3000 })];
    client = connect(`127.0.0.1:${server.port}`);
    elsewhere = connect(`127.0.0.1:${second.port}`);
  });
  after(async () => {
    client.close();
    elsewhere.close();
    await Promise.all([server.stop(), second.stop()]);
    restore();
  });
  beforeEach(async () => {
    tenant = await newTenant(['user', 'other', 'third', 'admin']);
  });

  const as = (user: string, more: Record<string, string> = {}) => metadataOf({ ...headersOf(tenant, user), ...more });
  const service = (more: Record<string, string> = {}) => metadataOf({ 'x-tenant-id': tenant, 'x-env': 'dev', ...more });
  const erase = async (userId: string, rest: object = {}): Promise<Erasure> =>
    (await client.admin.eraseUser({ userId, ...rest }, as('admin'))).erasure!;
  const get = async ({ id }: Erasure) => (await client.admin.getErasure({ erasureId: id }, as('admin'))).erasure!;
  const ended = (erasure: Erasure) =>
    until(async () => {
      const now = await get(erasure);
      return now.state === DONE && now;
    });
  const append = (user: string, through = client, threadId = 't', content = 'hello', requestId = '') =>
    through.conversation.appendMessages({ threadId, messages: [{ role: 1, content }], requestId }, as(user));
  const putMember = (userId: string) =>
    client.admin.putMember({ member: { userId, role: Member_Role.MEMBER } }, as('admin'));
  /** Refused everywhere once what other servers remember of members is over. */
  const refusedElsewhere = (user: string) =>
    until(async () =>
      append(user, elsewhere).then(
        () => false as const,
        (error) => error.code === PERMISSION_DENIED,
      ),
    );

  it('are of members, of those who are none any more, and of anonymous people, and of nobody else', async () => {
    await append('other');
    await client.admin.removeMember({ userId: 'other' }, as('admin'));
    const { session } = await client.memory.upsertSession(
      { session: { surfaceId: 'web' }, anonymous: true },
      service(),
    );
    for (const userId of ['user', 'other', session!.userId]) {
      const erasure = await erase(userId);
      expect(erasure.userId).to.equal(userId);
      expect((await get(erasure)).id).to.equal(erasure.id);
    }
    await client.project.putMemory({ projectId: 'atlas', key: 'fact', value: 'v' }, as('third'));
    for (const table of ['tenant_members', 'audit_events']) {
      await runSql(ownerUrl(), `delete from ${table} where tenant_id = $1 and user_id = 'third'`, [tenant]);
    }
    expect((await erase('third')).userId, 'who only a project still names').to.equal('third');
    const through = connect(`127.0.0.1:${server.port}`, headersOf(tenant, 'admin'));
    const approvals = [{ approver: 'approver', verdict: 1 as const }];
    await through.artifact.commitArtifact(
      commitOf(await writeDocument(through), { reviewers: ['reviewer'], approvals, requestId: '' }),
    );
    through.close();
    const budget = { scope: 3 as const, subject: 'spender', period: 2 as const, costLimit: '5' };
    await client.usage.setBudget({ budget }, as('admin'));
    for (const userId of ['reviewer', 'approver', 'spender']) {
      expect((await erase(userId)).userId, 'who is only named').to.equal(userId);
    }
    const unknown = client.admin.eraseUser({ userId: 'nobody' }, as('admin'));
    expect(await failure(unknown)).to.include({ code: NOT_FOUND, reason: 'NOT_FOUND' });
    const listed = (await client.admin.listErasures({}, as('admin'))).erasures;
    expect(listed.map(({ userId }) => userId)).to.deep.equal([
      ...['spender', 'approver', 'reviewer'],
      ...['third', session!.userId, 'other', 'user'],
    ]);
    for (const asked of [
      () => client.admin.eraseUser({ userId: 'admin' }, as('fourth')),
      () => client.admin.getErasure({ erasureId: listed[0]!.id }, metadataOf(headersOf(tenant, 'admin', 'prod'))),
    ]) {
      expect((await failure(asked())).code).to.equal(PERMISSION_DENIED);
    }
  });

  it('are one while they last, however often and however concurrently they are asked for', async () => {
    const requestId = randomUUID();
    const many = await Promise.all([
      ...Array.from({ length: 8 }, () => erase('user')),
      ...Array.from({ length: 4 }, () => erase('user', { requestId })),
    ]);
    expect(new Set(many.map(({ id }) => id)).size).to.equal(1);
    const [first, again] = [await erase('user', { requestId }), await erase('user', { requestId })];
    expect(first).to.deep.equal(again);
    const stored = JSON.stringify(
      await tenantSql(tenant, `select result from requests where method = 'AdminService/EraseUser'`),
    );
    expect(stored).to.contain(first.id).and.not.contain('"user"');
  });

  it('make a stranger of the person at once, for every way to come in, and on other servers within seconds', async () => {
    const { session, sessionKey } = await client.memory.upsertSession(
      { session: { surfaceId: 'web', threadId: 't' }, issueSessionKey: true },
      as('user'),
    );
    await append('user');
    await append('user', elsewhere);
    const forward = {
      source: {
        $case: 'inline' as const,
        value: { sourceThreadId: 't', selection: { selection: { $case: 'lastN' as const, value: 1 } } },
      },
      targetThreadId: 'copy',
      createTarget: true,
      handoff: { destination: 'maybes' },
    };
    await client.memory.forwardBundle(forward, as('user'));
    const stream = elsewhere.streams.conversation.watchThread({ threadId: 't', afterRevision: 0 }, as('user'));
    const over = new Promise<number>((resolve) => {
      stream.on('error', (error: { code?: number }) => resolve(error.code ?? 0)).on('end', () => resolve(0));
      stream.on('data', () => {});
    });

    const requestId = randomUUID();
    await append('user', client, 't', 'x', requestId);
    const erasure = await erase('user');
    for (const call of [
      () => append('user', client, 't', 'x', requestId),
      () => append('user'),
      () => client.memory.getSession({ sessionId: session!.id }, as('user')),
      () => client.memory.listSessions({}, as('user', { 'x-scopes': 'memory:operator' })),
      () => client.memory.pullHandoffs({ destination: 'maybes' }, as('user', { 'x-scopes': 'memory:handoff' })),
    ]) {
      expect(await failure(call())).to.include({ code: PERMISSION_DENIED, reason: 'NOT_A_MEMBER' });
    }
    const resumed = await failure(
      client.memory.resumeSession({ target: { $case: 'sessionKey', value: sessionKey } }, service()),
    );
    expect(resumed.code).to.be.oneOf([PERMISSION_DENIED, NOT_FOUND]);
    const pulled = await client.memory.pullHandoffs(
      { destination: 'maybes' },
      service({ 'x-scopes': 'memory:handoff' }),
    );
    expect(pulled.handoffs).to.deep.equal([]);
    expect(await failure(putMember('user'))).to.include({ code: FAILED_PRECONDITION, reason: 'USER_BEING_ERASED' });
    const budget = { scope: 3 as const, subject: 'user', period: 2 as const, costLimit: '5' };
    for (const call of [
      () => client.usage.setBudget({ budget }, as('admin')),
      () => client.profile.mergeProfiles({ fromUserId: 'other', intoUserId: 'user' }, as('admin')),
    ]) {
      expect(await failure(call())).to.include({ code: FAILED_PRECONDITION, reason: 'USER_ERASED' });
    }
    await refusedElsewhere('user');
    expect(await over).to.be.oneOf([0, NOT_FOUND, PERMISSION_DENIED]);
    expect((await get(erasure)).state).to.not.equal(DONE);
  });

  it('refuse a person whom a token vouches for, and record the attempt without the name', async () => {
    const policies = { membership: TenantPolicies_Membership.TOKEN };
    await runSql(ownerUrl(), 'update tenants set policies = $2 where tenant_id = $1', [tenant, policies]);
    await append('someone');
    const erasure = await erase('someone');
    await ended(erasure);
    expect(await failure(append('someone'))).to.include({ code: PERMISSION_DENIED, reason: 'NOT_A_MEMBER' });
    await refusedElsewhere('someone');
    const denied = await until(async () => {
      const rows = await tenantSql(tenant, `select user_id, actor from audit_events where outcome = 2`);
      return rows.length >= 2 && rows;
    });
    for (const row of denied) expect(row).to.deep.equal({ user_id: '', actor: '' });
  });

  it('end with a receipt that names nobody, leave what was used in the sums, and let somebody new begin', async () => {
    const record = (user: string) =>
      client.usage.recordLlmRequest(
        { llmRequest: { provider: 'p', model: 'm', promptTokens: 5, totalTokens: 5 }, projectId: 'atlas' },
        as(user),
      );
    await Promise.all([record('user'), record('other'), append('user', client, 'mine')]);
    const fact = { projectId: 'atlas', key: 'fact', value: 'v' };
    await client.project.putMemory(fact, as('user'));
    const requestId = randomUUID();
    await client.project.putMemory({ ...fact, value: 'w', requestId }, as('other'));
    await client.project.putMemory({ ...fact, projectId: 'user' }, as('other'));
    for (const scope of [Budget_Scope.PROJECT, Budget_Scope.USER]) {
      const budget = { scope, subject: 'user', period: Budget_Period.DAY, tokenLimit: 9 };
      await client.usage.setBudget({ budget, requestId: randomUUID() }, as('admin'));
    }
    const put = await client.profile.updateProfile({ profile: { name: 'Ann', products: ['bike'] } }, as('user'));
    expect(put.profile!.name).to.equal('Ann');
    await client.profile.updateProfile({ profile: { products: ['car'] } }, as('other'));
    const names = { fromUserId: 'user', intoUserId: 'other' };
    const { mergeId } = await client.profile.mergeProfiles(names, as('admin'));
    const update = { profile: { services: ['repair'] }, requestId: randomUUID() };
    expect((await client.profile.updateProfile(update, as('other'))).profile!.name).to.equal('Ann');

    const folder = transferFolder();
    const file = await folder.fileOf(await folder.exported(tenant, appUrl()));
    const done = await ended(await erase('user'));
    expect(done).to.deep.include({ userId: '', waitingFor: '', state: DONE });
    const lasted = done.finishTime!.seconds - done.createTime!.seconds;
    expect(lasted, 'streams admitted before, and calls, may write for so long').to.be.at.least(10 + 2 * 3);
    const { text, sha256, signature } = done.receipt!;
    expect(createHash('sha256').update(text).digest('hex')).to.equal(sha256);
    const [event] = await tenantSql(tenant, `select metadata from audit_events where action = 'users.erased'`);
    expect(event.metadata, 'the chain of events vouches for it').to.deep.equal({ receipt_sha256: sha256 });
    const keyring = await readKeyring(process.env.MEMORYD_TEST_KEY_FILE!);
    for (const [signed, right] of [
      [text, true],
      [`${text} `, false],
    ] as const) {
      expect(keyring.verifies(['erasure', tenant, 'dev'], signed, signature)).to.equal(right);
    }
    const told = JSON.parse(text);
    expect(told).to.include({ erasure_id: done.id, tenant_id: tenant, env: 'dev' });
    expect(told.removed).to.include({ tenant_members: 1, threads: 1, messages: 1, llm_requests: 1, profile_merges: 1 });
    expect(told.renamed).to.include({ memories: 1, memory_versions: 1 });
    const removed = Object.fromEntries(done.counts.map(({ kind, removedCount }) => [kind, removedCount]));
    expect(removed).to.include({ messages: told.removed.messages, memories: 0 });
    expect(text).to.not.contain('"user"');
    const { memory } = await client.project.getMemory({ projectId: 'atlas', key: 'fact' }, as('other'));
    expect(memory).to.include({ updatedBy: 'other' });
    expect(memory!.createdBy).to.match(/^erased-[0-9a-f-]{36}$/);
    const replayed = await client.project.putMemory({ ...fact, value: 'w', requestId }, as('other'));
    expect(replayed.memory).to.include({ version: 2, createdBy: memory!.createdBy });
    const renamedIn = `select count(*)::int as n from audit_events e where strpos(e::text, $2) > 0 and tenant_id = $1`;
    const [{ n: events }] = await runSql(ownerUrl(), renamedIn, [tenant, memory!.createdBy]);
    expect(told.renamed.audit_events, 'counted block by block').to.equal(events);
    const alike = `select resource from audit_events where user_id <> 'user' and resource ~ '^(projects/user|budgets)/' order by id`;
    const [inProject, ...ofBudgets] = await tenantSql(tenant, alike);
    expect(inProject.resource, 'a project of the same name').to.match(/^projects\/user\/memories\//);
    expect(ofBudgets.map(({ resource }) => resource)).to.deep.equal([
      'budgets/2/user/1',
      `budgets/3/${memory!.createdBy}/1`,
    ]);
    const budgets = `select result -> 0 ->> 'subject' as subject from requests where method = 'UsageService/SetBudget' order by create_time`;
    expect(await tenantSql(tenant, budgets)).to.deep.equal([{ subject: 'user' }, { subject: memory!.createdBy }]);
    const { profile } = await client.profile.getProfile({}, as('other'));
    expect(profile).to.deep.include({ name: undefined, products: ['car'] });
    const updated = await failure(client.profile.updateProfile(update, as('other')));
    expect(updated, 'what is kept for replays forgets as well').to.include({ code: NOT_FOUND, reason: 'DELETED' });
    expect((await failure(client.profile.undoMergeProfiles({ mergeId }, as('admin')))).code).to.equal(NOT_FOUND);
    const usage = (await client.usage.getUsage({ groupBy: [3] }, as('admin'))).usage;
    expect(usage.map(({ requests }) => requests)).to.deep.equal([2]);

    await importFile(file, appUrl()).then(
      () => expect.fail('it holds who was erased since'),
      (error) => expect(error.message).to.contain('may hold somebody who was erased from dev'),
    );
    await folder.remove();
    expect((await failure(erase('user'))).code, 'nothing is left to be erased').to.equal(NOT_FOUND);
    const budget = { scope: 3 as const, subject: 'user', period: 2 as const, costLimit: '5' };
    const naming = () => client.usage.setBudget({ budget }, as('admin'));
    expect(await failure(naming())).to.include({ code: FAILED_PRECONDITION, reason: 'USER_ERASED' });
    await putMember('user');
    await naming();
    expect((await client.memory.listSessions({}, as('user'))).sessions).to.deep.equal([]);
    expect((await client.profile.getProfile({}, as('user'))).profile!.name).to.equal(undefined);
    const { messages } = await append('user', client, 'mine');
    expect(messages[0]!.seq).to.equal(1);
  });

  it('follow what others took over, also where a merge carries it on meanwhile', async () => {
    await client.profile.updateProfile({ profile: { name: 'Ann' } }, as('user'));
    const merge = (fromUserId: string, intoUserId: string) =>
      client.profile.mergeProfiles({ fromUserId, intoUserId }, as('admin'));
    await merge('user', 'other');
    const holder = new pg.Client({ connectionString: ownerUrl() });
    await holder.connect();
    await holder.query('begin');
    const lock = (table: string) => holder.query(`lock table ${table} in share row exclusive mode`);
    await lock('profile_merges');
    await holder.query('savepoint early');
    await lock('handoffs');
    const waiting = (statement: string) =>
      until(async () => {
        const sql = `select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and strpos(query, $1) > 0`;
        return (await runSql(ownerUrl(), sql, [statement])).length > 0;
      });
    const erasure = await erase('user');
    await waiting('select t.ctid from handoffs t');
    const merging = merge('other', 'third');
    await waiting('insert into profile_merges');
    await holder.query('rollback to savepoint early');
    await waiting('select t.ctid from profiles t');
    await holder.end();
    await merging;
    await ended(erasure);
    const { profile } = await client.profile.getProfile({}, as('third'));
    expect(profile!.name).to.equal(undefined);
    for (const table of ['profiles', 'profile_changes', 'profile_merges']) {
      const rows = await tenantSql(tenant, `select t::text as row from ${table} t`);
      expect(
        rows.filter(({ row }) => row.includes('Ann')),
        table,
      ).to.deep.equal([]);
    }
  });
});

describe('an erasure that waits for a lock', function () {
  this.timeout(60_000);

  it('takes no more connections, and lets its server end and another go on at once', async () => {
    const restore = await useOwnDatabase();
    const server = await startTestServer({ callTimeout: 3000 });
    const client = connect(`127.0.0.1:${server.port}`);
    const tenant = await newTenant(['user', 'admin']);
    const metadata = metadataOf(headersOf(tenant));
    await client.conversation.appendMessages({ threadId: 't', messages: [{ role: 1, content: 'x' }] }, metadata);
    const holder = new pg.Client({ connectionString: ownerUrl() });
    await holder.connect();
    await holder.query('begin');
    await holder.query('select from messages where tenant_id = $1 for update', [tenant]);
    const { erasure } = await client.admin.eraseUser({ userId: 'user' }, metadataOf(headersOf(tenant, 'admin')));
    const waiting = `select count(*)::int as n from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`;
    const waits = async () => (await runSql(ownerUrl(), waiting))[0].n as number;
    // The step, and the renewal of its claim.
    await until(async () => (await waits()) === 2);
    const renewed = Date.now() + 11_000;
    await until(async () => {
      expect(await waits()).to.be.at.most(2);
      return Date.now() > renewed;
    });
    client.close();
    await server.stop();
    expect(await waits()).to.equal(0);

    const other = await startTestServer({ callTimeout: 3000 });
    const state = 'select attempts from erasures where id = $1';
    await until(async () => (await runSql(ownerUrl(), state, [erasure!.id]))[0].attempts === 2);
    await holder.end();
    await until(async () => (await tenantSql(tenant, 'select from messages')).length === 0);
    await other.stop();
    restore();
  });
});

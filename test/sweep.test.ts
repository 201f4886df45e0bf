import { randomUUID } from 'node:crypto';
import { expect } from 'chai';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import type { RunningServer } from '../src/server.ts';
import { sweep } from '../src/tenants/expiry.ts';
import {
  type Clients,
  connect,
  headersOf,
  metadataOf,
  newDatabase,
  newTenant,
  rowCounts,
  runSql,
  startTestServer,
  tenantSql,
  until,
} from './support.ts';

const KINDS = [
  'bundles',
  'email_matches',
  'handoffs',
  'memories',
  'merges',
  'messages',
  'requests',
  'retention_audit',
  'retention_checkpoints',
  'retention_messages',
  'retention_turns',
  'retention_usage',
  'session_keys',
  'sessions',
  'tombstones',
];
const TABLES = [
  'sessions',
  'session_keys',
  'threads',
  'messages',
  'bundles',
  'bundle_forwards',
  'handoffs',
  'memories',
  'memory_versions',
  'requests',
];

// Other test files sweep the same database meanwhile: whoever sweeps, the counts of the tenant are the same.
describe('the sweep', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;

  before(async () => {
    server = await startTestServer();
  });
  after(() => server.stop());
  beforeEach(async () => {
    tenant = await newTenant(['user', 'admin']);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  });
  afterEach(() => client.close());

  const messages = ['a', 'b', 'c'].map((content) => ({ role: MessageRole.HUMAN, content }));
  const service = () => metadataOf({ 'x-tenant-id': tenant, 'x-env': 'dev', 'x-scopes': 'memory:handoff' });
  const stats = async () => {
    const found = await client.admin.getExpiryStats({}, metadataOf(headersOf(tenant, 'admin')));
    expect(found.stats.map((stat) => stat.kind)).to.deep.equal(KINDS);
    return Object.fromEntries(found.stats.map((stat) => [stat.kind, stat]));
  };
  const swept = async () => {
    const counts = Object.entries(await stats()).map(([kind, stat]) => [kind, stat.sweptCount] as const);
    return Object.fromEntries(counts.filter(([, count]) => count > 0));
  };
  /** A sweep skips what another one holds, of this file or another: that goes with the next. */
  const sweepAll = () =>
    until(async () => {
      await sweep(server.kernel.database);
      const { dropped_threads: dropped } = await rowCounts(tenant, ['dropped_threads']);
      return dropped === 0 && Object.values(await stats()).every((stat) => stat.pendingCount === 0);
    });
  const sql = (text: string, values?: unknown[]) => tenantSql(tenant, text, values);

  /** One of everything that can expire: a session with a key, a thread, a bundle that landed with a hand-off, a request. */
  async function plant(name: string) {
    const { session } = await client.memory.upsertSession({
      session: { surfaceId: name, threadId: name },
      issueSessionKey: true,
      requestId: randomUUID(),
    });
    await client.conversation.appendMessages({ threadId: name, messages });
    const inline = { sourceThreadId: name, selection: { selection: { $case: 'lastN' as const, value: 2 } } };
    const forwarded = await client.memory.forwardBundle({
      source: { $case: 'inline', value: inline },
      targetThreadId: `${name}-target`,
      createTarget: true,
      handoff: { destination: name },
    });
    const [handoff] = (await client.memory.pullHandoffs({ destination: name }, service())).handoffs;
    await client.memory.ackHandoff({ handoffId: handoff!.id, leaseToken: handoff!.leaseToken }, service());
    await client.project.putMemory({ projectId: 'plans', key: name, value: name });
    return { sessionId: session!.id, bundleId: forwarded.bundle!.id, handoffId: forwarded.handoffId };
  }

  it('removes nothing that is not due', async () => {
    await plant('kept');
    const { sessionId } = await plant('deleted');
    await sql(`update sessions set expire_time = now() + interval '1 hour' where end_time is null`);
    await sql(`update bundles set expire_time = now() + interval '1 hour'`);
    await sql(`update memories set expire_time = now() + interval '1 hour'`);
    await sql(`update handoffs set ack_time = now() - interval '6 days 23 hours'`);
    await sql(`update requests set create_time = now() - interval '23 hours'`);
    await client.memory.endSession({ sessionId: (await plant('ended')).sessionId });
    const before = await rowCounts(tenant, TABLES);
    await client.memory.deleteSession({ sessionId });
    await sql(`update sessions set delete_time = now() - interval '29 days' where delete_time is not null`);
    await sql(`update threads set delete_time = now() - interval '29 days' where delete_time is not null`);
    const pending = Object.values(await stats()).filter((stat) => stat.kind !== 'messages');
    expect(pending.map((stat) => [stat.sweptCount, stat.pendingCount])).to.deep.equal(
      Array(KINDS.length - 1).fill([0, 0]),
    );
    await sweepAll();
    expect(await swept()).to.deep.equal({ messages: 3 });
    // The deleted session keeps its row, but not its key.
    expect(await rowCounts(tenant, TABLES)).to.deep.equal({
      ...before,
      messages: before.messages! - 3,
      session_keys: before.session_keys! - 1,
    });
  });

  it('removes each kind when it is due, and counts it', async () => {
    await plant('kept');
    const before = await rowCounts(tenant, TABLES);
    const due = await plant('due');
    const keyed = await plant('keyed');
    const planted = await rowCounts(tenant, TABLES);
    await sql('update sessions set expire_time = now() where id = $1', [due.sessionId]);
    await sql('update session_keys set expire_time = now() where session_id = $1', [keyed.sessionId]);
    await sql('update bundles set expire_time = now() where id = $1', [due.bundleId]);
    await sql(`update memories set expire_time = now() where key = 'due'`);
    await sql(`update handoffs set ack_time = now() - interval '7 days 1 second' where id = $1`, [keyed.handoffId]);
    await sql(`update requests set create_time = now() - interval '24 hours 1 second' where result::text like $1`, [
      `%${due.sessionId}%`,
    ]);
    await sql(`insert into email_matches values ($1, 'dev', gen_random_uuid(), 'nobody@example.com', now())`, [tenant]);
    await sql(
      `insert into profile_merges (tenant_id, env, id, from_user_id, into_user_id, create_time)
       values ($1, 'dev', gen_random_uuid(), 'a', 'b', now()), ($1, 'dev', gen_random_uuid(), 'a', 'b', now() - interval '30 days 1 second')`,
      [tenant],
    );
    await client.conversation.deleteThread({ threadId: 'due' });
    await sql(`update threads set delete_time = now() - interval '30 days 1 second' where delete_time is not null`);
    const expected = {
      bundles: 1,
      email_matches: 1,
      handoffs: 1,
      memories: 1,
      merges: 1,
      messages: 3,
      requests: 1,
      session_keys: 1,
      sessions: 1,
      tombstones: 1,
    };
    for (const [kind, { pendingCount, sweptCount }] of Object.entries(await stats())) {
      expect(pendingCount + sweptCount, kind).to.equal(expected[kind as keyof typeof expected] ?? 0);
    }
    await sweepAll();
    expect(await swept()).to.deep.equal(expected);
    for (const stat of Object.values(await stats())) {
      if (!(stat.kind in expected)) continue; // retention has its own tests
      expect([stat.kind, stat.pendingCount, stat.lastSweepTime !== undefined]).to.deep.equal([stat.kind, 0, true]);
    }
    // The expired session took its key with it, and the bundle its landing and its hand-off.
    expect(await rowCounts(tenant, TABLES)).to.deep.equal({
      sessions: planted.sessions! - 1,
      session_keys: before.session_keys!,
      threads: planted.threads! - 1,
      messages: planted.messages! - 3,
      bundles: planted.bundles! - 1,
      bundle_forwards: planted.bundle_forwards! - 1,
      handoffs: before.handoffs!,
      memories: planted.memories! - 1,
      memory_versions: planted.memory_versions! - 1,
      requests: planted.requests! - 1,
    });
  });

  const LONG_AGO = `now() - interval '31 days'`;
  const ALONE: [what: string, kind: string, sql: string][] = [
    ['bundles', 'bundles', 'update bundles set expire_time = now()'],
    [
      'matches',
      'email_matches',
      `insert into email_matches values ($1, 'dev', gen_random_uuid(), 'a@example.com', now())`,
    ],
    ['hand-offs', 'handoffs', `update handoffs set ack_time = ${LONG_AGO}`],
    ['memories', 'memories', 'update memories set expire_time = now()'],
    [
      'merges',
      'merges',
      `insert into profile_merges (tenant_id, env, id, from_user_id, into_user_id, create_time)
       values ($1, 'dev', gen_random_uuid(), 'a', 'b', ${LONG_AGO})`,
    ],
    ['requests', 'requests', `update requests set create_time = ${LONG_AGO}`],
    ['session keys', 'session_keys', 'update session_keys set expire_time = now()'],
    ['sessions', 'sessions', 'update sessions set expire_time = now()'],
    ['deleted memories', 'tombstones', `update memories set delete_time = ${LONG_AGO}`],
    ['deleted sessions', 'tombstones', `update sessions set delete_time = ${LONG_AGO}`],
    ['deleted threads', 'tombstones', `update threads set delete_time = ${LONG_AGO} where thread_id = 'due-target'`],
  ];
  for (const [what, kind, change] of ALONE) {
    it(`finds a tenant in which nothing but ${what} are due`, async () => {
      await plant('due');
      await sql(change, change.includes('$1') ? [tenant] : []);
      await sweepAll();
      expect(await swept()).to.deep.equal({ [kind]: 1 });
    });
  }

  it('forgets deleted sessions after 30 days', async () => {
    const { sessionId } = await plant('gone');
    await client.memory.deleteSession({ sessionId });
    await sweepAll();
    await sql(`update sessions set delete_time = now() - interval '30 days 1 second'`);
    await sql(`update threads set delete_time = now() - interval '30 days 1 second' where thread_id = 'gone'`);
    await sweepAll();
    expect(await swept()).to.deep.equal({ messages: 3, tombstones: 2 });
    expect(await rowCounts(tenant, ['sessions', 'dropped_threads'])).to.deep.equal({ sessions: 0, dropped_threads: 0 });
  });

  it('removes more than a batch, and counts it once when two sweeps run at once', async () => {
    await plant('kept');
    await sql(
      `insert into bundles (tenant_id, env, id, user_id, source_thread_id, messages, message_count, byte_size, create_time, expire_time)
      select $1, 'dev', gen_random_uuid(), 'user', 's', '[]', 0, 0, now(), now() from generate_series(1, 2500)`,
      [tenant],
    );
    await client.conversation.appendMessages({ threadId: 'long', messages: Array(100).fill(messages[0]) });
    await sql(`insert into messages (tenant_id, env, thread_uid, seq, id, user_id, role, content, create_time)
      select tenant_id, env, thread_uid, s, gen_random_uuid(), user_id, 1, 'x', now()
      from threads, generate_series(101, 2200) s where thread_id = 'long'`);
    await client.conversation.deleteThread({ threadId: 'long' });
    const { database } = server.kernel;
    await Promise.all([sweep(database), sweep(database), sweep(database)]);
    await sweepAll();
    expect(await swept()).to.deep.equal({ bundles: 2500, messages: 2200 });
    const counts = await rowCounts(tenant, ['bundles', 'messages', 'dropped_threads']);
    expect(counts).to.deep.equal({ bundles: 1, messages: 5, dropped_threads: 0 });
  });

  it('tells what it removed by kind', async () => {
    await plant('due');
    await sql('update bundles set expire_time = now()');
    const counts = await sweep(server.kernel.database);
    expect(KINDS).to.include.members([...counts.keys()]);
    await sweepAll();
    expect(await swept()).to.deep.equal({ bundles: 1 });
  });

  it('runs as a background job beside the calls, also after a process was killed in the middle of it', async () => {
    const { owner, app } = await newDatabase();
    await runSql(owner, `insert into tenants (tenant_id, envs) values ('acme', '{dev}')`);
    await runSql(
      owner,
      `insert into requests (tenant_id, env, user_id, method, request_id, fingerprint, result, create_time)
       values ('acme', 'dev', 'user', 'm', gen_random_uuid(), '', '[]', now() - interval '25 hours')`,
    );
    const working = await startTestServer({ jobs: true }, undefined, app);
    try {
      // What a killed process leaves: the job as it was last asked for, locked by who is gone.
      await runSql(
        owner,
        `select graphile_worker.add_job('sweep', job_key := 'sweep', run_at := now() + interval '1 day')`,
      );
      await runSql(owner, `update graphile_worker._private_jobs set locked_by = 'gone', locked_at = now()`);
      await runSql(
        owner,
        `select graphile_worker.add_job('sweep', job_key := 'sweep', job_key_mode := 'preserve_run_at')`,
      );
      await until(async () => (await runSql(owner, 'select from requests')).length === 0);
    } finally {
      await working.stop();
    }
  });

  it('is the only job that ends with an interval of 0', async () => {
    const { owner, app } = await newDatabase();
    const tenant = await newTenant(['user'], {}, owner);
    await runSql(
      owner,
      `insert into llm_requests (tenant_id, env, id, user_id, provider, model, prompt_tokens, completion_tokens, total_tokens, cost,
         latency_ms, status, create_time) values ($1, 'dev', gen_random_uuid(), 'user', 'p', 'm', 1, 2, 3, 0.5, 1, '', now())`,
      [tenant],
    );
    const working = await startTestServer({ jobs: true, sweepInterval: 0 }, undefined, app);
    try {
      const jobs = ['sweep', 'fold', 'read-for-profiles', 'rederive', 'forget-words'];
      for (const job of jobs) await runSql(owner, 'select graphile_worker.add_job($1, job_key := $1)', [job]);
      const waiting = async () =>
        (await runSql(owner, 'select task_identifier as job from graphile_worker.jobs')).map(({ job }) => job);
      await until(async () => (await waiting()).length === 1);
      expect(await waiting()).to.deep.equal(['sweep']);
      expect(await runSql(owner, 'select from usage_rollups')).to.not.deep.equal([]);
    } finally {
      await working.stop();
    }
  });
});

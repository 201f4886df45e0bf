import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import pg from 'pg';
import { v7 as uuidv7 } from 'uuid';
import { START } from '../src/audit/chain.ts';
import { followAuditEvents } from '../src/audit/repository.ts';
import { reader } from '../src/db/transaction.ts';
import {
  type AuditEvent,
  AuditEvent_Outcome,
  type WatchAuditEventsResponse,
} from '../src/gen/memory/v1/audit_service.ts';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import { Member_Role } from '../src/gen/memory/v1/tenant.ts';
import type { RunningServer } from '../src/server.ts';
import { bookmarks } from '../src/watch/bookmarks.ts';
import { EVENT, openChaining, plantEvents, settled } from './fixtures/audit.ts';
import { type Tape, watchAudit } from './fixtures/live.ts';
import {
  allPages,
  appUrl,
  type Clients,
  connect,
  headersOf,
  metadataOf,
  newTenant,
  ownerUrl,
  runSql,
  startTestServer,
} from './support.ts';

const isBookmark = ({ event }: WatchAuditEventsResponse): boolean => event === undefined;
const eventsOf = (told: WatchAuditEventsResponse[]): AuditEvent[] => told.flatMap(({ event }) => event ?? []);
const idsOf = (told: WatchAuditEventsResponse[]): string[] => eventsOf(told).map(({ id }) => id);

describe('watches of the audit trail', () => {
  let servers: RunningServer[];
  let tenant: string;
  let clients: Clients[];
  let admin: Record<string, string>;

  before(async () => {
    servers = [await startTestServer(), await startTestServer()];
  });
  after(async () => {
    await Promise.all(servers.map((server) => server.stop()));
  });
  beforeEach(async () => {
    tenant = await newTenant(['user', 'other']);
    admin = headersOf(tenant, 'admin');
    clients = servers.map(({ port }) => connect(`127.0.0.1:${port}`, headersOf(tenant)));
    await makeAdmin('admin');
  });
  afterEach(() => clients.forEach((client) => client.close()));

  const service = () => metadataOf({ ...headersOf(tenant, 'admin'), 'x-scopes': 'memory:operator' });
  const makeAdmin = (userId: string, role: Member_Role = Member_Role.ADMIN) =>
    clients[0]!.admin.putMember({ member: { userId, role } }, service());
  const append = async (threadId = 't', user = 'user', via = clients[0]!, headers = {}) => {
    const messages = [{ role: MessageRole.HUMAN, content: 'x' }];
    await via.conversation.appendMessages(
      { threadId, messages },
      metadataOf({ ...headersOf(tenant, user), ...headers }),
    );
  };
  const watched = (request: object = {}, via = clients[0]!, headers = admin) => watchAudit(via, headers, request);
  /** That nothing, of another test say, holds up what there is. */
  const quiet = async () => {
    for (const env of ['', 'dev']) await settled({ tenant, env });
  };
  /** What can be told now, of all that is wanted. */
  const toNow = async (...[request, via, headers]: Parameters<typeof watched>) => {
    await quiet();
    const tape = watched(request, via, headers);
    await tape.until(isBookmark);
    tape.cancel();
    return tape.all;
  };
  const listed = async (filter: object = {}, headers = admin): Promise<string[]> => {
    const list = (pageToken: string) =>
      clients[0]!.audit.listAuditEvents({ pageSize: 500, ...filter, pageToken }, metadataOf(headers));
    return (await allPages(list)).flatMap((page) => page.events.map(({ id }) => id)).sort();
  };
  const told = (tape: Tape<WatchAuditEventsResponse>, count: number) =>
    tape.until(() => idsOf(tape.all).length >= count);

  it('tell through any server what the list tells, what was before and what comes', async () => {
    await append();
    const tapes = clients.map((client) => watched({}, client));
    for (const tape of tapes) await tape.until(isBookmark);
    for (let i = 0; i < 5; i++) await append('t', 'user', clients[i % 2]);
    const all = await listed();
    for (const tape of tapes) {
      await told(tape, all.length);
      tape.cancel();
      expect(idsOf(tape.all).sort()).to.deep.equal(all);
    }
  });

  it('go on after any response of an earlier watch, through another server, without a gap or a double', async () => {
    for (let i = 0; i < 6; i++) await append(`t${i}`);
    const all = idsOf(await toNow());
    expect(all.length).to.be.greaterThan(6);
    for (const [i, { resumeToken }] of (await toNow()).entries()) {
      const rest = await toNow({ resumeToken }, clients[i % 2]);
      expect(idsOf(rest)).to.deep.equal(all.slice(i + 1));
    }
  });

  it('miss and double nothing while many write, and who watches comes and goes', async () => {
    let over = false;
    const writers = Array.from({ length: 6 }, async (_, n) => {
      while (!over) await append(`t${n}`, n % 2 ? 'user' : 'other', clients[n % 2]);
    });
    const seen: string[] = [];
    let resumeToken = '';
    const take = (tape: Tape<WatchAuditEventsResponse>) => {
      seen.push(...idsOf(tape.all));
      resumeToken = tape.all.at(-1)?.resumeToken ?? resumeToken;
    };
    for (let i = 0; i < 12; i++) {
      const tape = watched({ resumeToken }, clients[i % 2]);
      await told(tape, 15);
      tape.cancel();
      await tape.ended;
      take(tape);
    }
    over = true;
    await Promise.all(writers);
    const all = await listed();
    const rest = watched({ resumeToken });
    await told(rest, all.length - seen.length);
    rest.cancel();
    take(rest);
    expect(new Set(seen).size).to.equal(seen.length);
    expect([...seen].sort()).to.deep.equal(all);
  });

  it('tell what commits late, after what was acknowledged meanwhile', async () => {
    const holder = new pg.Client({ connectionString: appUrl() });
    await holder.connect();
    const late = uuidv7();
    await quiet();
    const tapes = clients.map((client) => watched({ fromNow: true }, client));
    try {
      for (const tape of tapes) await tape.until(isBookmark);
      await holder.query(`begin; set local app.tenant_id = '${tenant}'; set local app.env = 'dev'`);
      await holder.query(EVENT, [tenant, 'dev', late, 'user', 'step', 'sessions/s', {}]);
      for (let i = 0; i < 4; i++) await append('t', 'user', clients[i % 2]);
      // A bookmark of now stands before the one that is held open, not after it.
      const now = watched({ fromNow: true });
      const { resumeToken } = await now.until(isBookmark);
      now.cancel();
      await holder.query('commit');
      const after = watched({ resumeToken }, clients[1]);
      for (const tape of [...tapes, after]) {
        await told(tape, 5);
        tape.cancel();
        expect(idsOf(tape.all)[0]).to.equal(late);
        expect(new Set(idsOf(tape.all)).size).to.equal(5);
      }
    } finally {
      await holder.end();
    }
  });

  it('tell nothing of what was rolled back, and go on behind it', async () => {
    const holder = new pg.Client({ connectionString: appUrl() });
    await holder.connect();
    await quiet();
    const tape = watched({ fromNow: true });
    await tape.until(isBookmark);
    await holder.query(`begin; set local app.tenant_id = '${tenant}'; set local app.env = 'dev'`);
    await holder.query(EVENT, [tenant, 'dev', uuidv7(), 'user', 'step', 'sessions/s', {}]);
    await append();
    await holder.query('rollback');
    await holder.end();
    await told(tape, 1);
    tape.cancel();
    expect(eventsOf(tape.all).map(({ action }) => action)).to.deep.equal(['messages.append']);
  });

  it('go on after their server was stopped', async () => {
    const stopping = await startTestServer();
    const first = connect(`127.0.0.1:${stopping.port}`, admin);
    await quiet();
    const tape = watched({ fromNow: true }, first);
    await tape.until(isBookmark);
    await append('before');
    await told(tape, 1);
    await stopping.stop();
    expect(await tape.ended).to.include({ code: status.UNAVAILABLE, reason: 'DRAINING' });
    first.close();
    await append('meanwhile');
    const { resumeToken } = tape.all.at(-1)!;
    const next = watched({ resumeToken }, clients[1]);
    await told(next, 1);
    next.cancel();
    expect(eventsOf(next.all).map(({ resource }) => resource)).to.deep.equal(['threads/meanwhile']);
  });

  it('tell members their own, and admins the tenant, with what the tenant did itself', async () => {
    await clients[0]!.admin.updateTenant({ tenant: { tenantId: tenant, displayName: 'x' } }, service());
    await append('mine');
    await append('theirs', 'other');
    const own = eventsOf(await toNow({}, clients[0], headersOf(tenant)));
    expect(own.map(({ resource }) => resource)).to.deep.equal(['threads/mine']);
    const all = eventsOf(await toNow());
    expect(all.map(({ env, resource }) => `${env} ${resource}`)).to.deep.equal([
      'dev members/admin',
      ` tenants/${tenant}`,
      'dev threads/mine',
      'dev threads/theirs',
    ]);
    const refused = watched({ userId: 'other' }, clients[0], headersOf(tenant));
    expect(await refused.ended).to.include({ code: status.PERMISSION_DENIED, reason: 'ADMIN_REQUIRED' });
  });

  it('end when their caller is no admin any more', async () => {
    await quiet();
    const tape = watched({ fromNow: true });
    await tape.until(isBookmark);
    await makeAdmin('admin', Member_Role.MEMBER);
    const over = tape.ended;
    const busy = setInterval(() => void append().catch(() => {}), 100);
    expect(await over).to.include({ code: status.PERMISSION_DENIED, reason: 'ADMIN_REQUIRED' });
    clearInterval(busy);
  });

  it('tell by each filter what the list tells by it', async () => {
    const traceId = '0af7651916cd43dd8448eb211c80319c';
    const callRequestId = '4c51a25c-4f53-4d6f-a29f-4d7b1c1e3a10';
    const { session } = await clients[0]!.memory.upsertSession({ session: { surfaceId: 'web', threadId: 's' } });
    await append('t', 'other', clients[0], { traceparent: `00-${traceId}-b7ad6b7169203331-01` });
    await clients[0]!.memory.endSession({ sessionId: session!.id, requestId: callRequestId });
    await clients[0]!.conversation.appendMessages(
      { threadId: 'acted', messages: [{ role: MessageRole.HUMAN, content: 'x' }] },
      metadataOf({ ...headersOf(tenant), 'x-scopes': 'memory:act-as', 'x-actor': 'bot' }),
    );
    const filters: Record<string, { filter: object; count: number }> = {
      user: { filter: { userId: 'other' }, count: 1 },
      action: { filter: { action: 'messages.append' }, count: 2 },
      session: { filter: { sessionId: session!.id }, count: 2 },
      resource: { filter: { resource: 'threads/t' }, count: 1 },
      trace: { filter: { traceId }, count: 1 },
      request: { filter: { callRequestId }, count: 1 },
      actor: { filter: { actor: 'other' }, count: 1 },
      together: { filter: { traceId, actor: 'other', action: 'messages.append', userId: 'other' }, count: 1 },
      apart: { filter: { traceId, actor: 'user' }, count: 0 },
    };
    for (const [name, { filter, count }] of Object.entries(filters)) {
      const found = idsOf(await toNow(filter)).sort();
      expect(found, name).to.deep.equal(await listed(filter));
      expect(found, name).to.have.length(count);
    }
  });

  it('pass over thousands of events that are not wanted, and bookmark behind them', async () => {
    await append('first');
    const client = new pg.Client({ connectionString: appUrl() });
    await client.connect();
    await client.query(`begin; set local app.tenant_id = '${tenant}'; set local app.env = 'dev'`);
    await client.query(`insert into audit_events (tenant_id, env, id, user_id, actor, action, outcome, resource)
      select '${tenant}', 'dev', gen_random_uuid(), 'user', 'user', 'step', 1, 'sessions/s' from generate_series(1, 2600)`);
    await client.query('commit');
    await client.end();
    await append('last');
    const both = await toNow({ action: 'messages.append' });
    expect(eventsOf(both).map(({ resource }) => resource)).to.deep.equal(['threads/first', 'threads/last']);
    expect(idsOf(await toNow({ resumeToken: both.at(-1)!.resumeToken, action: 'messages.append' }))).to.deep.equal([]);
    expect(idsOf(await toNow({ action: 'step' }))).to.have.length(2600);
  });

  it('of one user look at no events of others', async () => {
    await plantEvents({ tenant, env: 'dev' }, 1200, { user: 'busy' });
    await append('mine');
    for (const env of ['', 'dev']) await settled({ tenant, env });
    const chaining = await openChaining();
    const db = reader(chaining.database, { tenant, env: 'dev', user: 'user' }, { deadline: Date.now() + 10_000 });
    const filter = {
      action: '',
      sessionId: '',
      resource: '',
      outcome: AuditEvent_Outcome.UNSPECIFIED,
      actor: '',
      traceId: '',
      callRequestId: '',
    };
    for (const whose of ['own', 'all'] as const) {
      const feed = await followAuditEvents(db, { ...filter, userId: 'user' }, whose, START);
      expect(feed.more).to.equal(false);
      expect(feed.events.map(({ event }) => event.resource)).to.deep.equal(['threads/mine']);
    }
    await chaining.close();
  });

  it('ask again whether their caller is an admin while they pass over what is not wanted', async () => {
    await append('first');
    await runSql(
      ownerUrl(),
      `insert into audit_events (tenant_id, env, id, user_id, actor, action, outcome, resource)
       select $1, 'dev', gen_random_uuid(), 'user', 'user', 'step', 1, 'sessions/s' from generate_series(1, 60000)`,
      [tenant],
    );
    await settled({ tenant, env: 'dev' });
    const tape = watched({ action: 'messages.append' });
    await told(tape, 1);
    await makeAdmin('admin', Member_Role.MEMBER);
    expect(await tape.ended).to.include({ code: status.PERMISSION_DENIED, reason: 'ADMIN_REQUIRED' });
    expect(tape.all.filter(isBookmark)).to.deep.equal([]);
  });

  it('bookmark at once behind all that was stored, and every 15 seconds without news, also before that', () => {
    let now = 0;
    const due = bookmarks(() => now);
    const later = (ms: number, passing = false) => {
      now += ms;
      return due.isDue({ passing });
    };
    expect([later(14_999, true), later(1, true), later(0, true), later(14_999, true)]).to.deep.equal([
      false,
      true,
      false,
      false,
    ]);
    due.told();
    expect([later(14_999, true), later(0), later(14_999), later(1), later(0)]).to.deep.equal([
      false,
      true,
      false,
      true,
      false,
    ]);
    expect(due.left()).to.equal(15_000);
  });

  it('refuse a token of another watch, of another user, or of other fields, and one with from_now', async () => {
    await append();
    const { resumeToken } = (await toNow({ action: 'messages.append' })).at(-1)!;
    for (const [request, headers] of [
      [{ resumeToken }, admin],
      [{ resumeToken, action: 'messages.append' }, headersOf(tenant)],
      [{ resumeToken: `${resumeToken}x`, action: 'messages.append' }, admin],
      [{ resumeToken, action: 'messages.append', fromNow: true }, admin],
    ] as const) {
      const answer = await watched(request, clients[0], headers).ended;
      expect(answer).to.include({ code: status.INVALID_ARGUMENT });
    }
  });
});

import { randomBytes, randomUUID } from 'node:crypto';
import { type Metadata, status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { type AuditEvent, AuditEvent_Outcome } from '../src/gen/memory/v1/audit_service.ts';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import { Member_Role } from '../src/gen/memory/v1/tenant.ts';
import type { RunningServer } from '../src/server.ts';
import {
  allPages,
  type Clients,
  connect,
  failure,
  headersOf,
  metadataOf,
  nanosOf,
  newTenant,
  startTestServer,
  tenantSql,
  until,
} from './support.ts';

const { DONE, DENIED } = AuditEvent_Outcome;
const SECRET = 'vertraulich';

describe('audit', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;

  before(async () => {
    server = await startTestServer();
  });
  after(() => server.stop());
  beforeEach(async () => {
    tenant = await newTenant(['user', 'other', 'admin']);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  });
  afterEach(() => client.close());

  const as = (user: string, rest: Record<string, string> = {}) => metadataOf({ ...headersOf(tenant, user), ...rest });
  const service = (scope: string) => metadataOf({ 'x-tenant-id': tenant, 'x-env': 'dev', 'x-scopes': scope });
  const events = async (filter: object = {}, metadata = as('admin')): Promise<AuditEvent[]> => {
    const list = (pageToken: string) => client.audit.listAuditEvents({ pageSize: 500, ...filter, pageToken }, metadata);
    return (await allPages(list)).flatMap((page) => page.events);
  };
  const upsert = async (session: object = {}, metadata = as('user')) =>
    (await client.memory.upsertSession({ session: { surfaceId: 'web', ...session } }, metadata)).session!;
  const human = { role: MessageRole.HUMAN, content: SECRET };
  const lastN = { selection: { $case: 'lastN' as const, value: 1 } };

  /** Calls each mutating RPC once with its own request id and trace, then all of them again. */
  it('has one event for each change, by whom, to what, in which request and trace, and none for a replay', async () => {
    interface Told {
      action: string;
      actor: string;
      userId: string;
      resource: string;
      sessionId: string;
    }
    const done: { told: Told; requestId: string; traceId: string }[] = [];
    async function change<Request extends object, Response>(
      method: (request: Request, metadata: Metadata) => Promise<Response>,
      request: object,
      told: (response: Response) => Partial<Told> & { action: string; resource: string },
      metadata = as('user'),
    ): Promise<Response> {
      const [requestId, traceId] = [randomUUID(), randomBytes(16).toString('hex')];
      metadata.set('traceparent', `00-${traceId}-${randomBytes(8).toString('hex')}-01`);
      const call = () => method({ ...request, requestId } as unknown as Request, metadata);
      const response = await call();
      const standard = { actor: 'user', userId: 'user', sessionId: '' };
      done.push({ told: { ...standard, ...told(response) }, requestId, traceId });
      await call(); // a replay
      return response;
    }
    const { memory, conversation, admin } = client;
    const full = { surfaceId: 'web', threadId: 's', title: SECRET, state: { [SECRET]: SECRET }, workspacePath: SECRET };
    const { session } = await change(memory.upsertSession, { session: { ...full, email: 'x@example.com' } }, (r) => ({
      action: 'sessions.upsert',
      resource: `sessions/${r.session!.id}`,
      sessionId: r.session!.id,
    }));
    const id = session!.id;
    const ofSession = (action: string) => () => ({ action, resource: `sessions/${id}`, sessionId: id });
    await change(memory.resumeSession, { target: { $case: 'sessionId', value: id } }, ofSession('sessions.resume'));
    const append = { sessionId: id, messages: [human, human] };
    await change(conversation.appendMessages, append, () => ({
      action: 'messages.append',
      resource: 'threads/s',
      sessionId: id,
    }));
    const ofThread = (action: string) => () => ({ action, resource: 'threads/s' });
    const { lease } = await change(conversation.acquireTurn, { threadId: 's', holder: 'a' }, ofThread('turns.acquire'));
    const turn = { threadId: 's', fencingToken: lease!.fencingToken };
    await change(conversation.renewTurn, turn, ofThread('turns.renew'));
    await change(conversation.releaseTurn, turn, ofThread('turns.release'));
    await change(memory.saveBundle, { sourceThreadId: 's', selection: lastN }, (r) => ({
      action: 'bundles.save',
      resource: `bundles/${r.bundle!.id}`,
    }));
    const source = { $case: 'inline', value: { sourceThreadId: 's', selection: lastN } };
    const forward = { source, targetThreadId: 't', createTarget: true, handoff: { destination: 'maybes' } };
    await change(memory.forwardBundle, forward, (r) => ({
      action: 'bundles.forward',
      resource: `bundles/${r.bundle!.id}`,
    }));
    const scoped = service('memory:handoff');
    const { handoffs } = await change(
      memory.pullHandoffs,
      { destination: 'maybes' },
      () => ({ action: 'handoffs.pull', actor: 'service', userId: '', resource: 'handoffs/maybes' }),
      scoped,
    );
    const { id: handoffId, leaseToken } = handoffs[0]!;
    await change(
      memory.ackHandoff,
      { handoffId, leaseToken },
      () => ({ action: 'handoffs.ack', actor: 'service', userId: '', resource: `handoffs/${handoffId}` }),
      scoped,
    );
    const { messages } = await conversation.listMessages({ threadId: 's' }, as('user'));
    await change(conversation.deleteMessage, { messageId: messages[0]!.id }, () => ({
      action: 'messages.delete',
      resource: `messages/${messages[0]!.id}`,
    }));
    await change(conversation.clearHistory, { sessionId: id }, () => ({
      action: 'threads.clear',
      resource: 'threads/s',
      sessionId: id,
    }));
    const person = { name: SECRET, email: `${SECRET}@example.com`, preferences: { [SECRET]: SECRET } };
    await change(client.profile.updateProfile, { profile: person, sessionId: id }, () => ({
      action: 'profiles.update',
      resource: 'profiles/user',
      sessionId: id,
    }));
    const toolCall = { toolName: SECRET, input: { [SECRET]: SECRET }, error: SECRET };
    await change(client.audit.recordToolCall, { sessionId: id, toolCall }, (r) => ({
      action: 'tool_calls.record',
      resource: `tool_calls/${r.toolCall!.id}`,
      sessionId: id,
    }));
    await change(client.audit.recordPrompt, { sessionId: id, prompt: { name: SECRET, text: SECRET } }, (r) => ({
      action: 'prompts.record',
      resource: `prompts/${r.prompt!.id}`,
      sessionId: id,
    }));
    const llmRequest = { provider: 'p', model: 'm', status: SECRET, request: { [SECRET]: SECRET } };
    await change(client.usage.recordLlmRequest, { sessionId: id, llmRequest }, (r) => ({
      action: 'usage.record',
      resource: `llm_requests/${r.llmRequest!.id}`,
      sessionId: id,
    }));
    const ofBudget = (action: string) => () => ({ action, resource: 'budgets/3/user/1' });
    const mine = { scope: 3, subject: 'user', period: 1 };
    await change(client.usage.setBudget, { budget: { ...mine, costLimit: '1' } }, ofBudget('budgets.set'));
    await change(client.usage.deleteBudget, mine, ofBudget('budgets.delete'));
    await change(memory.endSession, { sessionId: id }, ofSession('sessions.end'));
    await change(memory.deleteSession, { sessionId: id }, ofSession('sessions.delete'));
    await change(conversation.deleteThread, { threadId: 't' }, () => ({
      action: 'threads.delete',
      resource: 'threads/t',
    }));
    const key = { projectId: 'atlas', key: 'fact' };
    const put = await change(client.project.putMemory, { ...key, value: SECRET, metadata: { [SECRET]: 1 } }, (r) => ({
      action: 'memories.put',
      resource: `projects/atlas/memories/${r.memory!.id}`,
    }));
    const ofMemory = (action: string) => () => ({ action, resource: `projects/atlas/memories/${put.memory!.id}` });
    await change(client.project.restoreMemory, { ...key, version: 1 }, ofMemory('memories.restore'));
    await change(client.project.deleteMemory, key, ofMemory('memories.delete'));
    const section = { projectId: 'atlas', sectionId: 'intro' };
    const artifact = (action: string, resource: string) => () => ({ action, resource: `projects/atlas/${resource}` });
    const ofDraft = (action: string) => artifact(action, 'drafts/intro');
    const document = { projectId: 'atlas', yaml: `secret: "${SECRET}"\n`, baseVersion: 0 };
    await change(client.artifact.putProjectProfile, document, artifact('profiles.put', 'profile'));
    const file = { projectId: 'atlas', fileName: SECRET, sha256: 'a'.repeat(64), content: SECRET, uri: SECRET };
    await change(client.artifact.registerInput, file, (r) => ({
      action: 'inputs.register',
      resource: `projects/atlas/inputs/${r.input!.id}`,
    }));
    const { lock } = await change(client.artifact.lockSection, { ...section, holder: 'me' }, ofDraft('sections.lock'));
    const own = { ...section, fencingToken: lock!.fencingToken };
    await change(client.artifact.renewSectionLock, own, ofDraft('sections.renew'));
    await change(client.artifact.saveDraft, { ...own, content: SECRET }, ofDraft('drafts.save'));
    await change(client.artifact.restoreDraft, { ...own, revision: 1 }, ofDraft('drafts.restore'));
    await change(client.artifact.unlockSection, own, ofDraft('sections.unlock'));
    const output = {
      ...{
        projectId: 'atlas',
        artifactKey: 'report',
        sections: [{ sectionId: 'intro', revision: 1 }],
        finalOutput: SECRET,
      },
      ...{
        reviewers: [SECRET],
        approvals: [{ approver: SECRET, verdict: 1 as const, comment: SECRET }],
        gateStage: SECRET,
      },
    };
    const committed = await change(client.artifact.commitArtifact, output, (r) => ({
      action: 'artifacts.commit',
      resource: `projects/atlas/artifacts/${r.artifact!.id}`,
    }));
    const snapshotId = committed.artifact!.snapshot!.id;
    await change(client.artifact.retrySnapshot, { snapshotId }, artifact('snapshots.retry', `snapshots/${snapshotId}`));
    const pair = { fromUserId: 'user', intoUserId: 'other' };
    const { mergeId } = await change(
      client.profile.mergeProfiles,
      pair,
      (r) => ({ action: 'profiles.merge', actor: 'admin', userId: 'admin', resource: `merges/${r.mergeId}` }),
      as('admin'),
    );
    const unmerged = { action: 'profiles.unmerge', actor: 'admin', userId: 'admin', resource: `merges/${mergeId}` };
    await change(client.profile.undoMergeProfiles, { mergeId }, () => unmerged, as('admin'));
    const byAdmin = (action: string) => () => ({ action, actor: 'admin', userId: 'admin', resource: 'members/new' });
    const member = { member: { userId: 'new', role: Member_Role.MEMBER } };
    await change(admin.putMember, member, byAdmin('members.put'), as('admin'));
    await change(admin.removeMember, { userId: 'new' }, byAdmin('members.remove'), as('admin'));
    await change(
      admin.eraseUser,
      { userId: 'other' },
      (r) => ({ action: 'users.erase', actor: 'admin', userId: 'admin', resource: `erasures/${r.erasure!.id}` }),
      as('admin'),
    );
    const ofTenant = { action: 'tenants.update', actor: 'service', userId: '', resource: `tenants/${tenant}` };
    const change9 = { tenant: { tenantId: tenant, displayName: SECRET } };
    await change(admin.updateTenant, change9, () => ofTenant, metadataOf({ 'x-scopes': 'memory:operator' }));

    const found = await events();
    expect(found.every((event) => event.outcome === DONE)).to.equal(true);
    expect(found.map((event) => event.action)).to.deep.equal(done.map(({ told }) => told.action).reverse());
    for (const { told, requestId, traceId } of done) {
      const event = found.find((candidate) => candidate.requestId === requestId);
      const env = told.action.startsWith('tenants.') ? '' : 'dev';
      expect(event, told.action).to.deep.include({ ...told, requestId, traceId, env });
      expect(event!.id).to.match(/^[0-9a-f]{8}-[0-9a-f]{4}-7/);
    }
    const rows = JSON.stringify(await tenantSql(tenant, 'select * from audit_events'));
    for (const trace of [SECRET, 'example.com', leaseToken]) expect(rows).to.not.contain(trace);
  });

  it('has the beginning and the end of a streamed message, and not each part of it', async () => {
    const { id } = await upsert({ threadId: 's' });
    for (const last of ['cancel', 'finish'] as const) {
      const call = client.streams.conversation.streamMessage(as('user'));
      const answers: string[] = [];
      const over = new Promise((resolve) => call.on('error', resolve).on('end', resolve));
      const acked = new Promise<void>((resolve) =>
        call.on('data', ({ frame }) => {
          answers.push(frame.$case);
          if (frame.$case === 'ack') resolve();
          if (frame.$case === 'opened') {
            const offset = frame.value.durableOffset;
            call.write({ frame: { $case: 'chunk', value: { offset, text: SECRET } } });
          }
        }),
      );
      const open = {
        threadId: '',
        sessionId: id,
        role: MessageRole.ASSISTANT,
        clientId: 'c',
        fencingToken: 0,
        toolCallId: '',
      };
      call.write({ frame: { $case: 'open', value: open } });
      await acked;
      if (last === 'finish') call.write({ frame: { $case: 'finish', value: { metadata: undefined } } });
      else call.cancel();
      await over;
      const [{ messages }, end] = [
        await client.conversation.listMessages({ threadId: 's' }),
        `messages.${last === 'finish' ? last : 'interrupt'}`,
      ];
      const found = await until(async () => (await events({ action: end })).length > 0 && events());
      expect(found[0]).to.include({
        action: end,
        resource: `messages/${messages[0]!.id}`,
        sessionId: id,
        userId: 'user',
      });
      expect(JSON.stringify(found)).to.not.contain(SECRET);
    }
    const actions = (await events()).map((event) => event.action).reverse();
    const opened = ['messages.stream', 'messages.append']; // one change
    const later = ['messages.interrupt', 'messages.stream', 'messages.finish'];
    expect(actions).to.deep.equal(['sessions.upsert', ...opened, ...later]);
  });

  it("has the creation of a tenant, and shows it to the tenant's admins only", async () => {
    const tenantId = `t-${randomUUID()}`;
    const operator = metadataOf({ 'x-scopes': 'memory:operator' });
    const request = { tenant: { tenantId, envs: ['dev'] }, requestId: randomUUID() };
    await client.admin.createTenant(request, operator);
    await client.admin.createTenant(request, operator);
    const of = (user: string) => metadataOf(headersOf(tenantId, user));
    const named = metadataOf({ 'x-tenant-id': tenantId, 'x-env': 'dev', 'x-scopes': 'memory:operator' });
    for (const [userId, role] of [
      ['admin', Member_Role.ADMIN],
      ['user', Member_Role.MEMBER],
    ] as const) {
      await client.admin.putMember({ member: { userId, role } }, named);
    }
    const found = await events({}, of('admin'));
    expect(found.map((event) => event.action)).to.deep.equal(['members.put', 'members.put', 'tenants.create']);
    expect(found[2]).to.include({ env: '', resource: `tenants/${tenantId}`, requestId: request.requestId });
    expect(await events({}, of('user'))).to.deep.equal([]);
    expect(await events({ action: 'tenants.create' })).to.deep.equal([]);
  });

  it('has nothing of what was refused as malformed, conflicting or unchanged by an etag', async () => {
    const { id } = await upsert();
    await failure(upsert({ id, etag: 'stale', title: 'x' }));
    await failure(client.memory.upsertSession({ session: {} }));
    await failure(client.conversation.appendMessages({ threadId: 't' }));
    expect((await events({ outcome: DONE })).map((event) => event.action)).to.deep.equal(['sessions.upsert']);
  });

  it('has refused attempts, at a bounded rate', async () => {
    const traceId = randomBytes(16).toString('hex');
    const traceparent = `00-${traceId}-${randomBytes(8).toString('hex')}-01`;
    expect(await failure(client.memory.listSessions({}, as('stranger', { traceparent })))).to.include({ code: 7 });
    expect(await failure(client.admin.listMembers({}, as('user')))).to.include({ code: status.PERMISSION_DENIED });
    const denials = () => events({ outcome: DENIED });
    const [ofUser, ofStranger] = await until(async () => {
      const found = await denials();
      return found.length === 2 && found;
    });
    expect(ofStranger).to.include({ actor: 'stranger', userId: 'stranger', outcome: DENIED, env: 'dev', traceId });
    expect(ofUser).to.include({ actor: 'user', userId: 'user' });
    expect(JSON.stringify([ofUser, ofStranger])).to.match(/ListMembers.*ListSessions/);
    const attempts = Array.from({ length: 120 }, () => failure(client.memory.listSessions({}, as('mallory'))));
    await Promise.all(attempts);
    const recorded = (await denials()).filter((event) => event.actor === 'mallory').length;
    expect(recorded).to.be.within(1, 60);
    // Nor can it be had by another name for each attempt.
    await Promise.all(
      Array.from({ length: 600 }, (_, i) => failure(client.memory.listSessions({}, as(`mallory-${i}`)))),
    );
    expect((await denials()).length).to.be.below(500);
  });

  it("has an attempt at another user's session", async () => {
    const { id } = await upsert();
    await failure(client.memory.getSession({ sessionId: id }, as('other')));
    const [event] = await until(async () => {
      const found = await events({ outcome: DENIED });
      return found.length > 0 && found;
    });
    expect(event).to.include({ actor: 'other', userId: 'other', sessionId: id });
  });

  it('shows members their own, admins all, and nobody another tenant or env', async () => {
    await upsert();
    await upsert({}, as('other'));
    expect((await events({}, as('user'))).map((event) => event.userId)).to.deep.equal(['user']);
    expect((await events({ userId: 'user' }, as('user'))).length).to.equal(1);
    expect((await events({})).map((event) => event.userId)).to.deep.equal(['other', 'user']);
    expect((await events({ userId: 'user' })).map((event) => event.userId)).to.deep.equal(['user']);
    const asked = client.audit.listAuditEvents({ userId: 'other' }, as('user'));
    expect(await failure(asked)).to.include({ code: status.PERMISSION_DENIED });
    const foreign = await newTenant(['admin']);
    expect(await events({}, metadataOf(headersOf(foreign, 'admin')))).to.deep.equal([]);
    const prod = await failure(client.audit.listAuditEvents({}, metadataOf(headersOf(tenant, 'admin', 'prod'))));
    expect(prod.code).to.equal(status.PERMISSION_DENIED);
  });

  it('is filtered by action, session, resource, outcome and time', async () => {
    const { id } = await upsert({ threadId: 't' });
    await client.conversation.appendMessages({ threadId: 't', messages: [human] });
    await client.conversation.appendMessages({ sessionId: id, messages: [human] });
    await client.memory.endSession({ sessionId: id });
    const all = await events();
    const actions = ['sessions.end', 'messages.append', 'messages.append', 'sessions.upsert'];
    expect(all.map((event) => event.action)).to.deep.equal(actions);
    const found = async (filter: object) =>
      (await events(filter)).map((event) => all.findIndex((e) => e.id === event.id));
    expect(await found({ action: 'messages.append' })).to.deep.equal([1, 2]);
    expect(await found({ sessionId: id })).to.deep.equal([0, 1, 3]);
    expect(await found({ resource: 'threads/t' })).to.deep.equal([1, 2]);
    expect(await found({ resource: 'threads/t', sessionId: id })).to.deep.equal([1]);
    expect(await found({ outcome: DONE })).to.deep.equal([0, 1, 2, 3]);
    expect(await found({ outcome: DENIED })).to.deep.equal([]);
    expect(nanosOf(all[0]!.createTime) > nanosOf(all[3]!.createTime)).to.equal(true);
    expect(await found({ startTime: all[1]!.createTime })).to.deep.equal([0, 1]);
    expect(await found({ endTime: all[1]!.createTime })).to.deep.equal([2, 3]);
    expect(await found({ startTime: all[2]!.createTime, endTime: all[0]!.createTime })).to.deep.equal([1, 2]);
  });

  it('pages newest first without a double, and binds its tokens to the call', async () => {
    for (let i = 0; i < 7; i++) await upsert({ title: `${i}` });
    await client.admin.updateTenant(
      { tenant: { tenantId: tenant, displayName: 'x' } },
      metadataOf({ 'x-scopes': 'memory:operator' }),
    );
    const list = (pageToken: string) => client.audit.listAuditEvents({ pageSize: 3, pageToken }, as('admin'));
    const pages = await allPages(list);
    expect(pages.map((page) => page.events.length)).to.deep.equal([3, 3, 2]);
    const ids = pages.flatMap((page) => page.events.map((event) => event.id));
    expect(ids).to.deep.equal([...new Set(ids)].sort().reverse());
    const { nextPageToken: pageToken } = pages[0]!;
    for (const [filter, user] of [
      [{ action: 'x' }, 'admin'],
      [{}, 'user'],
    ] as const) {
      const misused = client.audit.listAuditEvents({ pageSize: 3, pageToken, ...filter }, as(user));
      expect(await failure(misused)).to.include({ code: status.INVALID_ARGUMENT });
    }
  });

  it('can only be added to by the runtime role', async () => {
    await upsert();
    const before = await events();
    for (const sql of [`update audit_events set actor = 'x'`, 'delete from audit_events', 'truncate audit_events']) {
      const refused = await tenantSql(tenant, sql).then(
        () => '',
        (error) => error.code,
      );
      expect(refused, sql).to.equal('42501');
    }
    expect(await events()).to.deep.equal(before);
  });
});

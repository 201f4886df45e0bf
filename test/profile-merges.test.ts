import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { AuditEvent_Outcome } from '../src/gen/memory/v1/audit_service.ts';
import { ProfileSource_Kind, ProfileValueChange_Kind } from '../src/gen/memory/v1/profile.ts';
import type { RunningServer } from '../src/server.ts';
import { sweep } from '../src/tenants/expiry.ts';
import {
  type Clients,
  connect,
  failure,
  headersOf,
  metadataOf,
  newTenant,
  startTestServer,
  tenantSql,
  until,
  useOwnDatabase,
} from './support.ts';

const { ABORTED, FAILED_PRECONDITION, INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED } = status;
const { ADDED, KEPT } = ProfileValueChange_Kind;

describe('people who may be the same', () => {
  let server: RunningServer;
  let restore: () => void;
  let tenant: string;
  let client: Clients;

  before(async () => {
    restore = await useOwnDatabase();
    server = await startTestServer();
  });
  after(async () => {
    await server.stop();
    restore();
  });
  beforeEach(async () => {
    tenant = await newTenant(['user', 'other', 'third', 'fourth', 'admin']);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  });
  afterEach(() => client.close());

  const as = (user: string, env = 'dev') => metadataOf(headersOf(tenant, user, env));
  const service = () => metadataOf({ 'x-tenant-id': tenant, 'x-env': 'dev' });
  const update = (user: string, profile: object, rest: object = {}) =>
    client.profile.updateProfile({ profile, ...rest }, as(user));
  const get = async (user: string) => (await client.profile.getProfile({}, as(user))).profile!;
  const upsert = async (user: string, session: object) =>
    (await client.memory.upsertSession({ session: { surfaceId: 'web', ...session } }, as(user))).session!;
  const matches = async (userId = '') =>
    (await client.profile.listEmailMatches({ userId }, as('admin'))).matches.map(({ email, holders }) => ({
      email,
      holders,
    }));
  const merge = (fromUserId: string, intoUserId: string, rest: object = {}) =>
    client.profile.mergeProfiles({ fromUserId, intoUserId, ...rest }, as('admin'));
  const undo = (mergeId: string, rest: object = {}) =>
    client.profile.undoMergeProfiles({ mergeId, ...rest }, as('admin'));
  const matchEvents = () =>
    tenantSql(tenant, `select user_id, resource from audit_events where action = 'profiles.email_match'`);

  describe('the same e-mail address', () => {
    it('is seen in profiles and sessions of several users, whatever its case, and listed to admins', async () => {
      await update('user', { email: 'Anna@Exämple.org' });
      expect(await matches()).to.deep.equal([]);
      const session = await upsert('other', { email: 'anna@exämple.ORG' });
      const [match, ...more] = await matches();
      expect(more).to.deep.equal([]);
      expect(match!.email).to.equal('anna@xn--exmple-cua.org');
      expect(match!.holders).to.deep.equal([
        { userId: 'other', inProfile: false, sessionIds: [session.id], sessionCount: 1 },
        { userId: 'user', inProfile: true, sessionIds: [], sessionCount: 0 },
      ]);
      await update('third', { email: 'anna+shop@exämple.org' });
      expect(await matches('third')).to.deep.equal([]);
      expect(await matches('other')).to.deep.equal([match]);
      expect(await get('other')).to.include({ revision: 0, email: undefined });
    });

    it('is recorded once, in an event that no member sees', async () => {
      for (const user of ['user', 'other', 'third']) await update(user, { email: 'anna@example.org' });
      const [event, ...more] = await matchEvents();
      expect(more).to.deep.equal([]);
      expect(event.user_id).to.equal('');
      expect(event.resource).to.match(/^email-matches\/[0-9a-f-]{36}$/);
      for (const user of ['user', 'other', 'third']) {
        const { events } = await client.audit.listAuditEvents({}, as(user));
        expect(events.map(({ action }) => action)).to.deep.equal(['profiles.update']);
        const refused = await failure(client.profile.listEmailMatches({}, as(user)));
        expect([refused.code, refused.reason]).to.deep.equal([PERMISSION_DENIED, 'ADMIN_REQUIRED']);
      }
      const stays = await tenantSql(tenant, `select * from audit_events`);
      expect(JSON.stringify(stays)).to.not.contain('example.org');
    });

    it('is seen of users who come with it at the same time', async () => {
      for (let i = 0; i < 10; i++) {
        const email = `${i}@example.org`;
        await Promise.all([update('user', { email }), upsert('other', { email, threadId: `${i}` })]);
      }
      expect(await matchEvents()).to.have.length(10);
    });

    it('is no match within one user, in another env, nor once it is gone', async () => {
      await upsert('user', { email: 'anna@example.org', threadId: 'a' });
      await upsert('user', { email: 'anna@example.org', threadId: 'b' });
      await update('user', { email: 'anna@example.org' });
      expect(await matches()).to.deep.equal([]);
      const { id } = await upsert('other', { email: 'anna@example.org' });
      expect((await matches())[0]!.holders).to.have.length(2);
      await client.memory.deleteSession({ sessionId: id }, as('other'));
      expect(await matches()).to.deep.equal([]);
      expect(await tenantSql(tenant, 'select from email_matches')).to.have.length(1);
      await sweep(server.kernel.database);
      expect(await tenantSql(tenant, 'select from email_matches')).to.deep.equal([]);
      await upsert('other', { email: 'anna@example.org' });
      expect(await matches()).to.have.length(1);
    });
  });

  describe('a session of a user whom the service minted', () => {
    const mint = async (threadId: string) => {
      const request = { session: { surfaceId: 'web', threadId }, anonymous: true };
      return (await client.memory.upsertSession(request, service())).session!;
    };
    const anonymity = async (user: string) =>
      (await client.memory.listSessions({}, as(user))).sessions.map(({ anonymous }) => anonymous);

    it('is anonymous until an e-mail address is known, by the profile or its own, and never again', async () => {
      const { userId, anonymous } = await mint('a');
      await upsert(userId, { threadId: 'b' });
      expect([anonymous, await anonymity(userId)]).to.deep.equal([true, [true, true]]);
      expect((await upsert(userId, { threadId: 'b', email: 'b@example.org' })).anonymous).to.equal(false);
      expect(await anonymity(userId)).to.have.members([true, false]);
      const before = (await client.memory.listSessions({ threadId: 'a' }, as(userId))).sessions[0]!;
      await update(userId, { email: 'a@example.org' });
      expect(await anonymity(userId)).to.deep.equal([false, false]);
      const after = (await client.memory.listSessions({ threadId: 'a' }, as(userId))).sessions[0]!;
      expect(after.revision).to.equal(before.revision + 1);
      expect((await upsert(userId, { threadId: 'c' })).anonymous).to.equal(false);
      await update(userId, {}, { updateMask: ['email'] });
      expect(await anonymity(userId)).to.deep.equal([false, false, false]);
    });
  });

  describe('a merge', () => {
    beforeEach(async () => {
      await update('user', {
        name: 'Anna',
        email: 'anna@example.org',
        products: ['Roof', 'Pump'],
        preferences: { a: 1, b: 2 },
      });
      await update('user', { address: { city: 'Brno', country: 'CZ' } });
      await update('other', { name: 'Anna Lee', phone: '+420222333444', products: ['roof'], preferences: { b: 3 } });
    });

    it('adds to one profile what the other has and it has not, and leaves that empty', async () => {
      const preview = await merge('user', 'other', { validateOnly: true });
      expect(preview.mergeId).to.equal('');
      expect(preview.effects).to.have.deep.members([
        { field: 'name', kind: KEPT, count: 1 },
        { field: 'email', kind: ADDED, count: 1 },
        { field: 'products', kind: KEPT, count: 1 },
        { field: 'products', kind: ADDED, count: 1 },
        { field: 'preferences', kind: KEPT, count: 1 },
        { field: 'preferences', kind: ADDED, count: 1 },
        { field: 'address.city', kind: ADDED, count: 1 },
        { field: 'address.country', kind: ADDED, count: 1 },
      ]);
      expect(await get('other')).to.include({ revision: 1 });

      const { mergeId, effects } = await merge('user', 'other');
      expect(effects).to.deep.equal(preview.effects);
      const into = await get('other');
      expect(into).to.deep.include({
        name: 'Anna Lee',
        email: 'anna@example.org',
        phone: '+420222333444',
        products: ['roof', 'Pump'],
        preferences: { b: 3, a: 1 },
      });
      expect(into.address).to.include({ city: 'Brno', country: 'CZ' });
      const source = into.sources.find(({ field }) => field === 'email');
      expect(source).to.include({ kind: ProfileSource_Kind.MERGE, actor: 'admin', sessionId: '', threadId: '' });
      expect(await get('user')).to.deep.include({ name: undefined, email: undefined, products: [], sources: [] });
      const { changes } = await client.profile.listProfileChanges({ field: 'email' }, as('other'));
      expect(changes.map(({ kind, current }) => [kind, current])).to.deep.equal([[ADDED, 'anna@example.org']]);
      const { events } = await client.audit.listAuditEvents({ action: 'profiles.merge' }, as('admin'));
      expect(events).to.have.length(1);
      expect(events[0]).to.deep.include({
        actor: 'admin',
        userId: 'admin',
        resource: `merges/${mergeId}`,
        outcome: AuditEvent_Outcome.DONE,
        metadata: { from_user_id: 'user', into_user_id: 'other' },
      });
    });

    it('keeps where values came from, so that what was read gives way to what is said later', async () => {
      const operator = metadataOf({ 'x-scopes': 'memory:operator' });
      await client.admin.updateTenant({ tenant: { tenantId: tenant, policies: { extractProfile: true } } }, operator);
      const say = (user: string, content: string) =>
        client.conversation.appendMessages({ threadId: 't', messages: [{ role: 1, content }] }, as(user));
      const sourceOf = async (user: string, field: string) =>
        (await get(user)).sources.find((source) => source.field === field)!;
      await say('user', 'My phone number is +1 202 555 0143.');
      const said = await until(() => sourceOf('user', 'phone'));
      const given = await sourceOf('user', 'name');
      expect(said).to.include({ kind: ProfileSource_Kind.EXTRACTION, threadId: 't', messageSeq: 1 });

      await merge('user', 'third');
      await merge('third', 'fourth');
      const merged = await sourceOf('fourth', 'phone');
      expect(merged).to.deep.include({ kind: ProfileSource_Kind.MERGE, actor: 'admin', origin: said });
      expect((await sourceOf('fourth', 'name')).origin).to.deep.equal(given);
      const { changes } = await client.profile.listProfileChanges({ field: 'phone' }, as('fourth'));
      expect(changes.map(({ source }) => source)).to.deep.equal([merged]);

      await say('fourth', 'My name is Berta Baker, and my phone number is +1 202 555 0199.');
      await until(async () => (await get('fourth')).phone === '+12025550199');
      expect((await get('fourth')).name, 'what a caller said stands').to.equal('Anna');
    });

    it('is undone to the letter, also to history and anonymity', async () => {
      const before = [await get('user'), await get('other')];
      const history = await client.profile.listProfileChanges({}, as('other'));
      const { mergeId } = await merge('user', 'other');
      const requestId = randomUUID();
      expect(await undo(mergeId, { requestId })).to.deep.equal({ fromUserId: 'user', intoUserId: 'other' });
      expect(await undo(mergeId, { requestId })).to.deep.equal({ fromUserId: 'user', intoUserId: 'other' });
      for (const was of before) {
        const { revision, etag, updateTime, ...rest } = await get(was.userId);
        expect({ ...was, ...rest }).to.deep.equal(was);
        expect(revision).to.equal(was.revision + 2);
      }
      expect(await client.profile.listProfileChanges({}, as('other'))).to.deep.equal(history);
      const again = await failure(undo(mergeId));
      expect([again.code, again.reason]).to.deep.equal([FAILED_PRECONDITION, 'MERGE_UNDONE']);
      expect(await failure(undo(randomUUID()))).to.include({ code: NOT_FOUND, message: 'merge not found' });

      const minted = (await client.memory.upsertSession({ session: { surfaceId: 'web' }, anonymous: true }, service()))
        .session!;
      const named = await merge('user', minted.userId);
      const session = async () =>
        (await client.memory.getSession({ sessionId: minted.id }, as(minted.userId))).session!.anonymous;
      expect(await session()).to.equal(false);
      await undo(named.mergeId);
      expect(await session()).to.equal(true);
    });

    it('cannot be undone once one of the profiles has changed, and then keeps nothing of what they held', async () => {
      for (const user of ['user', 'other']) {
        const { mergeId } = await merge('user', 'other');
        await update(user, { services: [`s ${mergeId}`] });
        const refused = await failure(undo(mergeId));
        expect([refused.code, refused.reason]).to.deep.equal([ABORTED, 'PROFILE_CHANGED']);
        const [row] = await tenantSql(tenant, 'select from_entries, into_entries from profile_merges where id = $1', [
          mergeId,
        ]);
        expect(row).to.deep.equal({ from_entries: null, into_entries: null });
        await update('user', { name: 'Anna' });
      }
    });

    it('is done once for a request_id, and refused where it makes no sense', async () => {
      const requestId = randomUUID();
      const [first, ...others] = await Promise.all([1, 2, 3].map(() => merge('user', 'other', { requestId })));
      for (const answer of others) expect(answer).to.deep.equal(first);
      expect((await failure(merge('user', 'other'))).message).to.equal('profile not found');
      expect((await failure(merge('other', 'nobody'))).message).to.equal('user not found');
      expect((await failure(merge('other', 'nobody', { validateOnly: true }))).message).to.equal('user not found');
      const same = await failure(merge('other', 'other'));
      expect([same.code, same.violations.map(({ field }) => field)]).to.deep.equal([
        INVALID_ARGUMENT,
        ['into_user_id'],
      ]);
      for (const call of [
        () => client.profile.mergeProfiles({ fromUserId: 'user', intoUserId: 'third' }, as('user')),
        () => client.profile.undoMergeProfiles({ mergeId: first!.mergeId }, as('user')),
      ])
        expect((await failure(call())).code).to.equal(PERMISSION_DENIED);
    });

    it('loses nothing of updates that come meanwhile', async () => {
      const updates = Array.from({ length: 20 }, (_, i) => update(i % 2 ? 'user' : 'other', { services: [`s${i}`] }));
      await Promise.all([...updates, merge('user', 'other')]);
      const all = [...(await get('user')).services, ...(await get('other')).services];
      expect(all.sort()).to.deep.equal(updates.map((_, i) => `s${i}`).sort());
    });

    it('is forgotten after 30 days, with what the profiles held', async () => {
      const { mergeId } = await merge('user', 'other');
      await tenantSql(tenant, `update profile_merges set create_time = now() - interval '30 days'`);
      await sweep(server.kernel.database);
      expect((await failure(undo(mergeId))).code).to.equal(NOT_FOUND);
    });
  });
});

import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import {
  ProfileValueChange_Kind as Kind,
  ProfileSource_Kind,
  type ProfileValueChange,
} from '../src/gen/memory/v1/profile.ts';
import type { RunningServer } from '../src/server.ts';
import {
  allPages,
  type Clients,
  connect,
  failure,
  headersOf,
  metadataOf,
  newTenant,
  startTestServer,
  tenantSql,
} from './support.ts';

const { ABORTED, INVALID_ARGUMENT, NOT_FOUND } = status;

describe('profiles', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;

  before(async () => {
    server = await startTestServer();
  });
  after(() => server.stop());
  beforeEach(async () => {
    tenant = await newTenant(['user', 'other']);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  });
  afterEach(() => client.close());

  const update = (profile: object, rest: object = {}) => client.profile.updateProfile({ profile, ...rest });
  const get = async (sessionId = '') => (await client.profile.getProfile({ sessionId })).profile!;
  const history = async (field = '') => {
    const page = (pageToken: string) => client.profile.listProfileChanges({ field, pageSize: 30, pageToken });
    return (await allPages(page)).flatMap(({ changes }) => changes);
  };
  const newSession = async () => (await client.memory.upsertSession({ session: { surfaceId: 'web' } })).session!;
  const brief = ({ field, item, kind, previous, current }: ProfileValueChange) => [
    field,
    item,
    kind,
    previous,
    current,
  ];

  it('is empty at first, and then holds what was said, in its normal form', async () => {
    expect(await get()).to.deep.include({ userId: 'user', revision: 0, etag: '', sources: [], products: [] });
    const made = await update({
      name: ' Zoë van der Berg ',
      phone: '+49 30 901820',
      email: 'Zoe@Exämple.org',
      address: { street: 'Dlouhá 5', city: 'Praha', country: 'cz' },
      products: ['Solar roof'],
      services: ['Repair'],
      preferences: { contact: 'mail' },
    });
    expect(made.profile).to.deep.include({
      name: 'Zoë van der Berg',
      phone: '+4930901820',
      email: 'Zoe@Exämple.org',
      address: { street: 'Dlouhá 5', city: 'Praha', state: undefined, zip: undefined, country: 'CZ' },
      products: ['Solar roof'],
      services: ['Repair'],
      preferences: { contact: 'mail' },
      revision: 1,
    });
    expect(made.changes).to.have.length(9);
    expect(made.changes.every(({ kind, revision }) => kind === Kind.ADDED && revision === 1)).to.equal(true);
    expect(await get()).to.deep.equal(made.profile);
    const { profile } = await client.profile.getProfile({}, metadataOf(headersOf(tenant, 'other')));
    expect(profile).to.deep.include({ userId: 'other', revision: 0, name: undefined });
  });

  it('accumulates: fields change, lists unite whatever the case, preferences merge, and it tells what changed', async () => {
    await update({
      name: 'Ana',
      address: { city: 'Brno' },
      products: ['Solar Roof'],
      preferences: { a: { x: 1 }, b: 2 },
    });
    const { profile, changes } = await update({
      name: 'Ana Lee',
      address: { zip: '602 00' },
      products: ['solar  roof', 'Heat pump', 'HEAT PUMP'],
      preferences: { a: { y: 2 }, b: null, c: 'new' },
    });
    expect(profile).to.deep.include({
      name: 'Ana Lee',
      products: ['Solar Roof', 'Heat pump'],
      preferences: { a: { x: 1, y: 2 }, c: 'new' },
    });
    expect(profile!.address).to.include({ city: 'Brno', zip: '602 00' });
    expect(changes.map(brief)).to.have.deep.members([
      ['name', '', Kind.REPLACED, 'Ana', 'Ana Lee'],
      ['address.zip', '', Kind.ADDED, undefined, '602 00'],
      ['products', 'Heat pump', Kind.ADDED, undefined, 'Heat pump'],
      ['preferences', 'a', Kind.REPLACED, '{"x":1}', '{"x":1,"y":2}'],
      ['preferences', 'b', Kind.REMOVED, undefined, undefined],
      ['preferences', 'c', Kind.ADDED, undefined, '"new"'],
    ]);
    const same = await update({ name: 'Ana Lee', products: ['SOLAR ROOF'], preferences: { a: { x: 1 } } });
    expect([same.changes, same.profile!.revision]).to.deep.equal([[], 2]);
  });

  it('keeps where each value came from, and what it replaced', async () => {
    const session = await newSession();
    await update({ name: 'Ana', products: ['Roof'] }, { sessionId: session.id, messageSeq: 7 });
    const acting = metadataOf(headersOf(tenant));
    await client.profile.updateProfile({ profile: { name: 'Ana Lee', phone: '+420 222 333 444' } }, acting);
    const { sources } = await get();
    const at = (field: string) => sources.find((source) => source.field === field);
    expect(at('products')).to.include({
      item: 'Roof',
      sessionId: session.id,
      threadId: session.threadId,
      messageSeq: 7,
    });
    expect(at('name')).to.include({ kind: ProfileSource_Kind.CALLER, actor: 'user', sessionId: '', messageSeq: 0 });
    const [newest, oldest] = await history('name');
    expect(brief(newest!)).to.deep.equal(['name', '', Kind.REPLACED, 'Ana', 'Ana Lee']);
    expect(newest!.previousSource).to.include({ sessionId: session.id, messageSeq: 7 });
    expect(newest!.source).to.deep.equal(at('name'));
    expect(brief(oldest!)).to.deep.equal(['name', '', Kind.ADDED, undefined, 'Ana']);
    expect((await history()).map(({ revision }) => revision)).to.deep.equal([2, 2, 1, 1]);
  });

  it('removes what the mask names without a value, and erases it everywhere', async () => {
    const requestId = randomUUID();
    const said = {
      name: 'Ana Vertraulich',
      phone: '+420 222 333 444',
      products: ['Roof', 'Pump'],
      preferences: { a: 1, b: 2 },
    };
    await update(said, { requestId });
    await update({ name: 'Ana Geheim' });
    const etag = (await get()).etag;
    const { profile, changes } = await update(
      { preferences: { b: 3 } },
      { updateMask: ['name', 'phone', 'preferences'], removeProducts: ['ROOF'] },
    );
    expect(profile).to.deep.include({ name: undefined, phone: undefined, products: ['Pump'], preferences: { b: 3 } });
    expect(profile!.etag).to.not.equal(etag);
    expect(changes.map(({ field, item, kind }) => [field, item, kind])).to.have.deep.members([
      ['name', '', Kind.REMOVED],
      ['phone', '', Kind.REMOVED],
      ['products', 'Roof', Kind.REMOVED],
      ['preferences', 'a', Kind.REMOVED],
      ['preferences', 'b', Kind.REPLACED],
    ]);
    for (const change of await history('name'))
      expect([change.previous, change.current]).to.deep.equal([undefined, undefined]);
    expect((await history('preferences')).map(({ current }) => current)).to.deep.equal([
      '3',
      undefined,
      '2',
      undefined,
    ]);
    const kept = ['profiles', 'profile_changes'].map((table) => tenantSql(tenant, `select * from ${table}`));
    const text = JSON.stringify(await Promise.all(kept));
    for (const trace of ['Vertraulich', 'Geheim', '420222', 'Roof']) expect(text).to.not.contain(trace);
    const replayed = await failure(update(said, { requestId }));
    expect([replayed.code, replayed.reason]).to.deep.equal([NOT_FOUND, 'DELETED']);
    expect((await get()).name).to.equal(undefined);
  });

  it('sets lists as a whole that the mask names, and leaves alone what it does not', async () => {
    await update({ name: 'Ana', products: ['a', 'b'], services: ['s'] });
    const { profile } = await update(
      { name: 'Eva', products: ['b', 'c'], services: ['t'] },
      { updateMask: ['products'] },
    );
    expect(profile).to.deep.include({ name: 'Ana', products: ['b', 'c'], services: ['s'] });
    const cleared = await update({ name: '' });
    expect(cleared.profile!.name).to.equal(undefined);
  });

  it('loses nothing of concurrent updates', async () => {
    const updates = Array.from({ length: 40 }, (_, i) =>
      update({ products: [`p${i}`], preferences: { [`k${i}`]: i, shared: { [`k${i}`]: i } } }),
    );
    const revisions = (await Promise.all(updates)).map(({ profile }) => profile!.revision);
    expect(revisions.sort((a, b) => a - b)).to.deep.equal(updates.map((_, i) => i + 1));
    const { products, preferences } = await get();
    expect(products).to.have.length(40);
    expect(Object.keys(preferences!)).to.have.length(41);
    expect(Object.keys(preferences!.shared)).to.have.length(40);
  });

  it('refuses a stale etag, tells the current one, and changes nothing', async () => {
    const { profile } = await update({ name: 'Ana' });
    const { etag } = (await update({ name: 'Eva', etag: profile!.etag })).profile!;
    for (const stale of [profile!.etag, 'made up']) {
      const refused = await failure(update({ name: 'Ida', etag: stale }));
      expect([refused.code, refused.reason, refused.metadata.etag]).to.deep.equal([ABORTED, 'ETAG_MISMATCH', etag]);
    }
    expect((await get()).name).to.equal('Eva');
    const other = metadataOf(headersOf(tenant, 'other'));
    const unwritten = await failure(client.profile.updateProfile({ profile: { name: 'x', etag: 'made up' } }, other));
    expect([unwritten.reason, unwritten.metadata.etag]).to.deep.equal(['ETAG_MISMATCH', '']);
  });

  it('does an update once for a request_id, and answers the same again', async () => {
    const requestId = randomUUID();
    const first = await update({ name: 'Ana', products: ['a'] }, { requestId });
    await update({ products: ['b'] });
    expect(await update({ name: 'Ana', products: ['a'] }, { requestId })).to.deep.equal(first);
    expect((await get()).products).to.deep.equal(['a', 'b']);
    expect((await failure(update({ name: 'Eva' }, { requestId }))).reason).to.equal('REQUEST_ID_REUSED');
  });

  it('keeps the newest 200 changes', async () => {
    for (let i = 0; i < 4; i++)
      await update({ products: Array.from({ length: 60 }, (_, n) => `p${i}-${n}`) }, { updateMask: ['products'] });
    const changes = await history();
    expect(changes).to.have.length(200);
    expect([changes[0]!.revision, changes.at(-1)!.revision]).to.deep.equal([4, 3]);
  });

  it('ends a page of changes at 1 MiB, and goes on after it', async () => {
    for (let i = 0; i < 60; i++) await update({ preferences: { a: `${i}`.padEnd(20_000, 'x') } });
    const pages = await allPages((pageToken) => client.profile.listProfileChanges({ pageSize: 500, pageToken }));
    expect(pages.length).to.be.greaterThan(1);
    const values = pages.flatMap(({ changes }) => changes.map(({ current }) => Number.parseInt(current!.slice(1), 10)));
    expect(values).to.deep.equal(Array.from({ length: 60 }, (_, i) => 59 - i));
  });

  it('refuses what is no phone number, address, country or list, and what is too much after the union', async () => {
    const fieldsOf = async (profile: object, rest: object = {}) => {
      const refused = await failure(update(profile, rest));
      expect(refused.code).to.equal(INVALID_ARGUMENT);
      return refused.violations.map(({ field }) => field);
    };
    const bad = { phone: '030 901820', email: 'nobody', address: { country: 'XX' }, products: ['ok', ' '] };
    expect(await fieldsOf(bad)).to.have.members([
      'profile.phone',
      'profile.email',
      'profile.address.country',
      'profile.products[1]',
    ]);
    expect(await fieldsOf({ phone: 'call +49 30 901820 now' })).to.deep.equal(['profile.phone']);
    expect(await fieldsOf({}, { messageSeq: 3 })).to.deep.equal(['message_seq']);
    await update({ products: Array.from({ length: 100 }, (_, i) => `p${i}`) });
    expect(await fieldsOf({ products: ['one more'] })).to.deep.equal(['profile.products']);
    await update({ preferences: { a: 'x'.repeat(40_000) } });
    expect(await fieldsOf({ preferences: { b: 'x'.repeat(40_000) } })).to.deep.equal(['profile.preferences']);
    expect((await get()).preferences).to.have.all.keys('a');
  });

  it('is found by a session of the user, and by no other', async () => {
    const session = await newSession();
    await update({ name: 'Ana' });
    expect((await get(session.id)).name).to.equal('Ana');
    const other = metadataOf(headersOf(tenant, 'other'));
    for (const call of [
      () => client.profile.getProfile({ sessionId: session.id }, other),
      () => client.profile.updateProfile({ profile: { name: 'x' }, sessionId: session.id }, other),
      () => client.profile.getProfile({ sessionId: randomUUID() }),
    ])
      expect(await failure(call())).to.include({ code: NOT_FOUND, reason: 'NOT_FOUND', message: 'session not found' });
    await client.memory.deleteSession({ sessionId: session.id });
    expect((await failure(client.profile.getProfile({ sessionId: session.id }))).reason).to.equal('DELETED');
  });
});

import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import pg from 'pg';
import { pino } from 'pino';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import { ProfileSource_Kind } from '../src/gen/memory/v1/profile.ts';
import { readAll } from '../src/profiles/readers.ts';
import { readUser } from '../src/profiles/reading.ts';
import type { RunningServer } from '../src/server.ts';
import { sweep } from '../src/tenants/expiry.ts';
import {
  type Clients,
  connect,
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

const { HUMAN, ASSISTANT } = MessageRole;
const operator = metadataOf({ 'x-scopes': 'memory:operator' });

describe('reading for profiles', () => {
  let server: RunningServer;
  let restore: () => void;
  let tenant: string;
  let client: Clients;
  const lines: string[] = [];

  before(async () => {
    restore = await useOwnDatabase();
    server = await startTestServer({}, pino({ level: 'trace' }, { write: (line: string) => void lines.push(line) }));
  });
  after(async () => {
    await server.stop();
    restore();
  });
  beforeEach(async () => {
    tenant = await newTenant(['user', 'other']);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  });
  afterEach(() => {
    client.close();
    expect(lines.filter((line) => /Anna|Berta|Schmidt|Baker|example\.org/i.test(line))).to.deep.equal([]);
  });

  const policy = (extractProfile: boolean) =>
    client.admin.updateTenant({ tenant: { tenantId: tenant, policies: { extractProfile } } }, operator);
  const say = (content: string, rest: object = {}) =>
    client.conversation.appendMessages({ threadId: 't', messages: [{ role: HUMAN, content, ...rest }] });
  const get = async () => (await client.profile.getProfile({})).profile!;
  const once = (probe: (profile: Awaited<ReturnType<typeof get>>) => boolean) =>
    until(async () => {
      const profile = await get();
      return probe(profile) && profile;
    });
  const extractions = () =>
    tenantSql(
      tenant,
      `select actor, user_id, resource, session_id, metadata from audit_events where action = 'profiles.extract'`,
    );
  /** Everything that is there, by the round, with nothing held back. */
  const round = () => readAll(server.kernel.database, 0);

  it('fills the profile from what people say of themselves, and tells in which message', async () => {
    await policy(true);
    const { session } = await client.memory.upsertSession({ session: { surfaceId: 'web' } });
    const { messages } = await client.conversation.appendMessages({
      sessionId: session!.id,
      messages: [
        { role: ASSISTANT, content: 'My name is Robot. Who are you?' },
        { role: HUMAN, content: 'My name is Anna Schmidt, my email is Anna@example.org' },
      ],
    });
    const profile = await once(({ name }) => name !== undefined);
    expect(profile).to.include({ name: 'Anna Schmidt', email: 'Anna@example.org', revision: 1 });
    for (const source of profile.sources)
      expect(source).to.deep.include({
        kind: ProfileSource_Kind.EXTRACTION,
        actor: 'extraction',
        sessionId: session!.id,
        threadId: session!.threadId,
        messageSeq: 2,
        setTime: messages[1]!.createTime,
      });
    const [event, ...more] = await extractions();
    expect(more).to.deep.equal([]);
    expect(event).to.deep.include({
      actor: 'extraction',
      user_id: 'user',
      resource: 'profiles/user',
      session_id: session!.id,
    });
    expect(event.metadata).to.deep.equal({ revision: 1, fields: ['email', 'name'] });
    expect(JSON.stringify(event)).to.not.match(/Anna|Schmidt/i);
  });

  it('reads nothing without the policy, and from then on only what is appended', async () => {
    await say('My name is Anna Schmidt.');
    await round();
    expect((await get()).revision).to.equal(0);
    const tenantRow = (await policy(true)).tenant!;
    expect(tenantRow.policies!.extractProfile).to.equal(true);
    await say('My email is anna@example.org');
    expect(await once(({ email }) => email !== undefined)).to.include({ name: undefined, email: 'anna@example.org' });
    expect((await policy(false)).tenant!.policies!.extractProfile).to.equal(false);
    const rows = await tenantSql(tenant, 'select seq::int from thread_readings');
    await say('My phone number is +1 202 555 0143');
    await round();
    expect(await tenantSql(tenant, 'select seq::int from thread_readings')).to.deep.equal(rows);
    await policy(true);
    await say('Call me on +1 202 555 0199.');
    expect((await once(({ phone }) => phone !== undefined)).phone).to.equal('+12025550199');
  });

  it('lets stand what a caller said, and what was said or removed later', async () => {
    await policy(true);
    await client.profile.updateProfile({ profile: { name: 'Anna' } });
    await say('My name is Berta Braun, my email is berta@example.org');
    expect(await once(({ email }) => email !== undefined)).to.include({ name: 'Anna', email: 'berta@example.org' });
    await say('My new email is new@example.org');
    await once(({ email }) => email === 'new@example.org');

    await client.profile.updateProfile({ profile: {}, updateMask: ['email'] });
    await tenantSql(tenant, 'delete from thread_readings');
    await tenantSql(tenant, 'delete from reading_rounds');
    await round();
    expect(await get()).to.include({ name: 'Anna', email: undefined });
    await say('My email is again@example.org');
    await once(({ email }) => email === 'again@example.org');
  });

  it('does not mix two addresses', async () => {
    await policy(true);
    await say('I live at 221B Baker Street, London NW1 6XE, UK');
    await once(({ address }) => address?.city === 'London');
    await say('I live in Lyon, France.');
    const { address } = await once((profile) => profile.address?.city === 'Lyon');
    expect(address).to.deep.equal({ street: undefined, city: 'Lyon', state: undefined, zip: undefined, country: 'FR' });
    await say('Mon adresse est 14 rue des Lilas, 69003 Lyon');
    expect((await once((profile) => profile.address?.zip !== undefined)).address).to.include({
      city: 'Lyon',
      country: 'FR',
    });
  });

  it('reads once what several processes read at the same time', async () => {
    await policy(true);
    const said = Array.from({ length: 20 }, (_, i) => say(`My name is Anna ${String.fromCharCode(65 + i)}nd.`));
    const read = () => readUser(server.kernel.database, { tenant, env: 'dev', user: 'user' });
    await Promise.all([...said, ...Array.from({ length: 6 }, read)]);
    await Promise.all(Array.from({ length: 6 }, read));
    const page = (await client.conversation.listMessages({ threadId: 't', pageSize: 1 })).messages;
    const { name, revision } = await get();
    expect(page[0]!.content).to.equal(`My name is ${name}.`);
    const changes = await tenantSql(tenant, `select count(*)::int as n from profile_changes where field = 'name'`);
    expect(changes[0].n).to.equal(20);
    expect((await extractions()).length).to.equal(revision);
  });

  it('reads again what a process had read that died before it stored', async () => {
    await client.profile.updateProfile({ profile: { products: ['Roof'] } });
    await policy(true);
    const holder = new pg.Client({ connectionString: ownerUrl() });
    await holder.connect();
    try {
      await holder.query(`begin; set local app.tenant_id = '${tenant}'; set local app.env = 'dev'`);
      await holder.query(`select from profiles where tenant_id = $1 for update`, [tenant]);
      await say('My name is Anna Schmidt.');
      const { pid } = await until(async () => {
        const [row] = await runSql(
          ownerUrl(),
          `select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and query like '%from profiles p%'`,
        );
        return row;
      });
      await runSql(ownerUrl(), 'select pg_terminate_backend($1)', [pid]);
      await until(
        async () => (await runSql(ownerUrl(), 'select from pg_stat_activity where pid = $1', [pid])).length === 0,
      );
    } finally {
      await holder.end();
    }
    // The reader may have tried again by itself; whether or not it did, the round leaves nothing.
    await round();
    expect((await once(({ name }) => name !== undefined)).name).to.equal('Anna Schmidt');
    await round();
    expect(await extractions()).to.have.length(1);
  });

  it('skips no message that commits after others that are newer', async () => {
    await policy(true);
    await say('Hello.');
    const late = new pg.Client({ connectionString: ownerUrl() });
    await late.connect();
    const older = '00000000-0000-7000-8000-000000000001';
    await until(async () => (await tenantSql(tenant, 'select from thread_readings')).length > 0);
    // As an append of another process does it, whose id was made before.
    await late.query(`begin; set local app.tenant_id = '${tenant}'; set local app.env = 'dev'`);
    const id = (await tenantSql(tenant, `select uuid_v7(clock_timestamp() - interval '5 seconds') as id`))[0].id;
    await late.query(
      `insert into threads (tenant_id, env, user_id, thread_id, thread_uid, last_seq, revision, create_time, update_time)
       values ($1, 'dev', 'other', 'late', $2, 1, 1, clock_timestamp(), clock_timestamp())`,
      [tenant, older],
    );
    await late.query(
      `insert into messages (tenant_id, env, thread_uid, seq, id, user_id, role, content, create_time)
       values ($1, 'dev', $2, 1, $3, 'other', ${HUMAN}, 'My name is Late Lucy.', clock_timestamp())`,
      [tenant, older, id],
    );
    await readAll(server.kernel.database, 60_000);
    await late.query('commit');
    await late.end();
    await round();
    const { profile } = await client.profile.getProfile({}, metadataOf(headersOf(tenant, 'other')));
    expect(profile!.name).to.equal('Late Lucy');
  });

  it('waits for a message that is being streamed, and reads it when it ends', async () => {
    await policy(true);
    const call = client.streams.conversation.streamMessage(metadataOf(headersOf(tenant)));
    const frames: any[] = [];
    call.on('data', ({ frame }) => frames.push(frame));
    const over = new Promise((resolve) => call.on('end', resolve).on('error', resolve));
    const open = { threadId: 't', sessionId: '', role: HUMAN, clientId: 'c', fencingToken: 0, toolCallId: '' };
    call.write({ frame: { $case: 'open', value: open } });
    await until(async () => frames.length > 0);
    await say('My email is anna@example.org');
    await until(async () => (await tenantSql(tenant, 'select from thread_readings where waiting')).length > 0);
    await round();
    expect((await get()).revision).to.equal(0);
    call.write({ frame: { $case: 'chunk', value: { offset: 0, text: 'My name is Anna Schmidt.' } } });
    call.write({ frame: { $case: 'finish', value: { metadata: undefined } } });
    await over;
    await round();
    expect(await once(({ name }) => name !== undefined)).to.include({
      name: 'Anna Schmidt',
      email: 'anna@example.org',
    });
    expect(await tenantSql(tenant, 'select from thread_readings where waiting')).to.deep.equal([]);
  });

  it('reads nothing that was deleted, forwarded or said by a model, and forgets where it was in threads that are gone', async () => {
    const { messages } = await say('My name is Dora Deleted.');
    await client.conversation.deleteMessage({ messageId: messages[0]!.id });
    const inline = { messages: [{ role: HUMAN, content: 'My name is Carl Copy.' }] };
    await client.memory.forwardBundle({
      source: {
        $case: 'inline',
        value: { sourceThreadId: 't', selection: { selection: { $case: 'inline', value: inline } } },
      },
      targetThreadId: 'copies',
      createTarget: true,
    });
    const answer = { role: ASSISTANT, content: 'My name is Rob Robot.' };
    await client.conversation.appendMessages({ threadId: 't', messages: [answer, { role: HUMAN, content: 'And?' }] });
    await runSql(ownerUrl(), `update tenants set extract_time = now() - interval '1 hour' where tenant_id = $1`, [
      tenant,
    ]);
    await round();
    expect((await get()).revision).to.equal(0);
    const positions = await tenantSql(tenant, 'select seq::int from thread_readings order by seq');
    expect(positions).to.deep.include({ seq: 3 });
    await client.conversation.deleteThread({ threadId: 't' });
    for (let i = 0; i < 2; i++) await sweep(server.kernel.database);
    expect(await tenantSql(tenant, 'select seq::int from thread_readings where seq = 3')).to.deep.equal([]);
    expect(await tenantSql(tenant, 'select from dropped_threads')).to.deep.equal([]);
  });

  it('refuses the policy from anyone but an operator', async () => {
    const refused = await client.admin
      .updateTenant({ tenant: { tenantId: tenant, policies: { extractProfile: true } } })
      .catch((error) => error);
    expect(refused.code).to.equal(status.PERMISSION_DENIED);
  });
});

import { randomBytes, randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { type Key, keyringOf } from '../src/db/keyring.ts';
import { PutMemberRequest } from '../src/gen/memory/v1/admin_service.ts';
import { checkDatabase } from '../src/preflight.ts';
import { fingerprints, plainFingerprint } from '../src/rpc/fingerprint.ts';
import type { RunningServer } from '../src/server.ts';
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
  useOwnDatabase,
} from './support.ts';

const DAY_MS = 24 * 60 * 60_000;

describe('fingerprints of requests', () => {
  const newKey = (id: string): Key => ({ id, key: randomBytes(32), since: 0 });
  const request = (userId: string) => ({ userId, requestId: randomUUID() });
  const context = ['tenant', 'dev', 'admin', 'AdminService/EraseUser', randomUUID()];

  it('are the same for the same request in the same place, and for no other', () => {
    const key = newKey('a');
    const of = fingerprints(
      keyringOf(() => [key]),
      0,
    );
    const { stored } = of(context, request('user'));
    expect(of(context, request('user')).is(stored)).to.equal(true);
    expect(of(context, request('other')).is(stored)).to.equal(false);
    for (let i = 0; i < context.length; i++)
      expect(of(context.with(i, 'another'), request('user')).is(stored), context[i]).to.equal(false);
  });

  it('are told by the key that made them, and believed when it is not there any more', () => {
    const [first, second] = [newKey('a'), newKey('b')];
    let keys = [first];
    const of = fingerprints(
      keyringOf(() => keys),
      0,
    );
    const { stored } = of(context, request('user'));
    keys = [second, first];
    expect(of(context, request('user')).stored.equals(stored)).to.equal(false);
    expect(of(context, request('user')).is(stored)).to.equal(true);
    expect(of(context, request('other')).is(stored)).to.equal(false);
    keys = [second];
    expect(of(context, request('user')).is(stored)).to.equal(true);
  });

  it('are plain while servers may be there that know no others, and both are understood', () => {
    let now = 1000;
    const key = newKey('a');
    const keyring = keyringOf(() => [key]);
    const [upgraded, keyed] = [fingerprints(keyring, 2000, () => now), fingerprints(keyring, 0)];
    const plain = plainFingerprint(request('user'));
    expect(upgraded(context, request('user')).stored.equals(plain)).to.equal(true);
    now = 2000;
    expect(upgraded(context, request('user')).stored.equals(plain)).to.equal(false);
    expect(keyed(context, request('user')).is(plain)).to.equal(true);
    expect(keyed(context, request('other')).is(plain)).to.equal(false);
  });

  describe('in the database', () => {
    let server: RunningServer;
    let client: Clients;
    let tenant: string;
    let restore: () => void;

    before(async () => {
      restore = await useOwnDatabase();
      server = await startTestServer();
      tenant = await newTenant(['user', 'other', 'third', 'admin']);
      client = connect(`127.0.0.1:${server.port}`, headersOf(tenant, 'admin'));
    });
    after(async () => {
      client.close();
      await server.stop();
      restore();
    });

    const stored = async (requestId: string): Promise<Buffer> => {
      const rows = await tenantSql(tenant, 'select fingerprint from requests where request_id = $1', [requestId]);
      return rows[0].fingerprint;
    };

    it('tell nobody without the key file whom a request named', async () => {
      const calls: Record<string, (once: { requestId: string }) => [object, Promise<unknown>]> = {
        MergeProfiles(once) {
          const merge = { fromUserId: 'user', intoUserId: 'other', ...once };
          return [merge, client.profile.mergeProfiles(merge)];
        },
        RemoveMember(once) {
          const removal = { userId: 'third', ...once };
          return [removal, client.admin.removeMember(removal)];
        },
        EraseUser(once) {
          const erasure = { userId: 'user', ...once };
          return [erasure, client.admin.eraseUser(erasure)];
        },
      };
      for (const userId of ['user', 'other'])
        await client.profile.updateProfile({ profile: { name: userId } }, metadataOf(headersOf(tenant, userId)));
      for (const [name, call] of Object.entries(calls)) {
        const once = { requestId: randomUUID() };
        const [made, done] = call(once);
        await done;
        const fingerprint = await stored(once.requestId);
        expect(fingerprint.length, name).to.be.greaterThan(32);
        expect(fingerprint.includes(plainFingerprint({ ...once, ...made })), name).to.equal(false);
      }
    });

    it('of an older version tell a retry from another request', async () => {
      const requestId = randomUUID();
      const put = (userId: string) => client.admin.putMember({ member: { userId, role: 1 }, requestId });
      const first = await put('new');
      const plain = plainFingerprint(PutMemberRequest.fromPartial({ member: { userId: 'new', role: 1 } }));
      await tenantSql(tenant, 'update requests set fingerprint = $2 where request_id = $1', [requestId, plain]);
      expect(await put('new')).to.deep.equal(first);
      expect(await failure(put('newer'))).to.include({ code: status.INVALID_ARGUMENT, reason: 'REQUEST_ID_REUSED' });
    });

    it('stay plain for a day after an upgrade, and not in a new database', async () => {
      const left = async () => (await checkDatabase(appUrl())).olderUntil - Date.now();
      expect(await left()).to.be.at.most(0);
      await runSql(
        ownerUrl(),
        `update schema_versions set apply_time = apply_time - interval '7 days' where version < 25`,
      );
      expect(await left()).to.be.within(DAY_MS - 600_000, DAY_MS);
      await runSql(
        ownerUrl(),
        `update schema_versions set apply_time = apply_time - interval '1 day' where version = 25`,
      );
      expect(await left()).to.be.at.most(0);
    });
  });
});

import { randomBytes, randomUUID } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import pg from 'pg';
import { type Erasure, Erasure_State } from '../src/gen/memory/v1/erasure.ts';
import { addMembers, dump } from './fixtures/answers.ts';
import { expectSound, openChaining, sealed } from './fixtures/audit.ts';
import { type Place, plant, requestIdsOf } from './fixtures/places.ts';
import { type ServerProcess, startProcess } from './fixtures/process.ts';
import { filesWith, rowsWith } from './fixtures/scan.ts';
import {
  appUrl,
  type Clients,
  connect,
  headersOf,
  metadataOf,
  newTenant,
  ownerUrl,
  runSql,
  tenantSql,
  until,
  useOwnDatabase,
} from './support.ts';

const { DONE } = Erasure_State;
/** Tables whose rows are of nobody, or are of all who use a project. */
const EVERYBODYS = ['audit_blocks', 'erasures', 'erased_users', 'snapshots'];
const word = () => [...randomBytes(16)].map((byte) => String.fromCharCode(97 + (byte % 26))).join('');

interface Server {
  name: string;
  process: ServerProcess;
  client: Clients;
}

describe('an erasure', function () {
  this.timeout(180_000);
  let restore = () => {};
  let folder: string;
  let living: Server[];
  let tenant: string;

  before(async () => {
    restore = await useOwnDatabase();
    folder = await mkdtemp(join(tmpdir(), 'memoryd-erasures-'));
    living = await Promise.all(['first', 'second'].map(start));
    tenant = await newTenant(['admin'], { pii: 3 });
  });
  after(async () => {
    for (const { client, process } of living) {
      client.close();
      await process.stop();
    }
    await rm(folder, { recursive: true });
    restore();
  });

  async function start(name: string): Promise<Server> {
    const url = new URL(appUrl());
    url.searchParams.set('application_name', name);
    // Calls are short here, so that it does not have to wait long for those that began before.
    const flags = ['--call-timeout', '3s', '--snapshot-store', pathToFileURL(folder).href];
    const process = await startProcess({ databaseUrl: url.href, flags });
    return { name, process, client: connect(process.address) };
  }
  /** Kills the server that waits for what this connection holds, as if its machine had lost power. */
  async function killWhoWaitsFor(holder: pg.Client): Promise<Server> {
    const { pid } = (await holder.query('select pg_backend_pid() as pid')).rows[0];
    // By another connection: in a transaction the view stays as it was first seen.
    const waiting = 'select application_name as name from pg_stat_activity where $1 = any (pg_blocking_pids(pid))';
    const name = await until(async () => (await runSql(ownerUrl(), waiting, [pid]))[0]?.name as string | undefined);
    const killed = living.find((server) => server.name === name)!;
    living = living.filter((server) => server !== killed);
    killed.process.kill('SIGKILL');
    await killed.process.exited;
    killed.client.close();
    return killed;
  }

  const as = (user: string) => metadataOf(headersOf(tenant, user));
  const erase = async (userId: string): Promise<Erasure> =>
    (await living[0]!.client.admin.eraseUser({ userId }, as('admin'))).erasure!;
  const done = ({ id }: Erasure) =>
    until(async () => {
      const { erasure } = await living[0]!.client.admin.getErasure({ erasureId: id }, as('admin'));
      return erasure!.state === DONE && erasure!;
    });
  /** Appends through one server after the other until told to end, or refused as a stranger. */
  async function write(
    user: string,
    text: string,
    over: () => boolean,
  ): Promise<{ written: number; refused: boolean }> {
    for (let written = 0; ; ) {
      if (over()) return { written, refused: false };
      const request = {
        threadId: `${user}-${written % 5}`,
        messages: [{ role: 1 as const, content: `${text} ${written}` }],
        requestId: randomUUID(),
      };
      const { client } = living[written % living.length]!;
      const code = await client.conversation.appendMessages(request, as(user)).then(
        () => status.OK,
        (error) => error.code,
      );
      if (code === status.PERMISSION_DENIED) return { written, refused: true };
      if (code === status.OK) written++;
      // A server was killed in the middle of the call, or the machine was too busy.
      else expect(code).to.be.oneOf([status.UNAVAILABLE, status.CANCELLED, status.DEADLINE_EXCEEDED]);
    }
  }

  /** What others do with a person, each with an answer that is kept. */
  async function nameThem(person: string): Promise<void> {
    const { admin, artifact, profile, usage } = living[0]!.client;
    const once = () => ({ requestId: randomUUID() });
    await profile.updateProfile({ profile: { products: ['bell'] } }, as('cat'));
    await profile.mergeProfiles({ fromUserId: person, intoUserId: 'cat', ...once() }, as('admin'));
    await admin.putMember({ member: { userId: person, role: 1 }, ...once() }, as('admin'));
    const budget = { scope: 3 as const, subject: person, period: 2 as const, costLimit: '5' };
    await usage.setBudget({ budget, ...once() }, as('admin'));
    const commit = {
      ...{ projectId: 'documents', artifactKey: 'read by others', profileVersion: 1, finalOutput: 'done' },
      ...{ sections: [{ sectionId: 'given back by ben', revision: 1 }], reviewers: [person] },
      approvals: [{ approver: person, verdict: 1 as const, comment: 'good' }],
    };
    await artifact.commitArtifact({ ...commit, ...once() }, as('cat'));
  }

  it('leaves nothing of a person anywhere, in the middle of traffic, killed and gone on with, and touches nothing of others', async () => {
    const [content, id, shared] = [word(), word(), word()];
    const [ann, boss] = [`ann-${word()}`, `admin-${word()}`];
    const place = (user: string, admin: string, destination: string): Place => ({
      ...{ tenant, env: 'dev', user, admin, destination },
    });
    const [theirs, others] = [place(ann, boss, 'maybes'), place('ben', 'admin-2', 'others')];
    await addMembers([theirs, others].flatMap((each) => [each, { ...each, user: each.admin, role: 2 }]));
    await addMembers([{ tenant, env: 'dev', user: 'cat' }]);
    const [{ client }] = living as [Server];
    const planted = await plant(client, theirs, { content, id, shared }, requestIdsOf());
    await plant(client, others, { content: word(), id: word() }, requestIdsOf());
    await nameThem(ann);
    for (const sql of [
      `insert into message_streams values ($1, 'dev', gen_random_uuid(), gen_random_uuid(), 1, $2, null, gen_random_uuid(), 0, now() + interval '1 hour')`,
      `insert into thread_readings values ($1, 'dev', gen_random_uuid(), $2, 1, false)`,
    ]) {
      await runSql(ownerUrl(), sql, [tenant, ann]);
    }
    // All that the planting left to do is done: snapshots are in the store, and who left is erased.
    const busy = `select from snapshots where upload_state <> 2 union all select from erasures where finish_time is null`;
    await until(async () => (await tenantSql(tenant, busy)).length === 0);
    const { sessionId, turningSessionId, messageId, bundleId } = planted;
    const words = [content, id, ann, boss, sessionId, turningSessionId, messageId, bundleId];
    expect((await rowsWith(words)).filter((row) => row.includes('unpacked'))).to.not.be.empty;
    expect(await filesWith(folder, words)).to.not.be.empty;
    const before = await dump(others);

    let over = false;
    const traffic = [ann, ann, 'cat', 'cat'].map((user) => write(user, user === ann ? content : 'hello', () => over));
    const holder = new pg.Client({ connectionString: ownerUrl() });
    await holder.connect();
    await holder.query('begin');
    const lock = `
      select from messages where tenant_id = $1 and thread_uid = (select thread_uid from threads where tenant_id = $1 and user_id = $2 and thread_id = 'plan')
      for update`;
    expect((await holder.query(lock, [tenant, ann])).rowCount).to.be.greaterThan(0);
    const erasures = [await erase(ann), await erase(boss)];
    const killed = await killWhoWaitsFor(holder);
    await holder.end();
    living.push(await start(`${killed.name} again`));
    const ended = await Promise.all(erasures.map(done));
    over = true;
    for (const [i, { written, refused }] of (await Promise.all(traffic)).entries()) {
      expect(written).to.be.greaterThan(0);
      expect(refused).to.equal(i < 2);
    }

    expect((await rowsWith(words)).join('\n')).to.equal('');
    expect(await filesWith(folder, words)).to.deep.equal([]);
    const sessions = before.sessions!.map((row) => JSON.parse(row).id);
    const ofOthers = (row: string) =>
      [undefined, null, ...sessions].includes(JSON.parse(row).session_id) && !words.some((each) => row.includes(each));
    const after = await dump(others);
    for (const [table, rows] of Object.entries(before).filter(([table]) => !EVERYBODYS.includes(table))) {
      expect(after[table]!.filter(ofOthers), table).to.deep.equal(rows.filter(ofOthers));
    }
    const chaining = await openChaining();
    for (const env of ['', 'dev']) {
      await sealed(chaining, { tenant, env });
      await expectSound(chaining, { tenant, env });
    }
    await chaining.close();
    for (const { userId, receipt } of ended) {
      expect(userId).to.equal('');
      expect(JSON.parse(receipt!.text).removed).to.include({ tenant_members: 1 });
    }
    expect(JSON.parse(ended[0]!.receipt!.text).removed.messages).to.be.greaterThan(1);
  });
});

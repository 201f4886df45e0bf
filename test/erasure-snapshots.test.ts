import { createHash, randomUUID } from 'node:crypto';
import { expect } from 'chai';
import { type Erasure, Erasure_State } from '../src/gen/memory/v1/erasure.ts';
import type { RunningServer } from '../src/server.ts';
import { unpack } from '../src/snapshots/archive.ts';
import { storeUrl } from '../src/snapshots/open.ts';
import { killAll, memoryd } from './fixtures/command.ts';
import { commitOf, projectId, saveSection, writeDocument } from './fixtures/documents.ts';
import { S3_ENVIRONMENT, type S3Server, s3Error, startS3 } from './fixtures/s3-server.ts';
import { rowsWith } from './fixtures/scan.ts';
import {
  type Clients,
  connect,
  headersOf,
  metadataOf,
  newDatabase,
  newTenant,
  runSql,
  startTestServer,
  until,
  useOwnDatabase,
} from './support.ts';

const { DONE } = Erasure_State;

describe('snapshots of who is erased', function () {
  this.timeout(120_000);
  let restore = () => {};
  let s3: S3Server;
  let server: RunningServer;
  let tenant: string;
  let ann: string;
  let client: Clients;

  before(async () => {
    Object.assign(process.env, S3_ENVIRONMENT);
    restore = await useOwnDatabase();
    s3 = await startS3();
    server = await startTestServer({ callTimeout: 3000, snapshotStore: storeUrl(s3.storeUrl()) });
    ann = `ann-${randomUUID()}`;
    tenant = await newTenant([ann, 'user', 'admin']);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  });
  after(async () => {
    killAll();
    client.close();
    await server.stop();
    await s3.close();
    restore();
    for (const name of Object.keys(S3_ENVIRONMENT)) delete process.env[name];
  });

  const get = async ({ id }: Erasure) =>
    (await client.admin.getErasure({ erasureId: id }, metadataOf(headersOf(tenant, 'admin')))).erasure!;
  const stored = () => [...s3.objects].map(([key, { body }]) => ({ name: key.slice(key.lastIndexOf('/') + 1), body }));

  it('are stored anew without the name, the files of before are removed, and all can be got back from them', async () => {
    const hers = connect(`127.0.0.1:${server.port}`, headersOf(tenant, ann));
    const document = await writeDocument(hers);
    await hers.artifact.commitArtifact(commitOf(document, { reviewers: [ann, 'grace'] }));
    hers.close();
    await client.artifact.commitArtifact(
      commitOf(document, {
        artifactKey: 'other',
        approvals: [{ approver: ann, verdict: 1 }],
        metadata: { note: `not by ${ann}, who is only named` },
      }),
    );
    const allStored = async () =>
      (await client.artifact.listSnapshots({ projectId })).snapshots.every(({ uploadState }) => uploadState === 2);
    await until(allStored);
    const before = stored();
    expect(before.filter(({ body }) => body.includes(ann))).to.not.be.empty;

    s3.fault = ({ method }) => (method === 'DELETE' ? s3Error(503, 'SlowDown') : undefined);
    const { erasure } = await client.admin.eraseUser({ userId: ann }, metadataOf(headersOf(tenant, 'admin')));
    const waiting = await until(async () => {
      const now = await get(erasure!);
      return (now.waitingFor === 'SNAPSHOT_STORE' || now.state === DONE) && now;
    });
    expect(waiting.state, 'the files of before are still there').to.not.equal(DONE);
    s3.fault = () => undefined;
    await until(async () => (await get(erasure!)).state === DONE);

    const after = stored();
    expect(after).to.have.lengthOf(before.length);
    for (const { name, body } of after) unpack(name, body);
    const named = after.filter(({ body }) => body.includes(ann));
    expect(
      named.every(({ body }) => body.includes('who is only named')),
      'the text is the project’s',
    ).to.equal(true);
    expect((await rowsWith([ann])).filter((row) => !row.includes('who is only named'))).to.deep.equal([]);

    const fresh = await newDatabase();
    await runSql(fresh.owner, `insert into tenants (tenant_id, envs) values ($1, '{dev}')`, [tenant]);
    await runSql(
      fresh.owner,
      `insert into tenant_members (tenant_id, env, user_id, role) values ($1, 'dev', 'user', 1)`,
      [tenant],
    );
    const scope = ['--tenant', tenant, '--env', 'dev', '--project', projectId];
    const run = memoryd(['rehydrate', ...scope, '--from', s3.storeUrl()], { DATABASE_URL: fresh.app });
    expect(await run.ended, run.err()).to.equal(0);
    expect(run.err()).to.contain(`restored ${after.length} snapshots`);
    const there = await startTestServer({ callTimeout: 3000 }, undefined, fresh.app);
    const again = connect(`127.0.0.1:${there.port}`, headersOf(tenant));
    const artifacts = await Promise.all(
      [client, again].map(async (each) => {
        const found = ['report', 'other'].map((artifactKey) => each.artifact.getArtifact({ projectId, artifactKey }));
        return (await Promise.all(found)).map(({ artifact }) => artifact!);
      }),
    );
    again.close();
    await there.stop();
    const [[report, other], [reportAgain, otherAgain]] = artifacts as [any, any];
    const told = ({ createdBy, reviewers, approvals, finalOutput }: any) => ({
      createdBy,
      reviewers,
      approvals,
      finalOutput,
    });
    expect([reportAgain, otherAgain].map(told)).to.deep.equal([report, other].map(told));
    const pseudonym = report.createdBy;
    expect(pseudonym).to.match(/^erased-[0-9a-f-]{36}$/);
    expect(report.reviewers).to.deep.equal([pseudonym, 'grace']);
    expect(other.createdBy).to.equal('user');
    expect(other.approvals[0].approver).to.equal(pseudonym);
  });

  it('that have become too much to be stored anew are removed, and told as failed', async () => {
    const bea = `bea-${randomUUID()}`;
    tenant = await newTenant([bea, 'user', 'admin']);
    const [hers, others] = [bea, 'user'].map((user) =>
      connect(`127.0.0.1:${server.port}`, headersOf(tenant, user)),
    ) as [Clients, Clients];
    await hers.memory.upsertSession({ session: { surfaceId: 'web', projectId } });
    await hers.artifact.putProjectProfile({ projectId, yaml: 'title: x\n', baseVersion: 1 });
    const files = Array.from({ length: 17 }, (_, i) => ({
      ...{ projectId, fileName: `${i}.txt`, mediaType: 'text/plain', sizeBytes: 12, uri: `file:///${i}.txt` },
      sha256: createHash('sha256').update(`${i}`).digest('hex'),
    }));
    const register = (content: string) =>
      Promise.all(files.map(async (file) => (await others.artifact.registerInput({ ...file, content })).input!.id));
    const sources = (await register('')).map((value) => ({
      ...{ passage: 'all', source: { $case: 'inputId' as const, value }, locator: '1' },
    }));
    const sections = [{ sectionId: 'intro', revision: await saveSection(hers, 'intro', 'hello', { sources }) }];
    await hers.artifact.commitArtifact(commitOf({ sections }, { reviewers: [], approvals: [] }));
    const states = async () =>
      (await others.artifact.listSnapshots({ projectId })).snapshots.map(({ kind, uploadState, link }) => ({
        ...{ kind, uploadState, link: link !== '' },
      }));
    await until(async () => (await states()).every(({ uploadState }) => uploadState === 2));
    const named = () => stored().filter(({ body }) => body.includes(bea));
    expect(named()).to.not.be.empty;
    await register('x'.repeat(1024 ** 2));

    const { erasure } = await others.admin.eraseUser({ userId: bea }, metadataOf(headersOf(tenant, 'admin')));
    await until(async () => (await get(erasure!)).state === DONE);
    expect(named().map(({ name }) => name)).to.deep.equal([]);
    expect((await states()).filter(({ kind }) => kind === 1)).to.deep.equal([{ kind: 1, uploadState: 3, link: false }]);
    hers.close();
    others.close();
  });
});

import { createHash } from 'node:crypto';
import { mkdtemp, readdir, readFile, realpath, rm, utimes } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { expect } from 'chai';
import { recordsOf } from '../src/artifacts/records.ts';
import { type Snapshot, Snapshot_UploadState } from '../src/gen/memory/v1/artifact.ts';
import type { RunningServer } from '../src/server.ts';
import { unpack } from '../src/snapshots/archive.ts';
import { storeUrl } from '../src/snapshots/open.ts';
import { memoryd } from './fixtures/command.ts';
import { commitOf, type Document, projectId, saveSection, writeDocument } from './fixtures/documents.ts';
import { startDrive } from './fixtures/drive-server.ts';
import type { Fault, HttpRequest, HttpServer } from './fixtures/http-server.ts';
import { type ServerProcess, startProcess } from './fixtures/process.ts';
import { S3_ENVIRONMENT, type S3Server, s3Error, startS3 } from './fixtures/s3-server.ts';
import { importFile, transferFolder } from './fixtures/transfer.ts';
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
} from './support.ts';

const { PENDING, STORED, FAILED } = Snapshot_UploadState;
/** A process of which no file ever gets to the disk. */
const DISK_THAT_HANGS = `--import ${JSON.stringify(
  `data:text/javascript,${encodeURIComponent(`
    import { open } from 'node:fs/promises';
    const file = await open(process.execPath);
    Object.getPrototypeOf(file).sync = () => new Promise(() => {});
    await file.close();`)}`,
)}`;
const isPut = ({ method }: HttpRequest) => method === 'PUT';

// In a database of their own: whoever has a store uploads what is due in all tenants.
describe('uploads of snapshots', function () {
  this.timeout(60_000);
  let database: { owner: string; app: string };
  let s3: S3Server;
  let running: { stop(): Promise<void> }[];
  let tenant: string;
  let client: Clients;
  let document: Document;

  before(async () => {
    Object.assign(process.env, S3_ENVIRONMENT);
    database = await newDatabase();
  });
  after(() => {
    for (const name of Object.keys(S3_ENVIRONMENT)) delete process.env[name];
  });
  beforeEach(async () => {
    s3 = await startS3();
    running = [];
    const server = await serving(undefined);
    tenant = await newTenant(['user'], {}, database.owner);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
    document = await writeDocument(client);
  });
  afterEach(async () => {
    client.close();
    s3.fault = () => undefined;
    await Promise.all(running.map((one) => one.stop()));
    await s3.close();
    await sql('delete from snapshots');
  });

  const sql = (text: string, values: unknown[] = []) => runSql(database.owner, text, values);

  async function serving(store: string | undefined): Promise<RunningServer> {
    const settings = store ? { snapshotStore: storeUrl(store) } : {};
    const server = await startTestServer(settings, undefined, database.app);
    running.push(server);
    return server;
  }
  async function process_(store: string, env: Record<string, string> = {}): Promise<ServerProcess> {
    const flags = ['--snapshot-store', store];
    const server = await startProcess({ databaseUrl: database.app, flags, env });
    running.push(server);
    return server;
  }

  /** What is stored after the first process that writes into a store is killed while it does, and another one begins. */
  async function killedIn(server: HttpServer, store: string, snapshot: Snapshot): Promise<Snapshot> {
    const reached = Promise.withResolvers<void>();
    server.fault = (request) => {
      if (!isPut(request)) return undefined;
      reached.resolve();
      return new Promise(() => {}); // it never hears of it
    };
    const first = await process_(store);
    await reached.promise;
    first.kill('SIGKILL');
    expect(await first.exited).to.equal('SIGKILL');
    server.fault = () => undefined;
    await process_(store);
    return becomes(snapshot, STORED);
  }

  const commit = async (more: object = {}): Promise<Snapshot> =>
    (await client.artifact.commitArtifact(commitOf(document, more))).artifact!.snapshot!;
  /** A commit whose snapshot is the only one that waits. */
  const commitAlone = async (): Promise<Snapshot> => {
    await sql('delete from snapshots');
    const snapshot = await commit();
    await sql('delete from snapshots where id <> $1', [snapshot.id]);
    return snapshot;
  };
  const snapshots = async () => (await client.artifact.listSnapshots({ projectId })).snapshots;
  const now = async ({ id }: Snapshot) => (await snapshots()).find((snapshot) => snapshot.id === id)!;
  const becomes = (snapshot: Snapshot, state: Snapshot_UploadState) =>
    until(async () => {
      const found = await now(snapshot);
      return found.uploadState === state && found;
    });
  const content = ({ link }: Snapshot) => s3.objects.get(link.replace('s3://', ''))!.body;
  const nameOf = ({ link }: Snapshot) => link.slice(link.lastIndexOf('/') + 1);

  it('store an artifact with all that it is made of, and tell where, with its checksum', async () => {
    const request = commitOf(document);
    const { artifact } = await client.artifact.commitArtifact(request);
    await serving(s3.storeUrl());
    const stored = await becomes(artifact!.snapshot!, STORED);
    const bytes = content(stored);
    expect(stored).to.deep.include({ reason: '', attempts: 1, sizeBytes: bytes.length, nextAttemptTime: undefined });
    expect(stored.sha256).to.equal(createHash('sha256').update(bytes).digest('hex'));
    expect(stored.link).to.match(
      new RegExp(`^s3://bucket/kept/${tenant}/dev/atlas/artifact-report-v1-${stored.sha256}.tar$`),
    );

    const { subject, parts } = unpack(nameOf(stored), bytes);
    expect(subject).to.deep.equal({
      kind: 'artifact',
      tenant,
      env: 'dev',
      projectId,
      artifactKey: 'report',
      version: 1,
    });
    const texts = recordsOf(parts).map(({ kind, text }) => [kind, text]);
    expect(texts).to.deep.equal([
      ['profiles', 'title: text # kept\nstage: 1\n'],
      ['inputs', 'input of text'],
      ['sections', 'text, whole\n'],
      ['sections', 'text, ended'],
      ['artifacts', request.finalOutput],
    ]);
    const read = await client.artifact.getArtifact({ projectId, artifactKey: 'report' });
    expect(read.artifact).to.deep.include({ finalOutput: request.finalOutput, snapshot: stored });
  });

  it('store each version of a profile, as it was written', async () => {
    await serving(s3.storeUrl());
    const stored = await until(async () => {
      const all = await snapshots();
      return all.every(({ uploadState }) => uploadState === STORED) && all;
    });
    expect(stored.map(({ kind, version }) => `${kind} ${version}`).sort()).to.deep.equal(['2 1', '2 2', '2 3']);
    for (const snapshot of stored) {
      const { profile } = await client.artifact.getProjectProfile({ projectId, version: snapshot.version });
      const [kept] = recordsOf(unpack(nameOf(snapshot), content(snapshot)).parts);
      expect(kept!.text).to.equal(profile!.yaml);
    }
  });

  it('fail five times, each in another way, and then pass', async () => {
    const faults: Fault[] = [
      s3Error(503, 'SlowDown'),
      s3Error(429, 'TooManyRequests'),
      { cutAfter: 100 },
      s3Error(500, 'InternalError'),
      { cutAfter: 0 },
    ];
    const snapshot = await commitAlone();
    const reasons: string[] = [];
    s3.fault = async (request) => {
      if (!isPut(request)) return undefined;
      const { attempts } = await now(snapshot);
      return faults[attempts - 1];
    };
    await serving(s3.storeUrl());
    for (let attempt = 1; attempt <= faults.length; attempt++) {
      const failed = await until(async () => {
        const found = await now(snapshot);
        return found.attempts === attempt && found.reason !== '' && found;
      });
      expect(failed.uploadState).to.equal(PENDING);
      reasons.push(failed.reason);
      // What waits for its next attempt need not wait.
      await sql(`update snapshots set reason = '', due_time = now()`);
    }
    expect(reasons.map((reason) => reason.replace(/no answer .*/, 'no answer'))).to.deep.equal([
      'S3: 503 SlowDown',
      'S3: 429 TooManyRequests',
      'S3: no answer',
      'S3: 500 InternalError',
      'S3: no answer',
    ]);
    const stored = await becomes(snapshot, STORED);
    expect(stored).to.deep.include({ attempts: 6, reason: '' });
    expect(content(stored)).to.have.length(stored.sizeBytes);
  });

  it('wait longer after each attempt', async () => {
    const snapshot = await commitAlone();
    s3.fault = (request) => (isPut(request) ? s3Error(400, 'RequestTimeout') : undefined);
    await sql('update snapshots set attempts = 8');
    await serving(s3.storeUrl());
    await until(async () => (await now(snapshot)).reason !== '');
    const [{ seconds }] = await sql('select extract(epoch from due_time - now())::float8 as seconds from snapshots');
    expect(seconds).to.be.within(100, 256);
  });

  it('are given up with the reason when the store refuses them, and tried again by hand', async () => {
    s3.fault = (request) => (isPut(request) ? s3Error(403, 'AccessDenied') : undefined);
    const snapshot = await commit();
    const server = await serving(s3.storeUrl());
    const failed = await becomes(snapshot, FAILED);
    expect(failed).to.deep.include({ reason: 'S3: 403 AccessDenied', attempts: 1, nextAttemptTime: undefined });
    const metrics = await server.metrics.registry.metrics();
    expect(metrics).to.contain('memoryd_snapshot_uploads_total{outcome="failed"}');
    s3.fault = () => undefined;
    await client.artifact.retrySnapshot({ snapshotId: snapshot.id });
    expect(await becomes(snapshot, STORED)).to.deep.include({ reason: '', attempts: 1 });
  });

  it('are given up when the store could not be reached for a day', async () => {
    s3.fault = (request) => (isPut(request) ? s3Error(400, 'RequestTimeout') : undefined);
    const snapshot = await commitAlone();
    // Nobody had a store for a day, before the first attempt; and then no server ran after one.
    await sql(`update snapshots set queue_time = now() - interval '25 hours', due_time = now() - interval '25 hours'`);
    await serving(s3.storeUrl());
    for (let attempt = 1; attempt <= 2; attempt++) {
      const tried = await until(async () => {
        const found = await now(snapshot);
        return found.attempts === attempt && found.reason !== '' && found;
      });
      expect(tried.uploadState).to.equal(PENDING);
      const hours = attempt === 1 ? [26, 25] : [25, 0];
      const ago = hours.map((n) => `now() - interval '${n} hours'`);
      await sql(`update snapshots set reason = '', queue_time = ${ago[0]}, due_time = ${ago[1]}`);
    }
    expect((await becomes(snapshot, FAILED)).reason).to.equal('S3: 400 RequestTimeout');
  });

  it('are given up when inputs that were filled since make too much of them, and nothing is read of these', async () => {
    const ids: string[] = [];
    const fill = async (i: number, content: string) => {
      const sha256 = createHash('sha256').update(`${tenant} ${i}`).digest('hex');
      ids[i] = (await client.artifact.registerInput({ projectId, fileName: `${i}.txt`, sha256, content })).input!.id;
    };
    for (let i = 0; i < 17; i++) await fill(i, '');
    const sources = ids.map((value) => ({ source: { $case: 'inputId' as const, value } }));
    document.sections.push({ sectionId: 'facts', revision: await saveSection(client, 'facts', 'text', { sources }) });
    const snapshot = await commitAlone();
    for (let i = 0; i < 17; i++) await fill(i, 'x'.repeat(1024 * 1024));
    await serving(s3.storeUrl());
    const reason = 'its sections are by now over 16 MiB together with the inputs that they cite';
    expect(await becomes(snapshot, FAILED)).to.include({ reason, attempts: 1, link: '' });
    expect(s3.objects.size).to.equal(0);
  });

  it('of what was imported go into the store of the place where it arrived', async () => {
    const snapshot = await commitAlone();
    await serving(s3.storeUrl());
    const stored = await becomes(snapshot, STORED);
    const { fileOf, exported, remove } = transferFolder();
    try {
      const file = await fileOf(await exported(tenant, database.app));
      const copy = await newTenant(['user'], {}, database.owner);
      await importFile(file, database.app, { tenant: copy });
      const members = metadataOf(headersOf(copy));
      const arrived = await until(async () => {
        const [found] = (await client.artifact.listSnapshots({ projectId }, members)).snapshots;
        return found!.uploadState === STORED && found;
      });
      expect(arrived!.link).to.contain(`/${copy}/dev/atlas/artifact-report-v1-${arrived!.sha256}`);
      expect(content(arrived!)).to.have.length(arrived!.sizeBytes);
      expect(arrived!.link).to.not.equal(stored.link);
      // The state of an upload is no difference to what is there.
      expect(await importFile(file, database.app, { tenant: copy })).to.include({ stored: 0 });
    } finally {
      await remove();
    }
  });

  it('are done by one server at a time, for as long as it takes', async () => {
    const snapshot = await commitAlone();
    const held = Promise.withResolvers<undefined>();
    s3.fault = (request) => (isPut(request) ? held.promise : undefined);
    await Promise.all([serving(s3.storeUrl()), serving(s3.storeUrl())]);
    const due = async () => (await sql('select due_time::text as due, attempts from snapshots'))[0];
    const first = await until(async () => ((await due()).attempts === 1 ? due() : undefined));
    // Renewed three times, it is held for longer than a claim lasts.
    let last = first;
    for (let renewals = 0; renewals < 3; renewals++) {
      last = await until(async () => {
        const later = await due();
        return later.due > last.due && later;
      });
    }
    expect(last.attempts).to.equal(1);
    expect(s3.seen.filter((line) => line.startsWith('PUT'))).to.have.length(1);
    held.resolve(undefined);
    await becomes(snapshot, STORED);
    expect(s3.seen.filter((line) => line.startsWith('PUT'))).to.have.length(1);
  });

  it('survive a process that is killed between the commit and the upload, and in the upload', async () => {
    const snapshot = await commitAlone();
    const stored = await killedIn(s3, s3.storeUrl(), snapshot);
    expect(stored.sha256).to.equal(createHash('sha256').update(content(stored)).digest('hex'));
  });

  it('survive a process that is killed in an upload to Google Drive, where nothing is there twice', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'memoryd-uploads-'));
    const drive = await startDrive();
    try {
      const snapshot = await commitAlone();
      const stored = await killedIn(drive, await drive.storeUrl(join(folder, 'drive.json')), snapshot);
      const hashes = drive.files.map(({ body }) => createHash('sha256').update(body).digest('hex'));
      expect(hashes).to.deep.equal([stored.sha256]);
    } finally {
      await Promise.all(running.splice(0).map((one) => one.stop()));
      await drive.close();
      await rm(folder, { recursive: true });
    }
  });

  it('survive a process that is killed while it writes into a folder, of which no half file is shown', async () => {
    const snapshot = await commitAlone();
    const root = await mkdtemp(join(tmpdir(), 'memoryd-uploads-'));
    const store = pathToFileURL(root).href;
    const folder = join(root, tenant, 'dev', 'atlas');
    const unfinished = async () =>
      (await readdir(folder).catch(() => [])).filter((name) => name.startsWith('.unfinished-'));
    try {
      const first = await process_(store, { NODE_OPTIONS: DISK_THAT_HANGS });
      await until(async () => (await unfinished()).length > 0);
      first.kill('SIGKILL');
      expect(await first.exited).to.equal('SIGKILL');
      await process_(store);
      const stored = await becomes(snapshot, STORED);
      const kept = await readFile(new URL(stored.link));
      expect(createHash('sha256').update(kept).digest('hex')).to.equal(stored.sha256);
      const [left] = await unfinished();
      expect([...(await readdir(folder))].sort()).to.deep.equal([left, nameOf(stored)].sort());
      // The next upload into the folder removes it once it is old.
      const before = Date.now() / 1000 - 2 * 3600;
      await utimes(join(folder, left!), before, before);
      await becomes(await commit(), STORED);
      expect(await unfinished()).to.deep.equal([]);
    } finally {
      await rm(root, { recursive: true });
    }
  });

  it('go into a folder below the one that `serve` was started in, where no store is named', async () => {
    const snapshot = await commitAlone();
    const folder = await mkdtemp(join(tmpdir(), 'memoryd-uploads-'));
    const flags = ['--port', '0', '--auth', 'trusted', '--key-file', process.env.MEMORYD_TEST_KEY_FILE!];
    const server = memoryd(['serve', ...flags, '--drain-wait', '0s'], { DATABASE_URL: database.app }, folder);
    try {
      const { link, sha256 } = await becomes(snapshot, STORED);
      const below = pathToFileURL(join(await realpath(folder), '.memoryd', 'snapshots')).href;
      expect(link.slice(0, link.lastIndexOf('/'))).to.equal(`${below}/${tenant}/dev/atlas`);
      expect(
        createHash('sha256')
          .update(await readFile(new URL(link)))
          .digest('hex'),
      ).to.equal(sha256);
    } finally {
      server.child.kill('SIGTERM');
      await server.ended;
      await rm(folder, { recursive: true });
    }
  });

  it('pass at once to another server when the one that does them is stopped', async () => {
    const snapshot = await commit();
    const reached = Promise.withResolvers<void>();
    s3.fault = (request) => {
      if (!isPut(request)) return undefined;
      reached.resolve();
      return new Promise(() => {});
    };
    const first = await serving(s3.storeUrl());
    await reached.promise;
    s3.fault = () => undefined;
    await first.stop();
    const [{ taken }] = await sql('select count(uploader)::int as taken from snapshots');
    expect(taken).to.equal(0);
    await serving(s3.storeUrl());
    await becomes(snapshot, STORED);
  });

  it('are known by the metrics, by their state', async () => {
    s3.fault = (request) => (isPut(request) ? s3Error(403, 'AccessDenied') : undefined);
    await sql(`update snapshots set due_time = now() + interval '1 hour'`);
    await sql('update snapshots set upload_state = 3 where version = 1');
    const server = await serving(s3.storeUrl());
    const metrics = await until(async () => {
      const text = await server.metrics.registry.metrics();
      return text.includes('memoryd_snapshots{') && text;
    });
    expect(metrics).to.contain('memoryd_snapshots{state="pending"} 2');
    expect(metrics).to.contain('memoryd_snapshots{state="failed"} 1');
  });
});

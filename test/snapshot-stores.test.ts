import { createHash, randomBytes } from 'node:crypto';
import { mkdtemp, readdir, rm, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { expect } from 'chai';
import { UserError } from '../src/errors.ts';
import { folderOf } from '../src/snapshots/archive.ts';
import { openStore, storeUrl } from '../src/snapshots/open.ts';
import { type SnapshotFile, type Store, StoreError } from '../src/snapshots/store.ts';
import { type DriveServer, driveError, startDrive } from './fixtures/drive-server.ts';
import type { Fault, HttpRequest } from './fixtures/http-server.ts';
import { S3_ENVIRONMENT, type S3Server, s3Error, startS3 } from './fixtures/s3-server.ts';

const FOLDER = 'acme/dev/atlas';
const MiB = 1024 * 1024;
const never = new AbortController().signal;

const fileOf = (name: string, content: string | Buffer): SnapshotFile => {
  const bytes = Buffer.from(content);
  return { name, bytes, sha256: createHash('sha256').update(bytes).digest('hex') };
};

/** The first so many of the requests that a test names fail in this way. */
function failing(times: number, named: (request: HttpRequest) => boolean, fault: Fault) {
  let left = times;
  return (request: HttpRequest) => (named(request) && left-- > 0 ? fault : undefined);
}

async function refused(work: Promise<unknown>): Promise<StoreError> {
  const error = await work.then(
    () => undefined,
    (reason) => reason,
  );
  expect(error).to.be.instanceOf(StoreError);
  return error;
}

describe('snapshot stores', () => {
  let temporary: string;
  let s3: S3Server;
  let drive: DriveServer;
  const opened: Record<string, () => Promise<Store>> = {
    folder: () => openStore(storeUrl(pathToFileURL(join(temporary, 'snapshots')).href)),
    S3: () => openStore(storeUrl(s3.storeUrl())),
    'Google Drive': async () => openStore(storeUrl(await drive.storeUrl(join(temporary, 'drive.json')))),
  };
  const environment = { ...process.env };

  before(() => Object.assign(process.env, S3_ENVIRONMENT));
  after(() => {
    for (const name of Object.keys(S3_ENVIRONMENT)) delete process.env[name];
    Object.assign(process.env, environment);
  });
  beforeEach(async () => {
    [temporary, s3, drive] = await Promise.all([mkdtemp(join(tmpdir(), 'memoryd-stores-')), startS3(), startDrive()]);
  });
  afterEach(async () => {
    await Promise.all([s3.close(), drive.close(), rm(temporary, { recursive: true })]);
  });

  for (const [kind, open] of Object.entries(opened)) {
    describe(`of the kind ${kind}`, () => {
      it('gives back what was put into them, and lists the folder and nothing beside it', async () => {
        const store = await open();
        const files = ['a.tar', 'b.tar', 'c.tar', 'd.tar', 'e.tar'].map((name) => fileOf(name, randomBytes(1000)));
        const links: string[] = [];
        for (const file of files) links.push(await store.put(FOLDER, file, never));
        await store.put(`${FOLDER}-2`, fileOf('f.tar', 'beside'), never);
        const listed = [...(await store.list(FOLDER))].sort();
        expect(listed).to.deep.equal(files.map(({ name }, i) => [name, { link: links[i] }]));
        for (const { name, bytes } of files) expect((await store.get(FOLDER, name)).equals(bytes)).to.equal(true);
        expect((await store.list('acme/dev/nothing')).size).to.equal(0);
      });

      it('take 20 MiB, and the same again at once', async () => {
        const store = await open();
        const file = fileOf('large.tar', randomBytes(20 * MiB));
        const link = await store.put(FOLDER, file, never);
        const requests = s3.seen.length + drive.seen.length;
        expect(await store.put(FOLDER, file, never)).to.equal(link);
        expect(s3.seen.length + drive.seen.length - requests).to.be.at.most(1);
        expect([...(await store.list(FOLDER)).keys()]).to.deep.equal(['large.tar']);
        expect((await store.get(FOLDER, 'large.tar')).equals(file.bytes)).to.equal(true);
      });

      it('never change what is there, and say so for good', async () => {
        const store = await open();
        await store.put(FOLDER, fileOf('a.tar', 'first'), never);
        const error = await refused(store.put(FOLDER, fileOf('a.tar', 'other'), never));
        expect(error.message).to.contain('something else');
        expect(error.permanent).to.equal(true);
        expect((await store.get(FOLDER, 'a.tar')).toString()).to.equal('first');
      });

      it('refuse a name that is not there', async () => {
        const store = await open();
        expect((await refused(store.get(FOLDER, 'nothing.tar'))).permanent).to.equal(true);
      });

      it('remove one file for good and no other, also one that is not there, and take it anew', async () => {
        const store = await open();
        const [gone, kept] = [fileOf('a.tar', 'first'), fileOf('a.tar.tar', 'other')];
        for (const file of [gone, kept]) await store.put(FOLDER, file, never);
        await store.put(`${FOLDER}-2`, fileOf('a.tar', 'beside'), never);
        for (const [folder, name] of [
          [FOLDER, 'a.tar'],
          [FOLDER, 'a.tar'],
          ['acme/dev/nothing', 'a.tar'],
        ] as const) {
          await store.remove(folder, name);
        }
        expect([...(await store.list(FOLDER)).keys()]).to.deep.equal(['a.tar.tar']);
        expect((await refused(store.get(FOLDER, 'a.tar'))).permanent).to.equal(true);
        expect((await store.get(`${FOLDER}-2`, 'a.tar')).toString()).to.equal('beside');
        await store.put(FOLDER, fileOf('a.tar', 'second'), never);
        expect((await store.get(FOLDER, 'a.tar')).toString()).to.equal('second');
      });
    });
  }

  describe('in a folder', () => {
    it('show no file that a killed process left unfinished', async () => {
      const store = await opened.folder!();
      await store.put(FOLDER, fileOf('a.tar', 'whole'), never);
      const folder = join(temporary, 'snapshots', FOLDER);
      await writeFile(join(folder, '.unfinished-1'), 'half');
      expect([...(await store.list(FOLDER)).keys()]).to.deep.equal(['a.tar']);
      expect((await readdir(folder)).sort()).to.deep.equal(['.unfinished-1', 'a.tar']);
    });

    it('keep what may still be written, and remove what no process writes any more', async () => {
      const store = await opened.folder!();
      await store.put(FOLDER, fileOf('a.tar', 'whole'), never);
      const folder = join(temporary, 'snapshots', FOLDER);
      for (const name of ['.unfinished-now', '.unfinished-old', 'old']) await writeFile(join(folder, name), 'half');
      const before = Date.now() / 1000 - 3601;
      for (const name of ['.unfinished-old', 'old', 'a.tar']) await utimes(join(folder, name), before, before);
      await store.put(FOLDER, fileOf('b.tar', 'next'), never);
      expect((await readdir(folder)).sort()).to.deep.equal(['.unfinished-now', 'a.tar', 'b.tar', 'old']);
    });

    it('leave nothing behind that could not be written, and name the cause', async () => {
      const store = await opened.folder!();
      await writeFile(join(temporary, 'snapshots'), 'a file where the folder should be');
      const error = await refused(store.put(FOLDER, fileOf('a.tar', 'x'), never));
      expect(error.message).to.match(/^the snapshot folder: (ENOTDIR|EEXIST)$/);
    });
  });

  describe('in S3', () => {
    const inParts = () => fileOf('large.tar', randomBytes(20 * MiB));
    const isPart = ({ method, url }: HttpRequest) => method === 'PUT' && url.searchParams.has('partNumber');
    const isPut = ({ method }: HttpRequest) => method === 'PUT';

    it('are sent in parts of 8 MiB', async () => {
      const store = await opened.S3!();
      expect(await store.put(FOLDER, inParts(), never)).to.equal(`s3://bucket/kept/${FOLDER}/large.tar`);
      const steps = s3.seen.map((line) => line.replace(/^(\w+) .*?\?(uploads|partNumber=\d|uploadId).*/, '$1 $2'));
      expect(steps.slice(2).sort()).to.have.lengthOf(5);
      expect(s3.seen.filter((line) => /partNumber=/.test(line))).to.have.lengthOf(3);
      expect(s3.unfinished.size).to.equal(0);
    });

    it('end what a killed process left of the same file, and nothing else, where they may', async () => {
      const store = await opened.S3!();
      const file = inParts();
      const others = { ...file, name: 'large.tar.other' };
      // Whoever is killed sends no more, not even that it gives up.
      const killed = { cutAfter: 0 };
      s3.fault = (request) => (isPart(request) || request.method === 'DELETE' ? killed : undefined);
      await Promise.all([file, others].map((one) => refused(store.put(FOLDER, one, never))));
      expect(s3.unfinished.size).to.equal(2);
      s3.fault = failing(1, ({ url }) => url.searchParams.has('uploads'), s3Error(403, 'AccessDenied'));
      await store.put(FOLDER, file, never);
      expect(s3.unfinished.size).to.equal(2);
      s3.objects.clear();
      await store.put(FOLDER, file, never);
      expect(s3.unfinished.size).to.equal(1);
      expect((await store.get(FOLDER, file.name)).equals(file.bytes)).to.equal(true);
    });

    it('go on over busy answers and connections that break in a part', async () => {
      const store = await opened.S3!();
      for (const fault of [s3Error(503, 'SlowDown'), s3Error(429, 'TooManyRequests'), { cutAfter: 3 * MiB }]) {
        s3.objects.clear();
        s3.fault = failing(1, isPart, fault);
        const file = inParts();
        await store.put(FOLDER, file, never);
        expect((await store.get(FOLDER, file.name)).equals(file.bytes)).to.equal(true);
      }
    });

    it('are given up for now when it stays busy, and leave no parts behind', async () => {
      const store = await opened.S3!();
      s3.fault = failing(100, isPart, s3Error(503, 'SlowDown'));
      const error = await refused(store.put(FOLDER, inParts(), never));
      expect(error.message).to.equal('S3: 503 SlowDown');
      expect(error.permanent).to.equal(false);
      expect(s3.unfinished.size).to.equal(0);
      expect(s3.objects.size).to.equal(0);
    });

    it('are refused for good with 403, with the reason and no secret', async () => {
      const store = await opened.S3!();
      s3.fault = failing(100, isPut, s3Error(403, 'AccessDenied'));
      const error = await refused(store.put(FOLDER, fileOf('a.tar', 'x'), never));
      expect(error.message).to.equal('S3: 403 AccessDenied');
      expect(error.permanent).to.equal(true);
    });

    it('are not removed by those who may not, and stay when it is busy', async () => {
      const store = await opened.S3!();
      await store.put(FOLDER, fileOf('a.tar', 'x'), never);
      for (const [fault, permanent] of [
        [s3Error(403, 'AccessDenied'), true],
        [s3Error(503, 'SlowDown'), false],
      ] as const) {
        s3.fault = failing(100, ({ method }) => method === 'DELETE', fault);
        expect((await refused(store.remove(FOLDER, 'a.tar'))).permanent).to.equal(permanent);
        expect(s3.objects.size).to.equal(1);
      }
    });

    it('are written by those who may not look as well', async () => {
      const store = await opened.S3!();
      s3.fault = failing(100, ({ method }) => method === 'HEAD', s3Error(403, 'AccessDenied'));
      await store.put(FOLDER, fileOf('a.tar', 'x'), never);
      expect(s3.objects.get(`bucket/kept/${FOLDER}/a.tar`)?.body.toString()).to.equal('x');
    });

    it('end when told to', async () => {
      const store = await opened.S3!();
      const ending = new AbortController();
      s3.fault = async (request) => {
        if (isPart(request)) ending.abort();
        return undefined;
      };
      await refused(store.put(FOLDER, inParts(), ending.signal));
      expect(s3.objects.size).to.equal(0);
    });
  });

  describe('in Google Drive', () => {
    const isChunk = ({ method, headers }: HttpRequest) =>
      method === 'PUT' && !String(headers['content-range']).startsWith('bytes */');

    it('go on where a connection broke, a chunk was refused for now, or a whole answer was lost', async () => {
      const store = await opened['Google Drive']!();
      const faults = [{ cutAfter: 3 * MiB }, driveError(503, 'backendError'), driveError(429, 'rateLimitExceeded')];
      for (const [i, fault] of faults.entries()) {
        drive.fault = failing(2, isChunk, fault);
        const file = fileOf(`large-${i}.tar`, randomBytes(20 * MiB));
        await store.put(FOLDER, file, never);
        expect((await store.get(FOLDER, file.name)).equals(file.bytes)).to.equal(true);
      }
      expect(drive.files).to.have.lengthOf(faults.length);
    });

    it('are there once when the last answer was lost and the whole is tried again', async () => {
      const store = await opened['Google Drive']!();
      const file = fileOf('a.tar', randomBytes(MiB));
      // All bytes come, and nobody hears of it: not from the chunk, nor from any question after it.
      const lost = (request: HttpRequest) => request.method === 'PUT' && { cutAfter: isChunk(request) ? MiB : 0 };
      drive.fault = (request) => lost(request) || undefined;
      expect((await refused(store.put(FOLDER, file, never))).permanent).to.equal(false);
      expect(drive.files).to.have.lengthOf(1);
      drive.fault = () => undefined;
      await store.put(FOLDER, file, never);
      expect(drive.files).to.have.lengthOf(1);
    });

    it('are refused for good with 403, but not where it says that they come too fast', async () => {
      const store = await opened['Google Drive']!();
      for (const [reason, permanent] of [
        ['insufficientFilePermissions', true],
        ['userRateLimitExceeded', false],
      ] as const) {
        drive.fault = failing(
          100,
          ({ method, url }) => method === 'POST' && url.pathname !== '/token',
          driveError(403, reason),
        );
        const error = await refused(store.put(FOLDER, fileOf('a.tar', 'x'), never));
        expect(error.message).to.equal(`Google Drive: 403 ${reason}`);
        expect(error.permanent).to.equal(permanent);
      }
    });

    it('are removed each, where one came twice', async () => {
      const store = await opened['Google Drive']!();
      await store.put(FOLDER, fileOf('a.tar', 'x'), never);
      const [first] = drive.files;
      drive.files.push({ ...first!, id: 'again' });
      drive.fault = failing(100, ({ method }) => method === 'DELETE', driveError(403, 'insufficientFilePermissions'));
      expect((await refused(store.remove(FOLDER, 'a.tar'))).permanent).to.equal(true);
      expect(drive.files).to.have.lengthOf(2);
      drive.fault = () => undefined;
      await store.remove(FOLDER, 'a.tar');
      expect(drive.files).to.deep.equal([]);
    });

    it('begin anew when the session of an upload is gone', async () => {
      const store = await opened['Google Drive']!();
      drive.fault = failing(1, isChunk, driveError(404, 'notFound'));
      const file = fileOf('a.tar', 'x');
      expect((await refused(store.put(FOLDER, file, never))).permanent).to.equal(false);
      await store.put(FOLDER, file, never);
      expect([...(await store.list(FOLDER)).keys()]).to.deep.equal(['a.tar']);
    });
  });

  it('keep projects apart, however their names look', () => {
    const cut = folderOf({ tenant: 'acme', env: 'dev', projectId: 'x'.repeat(90) }).split('/')[2]!;
    const names = [
      'x'.repeat(90),
      'x'.repeat(91),
      cut,
      decodeURIComponent(cut),
      'a~b',
      'a%7eb',
      'a/b',
      'a%2Fb',
      '.',
      '%2e',
    ];
    const folders = new Set(names.map((projectId) => folderOf({ tenant: 'acme', env: 'dev', projectId })));
    expect(folders.size).to.equal(new Set(names).size);
  });

  it('have URLs without credentials, with nothing that they do not know', () => {
    for (const good of ['file:///var/snapshots', 's3://bucket', 's3://bucket/a/b?region=eu', 'gdrive://Abc-1_2']) {
      expect(storeUrl(good).href).to.equal(good);
    }
    for (const bad of [
      '',
      'snapshots',
      'https://host/',
      'file://host/folder',
      's3:///prefix',
      'gdrive:',
      's3://key:secret@bucket',
      's3://bucket?secret=x',
      'file:///x?endpoint=y',
    ]) {
      expect(() => storeUrl(bad), bad).to.throw(UserError);
    }
  });
});

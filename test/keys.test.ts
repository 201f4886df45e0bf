import { randomUUID } from 'node:crypto';
import { chmod, copyFile, mkdtemp, readFile, rm, stat, symlink, unlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { addKey } from '../src/db/key-file.ts';
import { keyringOf, lineOf, parseKeys } from '../src/db/keyring.ts';
import { createLog } from '../src/log.ts';
import type { RunningServer } from '../src/server.ts';
import { memoryd } from './fixtures/command.ts';
import { type Clients, connect, failure, headersOf, newTenant, startTestServer, until } from './support.ts';

/** A server with a key file of its own, and what it logs of it. */
interface Keyed {
  file: string;
  server: RunningServer;
  client: Clients;
  lines: Record<string, unknown>[];
}

const DAY_MS = 24 * 60 * 60_000;

describe('keys', () => {
  let folder: string;
  let tenant: string;
  const open: Keyed[] = [];

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'memoryd-keys-'));
  });
  after(() => rm(folder, { recursive: true }));
  beforeEach(async () => {
    tenant = await newTenant();
  });
  afterEach(async () => {
    for (const { client, server } of open.splice(0)) {
      client.close();
      await server.stop();
    }
  });

  const newFile = () => join(folder, randomUUID());
  const idsOf = async (file: string) => parseKeys(await readFile(file, 'utf8')).map(({ id }) => id);
  const command = async (...args: string[]) => {
    const run = memoryd(['keys', ...args]);
    return { code: await run.ended, out: run.out(), err: run.err() };
  };

  async function serve(file: string): Promise<Keyed> {
    const lines: Record<string, unknown>[] = [];
    const log = createLog('info', { write: (line) => lines.push(JSON.parse(line)) });
    const server = await startTestServer({ keyFile: file }, log);
    const keyed = { file, server, client: connect(`127.0.0.1:${server.port}`, headersOf(tenant)), lines };
    open.push(keyed);
    return keyed;
  }

  /** Until the server uses the keys that its file holds now. */
  async function taken({ file, lines }: Keyed): Promise<void> {
    const keys = await idsOf(file);
    await until(async () => {
      const read = lines.findLast(({ msg }) => msg === 'key file read');
      return JSON.stringify(read?.keys) === JSON.stringify(keys);
    });
  }

  const firstPage = async ({ client }: Keyed) => (await client.memory.listSessions({ pageSize: 1 })).nextPageToken;
  const nextPage = ({ client }: Keyed, pageToken: string) => client.memory.listSessions({ pageSize: 1, pageToken });
  const keyOf = (token: string) => token.split('.')[0];
  async function fill({ client }: Keyed): Promise<void> {
    for (const surfaceId of ['a', 'b', 'c']) await client.memory.upsertSession({ session: { surfaceId } });
  }

  describe('rotated under a running server', () => {
    it('open the page tokens of before the rotation after it, and none once their key was removed', async () => {
      const file = newFile();
      await addKey(file);
      const keyed = await serve(file);
      await fill(keyed);
      const old = await firstPage(keyed);
      expect((await command('add', file, '--after', '0s')).code).to.equal(0);
      await taken(keyed);
      const fresh = await firstPage(keyed);
      expect([keyOf(fresh), keyOf(old)]).to.deep.equal(await idsOf(file));
      expect((await nextPage(keyed, old)).sessions).to.deep.equal((await nextPage(keyed, fresh)).sessions);

      expect((await command('remove', file, keyOf(old)!, '--at-once')).code).to.equal(0);
      await taken(keyed);
      expect((await nextPage(keyed, fresh)).sessions).to.have.length(1);
      const refused = await failure(nextPage(keyed, old));
      expect(refused.code).to.equal(status.INVALID_ARGUMENT);
      expect(refused.violations.map(({ field }) => field)).to.deep.equal(['page_token']);
    });

    it('give a session key again in a replay, and the session key goes on without the key that sealed it', async () => {
      const file = newFile();
      await addKey(file);
      const keyed = await serve(file);
      const { memory } = keyed.client;
      const requestId = randomUUID();
      const issue = () => memory.upsertSession({ session: { surfaceId: 'web' }, issueSessionKey: true, requestId });
      const first = await issue();
      const [old] = await idsOf(file);
      await command('add', file, '--after', '0s');
      await taken(keyed);
      expect(await issue()).to.deep.equal(first);
      await command('remove', file, old!, '--at-once');
      await taken(keyed);
      expect(await issue()).to.deep.equal({ ...first, sessionKey: '' });
      const { session } = await memory.resumeSession({ target: { $case: 'sessionKey', value: first.sessionKey } });
      expect(session!.id).to.equal(first.session!.id);
    });

    it('stay what they were while the file is broken or gone, which is told once', async () => {
      const file = newFile();
      await addKey(file);
      const keyed = await serve(file);
      await fill(keyed);
      const token = await firstPage(keyed);
      const whole = await readFile(file, 'utf8');
      const faults = () => keyed.lines.filter(({ msg }) => String(msg).startsWith('key file not read'));
      const breakages = [() => writeFile(file, whole.slice(0, -9)), () => writeFile(file, ''), () => unlink(file)];
      for (const [i, breakIt] of breakages.entries()) {
        await breakIt();
        await until(async () => faults().length > i);
        expect((await nextPage(keyed, token)).sessions).to.have.length(1);
        expect(keyOf(await firstPage(keyed))).to.equal(keyOf(token));
      }
      await writeFile(file, whole);
      await taken(keyed);
      expect(faults()).to.have.length(breakages.length);
      expect(JSON.stringify(keyed.lines)).to.not.include(whole.slice(9, 40));
    });
  });

  it('are rotated over two servers without a token that the other one refuses, in whatever order they get the file', async () => {
    const [fileA, fileB] = [newFile(), newFile()];
    await addKey(fileA);
    await copyFile(fileA, fileB);
    const [a, b] = [await serve(fileA), await serve(fileB)];
    await fill(a);
    const given: string[] = [];
    const exchange = async () => {
      for (const keyed of [a, b]) given.push(await firstPage(keyed));
      for (const token of given) for (const keyed of [a, b]) await nextPage(keyed, token);
    };
    const [old] = await idsOf(fileA);
    await exchange();
    await command('add', fileA, '--after', '1h');
    await taken(a);
    await exchange();
    await copyFile(fileA, fileB);
    await taken(b);
    await exchange();
    // The hour is over, by the clock of the one and then by that of the other.
    const [next] = await idsOf(fileA);
    for (const keyed of [b, a]) {
      const [first, ...rest] = parseKeys(await readFile(keyed.file, 'utf8'));
      await writeFile(keyed.file, [{ ...first!, since: 0 }, ...rest].map((key) => `${lineOf(key)}\n`).join(''));
      await until(async () => keyOf(await firstPage(keyed)) === next);
      await exchange();
    }
    expect(new Set(given.map(keyOf))).to.deep.equal(new Set([old, next]));
  });

  describe('in their file', () => {
    it('are listed with what each does, and never shown', async () => {
      const file = newFile();
      await command('add', file);
      await command('add', file, '--after', '0s');
      const added = await command('add', file);
      const [third, second, first] = await idsOf(file);
      const time = String.raw`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`;
      expect(added.out).to.match(
        new RegExp(
          `^${third}\topens, seals from ${time} on\n${second}\tseals since (${time})\n${first}\topens, sealed until \\1\n$`,
        ),
      );
      expect((await command('list', file)).out).to.equal(added.out);
      for (const { key } of parseKeys(await readFile(file, 'utf8')))
        expect(added.out).to.not.include(key.toString('base64').slice(0, 8));
    });

    it('are removed when nothing needs them any more, sooner only if that is said, and never the one that seals', async () => {
      const file = newFile();
      await addKey(file);
      const [only] = await idsOf(file);
      const refusals: [string[], RegExp][] = [
        [[only!], /is the one that seals/],
        [[only!, '--at-once'], /is the one that seals/],
        [['nope'], /has no key nope/],
      ];
      for (const [args, why] of refusals) {
        const { code, err } = await command('remove', file, ...args);
        expect(code).to.equal(1);
        expect(err).to.match(why);
      }
      await command('add', file);
      expect((await command('remove', file, only!)).err).to.match(/is the one that seals/);
      await command('add', file, '--after', '0s');
      expect((await command('remove', file, only!)).err).to.match(/is of use until .* --at-once/);
      expect(await idsOf(file)).to.have.length(3);
      // Two of them as if added a day ago.
      const keys = parseKeys(await readFile(file, 'utf8'));
      const aged = keys.map((key) => ({ ...key, since: key.since && Date.now() - DAY_MS - 1000 }));
      await writeFile(file, aged.map((key) => `${lineOf(key)}\n`).join(''));
      expect((await command('remove', file, only!)).code).to.equal(0);
      expect(await idsOf(file)).to.deep.equal(keys.slice(0, 2).map(({ id }) => id));
    });

    it('can be read by their owner only, and keep the mode and the link that an administrator gave the file', async () => {
      const [file, link] = [newFile(), newFile()];
      await command('add', file);
      expect((await stat(file)).mode & 0o777).to.equal(0o600);
      await chmod(file, 0o640);
      await symlink(file, link);
      await command('add', link);
      expect((await stat(file)).mode & 0o777).to.equal(0o640);
      expect(await idsOf(file)).to.have.length(2);
      expect(await idsOf(link)).to.deep.equal(await idsOf(file));
    });

    it('are changed by one at a time', async () => {
      const file = newFile();
      await addKey(file);
      const all = await Promise.allSettled(Array.from({ length: 5 }, () => addKey(file)));
      const done = all.filter(({ status }) => status === 'fulfilled');
      expect(await idsOf(file)).to.have.length(1 + done.length);
      await writeFile(`${file}.new`, '');
      const { code, err } = await command('add', file);
      expect(code).to.equal(1);
      expect(err).to.match(/\.new is there/);
    });

    it('are refused with two of one id, none at all, or a time that is none', async () => {
      const [key] = await addKey(newFile());
      const line = lineOf(key!);
      for (const text of ['', '\n', `${line}\n${line}`, `${line} 2026-13-01T00:00:00Z`, line.slice(0, -2)])
        expect(() => parseKeys(text)).to.throw();
      expect(parseKeys(`${line} 2026-01-31T12:00:00Z\n`)[0]!.since).to.equal(Date.parse('2026-01-31T12:00:00Z'));
    });

    it('seal by the oldest while the time of none has come', async () => {
      const keys = [...(await addKey(newFile())), ...(await addKey(newFile()))];
      const later = keys.map((key) => ({ ...key, since: Date.now() + DAY_MS }));
      expect(keyOf(keyringOf(() => later).seal([], 'x'))).to.equal(keys[1]!.id);
    });
  });
});

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { access, mkdir, mkdtemp, readdir, readFile, realpath, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect } from 'chai';
import pg from 'pg';
import { commandLine } from '../src/dev/owner.ts';
import { type EmbeddedPostgres, startPostgres, UserError } from '../src/dev/postgres.ts';

const asRoot = process.geteuid?.() === 0;
const settings = { fsync: 'off', log_line_prefix: "it's [%p] " };

// What another node process does with a folder: start, tell, and on SIGINT use the database once more, then stop it.
const OWNER = `
  const [folder] = process.argv.slice(1);
  const { startPostgres, UserError } = await import(${JSON.stringify(new URL('../src/dev/postgres.ts', import.meta.url).href)});
  const { default: pg } = await import('pg');
  const tell = (what) => console.log(JSON.stringify(what));
  try {
    const { url, stop } = await startPostgres({ folder, settings: ${JSON.stringify(settings)} });
    process.on('SIGINT', async () => {
      await new Promise((resolve) => setTimeout(resolve, 300));
      const client = new pg.Client(url);
      await client.connect();
      await client.query('create table drained ()');
      await client.end();
      await stop();
      tell({ drained: true });
      process.exit();
    });
    setInterval(() => {}, 1000);
    tell({ url });
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
    tell({ refused: error.message });
  }
`;

interface Told {
  url?: string;
  refused?: string;
  drained?: boolean;
}

describe('embedded Postgres', function () {
  this.timeout(60_000);
  const folders: string[] = [];
  const homes = new Set<string>();
  const children = new Set<ChildProcess>();
  const running = new Set<EmbeddedPostgres>();

  async function newFolder(parent = tmpdir()): Promise<string> {
    const folder = await realpath(await mkdtemp(join(parent, 'memoryd-test-')));
    folders.push(folder);
    return join(folder, '.memoryd');
  }

  async function start(folder: string, lines: string[] = []): Promise<EmbeddedPostgres> {
    const database = await startPostgres({ folder, settings, say: (line) => lines.push(line) });
    running.add(database);
    homes.add(dirname(database.data));
    return database;
  }

  async function query(url: string, sql: string): Promise<Record<string, unknown>[]> {
    const client = new pg.Client(url);
    // Postgres may be killed under it.
    client.on('error', () => {});
    await client.connect();
    try {
      return (await client.query(sql)).rows;
    } finally {
      await client.end();
    }
  }

  function owner(folder: string): { child: ChildProcess; told: () => Promise<Told> } {
    const child = spawn(process.execPath, ['--input-type=module', '-e', OWNER, folder], {
      cwd: import.meta.dirname,
      stdio: ['ignore', 'pipe', 'inherit'],
      detached: true,
    });
    children.add(child);
    let text = '';
    child.stdout?.on('data', (data) => {
      text += data;
    });
    const told = async () => {
      while (!text.includes('\n')) {
        if (child.exitCode !== null || child.signalCode !== null) throw new Error('the owner is dead');
        await sleep(10);
      }
      const line = text.slice(0, text.indexOf('\n'));
      text = text.slice(line.length + 1);
      return JSON.parse(line) as Told;
    };
    return { child, told };
  }

  async function kill(child: ChildProcess): Promise<void> {
    const gone = once(child, 'exit');
    child.kill('SIGKILL');
    await gone;
  }

  async function postmasterPid(data: string): Promise<number> {
    return Number.parseInt(await readFile(join(data, 'postmaster.pid'), 'utf8'), 10);
  }

  async function refusal(work: Promise<EmbeddedPostgres>): Promise<string> {
    const error = await work.then(
      (database) => running.add(database),
      (reason) => reason,
    );
    expect(error).to.be.instanceOf(UserError);
    expect(error.message).not.to.include('\n');
    return error.message;
  }

  const exists = (path: string) =>
    access(path).then(
      () => true,
      () => false,
    );

  /** Where the data of a folder are is only told to whoever starts it. */
  async function keepData(folder: string): Promise<string> {
    const database = await start(folder);
    await query(database.url, 'create table if not exists kept (what text); insert into kept values (1)');
    await database.stop();
    return database.data;
  }

  let folder: string;
  let data: string;

  before(async () => {
    folder = await newFolder();
    data = await keepData(folder);
  });

  afterEach(async () => {
    for (const database of running) await database.stop();
    running.clear();
    for (const child of children) child.kill('SIGKILL');
    children.clear();
  });

  after(async () => {
    for (const path of [...folders, ...homes]) await rm(path, { recursive: true, force: true });
  });

  it('starts on 127.0.0.1 only, with a password, UTF-8, and the settings it was given', async () => {
    const { url, port } = await start(folder);
    const rows = await query(
      url,
      `select current_setting('listen_addresses') as addresses, current_setting('unix_socket_directories') as sockets,
        current_setting('fsync') as fsync, current_setting('log_line_prefix') as prefix,
        current_setting('server_encoding') as encoding, current_user as who, lower('ÉД') as lowered`,
    );
    expect(rows).to.deep.equal([
      {
        addresses: '127.0.0.1',
        sockets: '',
        fsync: 'off',
        prefix: settings.log_line_prefix,
        encoding: 'UTF8',
        who: 'memoryd',
        lowered: 'éд',
      },
    ]);
    const wrong = await query(`postgres://memoryd:wrong@127.0.0.1:${port}/postgres`, 'select 1').catch(
      ({ code }) => code,
    );
    expect(wrong).to.equal('28P01');
  });

  it('shows its password and data to nobody else', async () => {
    for (const path of [join(folder, 'password'), join(folder, 'postgres.log')]) {
      expect((await stat(path)).mode & 0o777).to.equal(0o600);
    }
    expect((await stat(data)).mode & 0o777).to.equal(0o700);
    const password = (await readFile(join(folder, 'password'), 'utf8')).trim();
    expect((await readFile(join(folder, 'postgres.log'), 'utf8')).includes(password)).to.equal(false);
    expect((await readdir(dirname(data))).filter((name) => name.startsWith('init-'))).to.deep.equal([]);
  });

  it('keeps the data over a restart, and stops as often as it is told to', async () => {
    const first = await start(folder);
    expect(await query(first.url, 'select what from kept')).to.deep.equal([{ what: '1' }]);
    await Promise.all([first.stop(), first.stop()]);
    await first.stop();
    expect(await exists(join(folder, 'dev.pid'))).to.equal(false);
    expect(await exists(join(data, 'postmaster.pid'))).to.equal(false);
    const second = await start(folder);
    expect(await query(second.url, 'select what from kept')).to.deep.equal([{ what: '1' }]);
  });

  it('recovers when the postmaster was killed', async () => {
    const database = await start(folder);
    await query(database.url, 'create table recovered ()');
    process.kill(await postmasterPid(data), 'SIGKILL');
    await database.stop();
    const again = await start(folder);
    expect(await query(again.url, 'select * from recovered')).to.deep.equal([]);
  });

  it('waits for the backends of a killed postmaster', async () => {
    const database = await start(folder);
    // Busy in a loop, a backend does not see its postmaster die.
    const busy = query(
      database.url,
      `do $$ declare until timestamptz := clock_timestamp() + interval '2 s';
        begin while clock_timestamp() < until loop end loop; end $$`,
    ).catch(() => {});
    await sleep(300);
    process.kill(await postmasterPid(data), 'SIGKILL');
    await database.stop();
    const again = await start(folder);
    expect(await query(again.url, 'select what from kept')).to.deep.equal([{ what: '1' }]);
    await busy;
  });

  it('stops the Postgres that a killed owner left behind, and goes on with its data', async () => {
    const { child, told } = owner(folder);
    const { url } = await told();
    await query(url!, 'create table orphaned ()');
    const orphan = await postmasterPid(data);
    await kill(child);
    expect(await commandLine(orphan)).to.include('cluster_name=');
    const lines: string[] = [];
    const database = await start(folder, lines);
    expect(lines.join('\n')).to.include(`process ${orphan}`);
    expect(await commandLine(orphan)).not.to.include('cluster_name=');
    expect(await query(database.url, 'select * from orphaned')).to.deep.equal([]);
  });

  it('goes on when both were killed', async () => {
    const { child, told } = owner(folder);
    await told();
    process.kill(await postmasterPid(data), 'SIGKILL');
    await kill(child);
    const { url } = await start(folder);
    expect(await query(url, 'select what from kept')).to.deep.equal([{ what: '1' }]);
  });

  it('goes on when the owner was killed in the middle of a start', async () => {
    for (const delay of [150, 200, 250, 300]) {
      const { child } = owner(folder);
      await sleep(delay);
      await kill(child);
      const { url, stop } = await start(folder);
      expect(await query(url, 'select what from kept')).to.deep.equal([{ what: '1' }]);
      await stop();
    }
  });

  it('is not fooled by pids that other processes have by now', async () => {
    // This process lives, but it began at another time than the owner did, and is no Postgres.
    await writeFile(join(folder, 'dev.pid'), `${process.pid}\n1\n`);
    await writeFile(join(data, 'postmaster.pid'), `${process.pid}\n${data}\n`, { mode: 0o644 });
    const { url } = await start(folder);
    expect(await query(url, 'select what from kept')).to.deep.equal([{ what: '1' }]);
  });

  it('refuses a second instance in one line', async () => {
    const { child, told } = owner(folder);
    await told();
    const message = await refusal(startPostgres({ folder, settings }));
    expect(message).to.equal(
      `Another memoryd (process ${child.pid}) uses ${folder}: stop it, or use another folder with --data.`,
    );
    // The refused one must not have taken anything from the first.
    expect(await refusal(startPostgres({ folder, settings }))).to.equal(message);
    child.kill('SIGINT');
    expect(await told()).to.deep.equal({ drained: true });
  });

  it('lets exactly one of many win, over nothing and over a dead owner', async () => {
    const { child, told } = owner(folder);
    await told();
    await kill(child);
    const empty = await newFolder();
    for (const contested of [folder, empty]) {
      const owners = [1, 2, 3, 4].map(() => owner(contested));
      const results = await Promise.all(owners.map(({ told }) => told()));
      expect(results.filter(({ url }) => url)).to.have.length(1);
      const winner = owners[results.findIndex(({ url }) => url)]!.child;
      for (const { refused } of results) if (refused) expect(refused).to.include(`process ${winner.pid}`);
      await kill(winner);
      await start(contested);
    }
  });

  it('survives the SIGINT of Ctrl-C, so that the service can drain', async () => {
    await query((await start(folder)).url, 'drop table if exists drained');
    await running.values().next().value!.stop();
    const { child, told } = owner(folder);
    await told();
    process.kill(-child.pid!, 'SIGINT');
    expect(await told()).to.deep.equal({ drained: true });
    const { url } = await start(folder);
    expect(await query(url, 'select * from drained')).to.deep.equal([]);
  });

  it('makes no half a cluster when the first start is killed', async () => {
    const interrupted = await newFolder();
    const { child } = owner(interrupted);
    await sleep(350);
    await kill(child);
    const { url, data } = await start(interrupted);
    expect(await query(url, 'select 1 as one')).to.deep.equal([{ one: 1 }]);
    expect((await readdir(dirname(data))).filter((name) => name.startsWith('init-'))).to.deep.equal([]);
  });

  it('tells in one line why Postgres does not start, and gives the folder up', async () => {
    const message = await refusal(startPostgres({ folder, settings: { work_mem: 'plenty' } }));
    expect(message).to.include('invalid value for parameter "work_mem"').and.include('postgres.log');
    expect(await exists(join(folder, 'dev.pid'))).to.equal(false);
    const file = join(dirname(folder), 'file');
    await writeFile(file, '');
    expect(await refusal(startPostgres({ folder: join(file, 'folder') }))).to.include('Cannot keep a database');
  });

  it('sets data aside whose password is gone', async () => {
    const forgetful = await newFolder();
    await keepData(forgetful);
    await rm(join(forgetful, 'password'));
    const lines: string[] = [];
    const { url, data } = await start(forgetful, lines);
    expect(await query(url, `select to_regclass('kept') as kept`)).to.deep.equal([{ kept: null }]);
    const aside = (await readdir(dirname(data))).find((name) => name.startsWith('data.old-'));
    expect(lines.join('\n')).to.include(join(dirname(data), aside!));
  });

  it('as root, keeps its data where the user of Postgres reaches them', async function () {
    if (!asRoot) this.skip();
    const hidden = await newFolder('/root');
    await mkdir(hidden, { mode: 0o700 });
    const lines: string[] = [];
    const { url, data, stop } = await start(hidden, lines);
    expect(lines.join('\n')).to.include('does not run as root').and.include(data);
    expect((await stat(data)).uid).not.to.equal(0);
    expect((await stat(data)).mode & 0o777).to.equal(0o700);
    expect((await stat(dirname(data))).mode & 0o777).to.equal(0o711);
    expect((await stat(join(hidden, 'password'))).uid).to.equal(0);
    await query(url, 'create table here ()');
    await stop();
    expect(await query((await start(hidden)).url, 'select * from here')).to.deep.equal([]);
  });

  it('as root, leaves the data of another user alone', async function () {
    if (!asRoot) this.skip();
    const theirs = await newFolder();
    await mkdir(join(theirs, 'data'), { recursive: true });
    expect(await refusal(startPostgres({ folder: theirs }))).to.include('not as root');
  });
});

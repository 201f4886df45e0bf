import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect } from 'chai';
import { certificates } from './fixtures/certificates.ts';
import { killAll, memoryd, printed, type Run } from './fixtures/command.ts';
import { appUrl, connect, failure, headersOf, newTenant, ownerUrl, runSql } from './support.ts';

const KEYS = () => process.env.MEMORYD_TEST_KEY_FILE!;

const serve = (args: string[], url = appUrl()) => memoryd(['serve', '--port', '0', ...args], { DATABASE_URL: url });
const trusted = () => ['--auth', 'trusted', '--key-file', KEYS(), '--snapshot-store', 'none'];
const ready = async (run: Run) => Number((await printed(run, /"port":(\d+).*"msg":"ready"/))[1]);

describe('serve', function () {
  this.timeout(30_000);
  let folder: string;
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'memoryd-serve-'));
  });
  after(() => rm(folder, { recursive: true }));
  afterEach(killAll);

  describe('refuses to start, in one line,', () => {
    const refusals: [string, () => Run | Promise<Run>, RegExp][] = [
      ['without a database', () => memoryd(['serve', ...trusted()]), /DATABASE_URL is not set/],
      ['with a database that is no URL', () => serve(trusted(), 'localhost'), /DATABASE_URL is not a URL/],
      [
        'with a database that is away',
        () => serve(trusted(), 'postgres://u@127.0.0.1:1/d'),
        /127\.0\.0\.1:1 cannot be reached/,
      ],
      [
        'with a database that does not exist',
        () => serve(trusted(), new URL('/nodb', appUrl()).href),
        /no database "nodb"/,
      ],
      [
        'with a wrong password',
        () => serve(trusted(), appUrl().replace(':app@', ':nope@')),
        /refuses user "memoryd_app"/,
      ],
      [
        'with a schema that is too old',
        () => serve(trusted(), new URL('/template1', ownerUrl()).href),
        /too old .*`memoryd migrate`/,
      ],
      ['as a superuser', () => serve(trusted(), ownerUrl()), /superuser/],
      ['with BYPASSRLS', () => serve(trusted(), roleUrl('memoryd_bypass')), /has BYPASSRLS/],
      ['as the owner of the tables', () => serve(trusted(), roleUrl('memoryd_owning')), /owns \w+/],
      [
        'as a member of a role with BYPASSRLS',
        () => serve(trusted(), roleUrl('memoryd_becoming')),
        /may become memoryd_bypass/,
      ],
      ['without a key file', () => serve(['--auth', 'trusted']), /--key-file is missing/],
      [
        'with a key file that is not there',
        () => serve(['--auth', 'trusted', '--key-file', '/no/keys']),
        /no file \/no\/keys/,
      ],
      [
        'trusting whoever reaches it',
        () => serve([...trusted(), '--host', '0.0.0.0']),
        /0\.0\.0\.0 it needs --tls-client-ca/,
      ],
      ['without what verifies tokens', () => serve(['--key-file', KEYS()]), /needs --jwks, --issuer and --audience/],
      ['with half of TLS', () => serve([...trusted(), '--tls-cert', 'c.pem']), /go together/],
      ['with a flag that does not exist', () => serve(['--nope']), /unknown option '--nope'/],
      ['with a duration that is none', () => serve(['--pool-wait', '30']), /"30" is not a duration/],
    ];

    before(async () => {
      await runSql(
        ownerUrl(),
        `create role memoryd_bypass login bypassrls password 'app'; create role memoryd_owning login password 'app';
        create role memoryd_becoming login noinherit password 'app'; grant memoryd_bypass to memoryd_becoming;
        grant select on schema_versions to memoryd_bypass, memoryd_owning, memoryd_becoming; grant memoryd to memoryd_owning`,
      );
    });
    after(() =>
      runSql(
        ownerUrl(),
        `drop owned by memoryd_bypass, memoryd_owning, memoryd_becoming;
        drop role memoryd_bypass, memoryd_owning, memoryd_becoming`,
      ),
    );

    for (const [name, start, message] of refusals) {
      it(name, async () => {
        const run = await start();
        expect(await run.ended).to.equal(1);
        expect(run.err()).to.match(message);
        expect(run.err().trimEnd()).not.to.include('\n');
        expect(run.err()).not.to.include(':app');
      });
    }

    it('with a schema that is too new', async () => {
      await runSql(ownerUrl(), 'drop database if exists memoryd_new');
      await runSql(ownerUrl(), 'create database memoryd_new');
      try {
        const url = new URL('/memoryd_new', ownerUrl()).href;
        expect(await memoryd(['migrate'], { DATABASE_URL: url }).ended).to.equal(0);
        await runSql(url, 'insert into schema_versions (version, compatible_from) values (900, 900)');
        const run = serve(trusted(), url);
        expect(await run.ended).to.equal(1);
        expect(run.err()).to.match(/^memoryd: the schema is too new .*\n$/);
        expect(await memoryd(['migrate', 'status'], { DATABASE_URL: url }).ended).to.equal(1);
      } finally {
        await runSql(ownerUrl(), 'drop database memoryd_new with (force)');
      }
    });

    for (const flag of ['--port', '--metrics-port']) {
      it(`with a ${flag} that is taken`, async () => {
        const taken = createServer().listen(0, '127.0.0.1');
        await once(taken, 'listening');
        const { port } = taken.address() as AddressInfo;
        const run = serve([...trusted(), flag, String(port)]);
        expect(await run.ended).to.equal(1);
        expect(run.err()).to.match(new RegExp(`^memoryd: port ${port} on 127.0.0.1 is taken: .* with ${flag}\n$`));
        taken.close();
      });
    }
  });

  it('is ready, serves, and stops on a signal', async () => {
    const run = serve([...trusted(), '--drain-wait', '0s']);
    const client = connect(`127.0.0.1:${await ready(run)}`, headersOf(await newTenant()));
    const { session } = await client.memory.upsertSession({ session: { surfaceId: 'web', title: 'content' } });
    run.child.kill('SIGTERM');
    expect(await run.ended).to.equal(0);
    client.close();
    expect(run.err()).to.equal('');
    const lines = run
      .out()
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(lines.find(({ msg }) => msg === 'ready').ms).to.be.above(0);
    expect(lines.find(({ msg }) => msg === 'call')).to.include({
      method: 'MemoryService/UpsertSession',
      code: 'OK',
      sessionId: session!.id,
    });
    expect(run.out()).not.to.include('content');
    expect(lines.at(-1).msg).to.equal('stopped');
  });

  it('stops at once on a second signal', async () => {
    const run = serve([...trusted(), '--drain-wait', '60s']);
    await ready(run);
    run.child.kill('SIGINT');
    await printed(run, /"msg":"stopping"/);
    await sleep(300);
    run.child.kill('SIGINT');
    expect(await run.ended).to.equal(130);
  });

  it('tells once why none of its workers can start', async () => {
    const run = serve(['--auth', 'trusted', '--key-file', join(folder, 'none'), '--workers', '3']);
    expect(await run.ended).to.equal(1);
    expect(run.err().trimEnd().split('\n')).to.have.length(1);
    expect(run.err()).to.match(/^memoryd: --key-file: there is no file/);
  });

  it('warns of tokens in clear where they leave the machine', async () => {
    const jwks = join(folder, 'jwks.json');
    await writeFile(jwks, JSON.stringify({ keys: [] }));
    const jwt = ['--key-file', KEYS(), '--snapshot-store', 'none', '--jwks', jwks, '--issuer', 'i', '--audience', 'a'];
    const warned = async (host: string) => {
      const run = serve([...jwt, '--host', host]);
      await ready(run);
      run.child.kill('SIGKILL');
      return run.out().includes('tokens pass in clear');
    };
    expect(await warned('0.0.0.0')).to.equal(true);
    expect(await warned('127.0.0.1')).to.equal(false);
  });

  it('takes only clients that show a certificate of its CA', async function () {
    const pki = await certificates(folder).catch(() => this.skip());
    const tls = ['--tls-cert', pki.cert, '--tls-key', pki.key, '--tls-client-ca', pki.ca];
    const run = serve([...trusted(), '--host', '0.0.0.0', ...tls]);
    const port = await ready(run);
    const { ChannelCredentials } = await import('@grpc/grpc-js');
    const { readFileSync } = await import('node:fs');
    const { MemoryServiceClient } = await import('../src/gen/memory/v1/memory_service.ts');
    const read = (file: string) => readFileSync(file);
    const call = (credentials: InstanceType<typeof ChannelCredentials>) => {
      const client = new MemoryServiceClient(`localhost:${port}`, credentials);
      const request = { sessionId: '' };
      return failure(
        new Promise((resolve, reject) => {
          client.getSession(request, (error, reply) => (error ? reject(error) : resolve(reply)));
        }),
      ).finally(() => client.close());
    };
    const shown = await call(ChannelCredentials.createSsl(read(pki.ca), read(pki.key), read(pki.cert)));
    expect(shown.reason).to.equal('IDENTITY_REQUIRED');
    expect((await call(ChannelCredentials.createSsl(read(pki.ca)))).code).to.equal(14);
    expect((await call(ChannelCredentials.createInsecure())).code).to.equal(14);
  });
});

const roleUrl = (role: string) => appUrl().replace('memoryd_app:', `${role}:`);

describe('dev', function () {
  this.timeout(60_000);

  it('makes everything, prints calls that work, stops cleanly, and goes on with its data', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'memoryd-dev-'));
    const dev = () => memoryd(['dev', '--port', '0', '--data', join(folder, '.memoryd')]);
    try {
      const first = dev();
      const [, curl] = await printed(first, /^npx (buf curl .*)$/m);
      const [, port] = await printed(first, /^memoryd is ready on 127\.0\.0\.1:(\d+)/m);
      const bin = new URL('../node_modules/.bin/', import.meta.url).pathname;
      const answer = execFileSync('sh', ['-c', `${bin}${curl}`], { encoding: 'utf8' });
      const { session } = JSON.parse(answer);
      const outsider = connect(`127.0.0.1:${port}`, headersOf('globex', 'outsider'));
      expect((await failure(outsider.memory.getSession({ sessionId: session.id }))).reason).to.equal('NOT_FOUND');
      outsider.close();
      first.child.kill('SIGINT');
      expect(await first.ended).to.equal(0);
      expect(first.err()).to.equal('');

      const second = dev();
      const [, again] = await printed(second, /^memoryd is ready on 127\.0\.0\.1:(\d+)/m);
      const owner = connect(`127.0.0.1:${again}`, headersOf('acme', 'owner'));
      expect((await owner.memory.getSession({ sessionId: session.id })).session!.title).to.equal(session.title);
      owner.close();
      second.child.kill('SIGTERM');
      expect(await second.ended).to.equal(0);
      const [, home] = /with its data in (.*)\/data\.$/m.exec(second.out()) ?? [];
      if (home) await rm(home, { recursive: true });
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});

describe('memoryd', () => {
  it('has help for every command', async () => {
    const commands = [
      '',
      'dev',
      'serve',
      'migrate',
      'migrate up',
      'tenant',
      'tenant env add',
      'sweep',
      'session show',
      'tail',
      'keys add',
      'keys list',
      'keys remove',
    ];
    for (const command of commands) {
      const run = memoryd([...command.split(' ').filter(Boolean), '--help']);
      expect(await run.ended, command).to.equal(0);
      expect(run.out()).to.match(/^Usage: memoryd/);
    }
  }).timeout(20_000);

  it('takes URLs that hold passwords from the environment, as others see the command line', async () => {
    const nowhere = 'postgres://nobody@127.0.0.1:1/none';
    const status = memoryd(['migrate', 'status'], { DATABASE_URL: nowhere, MEMORYD_DIRECT_DATABASE_URL: ownerUrl() });
    expect(await status.ended).to.equal(0);
    const flags = [...trusted(), '--port', '0'];
    const run = memoryd(['serve', ...flags], { DATABASE_URL: appUrl(), MEMORYD_DIRECT_DATABASE_URL: nowhere });
    expect(await run.ended).to.equal(1);
    expect(run.err()).to.match(/^memoryd: the background jobs cannot start: .*127\.0\.0\.1:1\n$/);
  });

  it('manages tenants and members', async () => {
    const tenant = await newTenant();
    const run = async (...args: string[]) => {
      const command = memoryd(['tenant', ...args], { DATABASE_URL: appUrl() });
      return [await command.ended, command.out() + command.err()];
    };
    const made = `${tenant.slice(0, 40)}-x`;
    expect(await run('create', made, 'dev', 'prod')).to.deep.equal([0, `created tenant ${made} with dev, prod\n`]);
    expect(await run('create', made, 'dev')).to.deep.equal([1, `memoryd: there is a tenant ${made} already\n`]);
    expect(await run('env', 'add', made, 'qa')).to.deep.equal([0, `tenant ${made} has dev, prod, qa\n`]);
    expect(await run('member', 'add', made, 'qa', 'ann', '--admin')).to.deep.equal([
      0,
      `ann is an admin of ${made}, qa\n`,
    ]);
    expect(await run('list', made)).to.deep.equal([0, 'qa\tann\tadmin\n']);
    expect(await run('member', 'remove', made, 'qa', 'ann')).to.deep.equal([
      0,
      `ann is no member of ${made}, qa any more\n`,
    ]);
    expect(await run('member', 'add', made, 'nope', 'ann')).to.deep.equal([
      1,
      `memoryd: tenant ${made} has no env nope, only dev, prod, qa\n`,
    ]);
    expect(await run('quotas', made, '--max-sessions', '1000', '--max-calls-per-second', '50')).to.deep.equal([
      0,
      'max_sessions\t1000\nmax_messages_per_thread\tnone\nmax_stored_bytes\tnone\nmax_calls_per_second\t50\nmax_concurrent_calls\tnone\n',
    ]);
    const [, told] = await run('quotas', made, '--max-sessions', '0');
    expect(told).to.match(/^max_sessions\tnone\n.*max_calls_per_second\t50\n/s);
    expect(await run('quotas', made)).to.deep.equal([0, told]);
    expect(await run('quotas', made, '--max-concurrent-calls', '1000001')).to.deep.equal([
      1,
      'memoryd: max_concurrent_calls: not from 0 to 1000000\n',
    ]);
    const events = await runSql(ownerUrl(), 'select actor, action from audit_events where tenant_id = $1 order by id', [
      made,
    ]);
    expect(events.map(({ actor, action }) => `${actor} ${action}`)).to.deep.equal([
      'cli tenants.create',
      'cli tenants.update',
      'cli members.put',
      'cli members.remove',
      'cli tenants.update',
      'cli tenants.update',
    ]);
  }).timeout(40_000);
});

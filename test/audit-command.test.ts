import { readFile, stat, writeFile } from 'node:fs/promises';
import { expect } from 'chai';
import type { RunningServer } from '../src/server.ts';
import { plantEvents, sealed, settled, tamper } from './fixtures/audit.ts';
import { killAll, memoryd } from './fixtures/command.ts';
import { transferFolder } from './fixtures/transfer.ts';
import {
  allPages,
  appUrl,
  type Clients,
  connect,
  headersOf,
  metadataOf,
  newTenant,
  startTestServer,
  useOwnDatabase,
} from './support.ts';

describe('memoryd audit', function () {
  this.timeout(120_000);
  const { path, remove } = transferFolder();
  const keyFile = () => process.env.MEMORYD_TEST_KEY_FILE!;
  let leave: () => void;
  let server: RunningServer;
  let client: Clients;
  let tenant: string;

  before(async () => {
    leave = await useOwnDatabase(); // where nobody else seals
    server = await startTestServer();
    client = connect(`127.0.0.1:${server.port}`);
  });
  after(async () => {
    client.close();
    await server.stop();
    leave();
    await remove();
  });
  afterEach(killAll);
  beforeEach(async () => {
    tenant = await newTenant(['user']);
    await tamper(`update tenant_members set role = 2 where tenant_id = $1`, [tenant]);
  });

  const run = async (...args: string[]) => {
    const command = memoryd(['audit', ...args], { DATABASE_URL: appUrl() });
    const code = await command.ended;
    return { code, out: command.out(), err: command.err() };
  };
  const done = async (...args: string[]) => {
    const { code, out, err } = await run(...args);
    expect(code, err).to.equal(0);
    return out.split('\n').filter(Boolean);
  };
  const verify = (...args: string[]) => run('verify', '--key-file', keyFile(), ...args);
  const place = (env = 'dev') => ({ tenant, env });
  const here = () => ['--tenant', tenant, '--env', 'dev'];

  it('exports what the list tells, the oldest first, as clients of the API write it', async () => {
    await plantEvents(place(), 1200, { metadata: { text: '\u202e\u001b[2J"' } });
    await plantEvents(place(), 3, { user: 'other' });
    await plantEvents(place(''), 2);
    await plantEvents(place('prod'), 2);
    const listed = await allPages((pageToken) =>
      client.audit.listAuditEvents({ pageSize: 500, pageToken }, metadataOf(headersOf(tenant))),
    );
    const events = listed.flatMap((page) => page.events).reverse();
    const file = path('events.jsonl');
    expect(await done('export', file, ...here())).to.deep.equal([]);
    const lines = (await readFile(file, 'utf8')).trimEnd().split('\n');
    expect(lines.length).to.equal(1206); // and the one of the export itself
    const told = lines.map((line) => JSON.parse(line));
    expect(told.slice(0, -1).map(({ id }) => id)).to.deep.equal(events.map(({ id }) => id));
    expect(told.at(-1)).to.include({ action: 'audit.export', actor: 'cli', env: 'dev', outcome: 'OUTCOME_DONE' });
    const { metadata, createTime, outcome, ...rest } = told[0];
    expect(rest).to.deep.equal({
      id: events[0]!.id,
      env: 'dev',
      userId: 'user',
      actor: 'user',
      action: 'step.0',
      resource: 'sessions/s',
    });
    expect(outcome).to.equal('OUTCOME_DONE');
    expect(metadata).to.deep.equal({ text: '\u202e\u001b[2J"' });
    expect(Date.parse(createTime)).to.be.closeTo(events[0]!.createTime!.seconds * 1000, 1000);
    expect(lines[0]).to.include('\\u202e').and.not.include('\u202e');
    expect((await stat(file)).mode & 0o777).to.equal(0o600);
  });

  it('exports by each filter', async () => {
    await plantEvents(place(), 2);
    await plantEvents(place(), 1, { user: 'other', resource: 'threads/t' });
    const [last] = await plantEvents(place(), 1);
    await tamper(
      `update audit_events set trace_id = 'abc', request_id = id, session_id = id, outcome = 2, create_time = '2026-01-02T03:04:05.678Z' where id = $1`,
      [last],
    );
    const count = async (...args: string[]) => (await done('export', ...here(), ...args)).length;
    const filters: [string[], number][] = [
      [['--user', 'other'], 1],
      [['--actor', 'other'], 1],
      [['--action', 'step.0'], 3],
      [['--resource', 'threads/t'], 1],
      [['--trace', 'abc'], 1],
      [['--request', last!.toUpperCase()], 1],
      [['--session', last!], 1],
      [['--outcome', 'denied'], 1],
    ];
    const counts = await Promise.all(filters.map(async ([flags]) => [flags, await count(...flags)]));
    expect(counts).to.deep.equal(filters);
    // By time: those whose ids say that they are of about then.
    expect(await count('--action', 'step.0', '--start', '2026-01-03')).to.equal(2);
    for (const flags of [
      ['--start', 'yesterday'],
      ['--session', 'x'],
      ['--outcome', 'other'],
    ]) {
      const refused = await run('export', ...here(), ...flags);
      expect(refused.code, flags.join(' ')).to.equal(1);
      expect(refused.err.trimEnd().split('\n'), flags.join(' ')).to.have.length(1);
    }
  });

  it('seals, verifies, and tells the last block of each chain', async () => {
    await plantEvents(place(), 3);
    await plantEvents(place(''), 2);
    await sealed(server.kernel, place());
    await sealed(server.kernel, place(''));
    await plantEvents(place('prod'), 1);
    await settled(place('prod'));
    expect(await done('seal', '--key-file', keyFile())).to.include(`${tenant}/prod\t1`);
    expect(await done('seal', '--key-file', keyFile())).to.deep.equal(['nothing to seal']);
    const { code, out, err } = await verify('--tenant', tenant);
    expect(code, err).to.equal(0);
    const chains = out.trimEnd().split('\n');
    expect(chains.map((line) => line.replace(/[0-9a-f]{64}$/, 'HASH'))).to.deep.equal(
      ['', '/dev', '/prod'].map((env) => `${tenant}${env}\t1:HASH`),
    );
    expect(err).to.equal('verified 6 sealed events in 3 chains, 0 are not sealed yet: all as they were sealed\n');
    expect((await verify(...here())).out).to.equal(`${chains[1]}\n`);
    expect((await verify()).out).to.include(out);
  });

  it('ends with 1 and names what was changed, and what is missing of what was noted', async () => {
    const [first] = await plantEvents(place(), 3);
    await sealed(server.kernel, place());
    await plantEvents(place('prod'), 1);
    await sealed(server.kernel, place('prod'));
    const file = path('anchors');
    await writeFile(file, (await verify('--tenant', tenant)).out);
    expect((await verify('--tenant', tenant, '--anchors', file)).code).to.equal(0);
    await tamper(`update audit_events set actor = 'x' where id = $1`, [first]);
    const changed = await verify('--tenant', tenant);
    expect(changed.code).to.equal(1);
    expect(changed.out.split('\n').filter((line) => line.includes('/dev'))).to.deep.equal([
      `${tenant}/dev\tblock 1\tevent ${first}\tchanged`,
    ]);
    expect(changed.err).to.include('1 findings');
    for (const table of ['audit_blocks', 'audit_events', 'tenant_members', 'tenants'])
      await tamper(`delete from ${table} where tenant_id = $1`, [tenant]);
    const gone = await verify('--anchors', file);
    expect(gone.code).to.equal(1);
    expect(gone.out.split('\n').filter((line) => line.startsWith(tenant))).to.deep.equal(
      ['dev', 'prod'].map((env) => `${tenant}/${env}\tblock 1\tremoved: the chain is shorter than the anchor`),
    );
  });

  it('refuses in a line what it cannot do', async () => {
    const file = path('no-anchors');
    await writeFile(file, `${tenant}/dev\tblock 1\tchanged\n`);
    for (const [args, told] of [
      [['--env', 'dev'], '--env needs --tenant'],
      [['--tenant', 'nobody-at-all'], 'there is no tenant nobody-at-all'],
      [['--anchors', file], `line 1 of ${file} is not one that verify prints of a sound chain`],
      [['--anchors', path('nothing')], `${path('nothing')} cannot be read: ENOENT`],
    ] as [string[], string][]) {
      const { code, err } = await verify(...args);
      expect([code, err], args.join(' ')).to.deep.equal([1, `memoryd: ${told}\n`]);
    }
  });
});

import { randomUUID } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import { gunzipSync } from 'node:zlib';
import { expect } from 'chai';
import { killAll, memoryd, type Run } from './fixtures/command.ts';
import { contentOf, timeless, transferFolder } from './fixtures/transfer.ts';
import { appUrl, newDatabase, newTenant, ownerUrl, runSql, tenantSql, until } from './support.ts';

describe('memoryd export and import', function () {
  this.timeout(120_000);
  const { path, exported, remove } = transferFolder();
  let other: { owner: string; app: string };
  let little: string;
  let text: string;

  const start = (args: string[], url = other.app, env = {}): Run => memoryd(args, { DATABASE_URL: url, ...env });
  async function done(args: string[], url = other.app, env = {}): Promise<string> {
    const run = start(args, url, env);
    expect(await run.ended, run.err()).to.equal(0);
    return run.err();
  }

  before(async () => {
    other = await newDatabase();
    little = await newTenant(['user']);
    await tenantSql(
      little,
      `insert into audit_events (tenant_id, env, id, user_id, actor, action, outcome, resource)
       values ('${little}', 'dev', gen_random_uuid(), 'user', 'user', 'sessions.upsert', 1, 'sessions/1')`,
    );
    text = await exported(little, appUrl());
  });
  after(remove);
  afterEach(killAll);

  it('says what it did, and leaves an event in each env, of which an export knows nothing', async () => {
    const events = `select env, action, actor from audit_events where tenant_id = $1 and action like 'transfer.%' order by 1, 2`;
    const file = path('audited.jsonl');
    expect(await done(['export', file, '--tenant', little], appUrl())).to.equal(
      `exported 3 rows, 0.0 MB, to ${file}\n`,
    );
    expect(await runSql(ownerUrl(), events, [little])).to.deep.equal([
      { env: 'dev', action: 'transfer.export', actor: 'cli' },
      { env: 'prod', action: 'transfer.export', actor: 'cli' },
    ]);
    const into = `t-${randomUUID()}`;
    const take = (...flags: string[]) => done(['import', file, '--tenant', into, ...flags]);
    expect(await take('--dry-run')).to.equal(`tenant ${into}: 3 rows are whole, and nothing else is there\n`);
    expect(await take()).to.equal(`tenant ${into}: stored 3 rows; 0 were there already\n`);
    const kept = 'the tenant was there, and keeps its name, policies and members';
    expect(await take()).to.equal(`tenant ${into}: stored 0 rows; 3 were there already; ${kept}\n`);
    expect(await runSql(other.owner, events, [into])).to.deep.equal([
      { env: 'dev', action: 'transfer.import', actor: 'cli' },
    ]);
    expect(timeless(await exported(little, appUrl()))).to.equal(timeless(text));
    expect(text).to.include('"action":"sessions.upsert"');
  });

  it('tells nothing of rows that the database refuses', async () => {
    const file = path('refused.jsonl');
    await done(['export', file, '--tenant', little], appUrl());
    await runSql(
      other.owner,
      `create function refuse() returns trigger language plpgsql as $$ begin raise exception 'not %', new.resource; end $$;
       create trigger refuse before insert on audit_events for each row execute function refuse()`,
    );
    const run = start(['import', file, '--tenant', `t-${randomUUID()}`]);
    expect(await run.ended).to.equal(1);
    await runSql(other.owner, 'drop function refuse cascade');
    expect(run.err())
      .to.contain(`code: 'P0001'`)
      .and.to.match(/stack: .*\n? .*at /);
    expect(run.err()).to.not.contain('sessions/1');
  });

  it('writes a file that only its owner may read, compressed or to a pipe just the same', async () => {
    const file = path('packed.jsonl.gz');
    await done(['export', file, '--tenant', little], appUrl());
    expect((await stat(file)).mode & 0o777).to.equal(0o600);
    expect(timeless(gunzipSync(await readFile(file)).toString())).to.equal(timeless(text));
    const piped = start(['export', '-', '--tenant', little], appUrl());
    expect(await piped.ended, piped.err()).to.equal(0);
    expect(timeless(piped.out())).to.equal(timeless(text));
    const into = `t-${randomUUID()}`;
    await done(['import', file, '--tenant', into]);
    expect(contentOf(await exported(into, other.app))).to.equal(contentOf(text));
  });

  describe('of much', () => {
    let tenant: string;
    let file: string;
    // The heap that a command starts with is more than half of it, and what it moves is several times as much.
    const small = { NODE_OPTIONS: '--max-old-space-size=40' };

    before(async () => {
      tenant = await newTenant(['user']);
      await runSql(
        ownerUrl(),
        `insert into threads (tenant_id, env, user_id, thread_id, thread_uid, last_seq, revision, create_time, update_time)
         values ('${tenant}', 'dev', 'user', 'long', '0192a000-0000-7000-8000-000000000000', 10000, 10000, now(), now());
         insert into messages (tenant_id, env, thread_uid, seq, id, user_id, role, content, metadata, create_time, search_language)
         select '${tenant}', 'dev', '0192a000-0000-7000-8000-000000000000', n, gen_random_uuid(), 'user', 1 + n % 2, repeat(md5(n::text) || ' ', 50),
           jsonb_build_object('n', n, 'x', random(), 'deep', jsonb_build_array(1.10, 1e300, 12345678901234567890)), now(), 'simple' from generate_series(1, 10000) n;
         insert into bundles (tenant_id, env, id, user_id, source_thread_id, messages, message_count, byte_size, create_time)
         select '${tenant}', 'dev', gen_random_uuid(), 'user', 'long', jsonb_build_array(repeat('0123456789', 100000)), 1, 1000000, now()
         from generate_series(1, 25)`,
      );
      file = path('much.jsonl');
    });

    it('needs no more memory than of little', async () => {
      await done(['export', file, '--tenant', tenant], appUrl(), small);
      expect((await stat(file)).size).to.be.greaterThan(40e6);
      const { counts } = JSON.parse((await readFile(file, 'utf8')).trimEnd().split('\n').at(-1)!).end;
      expect(counts.dev).to.deep.equal({ threads: 1, messages: 10_000, bundles: 25, tenant_members: 1 });
      const into = `t-${randomUUID()}`;
      expect(await done(['import', file, '--tenant', into], other.app, small)).to.match(/stored 10,\d\d\d rows/);
      expect(contentOf(await exported(into, other.app))).to.equal(contentOf(await readFile(file, 'utf8')));
    });

    it('goes on where it was killed, and shows no tenant before it is whole', async () => {
      const into = `t-${randomUUID()}`;
      const there = async () => {
        const counts = ['messages', 'bundles', 'threads'].map(
          (table) => `(select count(*)::int from ${table} where tenant_id = '${into}')`,
        );
        return (await runSql(other.owner, `select ${counts.join(' + ')} as n`))[0].n as number;
      };
      for (let kills = 0; kills < 2; kills++) {
        const before = await there();
        const run = start(['import', file, '--tenant', into]);
        const more = before + 1 + Math.floor(Math.random() * 3000);
        await until(async () => (await there()) >= more || run.child.exitCode !== null);
        run.child.kill('SIGKILL');
        await run.ended;
        expect(await there(), 'rows that were stored').to.be.at.least(more);
        const found = await runSql(other.owner, 'select from tenants where tenant_id = $1', [into]);
        expect(found, 'a tenant of which a part is there').to.be.empty;
      }
      const told = await done(['import', file, '--tenant', into]);
      expect(told).to.match(/stored [\d,]+ rows; [\d,]+ were there already/);
      expect(contentOf(await exported(into, other.app))).to.equal(contentOf(await readFile(file, 'utf8')));
    });

    it('leaves a half-written export under another name, and begins anew', async () => {
      const again = path('again.jsonl');
      for (let kills = 0; kills < 2; kills++) {
        const run = start(['export', again, '--tenant', tenant], appUrl());
        await until(async () => (await stat(`${again}.partial`).catch(() => ({ size: 0 }))).size > 1e6);
        run.child.kill('SIGKILL');
        await run.ended;
        expect(await stat(again).catch((error) => error.code)).to.equal('ENOENT');
      }
      await done(['export', again, '--tenant', tenant], appUrl());
      expect(await stat(`${again}.partial`).catch((error) => error.code)).to.equal('ENOENT');
      expect(timeless(await readFile(again, 'utf8'))).to.equal(timeless(await readFile(file, 'utf8')));
    });
  });
});

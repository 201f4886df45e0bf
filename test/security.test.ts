import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm, stat } from 'node:fs/promises';
import { type AddressInfo, connect as connectTcp, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { TLSSocket } from 'node:tls';
import { pathToFileURL } from 'node:url';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { createLog } from '../src/log.ts';
import { withClient } from '../src/preflight.ts';
import { folderOf, pack } from '../src/snapshots/archive.ts';
import { openFolder } from '../src/snapshots/folder.ts';
import { certificates } from './fixtures/certificates.ts';
import {
  appUrl,
  connect,
  failure,
  headersOf,
  newTenant,
  ownerUrl,
  runSql,
  startTestServer,
  until,
  useOwnDatabase,
} from './support.ts';

const read = (file: string) => readFile(new URL(`../${file}`, import.meta.url), 'utf8');

describe('security', () => {
  describe('the page', () => {
    it('names for each claim a test that there is', async () => {
      const page = await read('docs/security.md');
      const named = [...page.matchAll(/`(test\/[\w./-]+\.ts)`((?:,? "[^"]+")+)/g)];
      expect(named.length).to.be.above(50);
      for (const [, file, titles] of named) {
        const source = await read(file!);
        for (const [, title] of titles!.matchAll(/"([^"]+)"/g)) {
          const there = ["'", '"', '`'].some((quote) => source.includes(`${quote}${title}${quote}`));
          expect(there, `${file} "${title}"`).to.equal(true);
        }
      }
    });

    it('has no claim without one, unless it says so', async () => {
      const page = await read('docs/security.md');
      const tables = page.split(/\n\n/).filter((part) => /^\|.*\| shown by \|\n/.test(part));
      expect(tables.length).to.be.above(5);
      for (const row of tables.flatMap((table) => table.trim().split('\n').slice(2))) {
        expect(row).to.match(/`test\/[\w./-]+\.ts` "|not tested: /);
      }
    });
  });

  it('the metrics name no tenant, user, session or content', async () => {
    const server = await startTestServer({ metricsPort: 0 });
    const tenant = await newTenant();
    const client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
    const named = { surfaceId: 'surface-of-mine', threadId: 'thread-of-mine', title: 'title-of-mine' };
    const { session } = await client.memory.upsertSession({ session: named });
    await failure(client.memory.getSession({ sessionId: 'session-of-mine' }));
    const metrics = await (await fetch(`http://127.0.0.1:${server.metricsPort}/metrics`)).text();
    client.close();
    await server.stop();
    expect(metrics).to.include('UpsertSession');
    for (const secret of [tenant, '"user"', session!.id, 'of-mine']) expect(metrics).to.not.include(secret);
  });

  it('log lines are not to be forged by what callers send', async () => {
    const lines: string[] = [];
    const server = await startTestServer({}, createLog('info', { write: (line) => lines.push(line) }));
    const forged = '\n{"level":"fatal","msg":"forged"}\n';
    const tenant = await newTenant([forged]);
    const client = connect(`127.0.0.1:${server.port}`, {
      ...headersOf(tenant, encodeURIComponent(forged)),
      'x-request-id': '"},{"level":"fatal"',
      traceparent: '00-"}{"level":"fatal',
    });
    await client.memory.upsertSession({ session: { surfaceId: forged, threadId: forged } });
    await client.conversation.listMessages({ threadId: forged });
    await failure(client.conversation.listMessages({ threadId: `${forged}2` }));
    client.close();
    await server.stop();
    const calls = lines.map((line) => JSON.parse(line)).filter(({ method }) => method);
    expect(calls.map(({ user }) => user)).to.include(forged);
    for (const line of lines) expect(line.indexOf('\n')).to.equal(line.length - 1);
    for (const { level, msg } of calls) expect([level, msg]).to.not.include.oneOf(['fatal', 'forged']);
  });

  it('a refused attempt that cannot be recorded is told in the log, without what Postgres says of it', async () => {
    const lines: any[] = [];
    const back = await useOwnDatabase();
    const server = await startTestServer({}, createLog('warn', { write: (line) => lines.push(JSON.parse(line)) }));
    const tenant = await newTenant();
    await runSql(
      ownerUrl(),
      `create function refuse() returns trigger language plpgsql as $$ begin raise exception 'not %', new.user_id; end $$;
       create trigger refuse before insert on audit_events for each row execute function refuse()`,
    );
    const client = connect(`127.0.0.1:${server.port}`, headersOf(tenant, 'a-name-to-keep'));
    await failure(client.memory.listSessions({}));
    client.close();
    const [line] = await until(async () => lines.length > 0 && lines);
    await server.stop();
    back();
    expect(line).to.include({ level: 'warn', method: 'MemoryService/ListSessions' });
    expect(line.err).to.include({ type: 'DatabaseError', code: 'P0001' });
    expect(JSON.stringify(lines)).to.not.contain('a-name-to-keep');
  });

  it('a request that is small only while it is compressed is refused', async () => {
    const server = await startTestServer();
    const tenant = await newTenant();
    const address = `127.0.0.1:${server.port}`;
    const client = connect(address, headersOf(tenant), { 'grpc.default_compression_algorithm': 2 });
    const bomb = Buffer.alloc(256 * 1024 * 1024);
    const refused = await failure(client.raw('/memory.v1.MemoryService/GetSession', bomb));
    expect(status[refused.code]).to.equal('RESOURCE_EXHAUSTED');
    expect((await client.memory.listSessions({})).sessions).to.deep.equal([]);
    client.close();
    await server.stop();
  });

  it('functions with the rights of their owner are closed to all but the service, and search no schema that others write', async () => {
    const functions = await runSql(
      ownerUrl(),
      `select p.oid::regprocedure::text as name, p.proconfig as settings, r.rolcanlogin or r.rolsuper or r.rolbypassrls as might,
         (select array_agg(case a.grantee when 0 then 'public' else a.grantee::regrole::text end order by 1)
          from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a where a.grantee <> p.proowner) as callers
       from pg_proc p join pg_roles r on r.oid = p.proowner
       where p.prosecdef and p.pronamespace = 'public'::regnamespace order by 1`,
    );
    expect(functions.map(({ name }) => name.split('(')[0])).to.include.members(['search_messages', 'search_memories']);
    for (const { name, settings, might, callers } of functions) {
      expect(might, name).to.equal(false);
      expect(callers, name).to.deep.equal(['memoryd_app']);
      expect(settings, name).to.include('search_path=public, pg_temp');
    }
    const writers = await runSql(
      ownerUrl(),
      `select rolname from pg_roles where rolname like 'memoryd\\_%' and has_schema_privilege(rolname, 'public', 'create') and rolname ~ '^memoryd_(app|jobs|search|audit)$'`,
    );
    expect(writers).to.deep.equal([]);
  });

  it('snapshots in a folder can be read by their owner only, whatever their project is called', async () => {
    const root = await mkdtemp(join(tmpdir(), 'memoryd-security-'));
    try {
      const store = openFolder(pathToFileURL(root));
      const hostile = [
        '..',
        '../..',
        '.',
        '/etc',
        'a/../../b',
        '..\\..',
        '%2e%2e',
        '~',
        'x'.repeat(128),
        'ü'.repeat(128),
        ' \n',
      ];
      const place = { tenant: 'acme', env: 'dev' };
      for (const name of hostile) {
        const subject = { kind: 'artifact' as const, ...place, projectId: name, artifactKey: name, version: 1 };
        const file = pack(subject, new Map([['a.json', Buffer.from('{}')]]));
        await store.put(folderOf(subject), file, AbortSignal.timeout(10_000));
        expect(await store.get(folderOf(subject), file.name)).to.deep.equal(file.bytes);
      }
      const kept = await readdir(root, { recursive: true, withFileTypes: true });
      const files = kept.filter((entry) => entry.isFile());
      expect(files).to.have.length(hostile.length);
      for (const entry of kept) {
        const path = join(entry.parentPath, entry.name);
        expect((await stat(path)).mode & 0o077, path).to.equal(0);
        if (entry.isFile()) expect(relative(root, path)).to.match(/^acme\/dev\/[^/]+\/[^/]+$/);
      }
    } finally {
      await rm(root, { recursive: true });
    }
  });

  it('the database is reached by TLS where its URL says so, and only with the certificate that it asks for', async function () {
    const folder = await mkdtemp(join(tmpdir(), 'memoryd-security-'));
    const pki = await certificates(folder).catch(() => this.skip());
    const [key, cert] = await Promise.all([readFile(pki.key), readFile(pki.cert)]);
    const { hostname, port } = new URL(appUrl());
    let secured = 0;
    /** A Postgres that speaks TLS, or not: what a proxy makes of the one there is. */
    const serve = async (answer: 'S' | 'N') => {
      const server = createServer(async (socket: Socket) => {
        socket.on('error', () => {});
        await once(socket, 'readable');
        socket.read(8); // that TLS is wanted
        socket.write(answer);
        if (answer === 'N') return;
        const inner = new TLSSocket(socket, { isServer: true, key, cert });
        inner.on('error', () => {});
        inner.on('secure', () => secured++);
        const database = connectTcp(Number(port), hostname);
        inner.pipe(database).pipe(inner);
      }).listen(0, '127.0.0.1');
      await once(server, 'listening');
      return server;
    };
    const [speaks, refuses] = [await serve('S'), await serve('N')];
    const reach = (server: typeof speaks, host: string, parameters: string) => {
      const url = new URL(appUrl());
      url.host = `${host}:${(server.address() as AddressInfo).port}`;
      return withClient(`${url.href}?${parameters}`, (client) => client.query('select 1')).then(
        () => 'reached',
        (error) => error.message as string,
      );
    };
    try {
      const asked = `sslmode=verify-full&sslrootcert=${pki.ca}`;
      expect(await reach(speaks, 'localhost', asked)).to.equal('reached');
      expect(secured).to.equal(1);
      expect(await reach(speaks, '127.0.0.1', asked)).to.match(/not in the cert|does not match/i);
      expect(await reach(speaks, 'localhost', 'sslmode=verify-full')).to.match(/certificate/);
      expect(await reach(refuses, 'localhost', asked)).to.match(/SSL/);
    } finally {
      speaks.close();
      refuses.close();
      await rm(folder, { recursive: true });
    }
  });
});

import { createHmac, randomBytes, type webcrypto } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { exportJWK, exportSPKI, generateKeyPair, SignJWT } from 'jose';
import { pino } from 'pino';
import type { RunningServer } from '../src/server.ts';
import { addMembers, ask, dump, expectNothingOf } from './fixtures/answers.ts';
import { LONG_MS, type Marks, type Planted, plant, requestIdsOf } from './fixtures/places.ts';
import { type Access, namesOfNothing, PROBES } from './fixtures/probes.ts';
import { RPCS } from './fixtures/rpcs.ts';
import { type Clients, connect, headersOf, metadataOf, newTenant, startTestServer, useOwnDatabase } from './support.ts';

const ISSUER = 'https://issuer.example';
const AUDIENCE = 'memoryd';
const { ABORTED, OK, NOT_FOUND, PERMISSION_DENIED, UNAUTHENTICATED } = status;

interface Attack {
  token: string;
  headers?: Record<string, string>;
  /** By access; `else` for the others. Where it says nothing, what the probe answers to whoever owns nothing. */
  code: Partial<Record<Access | 'else', status>>;
}

describe('isolation by tokens', () => {
  const word = () => [...randomBytes(20)].map((byte) => String.fromCharCode(97 + (byte % 26))).join('');
  const marks: Marks = { content: word(), id: word() };
  const lines: string[] = [];
  let folder: string;
  let server: RunningServer;
  let client: Clients;
  let victim: Planted;
  let attacks: Record<string, Attack>;

  let restore = () => {};

  before(async () => {
    restore = await useOwnDatabase();
    folder = await mkdtemp(join(tmpdir(), 'memoryd-isolation-'));
    const jwks = join(folder, 'jwks.json');
    const [good, forged] = await Promise.all([
      generateKeyPair('ES256', { extractable: true }),
      generateKeyPair('ES256'),
    ]);
    await writeFile(jwks, JSON.stringify({ keys: [{ ...(await exportJWK(good.publicKey)), kid: 'k', alg: 'ES256' }] }));

    const tenant = await newTenant([], { pii: 3 });
    const elsewhere = await newTenant([], { pii: 3 });
    const place = { tenant, env: 'dev', user: 'user', admin: 'admin', destination: 'maybes' };
    const member = { ...place, user: 'other' };
    await addMembers([
      place,
      { ...place, user: 'admin', role: 2 },
      member,
      { ...place, tenant: elsewhere },
      { ...place, env: 'prod' },
    ]);
    const trusted = await startTestServer({ callTimeout: LONG_MS });
    const planter = connect(`127.0.0.1:${trusted.port}`);
    victim = await plant(planter, place, marks, requestIdsOf());
    planter.close();
    await trusted.stop();

    const log = pino({ level: 'trace' }, { write: (line: string) => void lines.push(line) });
    server = await startTestServer(
      { callTimeout: LONG_MS, auth: 'jwt', jwks, issuer: ISSUER, audience: AUDIENCE },
      log,
    );
    client = connect(`127.0.0.1:${server.port}`);
    attacks = await attacksOn(tenant, elsewhere, good, forged.privateKey);
  });
  after(async () => {
    client?.close();
    await server?.stop();
    restore();
    await rm(folder, { recursive: true });
  });

  async function attacksOn(
    tenant: string,
    elsewhere: string,
    good: webcrypto.CryptoKeyPair,
    forger: webcrypto.CryptoKey,
  ) {
    const now = Math.floor(Date.now() / 1000);
    const claims = { iss: ISSUER, aud: AUDIENCE, sub: 'user', tenants: [tenant], exp: now + 600 };
    const sign = (changes: object, key = good.privateKey) =>
      new SignJWT({ ...claims, ...changes }).setProtectedHeader({ alg: 'ES256', kid: 'k' }).sign(key);
    const encoded = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url');
    const parts = (header: object, payload: object) => `${encoded(header)}.${encoded(payload)}`;
    const [head, , signature] = (await sign({ sub: 'other' })).split('.');
    const confused = parts({ alg: 'HS256', kid: 'k' }, claims);
    const secret = await exportSPKI(good.publicKey);

    const here = headersOf(tenant, 'user', 'dev');
    const unauthenticated = { else: UNAUTHENTICATED };
    const denied = { else: PERMISSION_DENIED };
    const own = { admin: PERMISSION_DENIED, handoff: PERMISSION_DENIED, operator: PERMISSION_DENIED };
    const all: Record<string, Attack> = {
      'no token': { token: '', code: unauthenticated },
      'a token that is none': { token: 'garbage', code: unauthenticated },
      'a token signed by another key': { token: await sign({}, forger), code: unauthenticated },
      'an expired token': { token: await sign({ exp: now - 60 }), code: unauthenticated },
      'a token that never expires': { token: await sign({ exp: undefined }), code: unauthenticated },
      'a token of tomorrow': { token: await sign({ nbf: now + 86_400 }), code: unauthenticated },
      'a token of another issuer': { token: await sign({ iss: 'https://evil.example' }), code: unauthenticated },
      'a token for another audience': { token: await sign({ aud: 'billing' }), code: unauthenticated },
      'an unsigned token': { token: `${parts({ alg: 'none' }, claims)}.`, code: unauthenticated },
      'a token signed with the public key': {
        token: `${confused}.${createHmac('sha256', secret).update(confused).digest('base64url')}`,
        code: unauthenticated,
      },
      "a token with another's payload": { token: `${head}.${encoded(claims)}.${signature}`, code: unauthenticated },
      'a token for another tenant': { token: await sign({ tenants: [elsewhere] }), code: denied },
      'a token for another env': { token: await sign({ tenants: [`${tenant}/prod`] }), code: denied },
      'a token for no tenant': { token: await sign({ tenants: [] }), code: denied },
      "another user's token": { token: await sign({ sub: 'other' }), code: denied },
      'a token of no member': {
        token: await sign({ sub: 'stranger' }),
        headers: { 'x-user-id': 'stranger' },
        code: denied,
      },
      'a service that may not act for users': {
        token: await sign({ sub: 'bot', scope: 'memory:handoff' }),
        code: denied,
      },
      'scopes in a header': {
        token: await sign({ sub: 'other' }),
        headers: { 'x-user-id': 'other', 'x-scopes': 'memory:operator memory:handoff memory:act-as' },
        code: own,
      },
      'another user': { token: await sign({ sub: 'other' }), headers: { 'x-user-id': 'other' }, code: own },
      'another user, unnamed': { token: await sign({ sub: 'other' }), headers: { 'x-user-id': '' }, code: own },
      'a member elsewhere, unnamed': {
        token: await sign({ tenants: [elsewhere] }),
        headers: { 'x-tenant-id': elsewhere, 'x-user-id': '' },
        code: own,
      },
      'an operator that names the user': {
        token: await sign({ sub: 'ops', tenants: [], scope: 'memory:operator memory:act-as memory:handoff' }),
        code: denied,
      },
      'an operator that names no user': {
        token: await sign({ sub: 'ops', tenants: [], scope: 'memory:operator memory:act-as memory:handoff' }),
        headers: { 'x-user-id': '' },
        code: {
          member: UNAUTHENTICATED,
          shared: UNAUTHENTICATED,
          userless: PERMISSION_DENIED,
          handoff: PERMISSION_DENIED,
          admin: OK,
          operator: OK,
        },
      },
    };
    for (const attack of Object.values(all)) attack.headers = { ...here, ...attack.headers };
    return all;
  }

  it('refuses every method without a good token, and leaks and changes nothing', async () => {
    const stored = await dump(victim.place);
    expect(stored.messages).to.not.be.empty;
    lines.length = 0;
    for (const rpc of RPCS) {
      const { access, probes } = PROBES[rpc.name]!;
      // One that makes nothing which a later one finds.
      const probe = probes.find(({ answer }) => answer === NOT_FOUND || answer === ABORTED) ?? probes[0]!;
      for (const [who, { token, headers, code }] of Object.entries(attacks)) {
        // What operators and admins may do for real is not for here.
        const expected = code[access] ?? code.else ?? probe.answer;
        if (expected === OK && ['admin', 'operator'].includes(access)) continue;
        const what = `${rpc.name} by ${who}`;
        const metadata = metadataOf(Object.fromEntries(Object.entries(headers!).filter(([, value]) => value)));
        if (token) metadata.set('authorization', `Bearer ${token}`);
        // What members share is theirs as well: of it they try what is not there.
        const request = probe.request(access === 'shared' ? namesOfNothing() : victim);
        const answer = await ask(client, rpc, request, metadata);
        expect(status[answer.code], `${what}: ${answer.message}`).to.equal(status[expected]);
        // A caller's own refused attempts are told to it, with the ids that it tried.
        const tried = rpc.name.endsWith('/ListAuditEvents') ? victim : request;
        expectNothingOf(marks, victim, answer, tried, what);
        if (token) expect(answer.seen.includes(token.slice(-20)), `${what}: quotes the token`).to.equal(false);
      }
    }
    expect(lines.filter((line) => Object.values(marks).some((mark) => line.includes(mark)))).to.deep.equal([]);
    for (const { token } of Object.values(attacks)) {
      if (token) expect(lines.filter((line) => line.includes(token.slice(-20)))).to.deep.equal([]);
    }
    expect(await dump(victim.place)).to.deep.equal(stored);
  });
});

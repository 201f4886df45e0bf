import { createHmac, type webcrypto } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { mock } from 'node:test';
import { Metadata, status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { exportJWK, exportSPKI, generateKeyPair, type JWK, type JWTPayload, SignJWT } from 'jose';
import type { Caller } from '../src/rpc/caller.ts';
import { RpcError } from '../src/rpc/errors.ts';
import type { Authenticate } from '../src/rpc/identity.ts';
import { type JwtOptions, jwtAuthenticate } from '../src/rpc/jwt.ts';

const ISSUER = 'https://issuer.example';
const AUDIENCE = 'memoryd';
const ACT_AS = 'memory:act-as';

interface Key {
  kid: string;
  alg: string;
  privateKey: webcrypto.CryptoKey;
  publicKey: webcrypto.CryptoKey;
  jwk: JWK;
}

async function makeKey(kid: string, alg = 'ES256'): Promise<Key> {
  const { privateKey, publicKey } = await generateKeyPair(alg, { extractable: true });
  return { kid, alg, privateKey, publicKey, jwk: { ...(await exportJWK(publicKey)), kid, alg, use: 'sig' } };
}

const keySet = (...keys: Key[]) => JSON.stringify({ keys: keys.map((key) => key.jwk) });
const seconds = (fromNow: number) => Math.floor(Date.now() / 1000) + fromNow;
const encoded = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url');

/** A good user's token, except for what is overridden; undefined leaves a claim out. */
function claims(overrides: Record<string, unknown> = {}): JWTPayload {
  const all = { iss: ISSUER, aud: AUDIENCE, sub: 'ann', tenants: ['acme'], exp: seconds(600), ...overrides };
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined));
}

const sign = (key: Key, overrides: Record<string, unknown> = {}) =>
  new SignJWT(claims(overrides)).setProtectedHeader({ alg: key.alg, kid: key.kid }).sign(key.privateKey);

function metadata(token: string, headers: Record<string, string> = {}): Metadata {
  const result = new Metadata();
  result.set('authorization', `Bearer ${token}`);
  for (const [name, value] of Object.entries(headers)) result.set(name, value);
  return result;
}

const at = (tenant: string, env: string, user?: string) => ({
  'x-tenant-id': tenant,
  'x-env': env,
  ...(user !== undefined && { 'x-user-id': user }),
});

async function refused(attempt: () => Caller | Promise<Caller>): Promise<RpcError> {
  try {
    await attempt();
  } catch (error) {
    expect(error).to.be.instanceOf(RpcError);
    return error as RpcError;
  }
  throw new Error('was not refused');
}

async function startRefused(options: JwtOptions): Promise<string> {
  return jwtAuthenticate(options).then(
    () => '',
    (error) => error.message,
  );
}

/** Moves the clock of the process while `work` runs. */
async function later<T>(ms: number, work: () => Promise<T>): Promise<T> {
  mock.timers.enable({ apis: ['Date'], now: Date.now() + ms });
  try {
    return await work();
  } finally {
    mock.timers.reset();
  }
}

describe('JWT authentication', () => {
  let folder: string;
  let path: string;
  let key: Key;
  let rsa: Key;
  let stranger: Key;
  let authenticate: Authenticate;

  const options = (overrides: Partial<JwtOptions> = {}): JwtOptions => ({
    jwks: path,
    issuer: ISSUER,
    audience: AUDIENCE,
    algorithms: ['ES256', 'RS256'],
    ...overrides,
  });
  const call = async (overrides: Record<string, unknown>, headers: Record<string, string> = {}) =>
    authenticate(metadata(await sign(key, overrides), headers));

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'memoryd-jwt-'));
    path = join(folder, 'jwks.json');
    [key, rsa, stranger] = await Promise.all([makeKey('a'), makeKey('b', 'RS256'), makeKey('a')]);
    await writeFile(path, keySet(key, rsa));
    authenticate = await jwtAuthenticate(options());
  });

  after(() => rm(folder, { recursive: true }));

  describe('a user', () => {
    it('is the sub, in the tenant and env that the headers name', async () => {
      expect(await call({}, at('acme', 'dev', 'ann'))).to.deep.equal({
        tenant: 'acme',
        env: 'dev',
        user: 'ann',
        actor: 'ann',
        scopes: new Set(),
        vouched: true,
      });
    });

    it('may leave out what the token determines', async () => {
      expect(await call({ tenants: ['acme/dev'] })).to.include({ tenant: 'acme', env: 'dev', user: 'ann' });
      expect(await call({}, { 'x-env': 'dev' })).to.include({ tenant: 'acme', env: 'dev' });
      const two = { tenants: ['acme/dev', 'beta/dev', 'beta/prod'] };
      expect(await call(two, { 'x-tenant-id': 'acme' })).to.include({ tenant: 'acme', env: 'dev' });
    });

    it('gets nothing assumed that the token leaves open', async () => {
      expect(await call({})).to.include({ tenant: 'acme', env: '' });
      expect(await call({ tenants: ['acme', 'beta'] })).to.include({ tenant: '', env: '' });
      expect(await call({ tenants: ['acme/dev', 'acme/prod'] })).to.include({ tenant: 'acme', env: '' });
      expect(await call({ tenants: ['acme', 'acme/dev'] })).to.include({ tenant: 'acme', env: '' });
      expect(await call({ tenants: undefined })).to.include({ tenant: '', env: '' });
    });

    it('has no scopes, whatever the headers and a stranger scope say', async () => {
      const caller = await call({ scope: 'openid profile' }, { ...at('acme', 'dev'), 'x-scopes': 'memory:operator' });
      expect(caller).to.deep.include({ user: 'ann', scopes: new Set() });
    });

    it('is compared after the percent-encoding of the header', async () => {
      expect(await call({ sub: 'zoë' }, at('acme', 'dev', 'zo%C3%AB'))).to.include({ user: 'zoë' });
    });

    const disagreements: [string, Record<string, unknown>, Record<string, string>, string][] = [
      ['another user', {}, at('acme', 'dev', 'bob'), 'x-user-id'],
      ['another tenant', {}, at('beta', 'dev'), 'x-tenant-id'],
      ['another tenant without an env', {}, { 'x-tenant-id': 'beta' }, 'x-tenant-id'],
      ['another env', { tenants: ['acme/dev'] }, at('acme', 'prod'), 'x-env'],
      ['another env of the only tenant', { tenants: ['acme/dev'] }, { 'x-env': 'prod' }, 'x-env'],
      ['the env of another tenant', { tenants: ['acme/dev', 'beta/prod'] }, at('acme', 'prod'), 'x-env'],
      ['a tenant that begins like its own', {}, at('acme-2', 'dev'), 'x-tenant-id'],
      ['a tenant, with a token that has none', { tenants: [] }, at('acme', 'dev'), 'x-tenant-id'],
    ];
    for (const [what, token, headers, name] of disagreements) {
      it(`may not name ${what}`, async () => {
        const error = await refused(() => call(token, headers));
        expect(error).to.include({ code: status.PERMISSION_DENIED, reason: 'TOKEN_MISMATCH' });
        expect(error.message).to.contain(name);
      });
    }
  });

  describe('a service', () => {
    it('acts for any user of its tenants, and is recorded as the actor', async () => {
      for (const scopes of [{ scope: `openid ${ACT_AS}` }, { scopes: [ACT_AS] }]) {
        const caller = await call({ sub: 'chat', ...scopes }, at('acme', 'dev', 'bob'));
        expect(caller).to.deep.include({ user: 'bob', actor: 'chat', scopes: new Set([ACT_AS]), vouched: true });
      }
    });

    it('may name no user', async () => {
      expect(await call({ sub: 'chat', scope: ACT_AS }, at('acme', 'dev'))).to.include({ user: '', actor: 'chat' });
      const puller = await call({ sub: 'puller', scope: 'memory:handoff' }, at('acme', 'dev'));
      expect(puller).to.deep.include({ user: '', scopes: new Set(['memory:handoff']), vouched: false });
    });

    it('may name a user only with memory:act-as', async () => {
      for (const user of ['bob', 'puller']) {
        const error = await refused(() => call({ sub: 'puller', scope: 'memory:handoff' }, at('acme', 'dev', user)));
        expect(error).to.include({ code: status.PERMISSION_DENIED, reason: 'SCOPE_REQUIRED' });
      }
    });

    it('stays in its tenants', async () => {
      const error = await refused(() => call({ sub: 'chat', scope: ACT_AS }, at('beta', 'dev', 'bob')));
      expect(error).to.include({ code: status.PERMISSION_DENIED, reason: 'TOKEN_MISMATCH' });
    });
  });

  describe('an operator', () => {
    const operator = { sub: 'ops', tenants: undefined, scope: 'memory:operator' };
    const everything = { sub: 'ops', scope: `memory:operator memory:handoff ${ACT_AS}` };

    it('may leave out the tenant, or name any', async () => {
      expect(await call(operator)).to.include({ tenant: '', env: '', user: '', actor: 'ops', vouched: false });
      expect(await call(operator, at('beta', 'dev'))).to.include({ tenant: 'beta', env: 'dev', user: '' });
    });

    it('is nothing but an operator outside its tenants', async () => {
      const outside = await call(everything, at('beta', 'dev'));
      expect(outside).to.deep.include({ scopes: new Set(['memory:operator']), vouched: false });
      const inside = await call(everything, at('acme', 'dev', 'bob'));
      expect(inside).to.include({ user: 'bob', vouched: true });
      expect(inside.scopes).to.have.lengthOf(3);
      for (const headers of [at('beta', 'dev', 'bob'), { 'x-user-id': 'bob' }]) {
        const error = await refused(() =>
          call({ ...everything, tenants: headers === undefined ? [] : ['acme', 'gamma'] }, headers),
        );
        expect(error).to.include({ code: status.PERMISSION_DENIED, reason: 'TOKEN_MISMATCH' });
      }
    });
  });

  describe('a token that is no good', () => {
    const b64 = (text: string) => Buffer.from(text).toString('base64url');
    const tokens: Record<string, [string, () => Promise<string>]> = {
      'that is expired': ['TOKEN_EXPIRED', () => sign(key, { exp: seconds(-60) })],
      'that is not valid yet': ['TOKEN_INVALID', () => sign(key, { nbf: seconds(60) })],
      'without an expiry': ['TOKEN_INVALID', () => sign(key, { exp: undefined })],
      'with an expiry that is no number': ['TOKEN_INVALID', () => sign(key, { exp: '9999999999' })],
      'of another issuer': ['TOKEN_INVALID', () => sign(key, { iss: 'https://other.example' })],
      'without an issuer': ['TOKEN_INVALID', () => sign(key, { iss: undefined })],
      'for another audience': ['TOKEN_INVALID', () => sign(key, { aud: ['billing', 'memoryd2'] })],
      'without an audience': ['TOKEN_INVALID', () => sign(key, { aud: undefined })],
      'without a sub': ['TOKEN_INVALID', () => sign(key, { sub: undefined })],
      'with an empty sub': ['TOKEN_INVALID', () => sign(key, { sub: '' })],
      'with a sub that is no text': ['TOKEN_INVALID', () => sign(key, { sub: 7 })],
      'with a sub of 129 characters': ['TOKEN_INVALID', () => sign(key, { sub: 'x'.repeat(129) })],
      'with NUL in the sub': ['TOKEN_INVALID', () => sign(key, { sub: 'a\0b' })],
      'with tenants as a text': ['TOKEN_INVALID', () => sign(key, { tenants: 'acme' })],
      'with a tenant that is none': ['TOKEN_INVALID', () => sign(key, { tenants: ['acme', '*'] })],
      'with an empty env': ['TOKEN_INVALID', () => sign(key, { tenants: ['acme/'] })],
      'with a tenant of three parts': ['TOKEN_INVALID', () => sign(key, { tenants: ['acme/dev/x'] })],
      'with a scope that is an array': ['TOKEN_INVALID', () => sign(key, { scope: [ACT_AS] })],
      'with scopes that are a text': ['TOKEN_INVALID', () => sign(key, { scopes: ACT_AS })],
      'signed with another key of the same id': ['TOKEN_INVALID', () => sign(stranger)],
      'signed with a key of an unknown id': ['TOKEN_INVALID', () => sign({ ...key, kid: 'nobody' })],
      'that names the id of a key of another kind': ['TOKEN_INVALID', () => sign({ ...key, kid: 'b' })],
      'of an algorithm that is not pinned': [
        'TOKEN_INVALID',
        async () => new SignJWT(claims()).setProtectedHeader({ alg: 'PS256', kid: 'b' }).sign(await asPs256(rsa)),
      ],
      'without a signature (alg none)': [
        'TOKEN_INVALID',
        async () => `${encoded({ alg: 'none' })}.${encoded(claims())}.`,
      ],
      'with alg none and the id of a key': [
        'TOKEN_INVALID',
        async () => `${encoded({ alg: 'none', kid: 'a' })}.${encoded(claims())}.`,
      ],
      'signed by HS256 with the public key': [
        'TOKEN_INVALID',
        async () => hs256(encoded({ alg: 'HS256', kid: 'b' }), await exportSPKI(rsa.publicKey)),
      ],
      'that brings its own key': [
        'TOKEN_INVALID',
        () =>
          new SignJWT(claims())
            .setProtectedHeader({ alg: 'ES256', kid: 'mine', jwk: stranger.jwk })
            .sign(stranger.privateKey),
      ],
      'with other claims under a good signature': [
        'TOKEN_INVALID',
        async () => {
          const [head, , signature] = (await sign(key)).split('.');
          return `${head}.${encoded(claims({ sub: 'root' }))}.${signature}`;
        },
      ],
      'whose signature is cut off': ['TOKEN_INVALID', async () => (await sign(key)).replace(/\.[^.]+$/, '.')],
      'of two parts': ['TOKEN_INVALID', async () => (await sign(key)).replace(/\.[^.]+$/, '')],
      'of five parts, as if encrypted': ['TOKEN_INVALID', async () => `${await sign(key)}.a.b`],
      'that is no token': ['TOKEN_INVALID', async () => 'hello'],
      'whose claims are no JSON': ['TOKEN_INVALID', async () => signedText(key, b64('{'))],
      'whose claims are an array': ['TOKEN_INVALID', async () => signedText(key, b64('[]'))],
    };
    for (const [what, [reason, make]] of Object.entries(tokens)) {
      it(`is refused: one ${what}`, async () => {
        const token = await make();
        const error = await refused(() => authenticate(metadata(token, at('acme', 'dev'))));
        expect(error).to.include({ code: status.UNAUTHENTICATED, reason });
        for (const part of token.split('.')) if (part.length > 3) expect(error.message).not.to.contain(part);
      });
    }

    async function asPs256(from: Key) {
      const pkcs8 = await crypto.subtle.exportKey('pkcs8', from.privateKey);
      return crypto.subtle.importKey('pkcs8', pkcs8, { name: 'RSA-PSS', hash: 'SHA-256' }, false, ['sign']);
    }

    function hs256(head: string, secret: string): string {
      const signed = `${head}.${encoded(claims())}`;
      return `${signed}.${createHmac('sha256', secret).update(signed).digest('base64url')}`;
    }

    async function signedText(by: Key, payload: string): Promise<string> {
      const signed = `${encoded({ alg: by.alg, kid: by.kid })}.${payload}`;
      const algorithm = { name: 'ECDSA', hash: 'SHA-256' };
      const signature = await crypto.subtle.sign(algorithm, by.privateKey, Buffer.from(signed));
      return `${signed}.${Buffer.from(signature).toString('base64url')}`;
    }
  });

  describe('the headers', () => {
    it('must hold a bearer token', async () => {
      expect(await refused(() => authenticate(new Metadata()))).to.include({
        code: status.UNAUTHENTICATED,
        reason: 'TOKEN_MISSING',
      });
      for (const value of ['Basic YTpi', 'Bearer', 'Bearer a b', await sign(key)]) {
        const headers = new Metadata();
        headers.set('authorization', value);
        const error = await refused(() => authenticate(headers));
        expect(error).to.include({ code: status.UNAUTHENTICATED, reason: 'TOKEN_INVALID' });
        expect(error.message).not.to.contain(value);
      }
    });

    it('take the scheme in any case', async () => {
      const headers = metadata('', at('acme', 'dev'));
      headers.set('authorization', `bearer ${await sign(key)}`);
      expect(await authenticate(headers)).to.include({ user: 'ann' });
    });

    for (const name of ['authorization', 'x-tenant-id', 'x-env', 'x-user-id']) {
      it(`name ${name} once`, async () => {
        const headers = metadata(await sign(key), at('acme', 'dev', 'ann'));
        headers.add(name, String(headers.get(name)[0]));
        const error = await refused(() => authenticate(headers));
        expect(error).to.include({ code: status.UNAUTHENTICATED, reason: 'MALFORMED_IDENTITY' });
      });
    }
  });

  describe('what is remembered of a token', () => {
    it('ends with the token', async () => {
      const token = await sign(key, { exp: seconds(30) });
      const attempt = async () => authenticate(metadata(token, at('acme', 'dev')));
      expect(await attempt()).to.include({ user: 'ann' });
      await later(20_000, async () => expect(await attempt()).to.include({ user: 'ann' }));
      const error = await later(40_000, () => refused(attempt));
      expect(error).to.include({ code: status.UNAUTHENTICATED, reason: 'TOKEN_EXPIRED' });
    });

    it('is not mixed up between the headers of two calls', async () => {
      const token = await sign(key, { tenants: ['acme', 'beta'] });
      expect(await authenticate(metadata(token, at('acme', 'dev')))).to.include({ tenant: 'acme' });
      expect(await authenticate(metadata(token, at('beta', 'dev')))).to.include({ tenant: 'beta' });
      const error = await refused(() => authenticate(metadata(token, at('gamma', 'dev'))));
      expect(error.reason).to.equal('TOKEN_MISMATCH');
    });
  });

  describe('the start', () => {
    for (const algorithm of ['none', 'HS256', 'HS512', 'RSA', '']) {
      it(`refuses the algorithm "${algorithm}"`, async () => {
        expect(await startRefused(options({ algorithms: ['ES256', algorithm] }))).to.contain('algorithm');
      });
    }

    it('needs an issuer, an audience and an algorithm', async () => {
      expect(await startRefused(options({ issuer: '' }))).to.contain('issuer');
      expect(await startRefused(options({ audience: '' }))).to.contain('audience');
      expect(await startRefused(options({ algorithms: [] }))).to.contain('algorithm');
    });

    it('needs a readable key set', async () => {
      expect(await startRefused(options({ jwks: join(folder, 'none.json') }))).to.contain('ENOENT');
      const broken = join(folder, 'broken.json');
      await writeFile(broken, '{"keys": 7}');
      expect(await startRefused(options({ jwks: broken }))).to.contain('malformed');
    });

    it('fetches over plain http only on loopback', async () => {
      for (const jwks of [
        'http://issuer.example/jwks',
        'http://127.0.0.1.example/jwks',
        'http://localhost.example/jwks',
      ]) {
        expect(await startRefused(options({ jwks }))).to.contain('https');
      }
      expect(await startRefused(options({ jwks: 'https://a:b@issuer.example/jwks' }))).to.contain('credentials');
    });
  });

  describe('keys in a file', () => {
    it('are rotated without a restart', async () => {
      const file = join(folder, 'rotated.json');
      const [old, next] = await Promise.all([makeKey('old'), makeKey('next')]);
      await writeFile(file, keySet(old));
      const rotating = await jwtAuthenticate(options({ jwks: file }));
      const attempt = async (by: Key, sub: string) => rotating(metadata(await sign(by, { sub }), at('acme', 'dev')));
      expect(await attempt(old, '1')).to.include({ user: '1' });
      expect((await refused(() => attempt(next, '2'))).reason).to.equal('TOKEN_INVALID');

      await writeFile(file, keySet(old, next));
      expect(await attempt(next, '3')).to.include({ user: '3' });
      expect(await attempt(old, '4')).to.include({ user: '4' });

      await writeFile(file, keySet(next));
      expect((await refused(() => attempt(old, '5'))).reason).to.equal('TOKEN_INVALID');
    });

    it('stay as they were when the file breaks', async () => {
      const file = join(folder, 'breaking.json');
      await writeFile(file, keySet(key));
      const warnings: string[] = [];
      const breaking = await jwtAuthenticate(options({ jwks: file, warn: (message) => warnings.push(message) }));
      await writeFile(file, '{"keys": [');
      for (const sub of ['1', '2']) {
        expect(await breaking(metadata(await sign(key, { sub }), at('acme', 'dev')))).to.include({ user: sub });
      }
      expect(warnings).to.have.lengthOf(1);
    });

    it('may come without ids', async () => {
      const file = join(folder, 'nameless.json');
      const keys = await Promise.all([makeKey('1'), makeKey('2')]);
      await writeFile(file, JSON.stringify({ keys: keys.map(({ jwk: { kid: _, ...jwk } }) => jwk) }));
      const nameless = await jwtAuthenticate(options({ jwks: file }));
      const signed = (by: Key) => new SignJWT(claims()).setProtectedHeader({ alg: 'ES256' }).sign(by.privateKey);
      for (const by of keys) {
        expect(await nameless(metadata(await signed(by), at('acme', 'dev')))).to.include({ user: 'ann' });
      }
      const error = await refused(async () => nameless(metadata(await signed(stranger), at('acme', 'dev'))));
      expect(error.reason).to.equal('TOKEN_INVALID');
    });
  });

  describe('keys behind a URL', () => {
    let server: Server;
    let url: string;
    let published: string;
    let code: number;
    let fetches: number;

    beforeEach(async () => {
      [published, code, fetches] = [keySet(key), 200, 0];
      server = createServer((_request, response) => {
        fetches++;
        response.writeHead(code, { 'content-type': 'application/json' }).end(published);
      });
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
      url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/jwks.json`;
    });

    afterEach(async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    });

    const start = async (jwks = url) => {
      const remote = await jwtAuthenticate(options({ jwks }));
      return async (by: Key, sub: string) => remote(metadata(await sign(by, { sub }), at('acme', 'dev')));
    };

    it('are fetched once', async () => {
      const attempt = await start();
      for (const sub of ['1', '2', '3']) expect(await attempt(key, sub)).to.include({ user: sub });
      expect(fetches).to.equal(1);
    });

    it('are fetched again for an id that is new, but not for each', async () => {
      const attempt = await start();
      const next = await makeKey('next');
      published = keySet(key, next);
      expect((await refused(() => attempt(next, '1'))).reason).to.equal('TOKEN_INVALID');
      await later(31_000, async () => {
        expect(await attempt(next, '2')).to.include({ user: '2' });
        expect(await attempt(key, '3')).to.include({ user: '3' });
        for (const sub of ['4', '5']) await refused(() => attempt({ ...key, kid: 'forged' }, sub));
      });
      expect(fetches).to.equal(2);
    });

    it('that are taken away stop working', async () => {
      const attempt = await start();
      published = keySet(rsa);
      const error = await later(11 * 60_000, () => refused(() => attempt(key, '1')));
      expect(error.reason).to.equal('TOKEN_INVALID');
    });

    it('go on being used while they cannot be fetched, for an hour', async () => {
      const attempt = await start();
      code = 503;
      await later(50 * 60_000, async () => expect(await attempt(key, '1')).to.include({ user: '1' }));
      const error = await later(61 * 60_000, () => refused(() => attempt(key, '2')));
      expect(error).to.include({ code: status.UNAVAILABLE, reason: 'KEYS_UNAVAILABLE' });
    });

    it('that cannot be had at the start make calls fail until they can', async () => {
      code = 500;
      const attempt = await start();
      const error = await refused(() => attempt(key, '1'));
      expect(error).to.include({ code: status.UNAVAILABLE, reason: 'KEYS_UNAVAILABLE' });
      expect(error.details.retryAfterMs).to.equal(1000);
      await Promise.all(['2', '3', '4'].map((sub) => refused(() => attempt(key, sub))));
      expect(fetches).to.equal(1);
      code = 200;
      await later(1100, async () => expect(await attempt(key, '5')).to.include({ user: '5' }));
    });

    it('are unavailable where nobody listens, or something else answers', async () => {
      const nobody = await start('http://127.0.0.1:1/jwks.json');
      expect((await refused(() => nobody(key, '1'))).code).to.equal(status.UNAVAILABLE);
      published = '<html>';
      const page = await start();
      expect((await refused(() => page(key, '1'))).code).to.equal(status.UNAVAILABLE);
      published = '{"keys": [7]}';
      const malformed = await start();
      expect((await refused(() => malformed(key, '1'))).code).to.equal(status.UNAVAILABLE);
    });

    it('are not fetched through a redirect', async () => {
      code = 302;
      const attempt = await start();
      expect((await refused(() => attempt(key, '1'))).code).to.equal(status.UNAVAILABLE);
    });
  });
});

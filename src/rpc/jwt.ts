import { createHash } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import type { Metadata } from '@grpc/grpc-js';
import {
  createLocalJWKSet,
  createRemoteJWKSet,
  customFetch,
  errors,
  type JWTPayload,
  type JWTVerifyGetKey,
  type JWTVerifyOptions,
  type JWTVerifyResult,
  jwtVerify,
} from 'jose';
import { LRUCache } from 'lru-cache';
import type { Caller } from './caller.ts';
import { denied, RpcError, unauthenticated, unavailable } from './errors.ts';
import { type Authenticate, agree, header, namedIdentity, SCOPES } from './identity.ts';
import { SLUG, textFault } from './validate.ts';

export interface JwtOptions {
  /** The JSON Web Key Set that verifies tokens: an https URL (http on loopback only), or the path of a file. */
  jwks: string;
  issuer: string;
  audience: string;
  /** The signature algorithms that are accepted, public-key ones only. */
  algorithms: string[];
  /** Told why keys cannot be loaded, which callers are not. */
  warn?: (message: string) => void;
}

/** A tenant of the token; env is '' where the token covers all of them. */
interface Grant {
  tenant: string;
  env: string;
}

interface Token {
  sub: string;
  grants: Grant[];
  /** Those of SCOPES that it carries. None: a user's token. */
  scopes: ReadonlySet<string>;
  /** When it expires, in milliseconds. */
  until: number;
}

type Named = ReturnType<typeof namedIdentity>;

// A verification costs 80 to 150 µs of a core (RS256, ES256 and EdDSA alike, keys in a file), a cached token 2 to 6 µs. A key
// that is taken away goes on working for tokens seen before, for at most this time.
const CACHE_MS = 60_000;
const CACHED_TOKENS = 10_000;
// Clocks differ a little between whoever issues tokens and us.
const CLOCK_TOLERANCE_SECONDS = 5;

// HS* is left out for good: a shared secret has no place in a key set, and its confusion with a public key is a classic.
const PUBLIC_KEY_ALGORITHM = /^((RS|PS|ES)(256|384|512)|EdDSA|Ed25519)$/;
const OPERATOR_ONLY: ReadonlySet<string> = new Set([SCOPES.operator]);

/**
 * `--auth=jwt`: callers show a token in `authorization: Bearer …`. Its claims, besides `iss`, `aud`, `exp` and `nbf`:
 *
 * - `sub`: required, 1 to 128 characters: the user, or the service that acts.
 * - `tenants`: an array of `"acme"` (all envs of the tenant) or `"acme/dev"` (one env). Where it names exactly one tenant, or
 *   one env of the tenant, `x-tenant-id` or `x-env` may be left out. A header that it does not cover is refused.
 * - `scope` (separated by spaces) or `scopes` (an array): one of ours makes the token a service's, others are ignored.
 *
 * A user's token speaks for `sub` alone, and `x-user-id` may be left out. A service's token with `memory:act-as` speaks for
 * whomever `x-user-id` names. With `memory:operator` it may also name other tenants, where it is an operator and nothing else.
 */
export async function jwtAuthenticate(options: JwtOptions): Promise<Authenticate> {
  const { issuer, audience, algorithms } = options;
  // jose does not check what it is not given.
  if (!issuer || !audience) throw new Error('JWT: the issuer and the audience are required');
  if (algorithms.length === 0) throw new Error('JWT: no algorithm is allowed');
  const refused = algorithms.find((algorithm) => !PUBLIC_KEY_ALGORITHM.test(algorithm));
  if (refused !== undefined)
    throw new Error(`JWT: the algorithm ${refused} is not a public-key signature that is supported`);
  const rules: JWTVerifyOptions = {
    issuer,
    audience,
    algorithms,
    requiredClaims: ['exp', 'sub'],
    clockTolerance: CLOCK_TOLERANCE_SECONDS,
  };
  const warn = seldom(options.warn ?? (() => {}));
  const keys = /^https?:/i.test(options.jwks)
    ? await remoteKeys(options.jwks, warn)
    : await fileKeys(options.jwks, warn);
  const cache = new LRUCache<string, Token>({ max: CACHED_TOKENS, ttl: CACHE_MS });

  return async (metadata) => {
    const jwt = bearer(metadata);
    const key = createHash('sha256').update(jwt).digest('base64');
    let token = cache.get(key);
    if (!token || token.until <= Date.now()) {
      token = await verify(jwt, keys, rules);
      cache.set(key, token);
    }
    return callerOf(token, namedIdentity(metadata));
  };
}

function bearer(metadata: Metadata): string {
  const value = header(metadata, 'authorization');
  if (!value) throw unauthenticated('TOKEN_MISSING', 'authorization is missing');
  const jwt = /^Bearer +([\w.-]+)$/i.exec(value)?.[1];
  if (!jwt) throw invalidToken('authorization is not a bearer token');
  return jwt;
}

const invalidToken = (message: string) => unauthenticated('TOKEN_INVALID', message);

async function verify(jwt: string, keys: JWTVerifyGetKey, rules: JWTVerifyOptions): Promise<Token> {
  try {
    const { payload } = await jwtVerify(jwt, keys, rules).catch((error) => {
      if (error instanceof errors.JWKSMultipleMatchingKeys) return verifyWithAny(jwt, error, rules);
      throw error;
    });
    return tokenOf(payload);
  } catch (error) {
    throw refusal(error);
  }
}

/** Keys without a `kid` cannot be told apart while they are rotated, so each is tried. */
async function verifyWithAny(
  jwt: string,
  candidates: errors.JWKSMultipleMatchingKeys,
  rules: JWTVerifyOptions,
): Promise<JWTVerifyResult> {
  for await (const key of candidates) {
    try {
      return await jwtVerify(jwt, key, rules);
    } catch (error) {
      if (!(error instanceof errors.JWSSignatureVerificationFailed)) throw error;
    }
  }
  throw new errors.JWSSignatureVerificationFailed();
}

/** Tells what is wrong with a token in our own words: jose's may quote it. */
function refusal(error: unknown): unknown {
  if (error instanceof errors.JWTExpired) return unauthenticated('TOKEN_EXPIRED', 'the token has expired');
  if (error instanceof errors.JWTClaimValidationFailed)
    return invalidToken(`the token's claim ${error.claim} is not accepted`);
  if (error instanceof errors.JOSEAlgNotAllowed) return invalidToken("the token's algorithm is not accepted");
  if (error instanceof errors.JOSEError) return invalidToken('the token cannot be verified');
  return error;
}

function tokenOf(payload: JWTPayload): Token {
  const { sub, exp, tenants = [], scope = '', scopes = [] } = payload;
  if (typeof sub !== 'string' || textFault(sub, 1, 128)) throw invalidToken("the token's claim sub is not accepted");
  if (!isStrings(tenants)) throw invalidToken("the token's claim tenants is not an array of strings");
  if (typeof scope !== 'string' || !isStrings(scopes)) throw invalidToken("the token's scopes are malformed");
  const carried = [...scope.split(' '), ...scopes];
  return {
    sub,
    grants: tenants.map(grantOf),
    scopes: new Set(Object.values(SCOPES).filter((known) => carried.includes(known))),
    until: (exp! + CLOCK_TOLERANCE_SECONDS) * 1000,
  };
}

const isStrings = (value: unknown): value is string[] =>
  Array.isArray(value) && value.every((element) => typeof element === 'string');

function grantOf(claim: string): Grant {
  const [tenant = '', env, ...rest] = claim.split('/');
  if (!SLUG.test(tenant) || (env !== undefined && !SLUG.test(env)) || rest.length > 0) {
    throw invalidToken("the token's claim tenants has an element that is neither tenant nor tenant/env");
  }
  return { tenant, env: env ?? '' };
}

/** The caller, or a refusal that names whom the token tells, for the audit trail of the tenant that it covers. */
function callerOf(token: Token, named: Named): Caller {
  try {
    return permitted(token, named);
  } catch (error) {
    const { sub, grants, scopes } = token;
    const tenant = sole(grants.map((grant) => grant.tenant));
    const env = sole(grants.map((grant) => grant.env)) || named.env;
    const user = scopes.size === 0 ? sub : '';
    if (error instanceof RpcError) error.caller = { tenant, env, user, actor: sub, scopes, vouched: false };
    throw error;
  }
}

function permitted({ sub, grants, scopes }: Token, named: Named): Caller {
  const tenant = named.tenant || sole(grants.map((grant) => grant.tenant));
  const envs = grants.filter((grant) => grant.tenant === tenant).map((grant) => grant.env);
  const env = named.env || sole(envs);
  const covered = envs.length > 0 && (env === '' || envs.includes('') || envs.includes(env));
  // Where no tenant is named at all, the access rules tell the caller that it is missing.
  if (tenant && !covered && !scopes.has(SCOPES.operator)) {
    throw denied('TOKEN_MISMATCH', `${envs.length > 0 ? 'x-env' : 'x-tenant-id'} disagrees with the token`);
  }
  if (scopes.size === 0) {
    agree('x-user-id', named.user, sub);
    return { tenant, env, user: sub, actor: sub, scopes, vouched: true };
  }
  const actsAs = scopes.has(SCOPES.actAs);
  if (named.user && !actsAs) throw denied('SCOPE_REQUIRED', `x-user-id needs the scope ${SCOPES.actAs}`);
  if (!covered && scopes.has(SCOPES.operator)) {
    if (named.user) throw denied('TOKEN_MISMATCH', 'x-user-id needs a tenant that the token covers');
    return { tenant, env, user: '', actor: sub, scopes: OPERATOR_ONLY, vouched: false };
  }
  return { tenant, env, user: named.user, actor: sub, scopes, vouched: actsAs };
}

/** The value of a list that holds no other, or ''. */
function sole(values: string[]): string {
  return new Set(values).size === 1 ? values[0]! : '';
}

// Keys older than this are fetched again, which one call waits for, so that one taken away stops working. While whoever
// publishes them is away, those we have go on being used, but not for ever.
const REFRESH_MS = 10 * 60_000;
const KEYS_MAX_AGE_MS = 60 * 60_000;
// After a fetch that brought new keys, how long a key that is not among them causes no other.
const COOLDOWN_MS = 30_000;
// A fetch that failed is not tried again at once, however many tokens ask for it.
const RETRY_MS = 1000;
const FETCH_TIMEOUT_MS = 3000;

async function remoteKeys(location: string, warn: (message: string) => void): Promise<JWTVerifyGetKey> {
  const url = new URL(location);
  const loopback = /^(localhost|127(\.\d+){3}|\[::1\])$/.test(url.hostname);
  if (url.protocol !== 'https:' && !loopback) throw new Error('JWT: the key set must be fetched over https');
  if (url.username || url.password) throw new Error('JWT: the URL of the key set must not hold credentials');
  let fetchAt = 0;
  let refreshAt = 0;
  const keys = createRemoteJWKSet(url, {
    cacheMaxAge: KEYS_MAX_AGE_MS,
    cooldownDuration: COOLDOWN_MS,
    timeoutDuration: FETCH_TIMEOUT_MS,
    [customFetch]: (...request) => {
      const now = Date.now();
      if (now < fetchAt) throw new Error('the last attempt failed just now');
      fetchAt = now + RETRY_MS;
      refreshAt = now + REFRESH_MS;
      return fetch(...request);
    },
  });
  // The service starts without its keys: whoever publishes them may be starting too.
  const reload = () => keys.reload().catch((error) => warn(described(error)));
  await reload();
  return orUnavailable(async (protectedHeader, token) => {
    if (keys.fresh && Date.now() >= refreshAt) await reload();
    return keys(protectedHeader, token);
  }, warn);
}

/** The keys of a file, read again when it has changed. A file that cannot be read leaves the keys as they were. */
async function fileKeys(path: string, warn: (message: string) => void): Promise<JWTVerifyGetKey> {
  const versionOf = async () => {
    const { mtimeMs, size, ino } = await stat(path);
    return `${mtimeMs} ${size} ${ino}`;
  };
  const read = async () => createLocalJWKSet(JSON.parse(await readFile(path, 'utf8')));
  let version = await versionOf();
  let keys = await read();
  return orUnavailable(async (protectedHeader, token) => {
    try {
      const current = await versionOf();
      if (current !== version) {
        keys = await read();
        version = current;
      }
    } catch (error) {
      warn(described(error));
    }
    return keys(protectedHeader, token);
  }, warn);
}

/** Tells keys that cannot be had, which is our trouble, from tokens that no key matches. */
function orUnavailable(keys: JWTVerifyGetKey, warn: (message: string) => void): JWTVerifyGetKey {
  return async (protectedHeader, token) => {
    try {
      return await keys(protectedHeader, token);
    } catch (error) {
      const { JWKSNoMatchingKey, JWKSMultipleMatchingKeys, JOSENotSupported } = errors;
      if ([JWKSNoMatchingKey, JWKSMultipleMatchingKeys, JOSENotSupported].some((kind) => error instanceof kind))
        throw error;
      warn(described(error));
      throw unavailable('KEYS_UNAVAILABLE', 'the keys that verify tokens cannot be loaded', RETRY_MS);
    }
  };
}

function described(error: unknown): string {
  const { message, cause } = error as Error;
  return `JWT: the key set cannot be loaded: ${message}${cause instanceof Error ? ` (${cause.message})` : ''}`;
}

const QUIET_MS = 10_000;

/** Says something again only after a while: every call would otherwise say it. */
function seldom(warn: (message: string) => void): (message: string) => void {
  let quietUntil = 0;
  return (message) => {
    if (Date.now() < quietUntil) return;
    quietUntil = Date.now() + QUIET_MS;
    warn(message);
  };
}

import {
  createCipheriv,
  createDecipheriv,
  createHash,
  createHmac,
  createSecretKey,
  type KeyObject,
  randomBytes,
  timingSafeEqual,
} from 'node:crypto';
import { readFile } from 'node:fs/promises';

/** One of the service's own keys: a line of the key file, `id:base64` of 32 bytes, and the time from when on it seals. */
export interface Key {
  id: string;
  key: Buffer;
  /** In milliseconds, 0 where the line has no time. It opens as soon as it is known. */
  since: number;
}

/** What the keys are used for. All of them open; the first whose time has come seals. */
export interface Keyring {
  /** Encrypts and authenticates `text`, bound to `context`: it opens only under the same context. URL-safe. */
  seal(context: string[], text: string): string;
  /** What was sealed, or undefined if it was not sealed here for this context. */
  open(context: string[], sealed: string): string | undefined;
  /** A signature of `text`, bound to `context`, that only who has the key file can make. URL-safe. */
  sign(context: string[], text: string): string;
  /** Whether it is a signature of this text in this context, by a key that is still there. */
  verifies(context: string[], text: string, signature: string): boolean;
  /** The signatures by all keys, first that of the one that signs: who has none of them can tell nothing of the text. */
  signatures(context: string[], text: string): string[];
  /** A fingerprint of a digest, bound to `context`: only who has the key file can tell what it is of. It names its key. */
  fingerprint(context: string[], digest: Buffer): Buffer;
  /** Whether it is the fingerprint of this digest in this context, or undefined if its key is not there any more. */
  isFingerprint(context: string[], digest: Buffer, fingerprint: Buffer): boolean | undefined;
  /** Whether a signature names a key that is still there. */
  knows(signature: string): boolean;
  /** The id of the key that seals and signs now: signatures begin with it and a dot. */
  readonly newest: string;
}

const LINE = /^([a-z0-9]{1,16}):([A-Za-z0-9+/]{43}=)(?: (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ))?$/;

export const lineOf = ({ id, key, since }: Key): string =>
  `${id}:${key.toString('base64')}${since ? ` ${secondOf(since)}` : ''}`;

/** As `2026-01-31T12:00:00Z`. */
export const secondOf = (ms: number): string => `${new Date(ms).toISOString().slice(0, 19)}Z`;

/** The keys of a key file. */
export function parseKeys(text: string): Key[] {
  const keys = text
    .split('\n')
    .filter((line) => line.trim())
    .map((line) => {
      const [, id, key, time] = LINE.exec(line.trim()) ?? [];
      const since = time ? Date.parse(time) : 0;
      if (!id || !key || Number.isNaN(since))
        throw new Error('a line of the key file is not `id:base64 of 32 bytes`, with or without a time');
      return { id, key: Buffer.from(key, 'base64'), since };
    });
  if (keys.length === 0) throw new Error('the key file holds no key');
  if (new Set(keys.map(({ id }) => id)).size < keys.length)
    throw new Error('two keys of the key file have the same id');
  return keys;
}

/** The key that seals: the first whose time has come; or the oldest, should it have been taken out of the file too early. */
export const sealingKey = (keys: Key[], now = Date.now()): Key =>
  keys.find(({ since }) => since <= now) ?? keys.at(-1)!;

export async function readKeyring(file: string): Promise<Keyring> {
  const keys = parseKeys(await readFile(file, 'utf8'));
  return keyringOf(() => keys);
}

const derived = new WeakMap<Key, KeyObject>();

/** A key of its own for fingerprints, made once: nearly every change asks for it, and a KeyObject is twice as fast as its bytes. */
function fingerprintKey(key: Key): KeyObject {
  let own = derived.get(key);
  if (!own) {
    own = createSecretKey(createHmac('sha256', key.key).update('memoryd fingerprint').digest());
    derived.set(key, own);
  }
  return own;
}

function printed(key: Key, context: string[], digest: Buffer): Buffer {
  const mac = createHmac('sha256', fingerprintKey(key)).update(JSON.stringify(context)).update(digest).digest();
  return Buffer.concat([Buffer.from(`${key.id}.`), mac]);
}

/** A keyring of the keys that there are at each use. */
export function keyringOf(keys: () => Key[]): Keyring {
  const bind = (context: string[]) => createHash('sha256').update(JSON.stringify(context)).digest();
  // A key of its own: what seals does not sign as well.
  const signed = (key: Buffer, context: string[], text: string) => {
    const own = createHmac('sha256', key).update('memoryd signature').digest();
    return createHmac('sha256', own)
      .update(JSON.stringify([context, text]))
      .digest('base64url');
  };
  const keyOf = (text: string) => keys().find(({ id }) => text.startsWith(`${id}.`));
  return {
    seal(context, text) {
      const { id, key } = sealingKey(keys());
      const nonce = randomBytes(12);
      const cipher = createCipheriv('aes-256-gcm', key, nonce).setAAD(bind(context));
      const body = Buffer.concat([nonce, cipher.update(text, 'utf8'), cipher.final(), cipher.getAuthTag()]);
      return `${id}.${body.toString('base64url')}`;
    },
    open(context, sealed) {
      const [id, encoded = '', ...rest] = sealed.split('.');
      const key = keys().find((k) => k.id === id)?.key;
      const body = Buffer.from(encoded, 'base64url');
      // Exactly the text that was given out: decoding forgives trailing bits and foreign characters.
      if (!key || rest.length > 0 || body.length < 28 || body.toString('base64url') !== encoded) return undefined;
      try {
        const decipher = createDecipheriv('aes-256-gcm', key, body.subarray(0, 12)).setAAD(bind(context));
        decipher.setAuthTag(body.subarray(-16));
        return decipher.update(body.subarray(12, -16), undefined, 'utf8') + decipher.final('utf8');
      } catch {
        return undefined;
      }
    },
    sign(context, text) {
      const { id, key } = sealingKey(keys());
      return `${id}.${signed(key, context, text)}`;
    },
    verifies(context, text, signature) {
      const key = keyOf(signature);
      if (!key) return false;
      const [given, right] = [signature, `${key.id}.${signed(key.key, context, text)}`].map((one) => Buffer.from(one));
      return given!.length === right!.length && timingSafeEqual(given!, right!);
    },
    knows: (signature) => keyOf(signature) !== undefined,
    fingerprint: (context, digest) => printed(sealingKey(keys()), context, digest),
    isFingerprint(context, digest, fingerprint) {
      const key = keyOf(fingerprint.toString('latin1'));
      return key && printed(key, context, digest).equals(fingerprint);
    },
    get newest() {
      return sealingKey(keys()).id;
    },
    signatures(context, text) {
      const all = keys();
      return [...new Set([sealingKey(all), ...all])].map(({ id, key }) => `${id}.${signed(key, context, text)}`);
    },
  };
}

import { createCipheriv, createDecipheriv, createHash, randomBytes } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';

/**
 * The service's own keys, from one file: a line `id:base64` of 32 bytes each. The first seals, all of them open, so that
 * a new key is put first and an old one removed once nothing sealed by it matters (24 hours).
 */
export interface Keyring {
  /** Encrypts and authenticates `text`, bound to `context`: it opens only under the same context. URL-safe. */
  seal(context: string[], text: string): string;
  /** What was sealed, or undefined if it was not sealed here for this context. */
  open(context: string[], sealed: string): string | undefined;
}

const LINE = /^([a-z0-9]{1,16}):([A-Za-z0-9+/]{43}=)$/;

export function newKeyLine(): string {
  return `${randomBytes(4).toString('hex')}:${randomBytes(32).toString('base64')}`;
}

/** Puts a new key first in the file, which is made if it is not there. Resolves to the number of keys in it. */
export async function addKey(file: string): Promise<number> {
  const old = await readFile(file, 'utf8').catch((error) => {
    if (error.code === 'ENOENT') return '';
    throw error;
  });
  const lines = [newKeyLine(), ...old.split('\n').filter(Boolean)];
  await writeFile(file, `${lines.join('\n')}\n`, { mode: 0o600 });
  return lines.length;
}

export async function readKeyring(file: string): Promise<Keyring> {
  return parseKeyring(await readFile(file, 'utf8'));
}

export function parseKeyring(text: string): Keyring {
  const keys = text
    .split('\n')
    .filter((line) => line.trim())
    .map((line) => {
      const [, id, key] = LINE.exec(line.trim()) ?? [];
      if (!id || !key) throw new Error('a line of the key file is not `id:base64 of 32 bytes`');
      return { id, key: Buffer.from(key, 'base64') };
    });
  const newest = keys[0];
  if (!newest) throw new Error('the key file holds no key');

  const bind = (context: string[]) => createHash('sha256').update(JSON.stringify(context)).digest();
  return {
    seal(context, text) {
      const nonce = randomBytes(12);
      const cipher = createCipheriv('aes-256-gcm', newest.key, nonce).setAAD(bind(context));
      const body = Buffer.concat([nonce, cipher.update(text, 'utf8'), cipher.final(), cipher.getAuthTag()]);
      return `${newest.id}.${body.toString('base64url')}`;
    },
    open(context, sealed) {
      const [id, encoded = '', ...rest] = sealed.split('.');
      const key = keys.find((k) => k.id === id)?.key;
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
  };
}

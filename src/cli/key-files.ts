import { readFile } from 'node:fs/promises';
import { addKey, changeKeys } from '../db/key-file.ts';
import { type Key, parseKeys, sealingKey, secondOf } from '../db/keyring.ts';
import { UserError } from '../errors.ts';

/** How long what a key has sealed is of use: results are replayed for so long, and who reads a list reads on sooner. */
const MATTERS_MS = 24 * 60 * 60_000;

export const add = (file: string, afterMs: number): Promise<string[]> =>
  telling(file, async () => told(await addKey(file, afterMs)));

export const list = (file: string): Promise<string[]> =>
  telling(file, async () => told(parseKeys(await readFile(file, 'utf8'))));

export const remove = (file: string, id: string, atOnce: boolean): Promise<string[]> =>
  telling(file, async () => {
    const left = await changeKeys(file, (keys) => {
      const state = states(keys).find(({ key }) => key.id === id);
      if (!state) throw new UserError(`${file} has no key ${id}`);
      const { seals, until } = state;
      if (seals)
        throw new UserError(`key ${id} is the one that seals: add another first, and wait until that one does`);
      if (until && Date.now() < until + MATTERS_MS && !atOnce) {
        const after = secondOf(until + MATTERS_MS);
        throw new UserError(
          `what key ${id} has sealed is of use until ${after}: remove it then, or now with --at-once`,
        );
      }
      return keys.filter((key) => key.id !== id);
    });
    return told(left);
  });

/** Of each key whether it seals now, or else until when it did: newer keys stand before it. */
const states = (keys: Key[], now = Date.now()) =>
  keys.map((key, i) => ({
    key,
    seals: key === sealingKey(keys, now),
    until: keys
      .slice(0, i)
      .reduce<number | undefined>(
        (until, { since }) => (since <= now ? Math.min(until ?? since, since) : until),
        undefined,
      ),
  }));

const told = (keys: Key[]): string[] =>
  states(keys).map(({ key, seals, until }) => {
    const from = key.since ? ` since ${secondOf(key.since)}` : '';
    if (seals) return `${key.id}\tseals${from}`;
    return `${key.id}\topens, ${until === undefined ? `seals from ${secondOf(key.since)} on` : `sealed until ${secondOf(until)}`}`;
  });

async function telling(file: string, work: () => Promise<string[]>): Promise<string[]> {
  return work().catch((error) => {
    if (error instanceof UserError) throw error;
    if (error.code === 'EEXIST')
      throw new UserError(`${error.path} is there: somebody else is changing the keys, or was stopped: then remove it`);
    throw new UserError(`${file}: ${error.message}`);
  });
}

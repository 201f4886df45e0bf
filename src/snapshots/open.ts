import { pathToFileURL } from 'node:url';
import { UserError } from '../errors.ts';
import type { Store } from './store.ts';

/** Each kind of store: the parameters of its URL, and how it is opened. Its libraries are loaded only then. */
const KINDS: Record<string, { example: string; parameters: string[]; open(url: URL): Promise<Store> }> = {
  'file:': {
    example: 'file:///var/lib/memoryd/snapshots',
    parameters: [],
    open: async (url) => (await import('./folder.ts')).openFolder(url),
  },
  's3:': {
    example: 's3://bucket/prefix?region=eu-central-1',
    parameters: ['region', 'endpoint', 'force-path-style'],
    open: async (url) => (await import('./s3.ts')).openS3(url),
  },
  'gdrive:': {
    example: 'gdrive://FOLDER-ID?credentials=/etc/memoryd/drive.json',
    parameters: ['credentials', 'endpoint'],
    open: async (url) => (await import('./drive.ts')).openDrive(url),
  },
};

/** The URL of a store, checked as far as it can be without asking the store. `file:folder` is below the current one. */
export function storeUrl(text: string): URL {
  const url = URL.parse(text, text.startsWith('file:') ? pathToFileURL('./').href : undefined);
  const kind = url && KINDS[url.protocol];
  if (!kind) {
    const examples = Object.values(KINDS).map(({ example }) => example);
    throw new UserError(`it is not a URL such as ${examples.join(' or ')}`);
  }
  // It is shown and logged; and each kind finds its credentials where its own tools do.
  if (url.username || url.password) throw new UserError('it must not hold credentials');
  for (const name of url.searchParams.keys()) {
    if (!kind.parameters.includes(name)) throw new UserError(`${url.protocol} has no parameter ${name}`);
  }
  if ((url.protocol === 'file:') !== (url.host === '')) throw new UserError(`it is not a URL such as ${kind.example}`);
  return url;
}

export const openStore = (url: URL): Promise<Store> => KINDS[url.protocol]!.open(url);

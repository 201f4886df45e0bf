import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { auth, drive_v3 } from '@googleapis/drive';
import { UserError } from '../errors.ts';
import { isFinal, type SnapshotFile, type Store, StoreError } from './store.ts';

const SCOPE = 'https://www.googleapis.com/auth/drive';
/** A multiple of 256 KiB, as Drive wants it. */
const CHUNK_BYTES = 8 * 1024 * 1024;
const REQUEST_MS = 60_000;
/** The status that says how much has come, and that more is wanted. */
const MORE = 308;
/** How often in a row a session of an upload is asked how far it came before the whole is left for later. */
const RESUMES = 5;

// Refusals that pass by themselves although they are 403.
const PASSING = new Set([
  'rateLimitExceeded',
  'userRateLimitExceeded',
  'dailyLimitExceeded',
  'sharingRateLimitExceeded',
]);

/** What all requests say: drives shared by a team count as well, as a service account has no room of its own. */
const EVERYWHERE = { supportsAllDrives: true, includeItemsFromAllDrives: true };

/** Property values have at most 124 bytes, so folders and names are found by their hashes. */
const hashOf = (text: string) => createHash('sha256').update(text).digest('hex');

const linkOf = ({ id, webViewLink }: drive_v3.Schema$File) => webViewLink ?? `https://drive.google.com/file/d/${id}`;

/** A folder of Google Drive, written by a service account. Drive has no paths: all files lie in the one folder. */
export async function openDrive(url: URL): Promise<Store> {
  const parent = url.hostname;
  const origin = url.searchParams.get('endpoint') ?? 'https://www.googleapis.com';
  const client = await signedIn(url.searchParams.get('credentials') ?? process.env.GOOGLE_APPLICATION_CREDENTIALS);
  const { files } = new drive_v3.Drive({ auth: client, rootUrl: `${origin}/`, timeout: REQUEST_MS });

  async function* found(properties: Record<string, string>): AsyncGenerator<drive_v3.Schema$File> {
    const has = Object.entries(properties).map(
      ([key, value]) => `appProperties has { key='${key}' and value='${value}' }`,
    );
    const q = [`'${parent}' in parents`, 'trashed = false', ...has].join(' and ');
    for (let pageToken: string | undefined; ; ) {
      const fields = 'nextPageToken, files(id, name, webViewLink, sha256Checksum)';
      const { data } = await files.list({ q, fields, pageSize: 1000, ...(pageToken && { pageToken }), ...EVERYWHERE });
      yield* data.files ?? [];
      pageToken = data.nextPageToken ?? undefined;
      if (!pageToken) return;
    }
  }

  async function one(folder: string, name: string): Promise<drive_v3.Schema$File | undefined> {
    for await (const file of found({ memorydName: hashOf(`${folder}/${name}`) })) return file;
    return undefined;
  }

  /** Opens a session of an upload, whose address is the right to write into it. */
  async function begin(folder: string, { name, bytes }: SnapshotFile, signal: AbortSignal): Promise<string> {
    const { headers } = await client.request({
      url: `${origin}/upload/drive/v3/files?uploadType=resumable&supportsAllDrives=true&fields=id,webViewLink,sha256Checksum`,
      method: 'POST',
      headers: { 'x-upload-content-type': 'application/x-tar', 'x-upload-content-length': String(bytes.length) },
      data: {
        name: `${folder}/${name}`,
        parents: [parent],
        appProperties: { memorydFolder: hashOf(folder), memorydName: hashOf(`${folder}/${name}`) },
      },
      timeout: REQUEST_MS,
      signal,
    });
    const session = headers.get('location');
    if (!session) throw new StoreError('Google Drive: no session for the upload', false);
    return session;
  }

  /** What broke on the way is asked for, and goes on where it stopped. */
  async function upload(session: string, bytes: Buffer, signal: AbortSignal): Promise<drive_v3.Schema$File> {
    let [next, asking] = [0, false];
    for (let failures = 0; ; ) {
      const end = Math.min(next + CHUNK_BYTES, bytes.length);
      const [range, body] = asking ? ['*', null] : [`${next}-${end - 1}`, bytes.subarray(next, end)];
      try {
        const answer = await send(session, `bytes ${range}/${bytes.length}`, body, signal);
        if (answer.status !== MORE) return (await answer.json()) as drive_v3.Schema$File;
        const stored = Number(/^bytes=0-(\d+)$/.exec(answer.headers.get('range') ?? '')?.[1] ?? -1) + 1;
        if (stored > next) failures = 0;
        [next, asking] = [stored, false];
      } catch (error) {
        const status = statusOf(error) ?? 0;
        if (status === 404 || status === 410) throw new StoreError('Google Drive: the upload was lost', false, error);
        if (signal.aborted || isFinal(status) || ++failures > RESUMES) throw error;
        await sleep(50 * 2 ** failures, undefined, { signal });
        asking = true;
      }
    }
  }

  return {
    put: (folder, file, signal) =>
      telling(async () => {
        // An earlier try may have come to its end with nobody left to hear of it.
        const stored =
          (await one(folder, file.name)) ?? (await upload(await begin(folder, file, signal), file.bytes, signal));
        if (stored.sha256Checksum !== file.sha256) throw new StoreError('Google Drive: it holds something else', true);
        return linkOf(stored);
      }),
    get: (folder, name) =>
      telling(async () => {
        const { id } = (await one(folder, name)) ?? {};
        if (!id) throw new StoreError(`Google Drive: there is no file ${folder}/${name}`, true);
        const { data } = await files.get(
          { fileId: id, alt: 'media', supportsAllDrives: true },
          { responseType: 'arraybuffer' },
        );
        return Buffer.from(data as unknown as ArrayBuffer);
      }),
    // Past the trash, and each of them: a file may have come twice when an answer was lost.
    remove: (folder, name) =>
      telling(async () => {
        for await (const { id } of found({ memorydName: hashOf(`${folder}/${name}`) })) {
          await files.delete({ fileId: id!, supportsAllDrives: true }).catch((error) => {
            if (statusOf(error) !== 404) throw error;
          });
        }
      }),
    list: (folder) =>
      telling(async () => {
        const all = new Map<string, { link: string }>();
        for await (const file of found({ memorydFolder: hashOf(folder) })) {
          all.set(file.name!.slice(folder.length + 1), { link: linkOf(file) });
        }
        return all;
      }),
  };
}

/** A client that signs in as the service account of this file. */
async function signedIn(file: string | undefined) {
  if (!file) throw new UserError('gdrive: needs ?credentials=FILE, or GOOGLE_APPLICATION_CREDENTIALS');
  const key = await readFile(file, 'utf8')
    .then(JSON.parse)
    .catch(() => undefined);
  if (key?.type !== 'service_account') throw new UserError(`gdrive: ${file} is no key of a service account`);
  const client = new auth.JWT({
    email: key.client_email,
    key: key.private_key,
    keyId: key.private_key_id,
    scopes: [SCOPE],
  });
  // The library knows one token endpoint; the file names that of its own cloud.
  client.transporter.interceptors.request.add({
    resolved: async (request) => {
      if (request.url.href === 'https://oauth2.googleapis.com/token') request.url = new URL(key.token_uri);
      return request;
    },
  });
  return client;
}

/**
 * One request of a session, answered with how far the bytes have come, or with the file. By itself, as the address is the
 * right to write, and the library's own requests copy what they send byte by byte when they fail: a second for a chunk.
 */
async function send(session: string, range: string, body: Buffer | null, signal: AbortSignal): Promise<Response> {
  const answer = await fetch(session, {
    method: 'PUT',
    headers: { 'content-range': range },
    body: body as Uint8Array<ArrayBuffer> | null,
    redirect: 'manual',
    signal: AbortSignal.any([signal, AbortSignal.timeout(REQUEST_MS)]),
  });
  if (answer.ok || answer.status === MORE) return answer;
  const data = await answer.json().catch(() => undefined);
  throw Object.assign(new Error('refused'), { status: answer.status, response: { data } });
}

const statusOf = (error: unknown): number | undefined => (error as { status?: number }).status;

async function telling<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof StoreError) throw error;
    const { code, name, cause, response } = error as any;
    const status = statusOf(error);
    const reason = response?.data?.error?.errors?.[0]?.reason;
    const permanent = status !== undefined && isFinal(status) && !PASSING.has(reason);
    throw new StoreError(
      `Google Drive: ${status ?? 'no answer'} ${reason ?? code ?? cause?.code ?? name}`,
      permanent,
      error,
    );
  }
}

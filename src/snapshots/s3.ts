import {
  AbortMultipartUploadCommand,
  DeleteObjectCommand,
  GetObjectCommand,
  HeadObjectCommand,
  ListMultipartUploadsCommand,
  ListObjectsV2Command,
  S3Client,
  S3ServiceException,
} from '@aws-sdk/client-s3';
import { Upload } from '@aws-sdk/lib-storage';
import { UserError } from '../errors.ts';
import { isFinal, type SnapshotFile, type Store, StoreError } from './store.ts';

/** From this size on a file is sent in parts, each of which is retried by itself. */
const PART_BYTES = 8 * 1024 * 1024;

// Refusals that pass by themselves, whatever their status says.
const PASSING = new Set([
  'NoSuchUpload',
  'RequestTimeout',
  'ExpiredToken',
  'ExpiredTokenException',
  'RequestTimeTooSkewed',
]);

/** A bucket of S3, or of what speaks its protocol. Credentials and region come from where the AWS tools look for them. */
export function openS3(url: URL): Store {
  const bucket = url.hostname;
  const prefix = url.pathname.slice(1).replace(/(?<=[^/])$/, '/');
  const parameters = url.searchParams;
  const pathStyle = parameters.get('force-path-style') ?? 'false';
  if (!['true', 'false'].includes(pathStyle)) throw new UserError('force-path-style is neither true nor false');
  const [endpoint, region] = [parameters.get('endpoint'), parameters.get('region')];
  const client = new S3Client({
    ...(endpoint && { endpoint }),
    ...(region && { region }),
    forcePathStyle: pathStyle === 'true',
    requestHandler: { connectionTimeout: 10_000, requestTimeout: 60_000, throwOnRequestTimeout: true },
  });
  const linkOf = (key: string) => `s3://${bucket}/${key}`;
  const keyOf = (folder: string, name: string) => `${prefix}${folder}/${name}`;

  /** A writer who may not look is told 403: it then writes, the same bytes as may be there. */
  async function isThere(Key: string, { bytes, sha256 }: SnapshotFile, abortSignal: AbortSignal): Promise<boolean> {
    const head = new HeadObjectCommand({ Bucket: bucket, Key });
    const found = await client.send(head, { abortSignal }).catch((error) => {
      if ([403, 404].includes(statusOf(error) ?? 0)) return undefined;
      throw error;
    });
    if (!found) return false;
    if (found.Metadata?.sha256 === sha256 && found.ContentLength === bytes.length) return true;
    throw new StoreError(`${linkOf(Key)} holds something else`, true);
  }

  /**
   * What a process that was killed left of this file is paid for until somebody ends it. Whoever may not look, or end it,
   * needs a rule of the bucket for that.
   */
  async function endLeftBehind(Key: string, abortSignal: AbortSignal): Promise<void> {
    try {
      const found = await client.send(new ListMultipartUploadsCommand({ Bucket: bucket, Prefix: Key }), {
        abortSignal,
      });
      for (const { UploadId } of (found.Uploads ?? []).filter((upload) => upload.Key === Key)) {
        await client.send(new AbortMultipartUploadCommand({ Bucket: bucket, Key, UploadId }), { abortSignal });
      }
    } catch {
      abortSignal.throwIfAborted();
    }
  }

  return {
    put: (folder, file, signal) =>
      telling(async () => {
        const Key = keyOf(folder, file.name);
        if (await isThere(Key, file, signal)) return linkOf(Key);
        const { bytes, sha256 } = file;
        if (bytes.length > PART_BYTES) await endLeftBehind(Key, signal);
        // Each part's checksum, or that of the whole, is sent along, so that the store refuses what broke on the way.
        const upload = new Upload({
          client,
          partSize: PART_BYTES,
          queueSize: 2,
          params: {
            Bucket: bucket,
            Key,
            Body: bytes,
            ChecksumAlgorithm: 'SHA256',
            ContentType: 'application/x-tar',
            Metadata: { sha256 },
          },
        });
        const abort = () => void upload.abort();
        signal.addEventListener('abort', abort);
        try {
          await upload.done();
        } finally {
          signal.removeEventListener('abort', abort);
        }
        return linkOf(Key);
      }),
    get: (folder, name) =>
      telling(async () => {
        const { Body } = await client.send(new GetObjectCommand({ Bucket: bucket, Key: keyOf(folder, name) }));
        return Buffer.from(await Body!.transformToByteArray());
      }),
    // Also tells nobody whether it was there. A bucket that keeps versions keeps what was in it.
    remove: (folder, name) =>
      telling(async () => {
        await client.send(new DeleteObjectCommand({ Bucket: bucket, Key: keyOf(folder, name) }));
      }),
    list: (folder) =>
      telling(async () => {
        const Prefix = keyOf(folder, '');
        const files = new Map<string, { link: string }>();
        for (let ContinuationToken: string | undefined; ; ) {
          const page = await client.send(new ListObjectsV2Command({ Bucket: bucket, Prefix, ContinuationToken }));
          for (const { Key = '' } of page.Contents ?? []) files.set(Key.slice(Prefix.length), { link: linkOf(Key) });
          ContinuationToken = page.NextContinuationToken;
          if (!ContinuationToken) return files;
        }
      }),
  };
}

const statusOf = (error: unknown): number | undefined =>
  error instanceof S3ServiceException ? error.$metadata.httpStatusCode : undefined;

async function telling<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof StoreError) throw error;
    const { name, code } = error as { name: string; code?: string };
    const status = statusOf(error);
    const permanent = status !== undefined && isFinal(status) && !PASSING.has(name);
    throw new StoreError(`S3: ${status ?? 'no answer'} ${code ?? name}`, permanent, error);
  }
}

/**
 * Where snapshots are kept: files in folders, each of which never changes once it is there. Whatever goes wrong is a
 * {@link StoreError}.
 */
export interface Store {
  /** Stores a file whole or not at all, unless it is there already. Resolves to a link to it, for people. */
  put(folder: string, file: SnapshotFile, signal: AbortSignal): Promise<string>;
  get(folder: string, name: string): Promise<Buffer>;
  /** Removes a file for good, if it is there. */
  remove(folder: string, name: string): Promise<void>;
  /** The files of a folder, by their names. None if there is no such folder. */
  list(folder: string): Promise<Map<string, { link: string }>>;
}

export interface SnapshotFile {
  name: string;
  bytes: Buffer;
  /** In hexadecimal. */
  sha256: string;
}

/** Why a store did not do what it was asked. The text is for callers: never a secret, never content. */
export class StoreError extends Error {
  /** Trying again does not help: somebody must mend something first. */
  readonly permanent: boolean;

  constructor(message: string, permanent: boolean, cause?: unknown) {
    super(message, { cause });
    this.permanent = permanent;
  }
}

const NOT_YET = new Set([408, 409, 425, 429]);

/** Whether an answer of this HTTP status stays the same until somebody changes something. */
export const isFinal = (status: number): boolean => status >= 400 && status < 500 && !NOT_YET.has(status);

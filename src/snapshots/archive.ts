import { createHash } from 'node:crypto';
import { createTar, parseTar } from 'nanotar';
import type { SnapshotFile } from './store.ts';

const FORMAT = 'memoryd-snapshot/1';
const MANIFEST = 'manifest.json';

/** What a snapshot is of. */
export interface Subject {
  kind: 'artifact' | 'profile';
  tenant: string;
  env: string;
  projectId: string;
  /** Empty for a profile. */
  artifactKey: string;
  version: number;
}

/** Files by their names in the snapshot. */
export type Parts = Map<string, Buffer>;

interface Manifest extends Subject {
  format: string;
  parts: Record<string, { bytes: number; sha256: string }>;
}

/** A snapshot that is not what was stored, or not one that this version reads. */
export class BadSnapshot extends Error {}

const sha256 = (bytes: Uint8Array | string) => createHash('sha256').update(bytes).digest('hex');

/** A caller's name as a part of a file's name. Long ones are cut, and told apart by a hash after a mark that no other name has. */
function word(text: string): string {
  const safe = encodeURIComponent(text).replace(/[.*'()!~]/g, (c) => `%${c.charCodeAt(0).toString(16)}`);
  return safe.length <= 80 ? safe : `${safe.slice(0, 60)}~${sha256(text).slice(0, 16)}`;
}

/** Where the snapshots of a project lie. */
export const folderOf = ({ tenant, env, projectId }: Omit<Subject, 'kind' | 'artifactKey' | 'version'>): string =>
  `${tenant}/${env}/${word(projectId)}`;

/**
 * A snapshot as one file, a tar that any tool opens, with a manifest of the checksums of its parts. The same parts make the
 * same bytes, and the file's name ends with their checksum: what is stored twice is stored once, and damage shows.
 */
export function pack(subject: Subject, parts: Parts): SnapshotFile {
  const { kind, tenant, env, projectId, artifactKey, version } = subject;
  const checksums = [...parts].map(([name, bytes]) => [name, { bytes: bytes.length, sha256: sha256(bytes) }]);
  const manifest: Manifest = {
    format: FORMAT,
    kind,
    tenant,
    env,
    projectId,
    artifactKey,
    version,
    parts: Object.fromEntries(checksums),
  };
  // The manifest comes last: the library loses an empty file at the end.
  const files = [...parts, [MANIFEST, Buffer.from(`${JSON.stringify(manifest, null, 2)}\n`)] as const];
  const attrs = { mtime: 0, uid: 0, gid: 0, mode: '644' };
  const tar = createTar(files.map(([name, data]) => ({ name, data, attrs })));
  const bytes = Buffer.from(tar.buffer, tar.byteOffset, tar.byteLength);
  const checksum = sha256(bytes);
  return { name: nameOf(subject, checksum), bytes, sha256: checksum };
}

const stemOf = ({ kind, artifactKey, version }: Subject) =>
  `${kind}${artifactKey && `-${word(artifactKey)}`}-v${version}`;
const nameOf = (subject: Subject, checksum: string) => `${stemOf(subject)}-${checksum}.tar`;

/** Whether a file of this name is a snapshot: what others left beside them is not. */
export const isSnapshot = (name: string): boolean => /^(artifact-[^/]+|profile)-v\d+-[0-9a-f]{64}\.tar$/.test(name);

/** Whether a file of this name is a snapshot of this, with whatever content. */
export const isOf = (subject: Subject, name: string): boolean =>
  isSnapshot(name) && name.replace(/-[0-9a-f]{64}\.tar$/, '') === stemOf(subject);

/** The parts of a snapshot, each as it was stored. */
export function unpack(name: string, bytes: Buffer): { subject: Subject; parts: Parts; sha256: string } {
  const checksum = sha256(bytes);
  if (!name.endsWith(`-${checksum}.tar`)) throw new BadSnapshot('its checksum is not the one in its name');
  // The library reads from the start of the buffer's memory, which may be shared.
  const files = parseTar(new Uint8Array(bytes));
  const parts: Parts = new Map(files.map((file) => [file.name, Buffer.from(file.data ?? [])]));
  const { format, parts: listed, ...subject } = manifestOf(parts.get(MANIFEST));
  if (format !== FORMAT) throw new BadSnapshot(`it has the format ${format}, and this version reads ${FORMAT}`);
  parts.delete(MANIFEST);
  for (const part of new Set([...parts.keys(), ...Object.keys(listed)])) {
    const content = parts.get(part);
    if (!content || sha256(content) !== listed[part]?.sha256)
      throw new BadSnapshot(`${part} is not as its manifest says`);
  }
  if (name !== nameOf(subject, checksum)) throw new BadSnapshot('it is not the snapshot that its name says');
  return { subject, parts, sha256: checksum };
}

function manifestOf(bytes: Buffer | undefined): Manifest {
  try {
    const manifest = JSON.parse(String(bytes));
    if (typeof manifest.parts === 'object') return manifest;
  } catch {
    // not one
  }
  throw new BadSnapshot('it has no manifest');
}

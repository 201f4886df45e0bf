import { status } from '@grpc/grpc-js';
import type { ProfileChange } from '../gen/memory/v1/project_profile.ts';
import type { Call } from '../rpc/context.ts';
import { invalid, notFound, RpcError } from '../rpc/errors.ts';
import type { Check } from '../rpc/validate.ts';
import type { Conflict } from './merge.ts';
import { type ProfileState, type PutProfile, profileState } from './repository.ts';
import { inThread } from './thread.ts';

export const PROFILE_BYTES = 256 * 1024;
const NOTHING = '{}';

/** Checks a document, also by reading it. Its faults are told with their place in it, and without its content. */
export async function checkProfile(check: Check, path: string, given: Omit<ProfileChange, 'reopen'>, call: Call) {
  check.seq(`${path}base_version`, given.baseVersion);
  const before = check.violations.length;
  check.content(`${path}yaml`, given.yaml, PROFILE_BYTES);
  if (check.violations.length > before) return;
  for (const { line, column, description } of await inThread(call, 'check', given.yaml)) {
    check.that(false, `${path}yaml`, `line ${line}, column ${column}: ${description}`);
  }
}

/**
 * What is to be stored of a document that was put: itself, or what it comes to with what was changed since its base. Undefined
 * if that is what the newest version says.
 */
export async function prepareProfile(
  call: Call,
  projectId: string,
  path: string,
  { yaml, baseVersion, reopen }: ProfileChange,
): Promise<{ put: PutProfile | undefined; newest: number }> {
  const state = await profileState(call.db, projectId, baseVersion);
  if (baseVersion > 0 && !state?.baseYaml) throw notFound('base version');
  const newest = state?.newest ?? 0;
  const put = { projectId, baseVersion, newest, reopen };
  if (!state) return { put: { ...put, yaml, merged: false }, newest };

  const fresh = baseVersion === newest || (baseVersion === 0 && state.stub);
  const result = fresh ? yaml : await merged(call, path, state, yaml, baseVersion);
  if (result === state.yaml) return { put: undefined, newest };
  if (state.locked && !reopen) throw profileLocked(newest);
  return { put: { ...put, yaml: result, merged: !fresh }, newest };
}

async function merged(call: Call, path: string, state: ProfileState, yaml: string, base: number): Promise<string> {
  const result = await inThread(call, 'merge', state.baseYaml ?? NOTHING, yaml, state.yaml);
  if ('conflicts' in result) throw mergeConflict(result.conflicts, base, state.newest);
  const fault = 'faults' in result ? result.faults[0]!.description : 'over 256 KiB';
  if ('faults' in result || Buffer.byteLength(result.yaml) > PROFILE_BYTES)
    throw invalid([{ field: `${path}yaml`, description: `${fault} after the merge` }]);
  return result.yaml;
}

const profileLocked = (version: number) =>
  new RpcError(status.FAILED_PRECONDITION, 'PROFILE_LOCKED', `version ${version} of the profile is locked`, {
    metadata: { version: String(version) },
  });

/** It names each path with both values. They are the caller's own documents, and reach no log. */
const mergeConflict = (conflicts: Conflict[], base: number, newest: number) =>
  new RpcError(
    status.ABORTED,
    'MERGE_CONFLICT',
    `changed since version ${base} in other ways: ${conflicts.map(({ path }) => path).join(', ')}`,
    {
      metadata: { version: String(newest), conflicts: String(conflicts.length) },
      violations: conflicts.map(({ path, ours, theirs }) => ({
        field: path,
        description: `put: ${ours}; stored: ${theirs}`,
        reason: 'CONFLICT',
      })),
    },
  );

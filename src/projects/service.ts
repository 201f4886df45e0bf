import type { ArtifactServiceService } from '../gen/memory/v1/artifact_service.ts';
import type { Handlers } from '../rpc/implement.ts';
import { changePrepared } from '../rpc/prepared.ts';
import { Check } from '../rpc/validate.ts';
import { checkProfile, prepareProfile } from './put.ts';
import { getProfile, keepProfile, listProfiles, profileFromRow, putProfile } from './repository.ts';

type ProfileMethods = 'getProjectProfile' | 'putProjectProfile' | 'listProjectProfileVersions';

export const projectHandlers: Pick<Handlers<typeof ArtifactServiceService>, ProfileMethods> = {
  async getProjectProfile({ projectId, version }, call) {
    const check = new Check();
    check.id('project_id', projectId);
    check.seq('version', version);
    check.done();

    const row = await getProfile(call.db, projectId, version);
    call.count('read', 'project_profiles', 1);
    return { profile: profileFromRow(row) };
  },

  async putProjectProfile(request, call) {
    const { projectId } = request;
    const check = new Check();
    check.id('project_id', projectId);
    check.optionalUuid('request_id', request.requestId);
    await checkProfile(check, '', request, call);
    check.done();

    const [row] = await changePrepared(
      call,
      request,
      () => prepareProfile(call, projectId, '', request),
      (tx, { put, newest }) => (put ? putProfile(tx, put) : keepProfile(tx, newest)),
    );
    if (row!.created) call.count('created', 'project_profiles', 1);
    return { profile: profileFromRow(await getProfile(call.db, projectId, row!.version)), created: row!.created };
  },

  async listProjectProfileVersions(request, call) {
    const check = new Check();
    check.id('project_id', request.projectId);
    check.page(request);
    check.done();

    const page = call.page(request);
    const found = await listProfiles(call.db, request.projectId, page.after?.[0], page.limit);
    if (found.length === 0 && !page.after) await getProfile(call.db, request.projectId, 0);
    const { rows, nextPageToken } = page.cut(found, (row) => [String(row.version)]);
    call.count('read', 'project_profiles', rows.length);
    return { versions: rows.map(profileFromRow), nextPageToken };
  },
};

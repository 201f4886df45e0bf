import type { ArtifactServiceService } from '../gen/memory/v1/artifact_service.ts';
import { notFound } from '../rpc/errors.ts';
import type { Handlers } from '../rpc/implement.ts';
import { Check } from '../rpc/validate.ts';
import { getInput, inputFromRow, listInputs, registerInput } from './repository.ts';

const NAME_CHARACTERS = 1024;
const MEDIA_TYPE_CHARACTERS = 255;
const URI_CHARACTERS = 2048;
const CONTENT_BYTES = 1024 * 1024;
const MAX_SECTIONS = 100;
const SHA256 = /^[0-9a-f]{64}$/i;

type InputMethods = 'registerInput' | 'getInput' | 'listInputs';

export const inputHandlers: Pick<Handlers<typeof ArtifactServiceService>, InputMethods> = {
  async registerInput(request, call) {
    const check = new Check();
    check.id('project_id', request.projectId);
    check.text('file_name', request.fileName, NAME_CHARACTERS, 1);
    check.text('media_type', request.mediaType, MEDIA_TYPE_CHARACTERS);
    check.seq('size_bytes', request.sizeBytes);
    check.that(SHA256.test(request.sha256), 'sha256', request.sha256 ? 'not 64 hexadecimal digits' : 'required');
    check.text('uri', request.uri, URI_CHARACTERS);
    if (request.content) check.content('content', request.content, CONTENT_BYTES);
    check.struct('metadata', request.metadata);
    check.optionalUuid('session_id', request.sessionId);
    if (check.count('section_ids', request.sectionIds, MAX_SECTIONS))
      request.sectionIds.forEach((id, i) => check.id(`section_ids[${i}]`, id));
    check.optionalUuid('request_id', request.requestId);
    check.done();

    const input = { ...request, sha256: request.sha256.toLowerCase(), metadata: request.metadata ?? {} };
    const [row] = await call.change(request, async (tx) => {
      const saved = await registerInput(tx, input);
      if (saved.length === 0) throw notFound('session');
      return saved;
    });
    if (row!.created) call.count('created', 'inputs', 1);
    return { input: inputFromRow(await getInput(call.db, row!.id, false)), created: row!.created };
  },

  async getInput({ inputId }, call) {
    const check = new Check();
    check.uuid('input_id', inputId);
    check.done();

    const row = await getInput(call.db, inputId, true);
    call.count('read', 'inputs', 1);
    return { input: inputFromRow(row) };
  },

  async listInputs(request, call) {
    const check = new Check();
    check.id('project_id', request.projectId);
    check.optionalId('section_id', request.sectionId);
    check.page(request);
    check.done();

    const page = call.page(request);
    const found = await listInputs(call.db, request, page.after?.[0], page.limit);
    const { rows, nextPageToken } = page.cut(
      found,
      (row) => [row.id],
      (row) => row.byteSize,
    );
    call.count('read', 'inputs', rows.length);
    return { inputs: rows.map(inputFromRow), nextPageToken };
  },
};

import { timestampText } from '../db/statement.ts';
import type { Memory } from '../gen/memory/v1/project_memory.ts';
import type { ProjectMemoryServiceService } from '../gen/memory/v1/project_memory_service.ts';
import type { Call } from '../rpc/context.ts';
import type { Handlers } from '../rpc/implement.ts';
import { Check, expiryOf } from '../rpc/validate.ts';
import { checkEmbedding, expectEmbeddable } from './embeddings.ts';
import {
  contentAt,
  deleteMemory,
  getMemory,
  type Key,
  listMemories,
  listVersions,
  memoryFromRow,
  putMemory,
  restoreMemory,
  versionFromRow,
  whyNotPut,
  whyNotSaved,
} from './repository.ts';
import { type SearchPosition, searchMemories } from './search.ts';
import type { Uses } from './uses.ts';

const KEY_CHARACTERS = 256;
const VALUE_BYTES = 64 * 1024;
const QUERY_CHARACTERS = 1000;

function checkKey(check: Check, { projectId, key }: Key): void {
  check.id('project_id', projectId);
  check.text('key', key, KEY_CHARACTERS, 1);
}

/** What a version takes beside its value and metadata. */
const VERSION_BYTES = 400;

function saved(call: Call, row: Parameters<typeof memoryFromRow>[0]): Memory {
  call.stored(Buffer.byteLength(row.value) + Buffer.byteLength(JSON.stringify(row.metadata)) + VERSION_BYTES);
  call.count('created', 'memory_versions', 1);
  return memoryFromRow(row);
}

export const memoryHandlers = (uses: Uses): Handlers<typeof ProjectMemoryServiceService> => ({
  async putMemory(request, call) {
    const check = new Check();
    checkKey(check, request);
    check.content('value', request.value, VALUE_BYTES);
    check.struct('metadata', request.metadata);
    check.expiration(request.expiration);
    checkEmbedding(check, request.embedding);
    check.etag('etag', request.etag);
    check.optionalUuid('request_id', request.requestId);
    check.done();

    const { metadata = {} } = request;
    const put = { ...request, metadata, ...expiryOf(request.expiration) };
    const [row] = await call.change(request, async (tx) => {
      const saved = await putMemory(tx, put);
      if (saved.length === 0) throw await whyNotPut(call.db, request);
      return saved;
    });
    return { memory: saved(call, { ...row!, value: request.value, metadata }), created: row!.created };
  },

  async getMemory(request, call) {
    const check = new Check();
    checkKey(check, request);
    check.done();

    const row = await getMemory(call.db, request);
    uses.count(call.db.scope, [row.id]);
    call.count('read', 'memories', 1);
    return { memory: memoryFromRow(row) };
  },

  async listMemories(request, call) {
    const check = new Check();
    check.id('project_id', request.projectId);
    check.text('key_prefix', request.keyPrefix, KEY_CHARACTERS);
    check.struct('metadata_filter', request.metadataFilter);
    check.page(request);
    check.done();

    const page = call.page(request);
    const found = await listMemories(call.db, request, page.after, page.limit);
    const { rows, nextPageToken } = page.cut(
      found,
      (row) => [timestampText(row.useTime), row.id],
      (row) => row.byteSize,
    );
    uses.count(
      call.db.scope,
      rows.map((row) => row.id),
    );
    call.count('read', 'memories', rows.length);
    return { memories: rows.map(memoryFromRow), nextPageToken };
  },

  async searchMemories(request, call) {
    const { projectId, embedding } = request;
    const check = new Check();
    check.id('project_id', projectId);
    check.text('query', request.query, QUERY_CHARACTERS, embedding.length > 0 ? 0 : 1);
    checkEmbedding(check, embedding);
    check.struct('metadata_filter', request.metadataFilter);
    check.page(request);
    check.done();

    if (embedding.length > 0) await expectEmbeddable(call.db, projectId, embedding);
    const page = call.page(request);
    const found = await searchMemories(call.db, request, page.after as SearchPosition | undefined, page.limit);
    const { rows, nextPageToken } = page.cut(found.rows, found.position, (row) => row.byteSize);
    uses.count(
      call.db.scope,
      rows.map((row) => row.id),
    );
    call.count('read', 'memories', rows.length);
    const results = rows.map((row) => ({
      memory: memoryFromRow(row),
      score: row.score,
      snippets: found.snippetsOf(row),
    }));
    return { results, nextPageToken };
  },

  async listMemoryVersions(request, call) {
    const check = new Check();
    checkKey(check, request);
    check.page(request);
    check.done();

    const page = call.page(request);
    const found = await listVersions(call.db, request, page.after?.[0], page.limit);
    if (found.length === 0) await getMemory(call.db, request);
    const { rows, nextPageToken } = page.cut(
      found,
      (row) => [String(row.version)],
      (row) => row.byteSize,
    );
    call.count('read', 'memory_versions', rows.length);
    return { versions: rows.map(versionFromRow), nextPageToken };
  },

  async restoreMemory(request, call) {
    const check = new Check();
    checkKey(check, request);
    check.that(request.version >= 1, 'version', request.version === 0 ? 'required' : 'negative');
    check.etag('etag', request.etag);
    check.optionalUuid('request_id', request.requestId);
    check.done();

    const { version, etag } = request;
    const [row] = await call.change(request, async (tx) => {
      const saved = await restoreMemory(tx, request, version, etag);
      if (saved.length === 0) throw await whyNotSaved(call.db, request, etag);
      return saved;
    });
    return { memory: saved(call, { ...row!, ...(await contentAt(call.db, row!)) }) };
  },

  async deleteMemory(request, call) {
    const check = new Check();
    checkKey(check, request);
    check.etag('etag', request.etag);
    check.optionalUuid('request_id', request.requestId);
    check.done();

    const { etag } = request;
    await call.change(request, async (tx) => {
      const gone = await deleteMemory(tx, request, etag);
      if (gone.length === 0) throw await whyNotSaved(call.db, request, etag);
      return gone;
    });
    return {};
  },
});

import { randomUUID } from 'node:crypto';
import { same } from './surprise.ts';

const PROJECT_MEMORY = 'memory.v1.ProjectMemoryService';

interface Tools {
  projectId: string;
  ok(method: string, request: object): Promise<any>;
  refused(code: string, reason: string, method: string, request: object): Promise<any>;
  told(reply: any): string;
  say(step: string, answer: string): void;
}

/** What a project knows: put, changed, found, brought to a session, brought back, deleted. */
export async function memories({ projectId, ok, refused, told, say }: Tools): Promise<void> {
  const call = (method: string, request: object) => ok(`${PROJECT_MEMORY}/${method}`, { projectId, ...request });
  const put = (key: string, value: string, rest: object = {}) =>
    call('PutMemory', { key, value, requestId: randomUUID(), ...rest });
  const keys = (list: { key: string }[]) => list.map(({ key }) => key);

  await put('board/deck', 'The quarterly report is due two weeks after the quarter.', { metadata: { by: 'finance' } });
  const { memory } = await put('fiscal year', 'It starts in March.');
  const { memory: changed } = await put('fiscal year', 'It starts in April.', { etag: memory.etag });
  same('the version', changed.version, '2');
  const stale = { projectId, key: 'fiscal year', value: 'It starts in May.', etag: memory.etag };
  const late = await refused('ABORTED', 'ETAG_MISMATCH', `${PROJECT_MEMORY}/PutMemory`, stale);
  say('PutMemory', `“${changed.key}” is at version ${changed.version}; with the older etag: ${told(late)}`);

  const { memory: got } = await call('GetMemory', { key: 'fiscal year' });
  same('the value', got.value, 'It starts in April.');
  const { memories: listed } = await call('ListMemories', { keyPrefix: 'board/' });
  same('the keys with the prefix', keys(listed), ['board/deck']);
  say('ListMemories', `“${got.value}” under its key, “${listed[0].key}” under its prefix`);

  const sought = { query: 'quaterly', metadataFilter: { by: 'finance' } };
  const { results } = await call('SearchMemories', sought);
  same('the key found', results[0]?.memory.key, 'board/deck');
  const pieces: { text: string; match: boolean }[] = results[0].snippets.flatMap((snippet: any) => snippet.pieces);
  const marked = pieces.map(({ text, match }) => (match ? `[${text}]` : text)).join('');
  say('SearchMemories', `${sought.query}, misspelt, by its metadata: ${marked}`);

  const session = { surfaceId: 'smoke', projectId };
  const { session: made } = await ok('memory.v1.MemoryService/UpsertSession', { session, requestId: randomUUID() });
  const entries = [{ memoryReference: { key: 'fiscal year' } }];
  await ok('memory.v1.MemoryService/AppendSessionContext', { sessionId: made.id, entries });
  const options = { include: ['CONTEXT_SECTION_MEMORIES'] };
  const { context } = await ok('memory.v1.ConversationService/GetContext', { sessionId: made.id, options });
  same('the memories of the context', keys(context.memories), ['fiscal year', 'board/deck']);
  say('GetContext', `what the session references first, then the rest, in ${context.tokenCount} tokens`);

  const { memory: restored } = await call('RestoreMemory', { key: 'fiscal year', version: '1' });
  const { versions } = await call('ListMemoryVersions', { key: 'fiscal year' });
  same('the versions', [restored.value, versions.length], ['It starts in March.', 3]);
  say('RestoreMemory', `“${restored.value}” again, as version ${restored.version} of ${versions.length}`);

  await call('DeleteMemory', { key: 'fiscal year' });
  const gone = await refused('NOT_FOUND', 'DELETED', `${PROJECT_MEMORY}/GetMemory`, { projectId, key: 'fiscal year' });
  say('DeleteMemory', `then GetMemory: ${told(gone)}`);
}

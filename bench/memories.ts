import { ProjectMemoryServiceService as Memories } from '../src/gen/memory/v1/project_memory_service.ts';
import type { Caller } from './client.ts';
import { any, many, type Work } from './loop.ts';

const PROJECT = { projectId: 'facts' };
/** Apart from what is searched: what was put again and again leaves dead rows, which a search passes by until a vacuum. */
const WRITTEN = 'notes';
const COUNT = 1000;
const WORDS = (
  'revenue region forecast quarter ledger april close audit review budget margin invoice contract renewal customer churn ' +
  'discount currency euro dollar report board deck owner deadline policy retention region emea apac latam target plan step'
).split(' ');

const keyOf = (number: number): string => `${WORDS[number % WORDS.length]}/fact-${number}`;

/** A fact of some 500 characters, with 10 of the words: two of them are in about every twelfth fact. */
const factOf = (number: number): string =>
  Array.from({ length: 70 }, (_, i) => WORDS[(number * 7 + (i % 10) * 3) % WORDS.length]).join(' ');

const put = (projectId: string, key: string, number: number) => ({
  projectId,
  key,
  value: factOf(number),
  metadata: { by: 'finance' },
  expiration: undefined,
  etag: '',
  requestId: '',
  embedding: [],
});

/** Makes the memories that are read and searched. */
export async function seedMemories(call: Caller): Promise<void> {
  await many(COUNT, (number) => call(Memories.putMemory, put(PROJECT.projectId, keyOf(number), number)));
}

/** Each caller puts a key of its own; all read and search the same. */
export function memoriesWork(call: Caller): Work {
  let made = 0;
  return {
    PutMemory: (caller) => call(Memories.putMemory, put(WRITTEN, `of caller ${caller}`, made++)),
    GetMemory: () => call(Memories.getMemory, { ...PROJECT, key: keyOf(Math.floor(Math.random() * COUNT)) }),
    SearchMemories: () =>
      call(Memories.searchMemories, {
        ...PROJECT,
        query: `${any(WORDS)} ${any(WORDS)}`,
        embedding: [],
        metadataFilter: undefined,
        pageSize: 10,
        pageToken: '',
      }),
  };
}

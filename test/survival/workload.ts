import { MessageRole } from '../../src/gen/memory/v1/message.ts';
import { draft } from './drafts.ts';
import type { Worker } from './ledger.ts';
import { remember } from './memories.ts';
import { tell } from './profiles.ts';

const { HUMAN, ASSISTANT } = MessageRole;

export const SURFACES = ['s0', 's1', 's2'];
const SHARED = ['shared0', 'shared1'];
const TARGETS = ['target0', 'target1'];
export const threadOf = (surfaceId: string): string => `turns-${surfaceId}`;
const ownThread = (worker: Worker): string => `own-${worker.n}`;

/** Does one thing after the other, on few threads and sessions that all share, for as long as the worker goes. */
export async function work(worker: Worker): Promise<void> {
  const ways = [
    append,
    append,
    appendByClientId,
    record,
    upsert,
    upsert,
    edit,
    edit,
    turn,
    turn,
    forward,
    draft,
    remember,
    tell,
    look,
  ];
  await append(worker, ownThread(worker));
  while (worker.going()) await worker.random.pick(ways)(worker);
}

const some = (worker: Worker) => Array.from({ length: 1 + worker.random.int(3) }, () => worker.fresh());

async function append(worker: Worker, chosen?: string): Promise<void> {
  const threadId = chosen ?? worker.random.pick([...SHARED, ...SURFACES.map(threadOf), ownThread(worker)]);
  const contents = some(worker);
  const messages = contents.map((content) => ({ role: HUMAN, content }));
  const intent = { threadId, contents, events: ['messages.append'] };
  await worker.intend('append', intent, ({ conversation }, { id, metadata, options }) =>
    conversation.appendMessages({ threadId, messages, requestId: id }, metadata, options),
  );
}

/** Without a request_id: the messages' own ids make it happen once. */
async function appendByClientId(worker: Worker): Promise<void> {
  const threadId = worker.random.pick(SHARED);
  const contents = some(worker);
  const messages = contents.map((content) => ({ role: HUMAN, content, clientId: content }));
  const intent = { threadId, contents, events: ['messages.append'] };
  await worker.intend('append by client_id', intent, ({ conversation }, { metadata, options }) =>
    conversation.appendMessages({ threadId, messages }, metadata, options),
  );
}

/** Each worker has a key of its own in the state that all of them merge into. */
async function upsert(worker: Worker): Promise<void> {
  const surfaceId = worker.random.pick(SURFACES);
  const state = { [`worker${worker.n}`]: worker.fresh() };
  const session = { surfaceId, threadId: threadOf(surfaceId), state };
  const intent = { surfaceId, state, events: ['sessions.upsert'] };
  await worker.intend('upsert', intent, ({ memory }, { id, metadata, options }) =>
    memory.upsertSession({ session, requestId: id }, metadata, options),
  );
}

/** Reads a counter and writes the next number, if nobody was faster. */
async function edit(worker: Worker): Promise<void> {
  const surfaceId = worker.random.pick(SURFACES);
  const threadId = threadOf(surfaceId);
  const found = await worker.read(({ memory }) => memory.listSessions({ surfaceId }));
  const [session] = found?.sessions ?? [];
  if (!session) return;
  const state = { counter: (session.state?.counter ?? 0) + 1 };
  const change = { surfaceId, threadId, etag: session.etag, state };
  const intent = { surfaceId, state, events: ['sessions.upsert'] };
  await worker.intend('edit', intent, ({ memory }, { id, metadata, options }) =>
    memory.upsertSession({ session: change, requestId: id }, metadata, options),
  );
}

async function turn(worker: Worker): Promise<void> {
  const surfaceId = worker.random.pick(SURFACES);
  const threadId = threadOf(surfaceId);
  const question = worker.fresh();
  const asked = { [`asked${worker.n}`]: question };
  const begin = {
    session: { surfaceId, threadId, state: asked },
    holder: `worker ${worker.n}`,
    leaseTtl: { seconds: 2, nanos: 0 },
    messages: [{ role: HUMAN, content: question }],
    context: {},
  };
  const beginning = ['turns.begin', 'sessions.upsert', 'turns.acquire', 'messages.append'];
  const { response: begun } = await worker.intend(
    'begin',
    { threadId, contents: [question], surfaceId, state: asked, events: beginning },
    ({ conversation }, { id, metadata, options }) =>
      conversation.beginTurn({ ...begin, requestId: id }, metadata, options),
  );
  if (!begun) return;
  const answer = worker.fresh();
  const answered = { [`answered${worker.n}`]: answer };
  const commit = {
    sessionId: begun.session!.id,
    fencingToken: begun.lease!.fencingToken,
    messages: [{ role: ASSISTANT, content: answer }],
    turn: { query: question, response: answer },
    statePatch: answered,
    llmRequests: [spent(answer)],
    release: true,
  };
  const committing = ['turns.commit', 'sessions.upsert', 'messages.append', 'turns.release'];
  await worker.intend(
    'commit',
    { threadId, contents: [answer], surfaceId, state: answered, usage: answer, events: committing },
    ({ conversation }, { id, metadata, options }) =>
      conversation.commitTurn({ ...commit, requestId: id }, metadata, options),
  );
}

/** What a call of a model cost, by an id of its own. */
const spent = (externalId: string) => ({ provider: 'p', model: 'm', totalTokens: 1, cost: '0.1', externalId });

async function record(worker: Worker): Promise<void> {
  const usage = worker.fresh();
  await worker.intend('record', { usage, events: ['usage.record'] }, (clients, { id, metadata, options }) =>
    clients.usage.recordLlmRequest({ llmRequest: spent(usage), requestId: id }, metadata, options),
  );
}

/** Forwards what is newest in the worker's own thread, by a bundle saved before or on the way. */
async function forward(worker: Worker): Promise<void> {
  const targetThreadId = worker.random.pick(TARGETS);
  const handoff = worker.random.chance(0.5) ? { destination: 'maybes' } : undefined;
  const selection = { selection: { $case: 'lastN' as const, value: 1 + worker.random.int(4) } };
  const inline = { sourceThreadId: ownThread(worker), selection };
  let source: { $case: 'inline'; value: typeof inline } | { $case: 'bundleId'; value: string } = {
    $case: 'inline',
    value: inline,
  };
  if (worker.random.chance(0.5)) {
    const { response: saved } = await worker.intend(
      'save',
      { events: ['bundles.save'] },
      ({ memory }, { id, metadata, options }) => memory.saveBundle({ ...inline, requestId: id }, metadata, options),
    );
    if (!saved) return;
    source = { $case: 'bundleId', value: saved.bundle!.id };
  }
  const kind = source.$case === 'inline' ? 'forward inline' : 'forward';
  await worker.intend(kind, { events: ['bundles.forward'] }, ({ memory }, { id, metadata, options }) =>
    memory.forwardBundle({ source, targetThreadId, createTarget: true, handoff, requestId: id }, metadata, options),
  );
}

/** A thread that is read under way is gap-free at each moment. */
async function look(worker: Worker): Promise<void> {
  const threadId = worker.random.pick([...SHARED, ...TARGETS, ownThread(worker)]);
  await worker.read(async ({ conversation }) => {
    const page = await conversation.listMessages({ threadId, pageSize: 20 }).catch((error) => {
      if (error.details?.includes('not found')) return { messages: [] };
      throw error;
    });
    page.messages.forEach(({ seq }, i) => {
      const before = page.messages[i - 1]?.seq ?? seq + 1;
      if (before !== seq + 1) throw new Error(`${threadId} has ${seq} before ${before}`);
    });
  });
}

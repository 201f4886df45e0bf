import { MessageRole } from '../../src/gen/memory/v1/message.ts';
import { etagOf } from '../../src/rpc/validate.ts';
import type { ServerProcess } from '../fixtures/process.ts';
import { newTenant } from '../support.ts';
import { restarted } from './crash.ts';
import { type Entry, newLedger, openWorker, type Worker } from './ledger.ts';
import { type Model, type Operation, whyNotLinearizable } from './linearize.ts';
import {
  type SessionInput,
  type SessionOutput,
  sessionModel,
  type ThreadInput,
  type ThreadOutput,
  threadModel,
} from './models.ts';
import { makeRandom } from './random.ts';
import type { Arena, Postgres, Scenario } from './scenario.ts';
import { CALM, cutAfterCommit } from './troubles.ts';

const CLIENTS = 8;
const CALLS = 25;
const KEYS = ['a', 'b'];
/** None lapses while it is looked at. */
const LEASE = { seconds: 600, nanos: 0 };

export const history: Scenario = {
  name: 'history',
  about:
    'concurrent upserts, etag writes, leases, appends and reads on few keys are linearizable, under crashes and cuts',
  weight: 2,
  async run(arena) {
    const postgres = await arena.startPostgres();
    const servers = await Promise.all([arena.startServer({ postgres }), arena.startServer({ postgres })]);
    const tenant = await newTenant(['user'], {}, postgres.ownerUrl);
    const ledger = newLedger();
    const addresses = servers.map((server) => server.address);
    const workers = Array.from({ length: CLIENTS }, (_, n) =>
      openWorker(n, addresses, tenant, ledger, makeRandom(arena.seed, `worker ${n}`), () => true),
    );
    for (const worker of workers) arena.cleanup(worker.close);

    const figures = { rounds: 0, histories: 0, operations: 0, unknown: 0, troubles: 0 };
    while (arena.timeLeft() > 0) {
      const round = String(figures.rounds++);
      const sessions = await Promise.all(KEYS.map((key) => openSession(workers[0]!, `${round}${key}`)));
      const threads = KEYS.map((key) => openThread(`${round}${key}`));
      const playing = Promise.all(workers.map((worker) => play(worker, sessions, threads)));
      const troubled = arena.random.chance(0.7);
      if (troubled) figures.troubles++;
      await Promise.all([playing, troubled && makeTrouble(arena, postgres, servers, playing)]);
      for (const { look } of [...sessions, ...threads]) await look(workers[0]!);
      if (ledger.faults.length > 0) throw new Error(ledger.faults.slice(0, 5).join('\n'));
      for (const { name, model, record } of [...sessions, ...threads] as Kept<any, any>[]) {
        const why = whyNotLinearizable(model, record);
        if (why) throw new Error(`${name} is not linearizable: ${why}`);
        figures.histories++;
        figures.operations += record.length;
        figures.unknown += record.filter((operation) => operation.output === undefined).length;
      }
    }
    return figures;
  },
};

/** One thing that all work on, with everything that they asked of it and were told. */
interface Kept<Input, Output> {
  name: string;
  model: Model<any, Input, Output>;
  record: Operation<Input, Output>[];
  /** Asks something by chance. */
  touch(worker: Worker): Promise<void>;
  look(worker: Worker): Promise<void>;
}

async function play(worker: Worker, ...kept: Kept<any, any>[][]): Promise<void> {
  for (let call = 0; call < CALLS; call++) await worker.random.pick(kept.flat()).touch(worker);
}

/** Records an intention, with what the model would have answered. */
async function recorded<Input, Output, Response>(
  record: Operation<Input, Output | 'refused'>[],
  input: Input,
  intend: () => Promise<Entry<Response>>,
  told: (response: Response) => Output,
): Promise<Response | undefined> {
  const start = performance.now();
  const { outcome, response } = await intend();
  const output = outcome === 'refused' ? outcome : response && told(response);
  record.push({ input, output, start, end: output === undefined ? Number.POSITIVE_INFINITY : performance.now() });
  return response;
}

async function openSession(maker: Worker, surfaceId: string): Promise<Kept<SessionInput, SessionOutput>> {
  const record: Operation<SessionInput, SessionOutput>[] = [];
  /** What each worker has seen last. */
  const seen = new Map<Worker, number>();
  const toldOf = ({ session }: { session?: { title?: string | undefined; revision: number } | undefined }) => ({
    title: session!.title!,
    revision: session!.revision,
  });
  let sessionId = '';

  async function write(worker: Worker, revision?: number): Promise<void> {
    const title = worker.fresh();
    const etag = revision === undefined ? '' : etagOf(revision);
    const session =
      sessionId && worker.random.chance(0.5) ? { id: sessionId, title, etag } : { surfaceId, title, etag };
    const input: SessionInput = revision === undefined ? { kind: 'upsert', title } : { kind: 'edit', title, revision };
    const intend = () =>
      worker.intend(input.kind, { events: [] }, ({ memory }, { id, metadata, options }) =>
        memory.upsertSession({ session, requestId: id }, metadata, options),
      );
    const response = await recorded(record, input, intend, toldOf);
    if (!response) return;
    seen.set(worker, response.session!.revision);
    sessionId = response.session!.id;
  }
  async function look(worker: Worker): Promise<void> {
    const response = await worker.read(({ memory }) => memory.getSession({ sessionId }));
    if (!response) return;
    record.push({ input: { kind: 'get' }, output: toldOf(response), start: worker.answered(), end: performance.now() });
    seen.set(worker, response.session!.revision);
  }
  // Settled before others come, as they need its id.
  while (!sessionId) await write(maker);
  return {
    name: `session ${surfaceId}`,
    model: sessionModel,
    record,
    look,
    touch: (worker) => {
      const kind = worker.random.pick(['upsert', 'edit', 'edit', 'look', 'look'] as const);
      if (kind === 'look') return look(worker);
      return write(worker, kind === 'edit' ? (seen.get(worker) ?? 1) : undefined);
    },
  };
}

function openThread(threadId: string): Kept<ThreadInput, ThreadOutput> {
  const record: Operation<ThreadInput, ThreadOutput>[] = [];
  const tokens = new Map<Worker, number>();

  async function acquire(worker: Worker): Promise<void> {
    const holder = `worker ${worker.n}`;
    const intend = () =>
      worker.intend('acquire', { events: [] }, ({ conversation }, { id, metadata, options }) =>
        conversation.acquireTurn({ threadId, holder, ttl: LEASE, requestId: id }, metadata, options),
      );
    const told = ({ lease }: { lease?: { fencingToken: number } | undefined }) => ({ token: lease!.fencingToken });
    const response = await recorded(record, { kind: 'acquire', holder }, intend, told);
    if (response) tokens.set(worker, told(response).token);
  }
  async function keep(worker: Worker, kind: 'renew' | 'release'): Promise<void> {
    const token = tokens.get(worker);
    if (!token) return acquire(worker);
    const intend = () =>
      worker.intend<object>(kind, { events: [] }, ({ conversation }, { id, metadata, options }) => {
        const request = { threadId, fencingToken: token, requestId: id };
        if (kind === 'release') return conversation.releaseTurn(request, metadata, options);
        return conversation.renewTurn({ ...request, ttl: LEASE }, metadata, options);
      });
    await recorded(record, { kind, token }, intend, () => 'done' as const);
  }
  async function append(worker: Worker): Promise<void> {
    const content = worker.fresh();
    const token = worker.random.chance(0.6) ? (tokens.get(worker) ?? 0) : 0;
    const role = token ? MessageRole.ASSISTANT : MessageRole.HUMAN;
    const request = { threadId, messages: [{ role, content }], fencingToken: token };
    const intend = () =>
      worker.intend('append', { events: [] }, ({ conversation }, { id, metadata, options }) =>
        conversation.appendMessages({ ...request, requestId: id }, metadata, options),
      );
    await recorded(record, { kind: 'append', content, token }, intend, ({ messages }) => ({ seq: messages[0]!.seq }));
  }
  async function look(worker: Worker): Promise<void> {
    const position = { $case: 'afterSeq' as const, value: 0 };
    const response = await worker.read(({ conversation }) =>
      conversation.listMessages({ threadId, position, pageSize: 500 }).catch((error) => {
        if (error.details?.includes('not found')) return { messages: [] };
        throw error;
      }),
    );
    if (!response) return;
    const log = response.messages.map((message) => message.content);
    record.push({ input: { kind: 'list' }, output: { log }, start: worker.answered(), end: performance.now() });
  }
  return {
    name: `thread ${threadId}`,
    model: threadModel,
    record,
    look,
    touch: (worker) => {
      const kind = worker.random.pick(['acquire', 'append', 'append', 'append', 'renew', 'release', 'look'] as const);
      if (kind === 'acquire') return acquire(worker);
      if (kind === 'append') return append(worker);
      return kind === 'look' ? look(worker) : keep(worker, kind);
    },
  };
}

async function makeTrouble(
  arena: Arena,
  postgres: Postgres,
  servers: ServerProcess[],
  playing: Promise<unknown>,
): Promise<void> {
  const kind = arena.random.pick(['server', 'backend', 'commit'] as const);
  if (kind === 'backend') return postgres.kill('backend');
  if (kind === 'commit') {
    await Promise.race([cutAfterCommit.strike(postgres.link, arena), playing]);
    Object.assign(postgres.link, CALM);
    return;
  }
  const i = arena.random.int(servers.length);
  const killed = servers[i]!;
  killed.kill('SIGKILL');
  await killed.exited;
  servers[i] = await restarted(arena, postgres, killed.port);
}

import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  Channel,
  ChannelCredentials,
  type Metadata,
  makeClientConstructor,
  type ServiceError,
  status,
} from '@grpc/grpc-js';
import { service as healthDefinition } from 'grpc-health-check';
import pg from 'pg';
import { ServerReflectionClient } from '../../src/gen/grpc/reflection/v1/reflection.ts';
import {
  AppendMessagesRequest,
  BeginTurnRequest,
  ConversationServiceClient,
  StreamOpen,
} from '../../src/gen/memory/v1/conversation_service.ts';
import { GetSessionRequest, MemoryServiceClient } from '../../src/gen/memory/v1/memory_service.ts';
import { type Interposed, startProxy } from '../proxy.ts';
import { connect, headersOf, metadataOf, newTenant } from '../support.ts';
import { direct, startWatched } from './footprint.ts';
import type { Arena, Postgres, Random, Scenario } from './scenario.ts';

const GOAL = 10_000;
const BATCH = 100;
const POOL = 8;
const HELD = 'held';
const HealthClient = makeClientConstructor(healthDefinition as never, 'Health');

/** A call or a stream, open until it ends or is cancelled. */
interface Open {
  cancel(): void;
  on(event: 'error' | 'data' | 'status', listener: (value: any) => void): unknown;
}

type Start = (callers: Callers, random: Random, deadline: number) => Open;

/** Clients over one connection of their own. */
interface Callers {
  memory: MemoryServiceClient;
  conversation: ConversationServiceClient;
  reflection: ServerReflectionClient;
  health: any;
  metadata: Metadata;
  sessionId: string;
}

const ignored = () => {};
const unary = (call: any): Open => call;

/** Of every shape: a point read, a write of one statement, one of many steps, writes that wait for a row, streams. */
const STARTS: Record<string, Start> = {
  GetSession: ({ memory, metadata, sessionId }, _random, deadline) =>
    unary(memory.getSession(GetSessionRequest.fromPartial({ sessionId }), metadata, { deadline }, ignored)),
  AppendMessages: ({ conversation, metadata }, random, deadline) =>
    append(conversation, metadata, deadline, `t${random.int(20)}`),
  'AppendMessages to a held thread': ({ conversation, metadata }, _random, deadline) =>
    append(conversation, metadata, deadline, HELD),
  BeginTurn: ({ conversation, metadata }, random, deadline) => {
    const session = { surfaceId: 'web', threadId: `turn${random.int(1000)}` };
    const messages = [{ role: 1 as const, content: 'hello' }];
    const request = BeginTurnRequest.fromPartial({
      session,
      holder: 'me',
      messages,
      context: {},
      requestId: randomUUID(),
    });
    return unary(conversation.beginTurn(request, metadata, { deadline }, ignored));
  },
  WatchThread: ({ conversation, metadata }, random, deadline) =>
    conversation.watchThread({ threadId: `t${random.int(20)}`, afterRevision: 0 }, metadata, { deadline }),
  WatchSession: ({ memory, metadata, sessionId }, _random, deadline) =>
    memory.watchSession({ sessionId, afterRevision: 0 }, metadata, { deadline }),
  StreamMessage: ({ conversation, metadata }, random, deadline) => {
    const stream = conversation.streamMessage(metadata, { deadline });
    const open = { threadId: `t${random.int(20)}`, role: 2 as const, clientId: randomUUID() };
    stream.write({ frame: { $case: 'open', value: StreamOpen.fromPartial(open) } });
    for (let offset = 0; offset < random.int(4); offset++) {
      stream.write({ frame: { $case: 'chunk', value: { offset, text: 'x' } } });
    }
    if (random.chance(0.3)) stream.end();
    return stream;
  },
  'Health/Watch': ({ health }, random, deadline) =>
    health.watch({ service: random.pick(['', 'liveness', 'none']) }, { deadline }),
  ServerReflectionInfo: ({ reflection }, random, deadline) => {
    const stream = reflection.serverReflectionInfo({ deadline });
    for (let asked = random.int(4); asked > 0; asked--) {
      stream.write({ host: '', messageRequest: { $case: 'listServices', value: '' } });
    }
    return stream as Open;
  },
};

function append(client: ConversationServiceClient, metadata: Metadata, deadline: number, threadId: string): Open {
  const request = AppendMessagesRequest.fromPartial({ threadId, messages: [{ role: 1, content: 'x' }] });
  return unary(client.appendMessages(request, metadata, { deadline }, ignored));
}

/** Takes the row of a thread, so that appends to it wait. Gives what lets it go. */
async function hold(postgres: Postgres, tenant: string): Promise<() => Promise<void>> {
  const holder = new pg.Client({ connectionString: postgres.url });
  await holder.connect();
  await holder.query(`begin; set local app.tenant_id = '${tenant}'; set local app.env = 'dev'`);
  await holder.query('select from threads where tenant_id = $1 and thread_id = $2 for update', [tenant, HELD]);
  return () => holder.end();
}

/** Starts so many at once, and ends each at a moment of its own: cancelled, late, or with its connection. */
async function batch(random: Random, address: string, metadata: Metadata, sessionId: string): Promise<string[]> {
  const proxy = await startProxy(`tcp://${address}`);
  const channelOverride = new Channel(new URL(proxy.url).host, ChannelCredentials.createInsecure(), {});
  const open = (Client: any) => new Client('', ChannelCredentials.createInsecure(), { channelOverride });
  const callers: Callers = {
    memory: open(MemoryServiceClient),
    conversation: open(ConversationServiceClient),
    reflection: open(ServerReflectionClient),
    health: open(HealthClient),
    metadata,
    sessionId,
  };
  const end = random.pick(['cancelled', 'cancelled', 'late', 'connection cut']);
  const calls = Array.from({ length: BATCH }, () => start(callers, random, end, proxy));
  const codes = await Promise.all(calls);
  channelOverride.close();
  await proxy.close();
  return codes;
}

async function start(callers: Callers, random: Random, end: string, proxy: Interposed): Promise<string> {
  const moment = random.int(60);
  const deadline = Date.now() + (end === 'late' ? moment : 30_000);
  const call = STARTS[random.pick(Object.keys(STARTS))]!(callers, random, deadline);
  const ended = new Promise<string>((resolve) => {
    call.on('status', ({ code }: ServiceError) => resolve(status[code]!));
  });
  call.on('error', ignored);
  call.on('data', ignored);
  if (end !== 'late') {
    await Promise.race([ended, sleep(moment)]);
    if (end === 'cancelled') call.cancel();
    else if (random.chance(0.1)) proxy.cutAll();
  }
  // What outlives the cut of its connection, as it came after it.
  const rest = setTimeout(() => call.cancel(), 500);
  const code = await ended;
  clearTimeout(rest);
  return code;
}

async function run(arena: Arena) {
  const postgres = direct(await arena.startPostgres());
  const server = await startWatched(arena, postgres, ['--pool-size', String(POOL)]);
  const tenant = await newTenant(['user'], {}, postgres.ownerUrl);
  const metadata = metadataOf(headersOf(tenant));
  const message = (threadId: string) => ({ threadId, messages: [{ role: 1 as const, content: 'x' }] });

  const client = connect(server.address, headersOf(tenant));
  const { session } = await client.memory.upsertSession({ session: { surfaceId: 'web' } });
  await client.conversation.appendMessages(message(HELD));
  client.close();

  const codes: Record<string, number> = {};
  let calls = 0;
  async function abuse(goal: number, until: number): Promise<void> {
    const release = await hold(postgres, tenant);
    for (const end = calls + goal; calls < end && Date.now() < until; calls += BATCH) {
      for (const code of await batch(arena.random, server.address, metadata, session!.id)) {
        codes[code] = (codes[code] ?? 0) + 1;
      }
    }
    await release();
  }

  // Some of it first, so that what is made once is made before the first look.
  await abuse(GOAL / 10, Date.now() + arena.timeLeft() / 4);
  await sleep(1000);
  const before = await server.footprint();
  arena.tell(`before: ${JSON.stringify(before)}`);
  await abuse(GOAL, Date.now() + arena.timeLeft() * 0.8);
  arena.tell(`${calls} calls: ${JSON.stringify(codes)}`);
  const after = await server.recovered(before, 40_000);
  arena.tell(`after: ${JSON.stringify(after)}`);

  // Every connection of the pool still serves.
  const again = connect(server.address, headersOf(tenant));
  await Promise.all(Array.from({ length: POOL * 4 }, (_, n) => again.conversation.appendMessages(message(`last${n}`))));
  again.close();
  return {
    'calls and streams left': calls,
    cancelled: codes.CANCELLED ?? 0,
    late: codes.DEADLINE_EXCEEDED ?? 0,
    'cut off': codes.UNAVAILABLE ?? 0,
    'sockets before and after': `${before.sockets} ${after.sockets}`,
    'heap before and after, MB': `${before.heapMb} ${after.heapMb}`,
    'backends before and after': `${before.backends} ${after.backends}`,
  };
}

export const leaks: Scenario = {
  name: 'leaks',
  about: 'calls and streams cancelled, late or cut off at any moment leave nothing behind',
  weight: 2,
  run,
};

import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { styleText } from 'node:util';
import {
  ChannelCredentials,
  type ClientOptions,
  type ClientReadableStream,
  Metadata,
  type ServiceError,
  status,
} from '@grpc/grpc-js';
import { UserError } from '../errors.ts';
import { ConversationServiceClient, type WatchThreadResponse } from '../gen/memory/v1/conversation_service.ts';
import { MemoryServiceClient, type WatchSessionResponse } from '../gen/memory/v1/memory_service.ts';
import { readable } from './readable.ts';
import { jsonLines, type Told, visible } from './telling.ts';

export interface TailOptions {
  thread?: string;
  session?: string;
  tenant?: string;
  env?: string;
  user?: string;
  address: string;
  after: number;
  follow: boolean;
  token?: string;
  tls?: boolean;
  tlsCa?: string;
  tlsCert?: string;
  tlsKey?: string;
}

/** What is followed: a call that tells it from a revision on, until it breaks. */
interface Source {
  watch(after: number, metadata: Metadata): ClientReadableStream<WatchThreadResponse | WatchSessionResponse>;
  close(): void;
}

const FIRST_WAIT_MS = 100;
const LONGEST_WAIT_MS = 5000;

// The library's own wait for a server that is away grows to two minutes. Pings find out that a connection leads nowhere.
const CHANNEL: ClientOptions = {
  'grpc.initial_reconnect_backoff_ms': FIRST_WAIT_MS,
  'grpc.max_reconnect_backoff_ms': LONGEST_WAIT_MS,
  'grpc.keepalive_time_ms': 20_000,
  'grpc.keepalive_timeout_ms': 10_000,
};

/** Follows until what is followed ends, a signal comes, or nobody reads any more. */
export async function tail(options: TailOptions): Promise<void> {
  checkOptions(options);
  const { stdout } = process;
  const stop = new AbortController();
  const end = () => stop.abort();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, end);
  stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
    end();
  });

  const kind = options.session ? 'session' : 'thread';
  const telling = stdout.isTTY ? readable[kind](styleText) : jsonLines(kind);
  const tell = async (text: string) => {
    if (text && !stdout.write(text)) await once(stdout, 'drain', { signal: stop.signal }).catch(() => {});
  };
  const say = (note: string) => {
    stdout.write(telling.pause());
    process.stderr.write(`memoryd: ${note}\n`);
  };
  const source = await sourceOf(options);
  let { after } = options;
  try {
    for await (const told of follow(source, options, stop.signal, say)) {
      after = told.revision;
      if (told.event?.$case === 'bookmark' && !options.follow) break;
      await tell(telling.tell(told));
    }
  } finally {
    await tell(telling.pause());
    source.close();
  }
  if (stdout.isTTY) console.log(styleText('dim', `at revision ${after}`));
}

function checkOptions({ thread, session, tenant, env, user, token, tlsCert, tlsKey }: TailOptions): void {
  if (!thread === !session) throw new UserError('tail needs --thread or --session');
  if (!token && !(tenant && env && user)) throw new UserError('tail needs --tenant, --env and --user, or a --token');
  if (!tlsCert !== !tlsKey) throw new UserError('--tls-cert and --tls-key go together');
}

/** What is told, each event once, over as many calls as it takes. */
async function* follow(
  source: Source,
  options: TailOptions,
  signal: AbortSignal,
  say: (note: string) => void,
): AsyncGenerator<Told> {
  let position = options.after;
  let reached = false;
  for (let failures = 0; !signal.aborted; ) {
    const call = source.watch(position, await metadataOf(options));
    call.on('error', () => {}); // comes when it is cancelled as well
    const cancel = () => call.cancel();
    signal.addEventListener('abort', cancel);
    try {
      for await (const response of call) {
        const told = toldBy(response);
        reached = true;
        failures = 0;
        position = told.revision;
        yield told;
      }
      return;
    } catch (error) {
      if (signal.aborted) return;
      const { code, details } = error as ServiceError;
      if (code === undefined) throw error;
      const why = visible(`${options.address}: ${status[code]}: ${details}`);
      // A server that was never there is a mistake in the command; one that was comes back.
      if (!reached || !isPassing(error as ServiceError)) throw new UserError(why);
      if (++failures === 2) say(`${why}; trying again until it is back`);
    } finally {
      signal.removeEventListener('abort', cancel);
      cancel();
    }
    const wait = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** Math.min(failures - 1, 10));
    await sleep(wait * (0.5 + Math.random() / 2), undefined, { signal }).catch(() => {});
  }
}

const toldBy = (response: WatchThreadResponse | WatchSessionResponse): Told =>
  'revision' in response ? response : response.event!;

const DETAILS = 'grpc-status-details-bin';

/** Whether the watch can be taken up again. What the service itself says carries details; a connection that broke does not. */
const isPassing = ({ code, metadata }: ServiceError): boolean =>
  code === status.UNAVAILABLE || code === status.RESOURCE_EXHAUSTED || metadata.get(DETAILS).length === 0;

async function sourceOf({ thread, session, address, ...tls }: TailOptions): Promise<Source> {
  const credentials = await credentialsOf(tls);
  if (session) {
    const memory = new MemoryServiceClient(address, credentials, CHANNEL);
    return {
      watch: (afterRevision, metadata) => memory.watchSession({ sessionId: session, afterRevision }, metadata),
      close: () => memory.close(),
    };
  }
  const conversation = new ConversationServiceClient(address, credentials, CHANNEL);
  return {
    watch: (afterRevision, metadata) => conversation.watchThread({ threadId: thread!, afterRevision }, metadata),
    close: () => conversation.close(),
  };
}

/** Header values are ASCII: the server decodes a user, and refuses a tenant or an env that this changes. */
async function metadataOf({ tenant, env, user, token }: TailOptions): Promise<Metadata> {
  const metadata = new Metadata();
  for (const [name, value] of Object.entries({ 'x-tenant-id': tenant, 'x-env': env, 'x-user-id': user })) {
    if (value) metadata.set(name, encodeURIComponent(value));
  }
  if (token) metadata.set('authorization', `Bearer ${await jwtOf(token)}`);
  return metadata;
}

const JWT = /^[\w-]+\.[\w-]+\.[\w-]+$/;

async function jwtOf(token: string): Promise<string> {
  const jwt = JWT.test(token) ? token : (await readOption('--token', token)).toString().trim();
  if (!JWT.test(jwt)) throw new UserError('--token is neither a JWT nor a file that holds one');
  return jwt;
}

async function credentialsOf({ tls, tlsCa, tlsCert, tlsKey }: Partial<TailOptions>): Promise<ChannelCredentials> {
  if (!tls && !tlsCa && !tlsCert) return ChannelCredentials.createInsecure();
  const read = (flag: string, file: string | undefined) => (file ? readOption(flag, file) : null);
  const [ca, cert, key] = await Promise.all([
    read('--tls-ca', tlsCa),
    read('--tls-cert', tlsCert),
    read('--tls-key', tlsKey),
  ]);
  try {
    return ChannelCredentials.createSsl(ca, key, cert);
  } catch (error) {
    throw new UserError(`--tls-ca, --tls-cert or --tls-key cannot be used: ${(error as Error).message}`);
  }
}

/** What a file holds. A token that was meant for no file is not told. */
async function readOption(flag: string, file: string): Promise<Buffer> {
  return readFile(file).catch((error) => {
    const name = flag === '--token' ? 'the file' : file;
    throw new UserError(`${flag}: ${error.code === 'ENOENT' ? `${name} is not there` : `${name}: ${error.code}`}`);
  });
}

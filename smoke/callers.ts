import { execFile, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { type Client, credentials, loadPackageDefinition, Metadata, type ServiceError, status } from '@grpc/grpc-js';
import { loadSync, type MessageTypeDefinition, type PackageDefinition } from '@grpc/proto-loader';

/** What a call came to. The response is as protobuf's JSON has it, defaults included, but for Structs and times. */
export interface Reply {
  /** `OK`, `NOT_FOUND`, … */
  code: string;
  response?: any;
  message: string;
  /** The google.rpc details, decoded, by their short names: `ErrorInfo`, `BadRequest`, … */
  details: Record<string, any>;
}

/** A call that stays open. */
export interface Stream {
  send(request: object): void;
  /** Sends no more. */
  end(): void;
  /** The next answer. That there is none is an error. */
  next(): Promise<any>;
  /** Breaks the call off, without telling the server why. */
  cut(): void;
}

/** A way to call the service. */
export interface Caller {
  name: string;
  call(method: string, request: object, headers: Record<string, string>): Promise<Reply>;
  open(method: string, headers: Record<string, string>): Stream;
  /** The names of the services by reflection, where the way can ask. */
  services?(): Promise<string[]>;
  close(): void;
}

const WAIT_MS = 15_000;
const folder = (name: string) => fileURLToPath(new URL(`../${name}`, import.meta.url));
const BUF = fileURLToPath(import.meta.resolve('@bufbuild/buf/bin/buf'));

// Everything that is under proto/, known only at run time: this is what a client without generated code has.
const protos: PackageDefinition = loadSync(
  [
    'memory/v1/memory_service.proto',
    'memory/v1/conversation_service.proto',
    'memory/v1/artifact_service.proto',
    'memory/v1/project_memory_service.proto',
    'memory/v1/audit_service.proto',
    'memory/v1/usage_service.proto',
    'memory/v1/profile_service.proto',
    'memory/v1/admin_service.proto',
    'grpc/health/v1/health.proto',
    'google/rpc/status.proto',
    'google/rpc/error_details.proto',
  ],
  { includeDirs: [folder('proto'), folder('third_party/proto')], longs: String, enums: String, defaults: true },
);

const decode = (type: string, bytes: Buffer): any =>
  (protos[type] as MessageTypeDefinition<object, object>).deserialize(bytes);
const shortName = (type: string): string => type.slice(type.lastIndexOf('.') + 1);
const codeName = (text: string): string => text.replace(/([a-z])([A-Z])/g, '$1_$2').toUpperCase();

interface Ended {
  exit: number;
  stdout: string;
  stderr: string;
}

function run(program: string, args: string[]): Promise<Ended> {
  return new Promise((resolve, reject) => {
    execFile(program, args, { timeout: WAIT_MS, maxBuffer: 16 * 1024 * 1024 }, (error, stdout, stderr) => {
      if (error && typeof error.code !== 'number') reject(error);
      else resolve({ exit: Number(error?.code ?? 0), stdout, stderr });
    });
  });
}

/** The next of the answers, unless it takes too long. */
async function nextOf(answers: AsyncIterator<any>, why: () => string): Promise<any> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error('the next answer does not come')), WAIT_MS);
  });
  try {
    const { done, value } = await Promise.race([answers.next(), late]);
    if (done) throw new Error(`the stream ended: ${why()}`);
    return value;
  } finally {
    clearTimeout(timer);
  }
}

/** Both tools print an answer over several lines, the last of which alone starts with its closing bracket. */
async function* objectsIn(lines: AsyncIterable<string>): AsyncGenerator<any> {
  let text = '';
  for await (const line of lines) {
    text += line;
    if (!line.startsWith('}') && line !== '{}') continue;
    yield JSON.parse(text);
    text = '';
  }
}

/** A tool that takes requests on its standard input, and prints the answers as they come. */
function piped(program: string, args: string[]): Stream {
  // In a group of its own: buf is started by a script, which would not take it along.
  const child = spawn(program, args, { detached: process.platform !== 'win32' });
  let said = '';
  child.stderr.setEncoding('utf8').on('data', (text) => {
    said += text;
  });
  child.on('error', () => {}); // its output then ends
  child.stdin.on('error', () => {}); // it may be gone
  const answers = objectsIn(createInterface({ input: child.stdout }));
  return {
    send: (request) => child.stdin.write(`${JSON.stringify(request)}\n`),
    end: () => child.stdin.end(),
    next: () => nextOf(answers, () => said.trim()),
    cut() {
      if (child.exitCode !== null || child.signalCode !== null || !child.pid) return;
      if (process.platform === 'win32') child.kill();
      else process.kill(-child.pid, 'SIGKILL');
    },
  };
}

const headerArgs = (headers: Record<string, string>): string[] =>
  Object.entries(headers).flatMap(([name, value]) => ['-H', `${name}: ${value}`]);

/** What the tool says on failure is JSON of the status; anything else is a failure of the tool itself. */
function refusal(tool: string, { exit, stderr }: Ended): any {
  try {
    return JSON.parse(stderr);
  } catch {
    throw new Error(`${tool} ended with ${exit}: ${stderr.trim()}`);
  }
}

/** `buf curl`, which learns the methods by reflection. */
export function bufCurl(address: string): Caller {
  const argsOf = (args: string[], url: string) => [
    BUF,
    'curl',
    '--protocol',
    'grpc',
    '--http2-prior-knowledge',
    '--reflect',
    ...args,
    url,
  ];
  const buf = (args: string[], url: string) => run(process.execPath, argsOf(args, url));
  return {
    name: 'buf curl',
    async services() {
      const ended = await buf(['--list-services'], `http://${address}`);
      if (ended.exit !== 0) throw new Error(`buf curl ended with ${ended.exit}: ${ended.stderr.trim()}`);
      return ended.stdout.trim().split('\n');
    },
    async call(method, request, headers) {
      const data = JSON.stringify(request);
      const ended = await buf(['--emit-defaults', ...headerArgs(headers), '-d', data], `http://${address}/${method}`);
      if (ended.exit === 0) return { code: 'OK', response: JSON.parse(ended.stdout), message: '', details: {} };
      const { code, message = '', details = [] } = refusal('buf curl', ended);
      const decoded = details.map(({ type, value }: { type: string; value: string }) => [
        shortName(type),
        decode(type, Buffer.from(value, 'base64')),
      ]);
      return { code: codeName(code), message, details: Object.fromEntries(decoded) };
    },
    open(method, headers) {
      const args = ['--emit-defaults', ...headerArgs(headers), '-d', '@-'];
      return piped(process.execPath, argsOf(args, `http://${address}/${method}`));
    },
    close() {},
  };
}

/** `grpcurl`, where the machine has it. */
export function grpcurl(address: string, program = 'grpcurl'): Caller {
  return {
    name: 'grpcurl',
    async services() {
      const ended = await run(program, ['-plaintext', address, 'list']);
      if (ended.exit !== 0) throw new Error(`grpcurl ended with ${ended.exit}: ${ended.stderr.trim()}`);
      return ended.stdout.trim().split('\n');
    },
    async call(method, request, headers) {
      const data = ['-d', JSON.stringify(request)];
      const args = ['-plaintext', '-emit-defaults', '-format-error', ...headerArgs(headers), ...data, address, method];
      const ended = await run(program, args);
      if (ended.exit === 0) return { code: 'OK', response: JSON.parse(ended.stdout), message: '', details: {} };
      const { code, message = '', details = [] } = refusal('grpcurl', ended);
      const decoded = details.map(({ '@type': type, ...detail }: { '@type': string }) => [shortName(type), detail]);
      return { code: status[code]!, message, details: Object.fromEntries(decoded) };
    },
    open: (method, headers) =>
      piped(program, ['-plaintext', '-emit-defaults', ...headerArgs(headers), '-d', '@', address, method]),
    close() {},
  };
}

/** Whether the machine has grpcurl. */
export async function hasGrpcurl(): Promise<boolean> {
  return run('grpcurl', ['-version']).then(
    ({ exit }) => exit === 0,
    () => false,
  );
}

/** A client made of the proto files when it runs, as `@grpc/proto-loader` does. */
export function protoLoader(address: string): Caller {
  const root = loadPackageDefinition(protos) as any;
  const clients = new Map<string, any>();
  const clientOf = (service: string): any => {
    let client = clients.get(service);
    if (!client) {
      const Service = service.split('.').reduce((inside, name) => inside[name], root);
      client = new Service(address, credentials.createInsecure());
      clients.set(service, client);
    }
    return client;
  };
  const metadataOf = (headers: Record<string, string>): Metadata => {
    const metadata = new Metadata();
    for (const [name, value] of Object.entries(headers)) metadata.set(name, value);
    return metadata;
  };
  return {
    name: '@grpc/proto-loader',
    async call(path, request, headers) {
      const [service, method] = path.split('/') as [string, string];
      const metadata = metadataOf(headers);
      try {
        const response = await new Promise((resolve, reject) => {
          const settings = { deadline: Date.now() + WAIT_MS };
          const done = (error: ServiceError | null, answer: unknown) => (error ? reject(error) : resolve(answer));
          clientOf(service)[method](request, metadata, settings, done);
        });
        return { code: 'OK', response, message: '', details: {} };
      } catch (error) {
        const { code, details: message, metadata: trailers } = error as ServiceError;
        if (code === undefined) throw error;
        return { code: status[code]!, message, details: detailsOf(trailers) };
      }
    },
    open(path, headers) {
      const [service, method] = path.split('/') as [string, string];
      const client = clientOf(service);
      const { requestSerialize, responseDeserialize } = client[method];
      // On the wire a call with one request is one with many, of which there is one.
      const call = client.makeBidiStreamRequest(`/${path}`, requestSerialize, responseDeserialize, metadataOf(headers));
      call.on('error', () => {}); // also that it was cut
      const answers = call[Symbol.asyncIterator]();
      return {
        send: (request) => call.write(request),
        end: () => call.end(),
        next: () => nextOf(answers, () => 'without an error'),
        cut: () => call.cancel(),
      };
    },
    close() {
      for (const client of clients.values()) (client as Client).close();
    },
  };
}

function detailsOf(trailers: Metadata): Record<string, any> {
  const [bytes] = trailers.get('grpc-status-details-bin');
  if (!bytes) return {};
  // The fields of google.protobuf.Any keep their names: proto-loader has a copy of its own.
  const details: { type_url: string; value: Buffer }[] = decode('google.rpc.Status', bytes as Buffer).details;
  return Object.fromEntries(
    details.map(({ type_url, value }) => [shortName(type_url), decode(type_url.split('/').at(-1)!, value)]),
  );
}

import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { access, cp, mkdir, mkdtemp, readdir, readFile, rm, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { bufCurl, type Caller, grpcurl, protoLoader } from '../../smoke/callers.ts';
import { tour } from '../../smoke/tour.ts';
import { mochaGlobalSetup, mochaGlobalTeardown } from '../database.ts';
import { ownerUrl, runSql, startTestServer } from '../support.ts';

// Clients in other languages, generated from the protos as docs/clients.md tells it, against a server of this process.

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const HERE = join(ROOT, 'test/interop');
const SERVICE_CONFIG = join(ROOT, 'proto/memory/service_config.json');
const CACHE = join(ROOT, 'node_modules/.cache/interop');
const STEP_MS = 10 * 60_000;

const GO_TOOLS = [
  'google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.11',
  'google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.1',
];
const GRPCURL = ['github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3'];
const PYTHON = `import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))`;

let passed = 0;
let failed = 0;

interface RunOptions {
  cwd?: string;
  env?: Record<string, string>;
  /** Sees each line of stdout as it comes. */
  line?: (line: string) => void;
}

/** Runs a program in a folder. Its output is the error if it fails. */
function run(program: string, args: string[], { cwd = ROOT, env = {}, line }: RunOptions = {}): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      cwd,
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: STEP_MS,
    });
    let said = '';
    let rest = '';
    child.stderr.setEncoding('utf8').on('data', (text) => {
      said += text;
    });
    child.stdout.setEncoding('utf8').on('data', (text) => {
      if (!line) {
        said += text;
        return;
      }
      const lines = (rest + text).split('\n');
      rest = lines.pop()!;
      lines.forEach(line);
    });
    child.on('error', reject);
    child.on('close', (code) => {
      if (code === 0) resolve();
      else reject(new Error(`${program} ${args.join(' ')} ended with ${code}\n${said.trim()}`));
    });
  });
}

const works = (program: string, args: string[]): Promise<boolean> =>
  run(program, args).then(
    () => true,
    () => false,
  );

function pass(what: string): void {
  passed++;
  console.log(`  ok ${what}`);
}

/** Runs a part. What goes wrong in it is one failure, and the others go on. */
async function part(name: string, work: () => Promise<void>): Promise<void> {
  console.log(name);
  try {
    await work();
  } catch (error) {
    failed++;
    console.log(`  FAILED ${(error as Error).message.replaceAll('\n', '\n    ')}`);
  }
}

function skip(name: string, why: string): void {
  console.log(`${name}\n  skipped: ${why}`);
}

/** The folder of the cache that these texts name, filled once. */
async function cached(name: string, key: string[], fill: (folder: string) => Promise<void>): Promise<string> {
  const folder = join(CACHE, `${name}-${createHash('sha256').update(key.join('\n')).digest('hex').slice(0, 12)}`);
  const done = join(folder, 'done');
  if (
    await access(done).then(
      () => true,
      () => false,
    )
  )
    return folder;
  // Filled where it stays: a venv cannot be moved. The mark comes last, so that half of it is never used.
  await rm(folder, { recursive: true, force: true });
  await mkdir(folder, { recursive: true });
  console.log(`  installing ${name}, once`);
  await fill(folder);
  await mkdir(done);
  return folder;
}

const goTools = (name: string, tools: string[]): Promise<string> =>
  cached(name, tools, async (GOBIN) => {
    for (const tool of tools) await run('go', ['install', tool], { env: { GOBIN, GOFLAGS: '' } });
  });

/** `buf generate` by a template, with plugins of these folders. */
function generate(template: string, out: string, plugins: string, paths: string[]): Promise<void> {
  const buf = fileURLToPath(import.meta.resolve('@bufbuild/buf/bin/buf'));
  const args = [
    'generate',
    '--template',
    join(HERE, template),
    '-o',
    out,
    ...paths.flatMap((path) => ['--path', path]),
  ];
  return run(process.execPath, [buf, ...args], { env: { PATH: `${plugins}${delimiter}${process.env.PATH}` } });
}

/** Counts what a client says went well; how it failed is its error. */
const client: Pick<RunOptions, 'line'> = {
  line: (line) => {
    if (line.startsWith('ok ')) pass(line.slice(3));
  },
};

async function goClient(address: string, folder: string): Promise<void> {
  const tools = await goTools('go', GO_TOOLS);
  await cp(join(HERE, 'go'), folder, { recursive: true });
  await generate('go/buf.gen.yaml', folder, tools, ['proto/memory']);
  await run('go', ['run', '.', address, SERVICE_CONFIG], {
    cwd: folder,
    env: { GOFLAGS: '', GOWORK: 'off' },
    ...client,
  });
}

async function pythonClient(python: string, address: string, folder: string): Promise<void> {
  const requirements = join(HERE, 'python/requirements.txt');
  const key = [python, await readFile(requirements, 'utf8')];
  const venv = await cached('python', key, async (made) => {
    await run(python, ['-m', 'venv', made]);
    await run(venvPython(made), ['-m', 'pip', 'install', '--quiet', '-r', requirements]);
  });
  const protos = (await readdir(join(ROOT, 'proto/memory/v1'))).map((name) => `proto/memory/v1/${name}`);
  const outs = ['--python_out', '--pyi_out', '--grpc_python_out'].map((option) => `${option}=${folder}`);
  await run(venvPython(venv), ['-m', 'grpc_tools.protoc', '-I', 'proto', ...outs, ...protos]);
  const env = { PYTHONPATH: folder, PYTHONUTF8: '1' };
  await run(venvPython(venv), [join(HERE, 'python/client.py'), address, SERVICE_CONFIG], { env, ...client });
}

const venvPython = (venv: string): string =>
  process.platform === 'win32' ? join(venv, 'Scripts', 'python.exe') : join(venv, 'bin', 'python');

async function typescriptClient(address: string, folder: string): Promise<void> {
  await cp(join(HERE, 'typescript'), folder, { recursive: true });
  // Outside of node_modules, where Node does not run TypeScript, yet with its packages.
  await symlink(join(ROOT, 'node_modules'), join(folder, 'node_modules'), 'junction');
  await generate('typescript/buf.gen.yaml', folder, join(ROOT, 'node_modules/.bin'), [
    'proto/memory',
    'third_party/proto/google/rpc',
  ]);
  await run(process.execPath, [join(ROOT, 'node_modules/typescript/bin/tsc'), '-p', folder]);
  pass('compiles');
  await run(process.execPath, [join(folder, 'client.ts'), address, SERVICE_CONFIG], client);
}

async function toured(caller: Caller): Promise<void> {
  await tour(caller, (step, answer) => pass(`${step}: ${answer}`));
  caller.close();
}

async function findPython(): Promise<string | undefined> {
  for (const python of ['python3', 'python']) if (await works(python, ['-c', PYTHON])) return python;
  return undefined;
}

async function main(): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'memoryd-interop-'));
  const server = await startTestServer({ snapshotStore: pathToFileURL(join(folder, 'snapshots')) });
  try {
    await runSql(
      ownerUrl(),
      `with made as (insert into tenants (tenant_id, envs) values ('acme', '{dev}'), ('globex', '{dev}'))
      insert into tenant_members (tenant_id, env, user_id, role)
      values ('acme', 'dev', 'owner', 2), ('acme', 'dev', 'member', 1), ('globex', 'dev', 'outsider', 2)`,
    );
    const address = `127.0.0.1:${server.port}`;
    const python = await findPython();
    const go = await works('go', ['version']);
    const noGo = 'there is no go on the PATH';

    await part('buf curl', () => toured(bufCurl(address)));
    await part('@grpc/proto-loader', () => toured(protoLoader(address)));
    await part('TypeScript', () => typescriptClient(address, join(folder, 'typescript')));
    if (python)
      await part('Python', async () => {
        const out = join(folder, 'python');
        await mkdir(out);
        await pythonClient(python, address, out);
      });
    else skip('Python', 'there is no python3 from 3.10 on with venv on the PATH');
    if (go) {
      await part('Go', () => goClient(address, join(folder, 'go')));
      await part('grpcurl', async () => toured(grpcurl(address, join(await goTools('grpcurl', GRPCURL), 'grpcurl'))));
    } else {
      skip('Go', noGo);
      skip('grpcurl', noGo);
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
    await server.stop();
  }
}

await mochaGlobalSetup();
try {
  await main();
} finally {
  await mochaGlobalTeardown();
}
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);

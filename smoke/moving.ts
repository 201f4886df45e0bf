import { execFile } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type { Caller } from './callers.ts';
import { Surprise, same } from './surprise.ts';
import { MEMBER, OUTSIDER } from './tour.ts';

const PROJECT_MEMORY = 'memory.v1.ProjectMemoryService';
const MAIN = fileURLToPath(new URL('../src/main.ts', import.meta.url));
const URL_FILE = fileURLToPath(new URL('../.memoryd/database-url', import.meta.url));

/** A project of acme, piped from `memoryd export` into `memoryd import` for globex, and read there. */
export async function moving(caller: Caller, say: (step: string, answer: string) => void): Promise<void> {
  const url = await readFile(URL_FILE, 'utf8').catch(() => '');
  if (!url) return say('export, import', 'skipped: they need the database of `npm start`, which runs elsewhere');
  const projectId = `smoke-${randomUUID()}`;
  const memory = { projectId, key: 'fact' };
  const put = await caller.call(`${PROJECT_MEMORY}/PutMemory`, { ...memory, value: 'It moves.' }, MEMBER);
  same('the code of PutMemory', put.code, 'OK');
  const command = `node main export - --tenant acme --env dev --project ${projectId} | node main import - --tenant globex`;
  const line = command.replaceAll('node main', `"${process.execPath}" "${MAIN}"`);
  // What is cut off is refused: so the second command fails if the first one does.
  await promisify(execFile)('sh', ['-c', line], { env: { ...process.env, DATABASE_URL: url.trim() } }).catch(
    (error) => {
      throw new Surprise(`export | import: ${error.stderr}`);
    },
  );
  const { response } = await caller.call(`${PROJECT_MEMORY}/GetMemory`, memory, OUTSIDER);
  same('the memory in globex', response?.memory?.value, 'It moves.');
  say('export, import', `a project of acme went to globex, which reads “${response.memory.value}”`);
}

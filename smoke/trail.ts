import { execFile } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type { Caller, Stream } from './callers.ts';
import { Surprise, same } from './surprise.ts';

const AUDIT = 'memory.v1.AuditService';
const CONVERSATION = 'memory.v1.ConversationService';
const place = (path: string) => fileURLToPath(new URL(`../${path}`, import.meta.url));

interface Tour {
  caller: Caller;
  threadId: string;
  /** An admin. */
  owner: Record<string, string>;
  ok(method: string, request: object): Promise<any>;
  say(step: string, answer: string): void;
}

/** What was done is told while it is done, and sealed. */
export async function trail({ caller, threadId, owner, ok, say }: Tour): Promise<void> {
  const open: Stream[] = [];
  const wanted = { resource: `threads/${threadId}` };
  function watch(from: object): Stream {
    const opened = caller.open(`${AUDIT}/WatchAuditEvents`, owner);
    open.push(opened);
    opened.send({ ...wanted, ...from });
    opened.end();
    return opened;
  }
  const append = () => {
    const messages = [{ role: 'MESSAGE_ROLE_HUMAN', content: 'Who did what?' }];
    return ok(`${CONVERSATION}/AppendMessages`, { threadId, messages, requestId: randomUUID() });
  };
  try {
    const first = watch({ fromNow: true });
    const { event: none = null } = await first.next();
    same('what was before', none, null);
    await append();
    const { event, resumeToken } = await first.next();
    same('the event', [event.action, event.userId, event.resource], ['messages.append', 'member', wanted.resource]);
    first.cut();
    await ok(`${CONVERSATION}/DeleteThread`, { threadId });
    const next = await watch({ resumeToken }).next();
    same('the event after it', next.event.action, 'threads.delete');
    say(
      'WatchAuditEvents',
      `${event.action} by ${event.userId}; and, after a break, ${next.event.action}: none skipped`,
    );
  } finally {
    for (const stream of open) stream.cut();
  }
  await verify(say);
}

async function verify(say: Tour['say']): Promise<void> {
  const url = await readFile(place('.memoryd/database-url'), 'utf8').catch(() => '');
  if (!url) return say('audit verify', 'skipped: it needs the database of `npm start`, which runs elsewhere');
  const env = { ...process.env, DATABASE_URL: url.trim() };
  const audit = (...args: string[]) =>
    promisify(execFile)(
      process.execPath,
      [place('src/main.ts'), 'audit', ...args, '--key-file', place('.memoryd/keys')],
      { env },
    ).catch((error) => {
      throw new Surprise(`audit ${args[0]}: ${error.stdout}${error.stderr}`);
    });
  await audit('seal');
  const { stderr } = await audit('verify');
  say('audit verify', stderr.trim());
}

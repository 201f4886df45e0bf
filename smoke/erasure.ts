import { setTimeout } from 'node:timers/promises';
import { Surprise, same } from './surprise.ts';

const ADMIN = 'memory.v1.AdminService';
const CONVERSATION = 'memory.v1.ConversationService';
const WAIT_MS = 15_000;

type Headers = Record<string, string>;

interface Stage {
  userId: string;
  /** An admin of the tenant. */
  admin: Headers;
  ok(method: string, request: object, headers?: Headers): Promise<any>;
  refused(code: string, reason: string, method: string, request: object, headers?: Headers): Promise<any>;
  told(reply: any): string;
  say(step: string, answer: string): void;
}

/** Somebody comes, says something, and is erased. */
export async function erasure({ userId, admin, ok, refused, told, say }: Stage): Promise<void> {
  const own = { ...admin, 'x-user-id': userId };
  const message = { threadId: 'diary', messages: [{ role: 'MESSAGE_ROLE_HUMAN', content: 'Forget me.' }] };
  await ok(`${ADMIN}/PutMember`, { member: { userId, role: 'ROLE_MEMBER' } }, admin);
  await ok(`${CONVERSATION}/AppendMessages`, message, own);
  const { erasure: begun } = await ok(`${ADMIN}/EraseUser`, { userId }, admin);
  const again = await ok(`${ADMIN}/EraseUser`, { userId }, admin);
  same('the erasure that is under way', again.erasure.id, begun.id);
  const stranger = await refused('PERMISSION_DENIED', 'NOT_A_MEMBER', `${CONVERSATION}/AppendMessages`, message, own);
  say('EraseUser', `a user with a message, who is refused at once: ${told(stranger)}`);

  const get = async () => (await ok(`${ADMIN}/GetErasure`, { erasureId: begun.id }, admin)).erasure;
  const until = Date.now() + WAIT_MS;
  let now = await get();
  for (; now.waitingFor !== 'LATE_WRITES'; now = await get()) {
    if (Date.now() > until) throw new Surprise(`the erasure waits for “${now.waitingFor}” after ${WAIT_MS / 1000} s`);
    await setTimeout(100);
  }
  const removed = now.counts.find(({ kind }: { kind: string }) => kind === 'messages');
  same('the messages that are gone', removed?.removedCount, '1');
  say('GetErasure', `${now.counts.length} kinds are gone; it looks again when no call of before can write any more`);
}

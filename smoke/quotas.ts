import type { Reply } from './callers.ts';
import { same } from './surprise.ts';

const CONVERSATION = 'memory.v1.ConversationService';
const OPERATOR = { 'x-scopes': 'memory:operator' };

interface Stage {
  tenantId: string;
  /** A member of the tenant. */
  member: Record<string, string>;
  threadId: string;
  ok(method: string, request: object, headers?: Record<string, string>): Promise<any>;
  refused(
    code: string,
    reason: string,
    method: string,
    request: object,
    headers?: Record<string, string>,
  ): Promise<Reply>;
  told(reply: Reply): string;
  say(step: string, answer: string): void;
}

/** A tenant gets a quota, is refused what is over it, and loses it again. */
export async function quotas({ tenantId, member, threadId, ok, refused, told, say }: Stage): Promise<void> {
  const bound = async (maxMessagesPerThread: number) => {
    const tenant = { tenantId, policies: { quotas: { maxMessagesPerThread } } };
    await ok('memory.v1.AdminService/UpdateTenant', { tenant }, OPERATOR);
  };
  const append = { threadId, messages: [{ role: 'MESSAGE_ROLE_HUMAN', content: 'One.' }] };
  await ok(`${CONVERSATION}/AppendMessages`, append, member);
  await bound(1);
  try {
    const reply = await refused(
      'RESOURCE_EXHAUSTED',
      'QUOTA_EXCEEDED',
      `${CONVERSATION}/AppendMessages`,
      append,
      member,
    );
    same('whose quota it is', reply.details.QuotaFailure?.violations[0]?.subject, `tenants/${tenantId}`);
    say('AppendMessages', `in ${tenantId}, with a quota of one message: ${told(reply)}`);
  } finally {
    await bound(0);
  }
  await ok(`${CONVERSATION}/AppendMessages`, append, member);
  await ok(`${CONVERSATION}/DeleteThread`, { threadId }, member);
  say('AppendMessages', 'without it: appended');
}

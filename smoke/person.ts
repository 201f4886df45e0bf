import { setTimeout } from 'node:timers/promises';
import { Surprise, same } from './surprise.ts';

const PROFILE = 'memory.v1.ProfileService';
const ADMIN = 'memory.v1.AdminService';
const OPERATOR = { 'x-scopes': 'memory:operator' };
const WAIT_MS = 10_000;

type Headers = Record<string, string>;

interface Tools {
  threadId: string;
  member: Headers;
  /** An admin. */
  owner: Headers;
  ok(method: string, request: object, headers?: Headers): Promise<any>;
  refused(code: string, reason: string, method: string, request: object): Promise<any>;
  told(reply: any): string;
  say(step: string, answer: string): void;
}

const NOTHING = { profile: { name: '', email: '' }, removeProducts: ['Solar roof', 'Heat pump'] };

/** What is known of a person: told, read in what was said, found with another user, and forgotten again. */
export async function person({ threadId, member, owner, ok, refused, told, say }: Tools): Promise<void> {
  const get = async () => (await ok(`${PROFILE}/GetProfile`, {})).profile;
  const forget = (headers: Headers) => ok(`${PROFILE}/UpdateProfile`, NOTHING, headers);
  for (const headers of [member, owner]) await forget(headers); // whatever a tour before has left

  await ok(`${PROFILE}/UpdateProfile`, { profile: { name: 'Ada', products: ['Solar roof'] } });
  const more = { name: 'Ada Byron', products: ['SOLAR ROOF', 'Heat pump'] };
  const { profile, changes } = await ok(`${PROFILE}/UpdateProfile`, { profile: more });
  same('the products', profile.products, ['Solar roof', 'Heat pump']);
  same('what changed', changes.map(({ field, previous = '', current }: any) => [field, previous, current]).sort(), [
    ['name', 'Ada', 'Ada Byron'],
    ['products', '', 'Heat pump'],
  ]);
  say('UpdateProfile', `“${profile.name}”, interested in ${profile.products.join(' and ')}: 2 values changed`);

  const extract = (extractProfile: boolean) =>
    ok(
      `${ADMIN}/UpdateTenant`,
      { tenant: { tenantId: member['x-tenant-id'], policies: { extractProfile } } },
      OPERATOR,
    );
  await extract(true);
  const messages = [
    { role: 'MESSAGE_ROLE_HUMAN', content: 'My email is Ada@example.org. My boss has bob@example.org.' },
  ];
  await ok('memory.v1.ConversationService/AppendMessages', { threadId, messages });
  const until = Date.now() + WAIT_MS;
  let read = await get();
  for (; read.email !== 'Ada@example.org'; read = await get()) {
    if (Date.now() > until) throw new Surprise(`the e-mail address is ${read.email} after ${WAIT_MS / 1000} s`);
    await setTimeout(100);
  }
  await extract(false);
  const source = read.sources.find(({ field }: any) => field === 'email');
  same('where it was said', [source.kind, source.threadId, source.messageSeq], ['KIND_EXTRACTION', threadId, '1']);
  say('GetProfile', `${read.email}, read in message ${source.messageSeq} of the thread`);

  await ok(`${PROFILE}/UpdateProfile`, { profile: { email: 'ADA@example.org' } }, owner);
  const hidden = await refused('PERMISSION_DENIED', 'ADMIN_REQUIRED', `${PROFILE}/ListEmailMatches`, {});
  say('ListEmailMatches', `as member: ${told(hidden)}`);
  const { matches } = await ok(`${PROFILE}/ListEmailMatches`, { userId: 'member' }, owner);
  same(
    'who has it',
    matches[0]?.holders.map(({ userId }: any) => userId),
    ['member', 'owner'],
  );
  const pair = { fromUserId: 'member', intoUserId: 'owner' };
  const { mergeId, effects } = await ok(`${PROFILE}/MergeProfiles`, pair, owner);
  await ok(`${PROFILE}/UndoMergeProfiles`, { mergeId }, owner);
  same('the name after all', (await get()).name, 'Ada Byron');
  say(
    'MergeProfiles',
    `into the other user's who has ${matches[0].email}: ${effects.length} effects, and undone again`,
  );

  for (const headers of [member, owner]) await forget(headers);
  const { changes: left } = await ok(`${PROFILE}/ListProfileChanges`, { field: 'email' });
  same(
    'what is left of the address',
    left.map(({ current }: any) => current ?? ''),
    left.map(() => ''),
  );
  say('UpdateProfile', 'forgot it all, also in the changes');
}

import { setTimeout as sleep } from 'node:timers/promises';
import { comparePositions, type Position, START } from '../audit/chain.ts';
import { checkFilter, visibleTo } from '../audit/filter.ts';
import { followAuditEvents, nowPosition } from '../audit/repository.ts';
import type { Keyring } from '../db/keyring.ts';
import type { TenantDb } from '../db/transaction.ts';
import type { AuditServiceService, WatchAuditEventsRequest } from '../gen/memory/v1/audit_service.ts';
import { Member_Role } from '../gen/memory/v1/tenant.ts';
import { denied, invalid } from '../rpc/errors.ts';
import type { Handlers } from '../rpc/implement.ts';
import type { Memberships } from '../rpc/membership.ts';
import { Check } from '../rpc/validate.ts';
import { bookmarks } from './bookmarks.ts';
import type { Watches } from './poller.ts';

/** A watch reads at most so often, however much happens: what comes meanwhile comes together. */
const READ_MS = 50;
/** What a running transaction holds back is looked for after so long, then ever more rarely. */
const COMING_MS = { first: 20, last: 1000, slower: 1.5 };

const refused = (field: string, description: string) => invalid([{ field, description }]);

export const auditWatchHandlers = (of: {
  keyring: Keyring;
  members: Memberships;
  watches: Watches;
}): Pick<Handlers<typeof AuditServiceService>, 'watchAuditEvents'> => ({
  async *watchAuditEvents(request, call) {
    const check = new Check();
    check.text('resume_token', request.resumeToken, 4096);
    check.that(!(request.fromNow && request.resumeToken), 'from_now', 'not together with a resume_token');
    checkFilter(check, request);
    check.done();

    const { filter, whose } = visibleTo(call, request);
    const { tenant, env, user } = call.identity;
    const wanted = JSON.stringify({ whose, ...filter });
    const context = ['audit watch', tenant, env, user, wanted];
    const resumeToken = ({ xid, id }: Position) => of.keyring.seal(context, `${xid}/${id}`);
    const due = bookmarks();
    const watch = of.watches.open({ tenant, env, user: '' }, 'trail', '');
    try {
      let position = await startOf(of.keyring, context, request, call.db);
      for (let coming = COMING_MS.first; ; ) {
        const began = performance.now();
        const from = position;
        const feed = await watch.read(`${wanted} ${from.xid}/${from.id}`, (db) =>
          followAuditEvents(db, filter, whose, from),
        );
        watch.saw(feed.head);
        for (const { event, position: after } of feed.events) {
          yield { event, resumeToken: resumeToken(after) };
          due.told();
        }
        position = feed.position;
        const bookmark = () => ({ event: undefined, resumeToken: resumeToken(position) });
        if (feed.more) {
          if (due.isDue({ passing: true })) yield bookmark();
        } else {
          coming = feed.coming ? Math.min(COMING_MS.last, coming * COMING_MS.slower) : COMING_MS.first;
          do {
            if (due.isDue()) yield bookmark();
          } while (!(await watch.news(feed.coming ? coming : due.left(), call.limits.signal!)) && !feed.coming);
        }
        await sleep(Math.max(0, READ_MS - (performance.now() - began)));
        if (whose === 'all' && (await of.members.find(tenant, env, user, call.limits)).role !== Member_Role.ADMIN)
          throw denied('ADMIN_REQUIRED', 'the caller is no admin any more');
      }
    } finally {
      watch.close();
    }
  },
});

async function startOf(
  keyring: Keyring,
  context: string[],
  { resumeToken, fromNow }: WatchAuditEventsRequest,
  db: TenantDb,
): Promise<Position> {
  if (!resumeToken) return fromNow ? nowPosition(db) : START;
  const [xid, id] = keyring.open(context, resumeToken)?.split('/') ?? [];
  if (!xid || !id) throw refused('resume_token', 'not a token of this watch');
  // A dump that was restored into another cluster, which counts its transactions anew.
  if (comparePositions({ xid, id }, await nowPosition(db)) > 0)
    throw refused('resume_token', 'ahead of the database: watch from the beginning');
  return { xid, id };
}

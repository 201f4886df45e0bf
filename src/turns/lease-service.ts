import type { ConversationServiceService } from '../gen/memory/v1/conversation_service.ts';
import type { Handlers } from '../rpc/implement.ts';
import { Check } from '../rpc/validate.ts';
import { acquireTurn, leaseFromRow, releaseTurn, renewTurn, whyNotAcquired, whyStale } from './leases.ts';

export const leaseHandlers: Pick<
  Handlers<typeof ConversationServiceService>,
  'acquireTurn' | 'renewTurn' | 'releaseTurn'
> = {
  async acquireTurn(request, call) {
    const check = new Check();
    check.id('thread_id', request.threadId);
    check.id('holder', request.holder);
    check.leaseTtl('ttl', request.ttl);
    check.optionalUuid('request_id', request.requestId);
    check.done();

    const [lease] = await call.change(request, async (tx) => {
      const taken = await acquireTurn(tx, request.threadId, request.holder, request.ttl);
      if (!taken) throw await whyNotAcquired(call.db, request.threadId);
      return [taken];
    });
    return { lease: leaseFromRow(lease!) };
  },

  async renewTurn(request, call) {
    const check = new Check();
    check.id('thread_id', request.threadId);
    check.fencingToken('fencing_token', request.fencingToken);
    check.leaseTtl('ttl', request.ttl);
    check.optionalUuid('request_id', request.requestId);
    check.done();

    const [lease] = await call.change(request, async (tx) => {
      const kept = await renewTurn(tx, request.threadId, request.fencingToken, request.ttl);
      if (!kept) throw await whyStale(call.db, request.threadId);
      return [kept];
    });
    return { lease: leaseFromRow(lease!) };
  },

  async releaseTurn(request, call) {
    const check = new Check();
    check.id('thread_id', request.threadId);
    check.fencingToken('fencing_token', request.fencingToken);
    check.optionalUuid('request_id', request.requestId);
    check.done();

    await call.change(request, async (tx) => {
      const released = await releaseTurn(tx, request.threadId, request.fencingToken);
      if (!released) throw await whyStale(call.db, request.threadId);
      return [request.threadId];
    });
    return {};
  },
};

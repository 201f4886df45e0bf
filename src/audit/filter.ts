import { AuditEvent_Outcome } from '../gen/memory/v1/audit_service.ts';
import { Member_Role } from '../gen/memory/v1/tenant.ts';
import type { Call } from '../rpc/context.ts';
import { denied } from '../rpc/errors.ts';
import type { Check } from '../rpc/validate.ts';
import type { EventFilter } from './repository.ts';

export function checkFilter(check: Check, filter: EventFilter): void {
  check.optionalId('user_id', filter.userId);
  check.text('action', filter.action, 64);
  check.optionalUuid('session_id', filter.sessionId);
  check.text('resource', filter.resource, 300);
  if (filter.outcome !== AuditEvent_Outcome.UNSPECIFIED) check.oneOf('outcome', filter.outcome, AuditEvent_Outcome);
  check.optionalId('actor', filter.actor);
  check.text('trace_id', filter.traceId, 64);
  check.optionalUuid('call_request_id', filter.callRequestId);
}

/** What of the events that are asked for the caller may see: members their own, admins all and the tenant's. */
export function visibleTo(call: Call, request: EventFilter): { filter: EventFilter; whose: 'own' | 'all' } {
  const { user, membership } = call.identity;
  const { userId, action, sessionId, resource, outcome, actor, traceId, callRequestId } = request;
  const filter = { userId, action, sessionId, resource, outcome, actor, traceId, callRequestId };
  if (membership.role === Member_Role.ADMIN) return { filter, whose: 'all' };
  if (userId && userId !== user) throw denied('ADMIN_REQUIRED', "other users' events are for admins");
  return { filter: { ...filter, userId: user }, whose: 'own' };
}

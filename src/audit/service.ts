import { timestampText } from '../db/statement.ts';
import { AuditEvent_Outcome, type AuditServiceService } from '../gen/memory/v1/audit_service.ts';
import { Member_Role } from '../gen/memory/v1/tenant.ts';
import { denied } from '../rpc/errors.ts';
import type { Handlers } from '../rpc/implement.ts';
import { Check } from '../rpc/validate.ts';
import { listAuditEvents } from './repository.ts';

export const auditHandlers: Pick<Handlers<typeof AuditServiceService>, 'listAuditEvents'> = {
  async listAuditEvents(request, call) {
    const check = new Check();
    check.optionalId('user_id', request.userId);
    check.text('action', request.action, 64);
    check.optionalUuid('session_id', request.sessionId);
    check.text('resource', request.resource, 300);
    if (request.outcome !== AuditEvent_Outcome.UNSPECIFIED) check.oneOf('outcome', request.outcome, AuditEvent_Outcome);
    check.time('start_time', request.startTime);
    check.time('end_time', request.endTime);
    check.page(request);
    check.done();

    const { user, membership } = call.identity;
    const admin = membership.role === Member_Role.ADMIN;
    if (!admin && request.userId && request.userId !== user)
      throw denied('ADMIN_REQUIRED', "other users' events are for admins");
    const { action, sessionId, resource, outcome } = request;
    const times = { startTime: timestampText(request.startTime), endTime: timestampText(request.endTime) };
    const filter = { userId: admin ? request.userId : user, action, sessionId, resource, outcome, ...times };

    const page = call.page(request);
    const found = await listAuditEvents(call.db, filter, admin, page.after?.[0], page.limit);
    const { rows, nextPageToken } = page.cut(found, (event) => [event.id]);
    return { events: rows, nextPageToken };
  },
};

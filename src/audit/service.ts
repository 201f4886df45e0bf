import type { AuditServiceService } from '../gen/memory/v1/audit_service.ts';
import type { Handlers } from '../rpc/implement.ts';
import { Check } from '../rpc/validate.ts';
import { checkFilter, visibleTo } from './filter.ts';
import { listAuditEvents } from './repository.ts';

export const auditHandlers: Pick<Handlers<typeof AuditServiceService>, 'listAuditEvents'> = {
  async listAuditEvents(request, call) {
    const check = new Check();
    checkFilter(check, request);
    check.time('start_time', request.startTime);
    check.time('end_time', request.endTime);
    check.page(request);
    check.done();

    const { filter, whose } = visibleTo(call, request);
    const page = call.page(request);
    const found = await listAuditEvents(call.db, filter, request, whose, 'desc', page.after?.[0], page.limit);
    const { rows, nextPageToken } = page.cut(found, (event) => [event.id]);
    return { events: rows, nextPageToken };
  },
};

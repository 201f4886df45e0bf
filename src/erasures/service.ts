import { v7 as uuidv7 } from 'uuid';
import { finisher } from '../db/change.ts';
import type { Keyring } from '../db/keyring.ts';
import type { AdminServiceService } from '../gen/memory/v1/admin_service.ts';
import type { Access } from '../rpc/access.ts';
import { notFound } from '../rpc/errors.ts';
import type { Handlers } from '../rpc/implement.ts';
import { erasedDigests, type Memberships } from '../rpc/membership.ts';
import { Check } from '../rpc/validate.ts';
import {
  type ErasureRow,
  erasureFromRow,
  erasureUnderWay,
  getErasure,
  listErasures,
  startErasure,
} from './repository.ts';

type ErasureMethods = 'eraseUser' | 'getErasure' | 'listErasures';

export const erasureAccess: Record<ErasureMethods, Access> = {
  eraseUser: { admin: true },
  getErasure: { admin: true },
  listErasures: { admin: true },
};

const finishErase = finisher('users.erase');

/** What is kept for a replay: not whom it is of, which the request tells again. */
type Begun = Omit<ErasureRow, 'userId'>;

export const erasureHandlers = (
  keyring: Keyring,
  members: Memberships,
): Pick<Handlers<typeof AdminServiceService>, ErasureMethods> => ({
  async eraseUser(request, call) {
    const check = new Check();
    check.id('user_id', request.userId);
    check.optionalUuid('request_id', request.requestId);
    check.done();

    const { userId } = request;
    const [digest] = erasedDigests(keyring, { ...call.db.scope, user: userId });
    const [begun] = await call.change<Begun>(request, async (tx) => {
      const [started] = await startErasure(tx, uuidv7(), userId, digest!);
      const row = started ?? (await erasureUnderWay(tx, userId));
      if (!row) throw notFound('user');
      const { userId: _, ...kept } = row;
      return finishErase(tx, { resource: `erasures/${row.id}`, sessionId: null, metadata: {} }, kept);
    });
    members.forget(call.identity.tenant);
    return { erasure: erasureFromRow({ ...begun!, userId }) };
  },

  async getErasure(request, call) {
    const check = new Check();
    check.uuid('erasure_id', request.erasureId);
    check.done();

    const row = await getErasure(call.db, request.erasureId);
    if (!row) throw notFound('erasure');
    return { erasure: erasureFromRow(row) };
  },

  async listErasures(request, call) {
    const check = new Check();
    check.page(request);
    check.done();

    const page = call.page(request);
    const found = await listErasures(call.db, page.after?.[0], page.limit);
    const { rows, nextPageToken } = page.cut(found, (row) => [row.id]);
    return { erasures: rows.map(erasureFromRow), nextPageToken };
  },
});

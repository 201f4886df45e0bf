import { finisher } from '../db/change.ts';
import { BadPageToken } from '../db/page.ts';
import { timestampText } from '../db/statement.ts';
import { together } from '../db/transaction.ts';
import { UsageDimension } from '../gen/memory/v1/usage.ts';
import type { UsageServiceService } from '../gen/memory/v1/usage_service.ts';
import type { Call } from '../rpc/context.ts';
import { invalid } from '../rpc/errors.ts';
import type { Handlers } from '../rpc/implement.ts';
import { Check } from '../rpc/validate.ts';
import type { BudgetMethods } from './budget-service.ts';
import { budgetsOf, type StatusRow, statusFromRow } from './budgets.ts';
import { checkLlmRequest, insertLlmRequests, keptOfLlmRequest } from './calls.ts';
import type { Folder } from './fold.ts';
import { type LlmRow, llmRequestFromRow } from './llm-request.ts';
import { positionOf, readUsage } from './report.ts';
import { exportLines, listLlmRequests, placeOf } from './repository.ts';
import { checkFilter, checkUsageFilter } from './validate.ts';
import { whoseUsage } from './whose.ts';

const finish = finisher('usage.record');

/** Rows of a piece of an export. */
const PIECE = 500;

interface Recorded {
  row: LlmRow;
  created: boolean;
  budgets: StatusRow[];
}

export const usageHandlers = (folder: Folder): Omit<Handlers<typeof UsageServiceService>, BudgetMethods> => ({
  async recordLlmRequest(request, call) {
    const check = new Check();
    if (check.that(request.llmRequest !== undefined, 'llm_request', 'required'))
      checkLlmRequest(check, 'llm_request', request.llmRequest!);
    check.optionalUuid('session_id', request.sessionId);
    check.optionalUuid('turn_id', request.turnId);
    check.that(!request.turnId || request.sessionId !== '', 'session_id', 'required with turn_id');
    check.optionalId('project_id', request.projectId);
    check.optionalUuid('request_id', request.requestId);
    check.done();

    const record = request.llmRequest!;
    const [recorded] = await call.change<Recorded>(request, async (tx) => {
      const session = request.sessionId ? await placeOf(tx, request.sessionId, request.turnId) : undefined;
      const sessionId = session?.id ?? null;
      const projectId = request.projectId || (session?.projectId ?? '');
      const place = { sessionId, turnId: request.turnId || null, projectId };
      const [{ made, known }, budgets] = await together([
        insertLlmRequests(tx, place, [record]),
        call.identity.membership.budgets ? budgetsOf(tx, projectId, sessionId) : [],
      ]);
      const created = made.length > 0;
      const row = (made[0] ?? known[0])!;
      const about = { resource: `llm_requests/${row.id}`, sessionId, metadata: { model: row.model, created } };
      return finish(tx, about, { row, created, budgets });
    });
    const { row, created, budgets } = recorded!;
    if (created) {
      folder.note(call.db.scope);
      call.count('created', 'llm_requests', 1);
      const { request: asked, response: answered } = keptOfLlmRequest(record);
      Object.assign(row, { request: asked, response: answered });
    }
    return { llmRequest: llmRequestFromRow(row), created, budgets: budgets.map(statusFromRow) };
  },

  async listLlmRequests(request, call) {
    const check = new Check();
    checkFilter(check, request);
    check.optionalUuid('turn_id', request.turnId);
    check.text('status', request.status, 64);
    check.time('start_time', request.startTime);
    check.time('end_time', request.endTime);
    check.page(request);
    check.done();

    const filter = { ...request, userId: whoseUsage(call, request.userId), ...timesOf(request) };
    const page = call.page(request);
    const found = await listLlmRequests(call.db, filter, page.after?.[0], page.limit);
    const { rows, nextPageToken } = page.cut(
      found,
      (row) => [row.id],
      (row) => row.byteSize,
    );
    call.count('read', 'llm_requests', rows.length);
    return { llmRequests: rows.map(llmRequestFromRow), nextPageToken };
  },

  async getUsage(request, call) {
    const check = new Check();
    const { groupBy } = request;
    if (check.count('group_by', groupBy, 6)) {
      groupBy.forEach((dimension, i) => {
        check.oneOf(`group_by[${i}]`, dimension, UsageDimension);
        check.that(groupBy.indexOf(dimension) === i, `group_by[${i}]`, 'named twice');
      });
    }
    checkUsageFilter(check, request);
    check.page(request);
    check.done();

    const filter = { ...request, userId: whoseUsage(call, request.userId), sessionId: request.sessionId.toLowerCase() };
    const page = call.page(request);
    const found = await readUsage(call.db, groupBy, filter, page.after, page.limit);
    const { rows, nextPageToken } = page.cut(found, (usage) => positionOf(groupBy, usage));
    return { usage: rows, nextPageToken };
  },

  async *exportUsage(request, call) {
    const check = new Check();
    check.optionalId('user_id', request.userId);
    check.time('start_time', request.startTime);
    check.time('end_time', request.endTime);
    check.text('cursor', request.cursor, 4096);
    check.done();

    const { cursor, ...filter } = request;
    const wanted = { userId: whoseUsage(call, request.userId), ...timesOf(request) };
    for (let pageToken = cursor; ; ) {
      const page = pieceOf(call, { ...filter, pageSize: PIECE, pageToken });
      const found = await exportLines(call.db, wanted, page.after?.[0], page.limit);
      const { rows, nextPageToken } = page.cut(found, (row) => [row.id]);
      call.count('read', 'llm_requests', rows.length);
      if (rows.length > 0) {
        yield { lines: rows.map(({ line }) => `${line}\n`).join(''), cursor: nextPageToken };
      }
      if (!nextPageToken) return;
      pageToken = nextPageToken;
    }
  },
});

/** A page whose token is called a cursor. */
function pieceOf(call: Call, request: Parameters<Call['page']>[0]) {
  try {
    return call.page(request);
  } catch (error) {
    if (error instanceof BadPageToken) throw invalid([{ field: 'cursor', description: 'not a cursor of this export' }]);
    throw error;
  }
}

const timesOf = ({ startTime, endTime }: { startTime?: any; endTime?: any }) => ({
  startTime: timestampText(startTime),
  endTime: timestampText(endTime),
});

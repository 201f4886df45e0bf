import { finisher } from '../db/change.ts';
import type { AuditServiceService } from '../gen/memory/v1/audit_service.ts';
import type { Handlers } from '../rpc/implement.ts';
import { Check } from '../rpc/validate.ts';
import {
  checkPrompt,
  checkToolCall,
  insertPrompts,
  insertToolCalls,
  keptOfPrompt,
  keptOfToolCall,
  type StoredRow,
} from '../usage/calls.ts';
import { holdSession, listPrompts, listToolCalls, promptFromRow, toolCallFromRow } from './records.ts';

const finishPrompt = finisher('prompts.record');
const finishToolCall = finisher('tool_calls.record');

type RecordMethods = 'recordPrompt' | 'recordToolCall' | 'listPrompts' | 'listToolCalls';

export const recordHandlers: Pick<Handlers<typeof AuditServiceService>, RecordMethods> = {
  async recordPrompt(request, call) {
    const check = new Check();
    checkPlace(check, request);
    if (check.that(request.prompt !== undefined, 'prompt', 'required')) checkPrompt(check, 'prompt', request.prompt!);
    check.done();

    const place = placeOf(request);
    const [stored] = await call.change<StoredRow>(request, async (tx) => {
      await holdSession(tx, request.sessionId, request.turnId);
      const [row] = await insertPrompts(tx, place, [request.prompt!]);
      return finishPrompt(tx, { resource: `prompts/${row!.id}`, sessionId: place.sessionId, metadata: {} }, row!);
    });
    call.count('created', 'prompts', 1);
    const { id, createTime } = stored!;
    return { prompt: { id, ...place, turnId: request.turnId, record: keptOfPrompt(request.prompt!), createTime } };
  },

  async recordToolCall(request, call) {
    const check = new Check();
    checkPlace(check, request);
    if (check.that(request.toolCall !== undefined, 'tool_call', 'required'))
      checkToolCall(check, 'tool_call', request.toolCall!);
    check.done();

    const place = placeOf(request);
    const [stored] = await call.change<StoredRow>(request, async (tx) => {
      await holdSession(tx, request.sessionId, request.turnId);
      const [row] = await insertToolCalls(tx, place, [request.toolCall!]);
      return finishToolCall(tx, { resource: `tool_calls/${row!.id}`, sessionId: place.sessionId, metadata: {} }, row!);
    });
    call.count('created', 'tool_calls', 1);
    const { id, createTime } = stored!;
    return {
      toolCall: { id, ...place, turnId: request.turnId, record: keptOfToolCall(request.toolCall!), createTime },
    };
  },

  async listPrompts(request, call) {
    const check = new Check();
    checkFilter(check, request);
    check.optionalId('name', request.name);
    check.done();

    const page = call.page(request);
    const found = await listPrompts(call.db, request, page.after?.[0], page.limit);
    const { rows, nextPageToken } = page.cut(
      found,
      (row) => [row.id],
      (row) => row.byteSize,
    );
    call.count('read', 'prompts', rows.length);
    return { prompts: rows.map(promptFromRow), nextPageToken };
  },

  async listToolCalls(request, call) {
    const check = new Check();
    checkFilter(check, request);
    check.optionalId('tool_name', request.toolName);
    check.text('status', request.status, 64);
    check.done();

    const page = call.page(request);
    const found = await listToolCalls(call.db, request, page.after?.[0], page.limit);
    const { rows, nextPageToken } = page.cut(
      found,
      (row) => [row.id],
      (row) => row.byteSize,
    );
    call.count('read', 'tool_calls', rows.length);
    return { toolCalls: rows.map(toolCallFromRow), nextPageToken };
  },
};

interface Where {
  sessionId: string;
  turnId: string;
}

const placeOf = ({ sessionId, turnId }: Where) => ({
  sessionId: sessionId.toLowerCase(),
  turnId: turnId || null,
  projectId: '',
});

function checkPlace(check: Check, request: Where & { requestId: string }): void {
  check.uuid('session_id', request.sessionId);
  check.optionalUuid('turn_id', request.turnId);
  check.optionalUuid('request_id', request.requestId);
}

function checkFilter(check: Check, request: Where & { pageSize: number; pageToken: string }): void {
  check.optionalUuid('session_id', request.sessionId);
  check.optionalUuid('turn_id', request.turnId);
  check.page(request);
}

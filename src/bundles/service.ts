import { secondsOf } from '../db/statement.ts';
import type { ForwardBundleRequest, MemoryServiceService } from '../gen/memory/v1/memory_service.ts';
import type { MessageSelection } from '../gen/memory/v1/message.ts';
import type { Access } from '../rpc/access.ts';
import { notFound } from '../rpc/errors.ts';
import { SCOPES } from '../rpc/identity.ts';
import type { Handlers } from '../rpc/implement.ts';
import { Check, expiryOf } from '../rpc/validate.ts';
import { checkMessage } from '../threads/message.ts';
import { contentTokens } from '../tokens/counter.ts';
import { ackHandoff, handoffsOf, pullHandoffs, whyNotAcked } from './handoffs.ts';
import {
  bundleFromRow,
  type Forward,
  forwardBundle,
  getBundle,
  listBundles,
  saveBundle,
  whyNotBundled,
  whyNotForwarded,
} from './repository.ts';

const MAX_MESSAGES = 500;

export const bundleAccess: Record<string, Access> = {
  pullHandoffs: { scope: SCOPES.handoff },
  ackHandoff: { scope: SCOPES.handoff },
};

type BundleMethods = 'saveBundle' | 'forwardBundle' | 'getBundle' | 'listBundles' | 'pullHandoffs' | 'ackHandoff';

export const bundleHandlers: Pick<Handlers<typeof MemoryServiceService>, BundleMethods> = {
  async saveBundle(request, call) {
    const check = new Check();
    check.id('source_thread_id', request.sourceThreadId);
    check.optionalId('source_project_id', request.sourceProjectId);
    checkSelection(check, 'selection', request.selection);
    check.expiration(request.expiration);
    check.optionalUuid('request_id', request.requestId);
    check.done();

    const source = {
      sourceThreadId: request.sourceThreadId,
      sourceProjectId: request.sourceProjectId,
      selection: request.selection!,
      tokenCounts: await inlineTokens(request.selection!),
      ...expiryOf(request.expiration),
    };
    const [row] = await call.change(request, async (tx) => {
      const saved = await saveBundle(tx, source);
      if (saved.length === 0) throw await whyNotBundled(call.db, source);
      return saved;
    });
    call.stored(row!.byteSize);
    call.count('created', 'bundles', 1);
    const bundle = (await getBundle(call.db, row!.id)) ?? bundleFromRow(row!);
    // A replay tells what the first call did: nothing had been forwarded yet.
    return { bundle: { ...bundle, forwards: [] } };
  },

  async forwardBundle(request, call) {
    const check = new Check();
    checkForward(check, request);
    check.done();

    const forward: Forward = {
      source: request.source!.$case === 'bundleId' ? { bundleId: request.source!.value } : await inlineSource(request),
      targetThreadId: request.targetThreadId,
      targetProjectId: request.targetProjectId,
      createTarget: request.createTarget,
      allowRepeat: request.allowRepeat,
      destination: request.handoff?.destination,
      messageLimit: call.identity.membership.quotas.maxMessagesPerThread,
    };
    const [row] = await call.change(request, async (tx) => {
      const forwarded = await forwardBundle(tx, forward);
      if (forwarded.length === 0) throw await whyNotForwarded(call.db, forward);
      return forwarded;
    });
    const { firstSeq, lastSeq, repeated, handoffId, byteSize } = row!;
    // The copies, and a bundle that was made of them on the way.
    call.stored(repeated ? 0 : 'bundleId' in forward.source ? byteSize : 2 * byteSize);
    if (!repeated) call.count('forwarded', 'messages', lastSeq - firstSeq + 1);
    return { bundle: bundleFromRow(row!), firstSeq, lastSeq, repeated, handoffId: handoffId ?? '' };
  },

  async getBundle(request, call) {
    const check = new Check();
    check.uuid('bundle_id', request.bundleId);
    check.done();

    const bundle = await getBundle(call.db, request.bundleId);
    if (!bundle) throw notFound('bundle');
    call.count('read', 'bundles', 1);
    return { bundle };
  },

  async listBundles(request, call) {
    const check = new Check();
    check.optionalId('source_thread_id', request.sourceThreadId);
    check.page(request);
    check.done();

    const page = call.page(request);
    const found = await listBundles(call.db, request.sourceThreadId, page.after?.[0], page.limit);
    const { rows, nextPageToken } = page.cut(found, (row) => [row.id]);
    return { bundles: rows.map(bundleFromRow), nextPageToken };
  },

  async pullHandoffs(request, call) {
    const check = new Check();
    check.slug('destination', request.destination);
    check.range('max_handoffs', request.maxHandoffs, 0, 100);
    if (request.lease) check.duration('lease', request.lease, 1, 3600);
    check.optionalUuid('request_id', request.requestId);
    check.done();

    const seconds = request.lease ? secondsOf(request.lease) : 60;
    const leases = await call.change(request, (tx) =>
      pullHandoffs(tx, request.destination, request.maxHandoffs || 10, seconds),
    );
    return { handoffs: await handoffsOf(call.db, leases) };
  },

  async ackHandoff(request, call) {
    const check = new Check();
    check.uuid('handoff_id', request.handoffId);
    check.uuid('lease_token', request.leaseToken);
    check.optionalUuid('request_id', request.requestId);
    check.done();

    await call.change(request, async (tx) => {
      const acked = await ackHandoff(tx, request.handoffId, request.leaseToken);
      if (acked.length === 0) throw await whyNotAcked(call.db, request.handoffId);
      return acked;
    });
    return {};
  },
};

async function inlineSource(request: ForwardBundleRequest) {
  const { value } = request.source as Extract<ForwardBundleRequest['source'], { $case: 'inline' }>;
  const { sourceThreadId, sourceProjectId } = value;
  const selection = value.selection!;
  return { sourceThreadId, sourceProjectId, selection, tokenCounts: await inlineTokens(selection) };
}

const inlineTokens = ({ selection }: MessageSelection): Promise<number[]> =>
  contentTokens(selection?.$case === 'inline' ? selection.value.messages : []);

function checkForward(check: Check, request: ForwardBundleRequest): void {
  const { source, handoff } = request;
  check.that(source !== undefined, 'source', 'required');
  if (source?.$case === 'bundleId') check.uuid('bundle_id', source.value);
  if (source?.$case === 'inline') {
    check.id('inline.source_thread_id', source.value.sourceThreadId);
    check.optionalId('inline.source_project_id', source.value.sourceProjectId);
    checkSelection(check, 'inline.selection', source.value.selection);
  }
  check.id('target_thread_id', request.targetThreadId);
  check.optionalId('target_project_id', request.targetProjectId);
  if (handoff) check.slug('handoff.destination', handoff.destination);
  check.optionalUuid('request_id', request.requestId);
}

function checkSelection(check: Check, field: string, value: MessageSelection | undefined): void {
  const selection = value?.selection;
  if (!check.that(selection !== undefined, field, 'required') || !selection) return;
  switch (selection.$case) {
    case 'lastN':
      check.range(`${field}.last_n`, selection.value, 1, MAX_MESSAGES);
      break;
    case 'messageIds': {
      const { ids } = selection.value;
      if (!check.count(`${field}.message_ids.ids`, ids, MAX_MESSAGES, 1)) break;
      ids.forEach((id, i) => check.uuid(`${field}.message_ids.ids[${i}]`, id));
      check.that(
        new Set(ids.map((id) => id.toLowerCase())).size === ids.length,
        `${field}.message_ids.ids`,
        'names a message twice',
      );
      break;
    }
    case 'inline': {
      const { messages } = selection.value;
      if (!check.count(`${field}.inline.messages`, messages, MAX_MESSAGES, 1)) break;
      messages.forEach((message, i) => checkMessage(check, `${field}.inline.messages[${i}]`, message));
    }
  }
}

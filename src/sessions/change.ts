import { v7 as uuidv7 } from 'uuid';
import type { UpsertSessionRequest } from '../gen/memory/v1/memory_service.ts';
import { PinnedRef_Kind, type Session, type SummaryRef } from '../gen/memory/v1/session.ts';
import { TenantPolicies_Pii } from '../gen/memory/v1/tenant.ts';
import { emailKey, isEmail } from '../profiles/contact.ts';
import type { Violation } from '../rpc/errors.ts';
import type { Check } from '../rpc/validate.ts';
import { type PiiFinding, redactPii, scanPii } from './pii.ts';

/** The fields that an upsert sets, by column name; `replace` names those that are set as a whole rather than merged. */
export type SessionChange = Record<string, unknown> & { replace: string[] };

const STRUCTS = ['preferences', 'state', 'metadata', 'metrics'] as const;
const REFS = { pinned_refs: 'pinnedRefs', summary_refs: 'summaryRefs' } as const;
const TEXTS = {
  title: ['title', 500],
  tool_id: ['toolId', 128],
  workspace_path: ['workspacePath', 4096],
  process_id: ['processId', 128],
  email: ['email', 254],
} as const;
const FLAGS = ['pinned', 'archived'] as const;

/** What an update mask may name. */
const MASKABLE = new Set<string>([...STRUCTS, ...Object.keys(REFS), ...Object.keys(TEXTS), ...FLAGS, 'expiration']);

export function checkUpsert(check: Check, request: UpsertSessionRequest): void {
  const { session } = request;
  check.optionalUuid('request_id', request.requestId);
  if (request.updateMask) {
    for (const path of request.updateMask)
      check.that(MASKABLE.has(path), 'update_mask', `"${path.slice(0, 64)}" cannot be updated`);
  }
  check.expiration(request.expiration);
  check.that(!request.slidingTtl || request.expiration?.$case === 'ttl', 'sliding_ttl', 'needs a ttl');
  if (check.count('remove_ref_ids', request.removeRefIds, 300)) {
    request.removeRefIds.forEach((id, i) => check.id(`remove_ref_ids[${i}]`, id));
  }
  if (!check.that(session !== undefined, 'session', 'required') || !session) return;
  check.optionalUuid('session.id', session.id);
  if (session.id) check.optionalId('session.surface_id', session.surfaceId);
  else check.id('session.surface_id', session.surfaceId);
  check.optionalId('session.project_id', session.projectId);
  check.optionalId('session.thread_id', session.threadId);
  check.etag('session.etag', session.etag);
  checkFields(check, session);
}

function checkFields(check: Check, session: Session): void {
  for (const [column, [name, max]] of Object.entries(TEXTS)) check.text(`session.${column}`, session[name], max);
  if (session.email) check.that(isEmail(session.email), 'session.email', 'not an e-mail address');
  for (const name of STRUCTS) check.struct(`session.${name}`, session[name]);
  if (check.count('session.pinned_refs', session.pinnedRefs, 200)) {
    session.pinnedRefs.forEach((ref, i) => {
      const field = `session.pinned_refs[${i}]`;
      check.oneOf(`${field}.kind`, ref.kind, PinnedRef_Kind);
      check.text(`${field}.text`, ref.text, 500);
      checkRef(check, field, ref, session.pinnedRefs);
    });
  }
  checkSummaries(check, 'session.summary_refs', session.summaryRefs);
}

export function checkSummaries(check: Check, field: string, summaries: SummaryRef[]): void {
  if (!check.count(field, summaries, 100)) return;
  summaries.forEach((ref, i) => {
    check.text(`${field}[${i}].text`, ref.text, 4000);
    check.seq(`${field}[${i}].through_seq`, ref.throughSeq);
    checkRef(check, `${field}[${i}]`, ref, summaries);
  });
}

function checkRef(check: Check, field: string, ref: { id: string; uri: string }, all: { id: string }[]): void {
  check.optionalId(`${field}.id`, ref.id);
  check.text(`${field}.uri`, ref.uri, 2048);
  if (ref.id) check.that(all.find((other) => other.id === ref.id) === ref, `${field}.id`, 'used twice in the request');
}

/** What the request sets. With a mask only what it names, and a named field without a value is cleared. */
export function changeOf(request: UpsertSessionRequest): SessionChange {
  const session = request.session!;
  const mask = request.updateMask && new Set(request.updateMask);
  const change: SessionChange = { replace: [] };
  const put = (column: string, value: unknown, empty: unknown, present: boolean) => {
    if (mask ? mask.has(column) : present) change[column] = present ? value : empty;
  };
  for (const [column, [name]] of Object.entries(TEXTS)) put(column, session[name], '', session[name] !== undefined);
  if (change.email !== undefined) change.email_key = emailKey(change.email as string);
  for (const name of FLAGS) put(name, session[name], false, session[name] !== undefined);
  for (const name of STRUCTS) put(name, session[name], {}, session[name] !== undefined);
  for (const [column, name] of Object.entries(REFS)) {
    const refs = session[name].map((ref) => storedRef(ref));
    put(column, refs, [], refs.length > 0);
  }
  if (request.removeRefIds.length > 0) change.remove_ref_ids = request.removeRefIds;
  if (mask) change.replace = [...STRUCTS, ...Object.keys(REFS)].filter((column) => mask.has(column));
  return change;
}

// The times of a ref are the database's.
function storedRef(ref: Session['pinnedRefs'][number] | Session['summaryRefs'][number]): object {
  const { id, uri, text } = ref;
  const common = { id: id || uuidv7(), uri, text };
  return 'kind' in ref ? { ...common, kind: ref.kind } : { ...common, through_seq: ref.throughSeq };
}

const KINDS = {
  EMAIL: 'an e-mail address',
  PHONE: 'a phone number',
  PAYMENT_CARD: 'a payment card',
  NATIONAL_ID: 'a national id',
};

/**
 * Applies the tenant's policy to what a snapshot must not hold raw. Gives the violations under `reject`; redacts in place
 * under `redact`. Refs keep their ids and uris.
 */
export function applyPiiPolicy(change: SessionChange, policy: number): Violation[] {
  if (policy === TenantPolicies_Pii.ALLOW) return [];
  const findings: PiiFinding[] = [];
  const treat = (path: string, value: unknown): unknown => {
    if (policy === TenantPolicies_Pii.REDACT) return redactPii(value);
    scanPii(path, value, findings);
    return value;
  };
  for (const name of ['title', 'preferences', 'state', 'metadata']) {
    if (change[name] !== undefined) change[name] = treat(`session.${name}`, change[name]);
  }
  for (const name of Object.keys(REFS)) {
    const refs = change[name] as { text: string }[] | undefined;
    refs?.forEach((ref, i) => {
      ref.text = treat(`session.${name}[${i}].text`, ref.text) as string;
    });
  }
  return findings.map(({ path, kind }) => ({
    field: path,
    description: `holds ${KINDS[kind]}, which the tenant's policy rejects`,
    reason: `PII_${kind}`,
  }));
}

import { parseTimestamp } from '../db/statement.ts';
import type { ProfileSource, ProfileValueChange } from '../gen/memory/v1/profile.ts';
import { ProfileValueChange as Changed, ProfileSource as From, Profile } from '../gen/memory/v1/profile.ts';
import type { UpdateProfileRequest } from '../gen/memory/v1/profile_service.ts';
import { type Check, etagOf } from '../rpc/validate.ts';
import {
  ADDRESS,
  type Entry,
  itemKey,
  itemsOf,
  type Json,
  LISTS,
  preferencesOf,
  present,
  type Source,
  TEXTS,
  textOf,
  type Wanted,
} from './accumulate.ts';
import { countryOf, e164, isEmail } from './contact.ts';
import type { ChangedRow, ProfileRow } from './repository.ts';

type Field = (typeof TEXTS)[number];

const MAX_CHARACTERS: Record<Field, number> = {
  name: 200,
  phone: 32,
  email: 254,
  'address.street': 200,
  'address.city': 100,
  'address.state': 100,
  'address.zip': 20,
  'address.country': 2,
};
const MAX_ITEMS = 100;
const MAX_ITEM = 200;
const MASKABLE = new Set<string>([...TEXTS, 'address', ...LISTS, 'preferences']);

const given = (profile: Profile, field: Field): string | undefined =>
  field.startsWith('address.')
    ? profile.address?.[field.slice('address.'.length) as 'street']
    : profile[field as 'name'];

export function checkUpdate(check: Check, request: UpdateProfileRequest): void {
  for (const path of request.updateMask ?? [])
    check.that(MASKABLE.has(path), 'update_mask', `"${path.slice(0, 64)}" cannot be updated`);
  checkItems(check, 'remove_products', request.removeProducts);
  checkItems(check, 'remove_services', request.removeServices);
  check.optionalUuid('session_id', request.sessionId);
  check.seq('message_seq', request.messageSeq);
  check.that(!request.messageSeq || request.sessionId !== '', 'message_seq', 'needs session_id');
  check.optionalUuid('request_id', request.requestId);
  const { profile } = request;
  if (!check.that(profile !== undefined, 'profile', 'required') || !profile) return;
  for (const field of TEXTS) check.text(`profile.${field}`, given(profile, field), MAX_CHARACTERS[field]);
  const { phone, email, address } = profile;
  if (phone) check.that(e164(phone) !== undefined, 'profile.phone', 'not a phone number with its country code');
  if (email) check.that(isEmail(email), 'profile.email', 'not an e-mail address');
  if (address?.country)
    check.that(countryOf(address.country) !== undefined, 'profile.address.country', 'not a country of ISO 3166-1');
  for (const list of LISTS) checkItems(check, `profile.${list}`, profile[list]);
  check.struct('profile.preferences', profile.preferences);
  check.etag('profile.etag', profile.etag);
}

function checkItems(check: Check, field: string, items: string[]): void {
  if (items.length === 0 || !check.count(field, items, MAX_ITEMS)) return;
  items.forEach((item, i) => {
    if (check.text(`${field}[${i}]`, item, MAX_ITEM, 1)) check.that(itemKey(item) !== '', `${field}[${i}]`, 'blank');
  });
}

const NORMAL: Partial<Record<Field, (text: string) => string>> = {
  phone: (text) => e164(text)!,
  'address.country': (text) => countryOf(text)!,
};

/** What an update that has been checked wants of a profile: what the mask names as a whole, else what is present. */
export function wantedOf(request: UpdateProfileRequest, entries: Entry[]): Wanted[] {
  const profile = request.profile!;
  const mask = request.updateMask && new Set(request.updateMask);
  const wanted: Wanted[] = [];
  for (const field of TEXTS) {
    const text = given(profile, field)?.trim();
    const named = mask?.has(field) || (field.startsWith('address.') && mask?.has('address'));
    if (!(mask ? named : text !== undefined)) continue;
    wanted.push({ field, item: '', value: text ? (NORMAL[field]?.(text) ?? text) : null });
  }
  const removed = { products: request.removeProducts, services: request.removeServices };
  for (const field of LISTS) {
    const items = new Map<string, string>();
    for (const text of profile[field]) if (!items.has(itemKey(text))) items.set(itemKey(text), text.trim());
    const gone = new Set(removed[field].map(itemKey));
    if (mask?.has(field)) for (const { item } of itemsOf(entries, field)) if (!items.has(item)) gone.add(item);
    if (mask && !mask.has(field)) items.clear();
    for (const item of gone) wanted.push({ field, item, value: null });
    for (const [item, value] of items) if (!gone.has(item)) wanted.push({ field, item, value });
  }
  const field = 'preferences';
  const preferences = Object.entries(profile.preferences ?? {});
  if (mask?.has(field)) {
    const keys = new Set(preferences.map(([key]) => key));
    for (const { item } of itemsOf(entries, field)) if (!keys.has(item)) wanted.push({ field, item, value: null });
    for (const [item, value] of preferences) wanted.push({ field, item, value });
  } else if (!mask) {
    for (const [item, value] of preferences) wanted.push({ field, item, value, merge: true });
  }
  return wanted;
}

const shown = (value: Json): string | undefined =>
  value === null ? undefined : typeof value === 'string' ? value : JSON.stringify(value);

export function sourceFrom(source: Source, field: string, item: string): ProfileSource {
  return From.fromPartial({
    field,
    item,
    kind: source.kind,
    actor: source.actor,
    sessionId: source.session_id ?? '',
    threadId: source.thread_id ?? '',
    messageSeq: source.message_seq ?? 0,
    setTime: parseTimestamp(source.set_time),
    origin: source.origin && sourceFrom(source.origin, field, item),
  });
}

export function changeFrom(row: ChangedRow): ProfileValueChange {
  const { field, item, kind, source, previous_source: before } = row;
  // Texts of lists are themselves; a text among the preferences is JSON like their other values.
  const text = (value: Json) => (field === 'preferences' && value !== null ? JSON.stringify(value) : shown(value));
  return Changed.fromPartial({
    field,
    item,
    kind,
    previous: text(row.previous),
    current: text(row.current),
    source: sourceFrom(source, field, item),
    previousSource: before ? sourceFrom(before, field, item) : undefined,
    revision: row.revision,
    changeTime: parseTimestamp(row.change_time),
  });
}

/** What entries that hold values say. */
export function profileFields(entries: Entry[]) {
  const address = Object.fromEntries(ADDRESS.map((field) => [field.slice(8), textOf(entries, field)]));
  const listed = (field: string) => itemsOf(entries, field).map(({ value }) => value as string);
  return {
    name: textOf(entries, 'name'),
    phone: textOf(entries, 'phone'),
    email: textOf(entries, 'email'),
    address: ADDRESS.some((field) => textOf(entries, field)) ? (address as Profile['address']) : undefined,
    products: listed('products'),
    services: listed('services'),
    preferences: itemsOf(entries, 'preferences').length > 0 ? preferencesOf(entries) : undefined,
  };
}

/** The profile of a row; without one it was never written. */
export function profileFromRow(userId: string, row: ProfileRow | undefined): Profile {
  if (!row || row.revision === 0) return Profile.fromPartial({ userId });
  const { createTime, updateTime, revision } = row;
  const entries = present(row.entries);
  return {
    userId,
    ...profileFields(entries),
    sources: entries.map(({ field, item, value, source }) =>
      sourceFrom(source, field, field === 'preferences' || item === '' ? item : String(value)),
    ),
    createTime,
    updateTime,
    revision,
    etag: etagOf(revision),
  };
}

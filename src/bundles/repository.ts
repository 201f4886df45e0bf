import { v7 as uuidv7 } from 'uuid';
import { audited, requested } from '../db/change.ts';
import { change, json, pointRead, rowFromJson, type Statement, type Value } from '../db/statement.ts';
import type { TenantDb, TenantTx } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { Bundle, BundleForward } from '../gen/memory/v1/bundle.ts';
import type { Message, MessageSelection } from '../gen/memory/v1/message.ts';
import { deleted, invalid, notFound, type RpcError } from '../rpc/errors.ts';
import { hasRoom, messageStreaming, threadFull, touchSessions } from '../threads/append.ts';
import { awaited, countMessages, messageFromRow, requireThread, settled } from '../threads/repository.ts';

// Own parameters of all statements here that copy messages: $11 bundle id (new, or of the saved one), $12 source thread,
// $13 source project, $14 the selection (last_n, a list of ids, or inline messages), $15 and $16 the bundle's expiry.

/** The ways to choose the messages of a bundle, by seq, with what each of them adds to its size. */
const CHOSEN = {
  lastN: `select m.seq, m.byte_size as size
    from messages m
    where m.tenant_id = $1 and m.env = $2 and m.thread_uid = (select thread_uid from source) and ${settled('m')}
    order by m.seq desc limit ($14::jsonb)::int`,
  messageIds: `select m.seq, m.byte_size as size
    from messages m
    where m.tenant_id = $1 and m.env = $2 and m.thread_uid = (select thread_uid from source) and ${settled('m')}
      and m.id in (select value::uuid from jsonb_array_elements_text($14::jsonb))`,
  inline: `select ord as seq, octet_length(v ->> 'content') + coalesce(octet_length(v ->> 'metadata'), 0) + 200 as size
    from jsonb_array_elements($14::jsonb) with ordinality as e (v, ord), source`,
} as const;

const STORED = `select m.seq, jsonb_strip_nulls(jsonb_build_object('id', m.id, 'session_id', m.session_id, 'seq', m.seq,
      'client_id', m.client_id, 'role', m.role, 'content', m.content, 'tool_call_id', m.tool_call_id, 'token_count', m.token_count,
      'forwarded_from', m.forwarded_from, 'create_time', m.create_time)) || case when m.metadata is null then '{}' else jsonb_build_object('metadata', m.metadata) end as message
    from messages m join chosen using (seq)
    where m.tenant_id = $1 and m.env = $2 and m.thread_uid = (select thread_uid from source)`;
const INLINE = `select ord as seq, v || jsonb_build_object('seq', 0, 'unverified', true) as message
    from jsonb_array_elements($14::jsonb) with ordinality as e (v, ord), source`;

type Choice = keyof typeof CHOSEN;

/** The CTEs up to `content`, the bundle to be: no row if the source or a named message is missing, or it is over 1 MiB. */
const contentOf = (choice: Choice) => `source as materialized (
    select t.thread_uid from (select) one
    left join threads t on t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_id = $12
    where t.delete_time is null and (t.thread_uid is not null or ${awaited('$12')})
  ), chosen as materialized (
    ${CHOSEN[choice]}
  ), total as materialized (
    select count(*)::int as n, coalesce(sum(size), 0)::int as bytes from chosen
  ), content as materialized (
    select $11::uuid as id, $12::text as source_thread_id, $13::text as source_project_id, total.n as message_count,
      total.bytes as byte_size, clock_timestamp() as create_time,
      coalesce($15::timestamptz, clock_timestamp() + make_interval(secs => $16::float8)) as expire_time,
      (select jsonb_agg(message order by seq) from (${choice === 'inline' ? INLINE : STORED}) m) as messages
    from total
    where total.n > 0 and total.bytes <= 1048576${choice === 'messageIds' ? ' and total.n = jsonb_array_length($14)' : ''}
  )`;

const insertBundle = (from: string) => `bundle as (
    insert into bundles (tenant_id, env, id, user_id, source_thread_id, source_project_id, messages, message_count, byte_size, create_time, expire_time)
    select $1, $2, id, $3, source_thread_id, source_project_id, messages, message_count, byte_size, create_time, expire_time
    from ${from}
    returning id, source_thread_id, source_project_id, message_count, byte_size, create_time, expire_time
  )`;

export interface BundleRow {
  id: string;
  sourceThreadId: string;
  sourceProjectId: string;
  messageCount: number;
  createTime: Timestamp;
  expireTime: Timestamp | null;
}

export const bundleFromRow = (row: BundleRow): Bundle =>
  Bundle.fromPartial({ ...row, expireTime: row.expireTime ?? undefined } as object);

/** A bundle as it was just stored, or copied from. */
interface StoredBundle extends BundleRow {
  byteSize: number;
}

const saveStatement = (choice: Choice) =>
  change<StoredBundle>(`
  with ${contentOf(choice)}, ${insertBundle('content')},
  ${audited('bundles.save', 'bundle', {
    resource: `'bundles/' || id`,
    metadata: `jsonb_build_object('source_thread_id', source_thread_id, 'count', message_count)`,
  })}, ${requested('bundle')}
  select * from bundle`);

const each = <Row>(make: (choice: Choice) => Statement<Row>) => ({
  lastN: make('lastN'),
  messageIds: make('messageIds'),
  inline: make('inline'),
});

const SAVE = each(saveStatement);

export interface BundleSource {
  sourceThreadId: string;
  sourceProjectId: string;
  selection: MessageSelection;
  /** Of inline messages, as this service counted them. */
  tokenCounts: number[];
  expireTime?: string | undefined;
  ttlSeconds?: number | undefined;
}

function selectionValue({ selection }: MessageSelection, tokenCounts: number[]): Value {
  if (selection?.$case === 'lastN') return json(selection.value);
  if (selection?.$case === 'messageIds') return json(selection.value.ids);
  return json(selection?.value.messages.map((message, i) => inlineMessage(message, tokenCounts[i])));
}

const inlineMessage = ({ role, content, metadata, toolCallId }: Message, tokenCount: number | undefined) => ({
  role,
  content,
  ...(metadata && { metadata }),
  tool_call_id: toolCallId,
  token_count: tokenCount,
});

function sourceValues(source: BundleSource): Value[] {
  const { sourceThreadId, sourceProjectId, selection, tokenCounts, expireTime, ttlSeconds } = source;
  return [uuidv7(), sourceThreadId, sourceProjectId, selectionValue(selection, tokenCounts), expireTime, ttlSeconds];
}

export async function saveBundle(tx: TenantTx, source: BundleSource): Promise<StoredBundle[]> {
  return tx.final(SAVE[source.selection.selection!.$case], sourceValues(source));
}

/** Why no bundle could be made of a source. */
export async function whyNotBundled(db: TenantDb, source: BundleSource): Promise<RpcError> {
  await requireThread(db, source.sourceThreadId, { what: 'source thread' });
  const { selection } = source.selection;
  if (selection?.$case === 'messageIds') {
    const [found] = await db.query(COUNT_IDS, [source.sourceThreadId, selection.value.ids]);
    if (found!.n < selection.value.ids.length) return notFound('message');
    if (found!.deleted) return deleted('message');
    if (found!.streaming) return messageStreaming();
  }
  if (selection?.$case === 'lastN') {
    const [found] = await db.query(ANY_MESSAGE, [source.sourceThreadId]);
    if (!found!.any) return invalid([{ field: 'selection.last_n', description: 'the thread has no messages' }]);
  }
  return invalid([{ field: 'selection', description: 'the messages are over 1 MiB together' }]);
}

const IN_THREAD = `m.tenant_id = $1 and m.env = $2
    and m.thread_uid = (select thread_uid from threads where tenant_id = $1 and env = $2 and user_id = $3 and thread_id = $4 and delete_time is null)`;
const COUNT_IDS = pointRead<{ n: number; deleted: boolean | null; streaming: boolean | null }>(`
  select count(*) as n, bool_or(m.delete_time is not null) as deleted, bool_or(not ${settled('m')}) as streaming
  from messages m where ${IN_THREAD} and m.id = any ($5::uuid[])`);
const ANY_MESSAGE = pointRead<{ any: boolean }>(
  `select exists (select from messages m where ${IN_THREAD} and ${settled('m')}) as any`,
);

// Further parameters of a forward: $17 target thread, $18 target project, $19 create it, $20 allow a repeat, $21 the
// hand-off's destination or null, $22 the target's uid if it is new, $23 id of the landing, $24 id of the hand-off, $25 how many
// messages a thread may hold.
// Who landed before is looked for by scalars, so that every plan takes the index: as a join it read all forwards of the tenant.
const forwardStatement = (bundle: string, saving: string) =>
  change<ForwardRow>(`
  with ${bundle}, prior as materialized (
    select f.first_seq, f.last_seq from bundle_forwards f
    where f.tenant_id = $1 and f.env = $2 and f.bundle_id = (select id from content) and not f.repeat and not $20::boolean
      and f.target_thread_uid = (
        select thread_uid from threads where tenant_id = $1 and env = $2 and user_id = $3 and thread_id = $17::text and delete_time is null)
  ), target as (
    insert into threads as t (tenant_id, env, user_id, thread_id, thread_uid, last_seq, revision, create_time, update_time)
    select $1, $2, $3, $17, $22::uuid, content.message_count, content.message_count, c.at, c.at
    from content, (select clock_timestamp() as at) c
    where not exists (select from prior) and ($25::bigint is null or content.message_count <= $25) and ($19::boolean or ${awaited('$17')} or exists (
      select from threads where tenant_id = $1 and env = $2 and user_id = $3 and thread_id = $17 and delete_time is null))
    on conflict (tenant_id, env, user_id, thread_id) do update
      set last_seq = t.last_seq + excluded.last_seq, revision = t.revision + excluded.revision,
        update_time = greatest(t.update_time, excluded.update_time)
      where t.delete_time is null and ${hasRoom('$25')}
    returning t.thread_id, t.thread_uid, t.last_seq
  ), copies as (
    insert into messages (tenant_id, env, thread_uid, seq, id, user_id, role, content, metadata, tool_call_id, token_count, forwarded_from, create_time,
      search_language, tsv)
    select $1, $2, target.thread_uid, target.last_seq - content.message_count + e.ord, uuid_v7(clock_timestamp()), $3,
      (e.v ->> 'role')::smallint, e.v ->> 'content', e.v -> 'metadata', coalesce(e.v ->> 'tool_call_id', ''),
      (e.v ->> 'token_count')::int,
      jsonb_build_object('bundle_id', content.id, 'thread_id', content.source_thread_id, 'seq', (e.v ->> 'seq')::bigint,
        'unverified', coalesce((e.v ->> 'unverified')::boolean, (e.v -> 'forwarded_from' ->> 'unverified')::boolean, false)),
      clock_timestamp(), l.search_language, message_tsv(l.search_language, e.v ->> 'content')
    from target, content, jsonb_array_elements(content.messages) with ordinality as e (v, ord), tenants l
    where l.tenant_id = $1
    order by e.ord
    returning 1
  ), saved as (
    select content.* from content, target
  ), ${saving}, landed as (
    insert into bundle_forwards (tenant_id, env, id, user_id, bundle_id, target_thread_id, target_thread_uid, target_project_id, first_seq, last_seq, repeat, forward_time)
    select $1, $2, $23::uuid, $3, content.id, target.thread_id, target.thread_uid, $18::text, target.last_seq - content.message_count + 1,
      target.last_seq, $20, clock_timestamp()
    from content, target
    returning first_seq, last_seq
  ), handed as (
    insert into handoffs (tenant_id, env, id, user_id, bundle_id, destination, target_thread_id, create_time)
    select $1, $2, $24::uuid, $3, content.id, $21::text, target.thread_id, clock_timestamp()
    from content, target where $21 is not null
    returning id
  ), ${touchSessions('target')}, outcome as materialized (
    select content.id, content.source_thread_id, content.source_project_id, content.message_count, content.byte_size,
      content.create_time, content.expire_time,
      l.first_seq, l.last_seq, l.repeated, (select id from handed) as handoff_id
    from content, (select first_seq, last_seq, false as repeated from landed union all select first_seq, last_seq, true from prior) l
  ), ${audited('bundles.forward', 'outcome', {
    resource: `'bundles/' || id`,
    metadata: `jsonb_build_object('target_thread_id', $17, 'first_seq', first_seq, 'last_seq', last_seq, 'repeated', repeated,
      'destination', $21)`,
  })}, ${requested('outcome')}
  select * from outcome`);

export interface ForwardRow extends StoredBundle {
  firstSeq: number;
  lastSeq: number;
  repeated: boolean;
  handoffId: string | null;
}

const FORWARD_INLINE = each((choice) => forwardStatement(contentOf(choice), insertBundle('saved')));
const FORWARD_SAVED = forwardStatement(
  `content as materialized (
    select id, source_thread_id, source_project_id, message_count, byte_size, create_time, expire_time, messages from bundles
    where tenant_id = $1 and env = $2 and user_id = $3 and id = $11::uuid and (expire_time is null or expire_time > now())
      and $12::text is null and $13::text is null and $14::jsonb is null and $15::timestamptz is null and $16::float8 is null
  )`,
  'bundle as (select id from saved)',
);

export interface Forward {
  source: { bundleId: string } | BundleSource;
  targetThreadId: string;
  targetProjectId: string;
  createTarget: boolean;
  allowRepeat: boolean;
  destination: string | undefined;
  /** How many messages the target may hold. */
  messageLimit: number | undefined;
}

/** Forwards a bundle. Gives no rows if it refused: see {@link whyNotForwarded}. */
export async function forwardBundle(tx: TenantTx, forward: Forward): Promise<ForwardRow[]> {
  const { source, targetThreadId, targetProjectId, createTarget, allowRepeat, destination, messageLimit } = forward;
  const target = [
    targetThreadId,
    targetProjectId,
    createTarget,
    allowRepeat,
    destination,
    uuidv7(),
    uuidv7(),
    uuidv7(),
    messageLimit,
  ];
  if ('bundleId' in source) return tx.final(FORWARD_SAVED, [source.bundleId, null, null, null, null, null, ...target]);
  return tx.final(FORWARD_INLINE[source.selection.selection!.$case], [...sourceValues(source), ...target]);
}

export async function whyNotForwarded(db: TenantDb, forward: Forward): Promise<RpcError> {
  const { source, targetThreadId, messageLimit } = forward;
  const bundle = 'bundleId' in source ? await getBundle(db, source.bundleId) : undefined;
  if ('bundleId' in source && !bundle) return notFound('bundle');
  if ('selection' in source) await requireThread(db, source.sourceThreadId, { what: 'source thread' });
  await requireThread(db, targetThreadId, { what: 'target thread', mayBeMissing: forward.createTarget });
  const more = bundle?.messageCount ?? ('selection' in source ? mostOf(source.selection) : 0);
  if (messageLimit && (await countMessages(db, targetThreadId)) + more > messageLimit)
    return threadFull(db, messageLimit);
  return 'selection' in source ? whyNotBundled(db, source) : notFound('thread');
}

/** How many messages a selection comes to at most. */
function mostOf({ selection }: MessageSelection): number {
  if (selection?.$case === 'lastN') return selection.value;
  return (selection?.$case === 'messageIds' ? selection.value.ids : selection?.value.messages)?.length ?? 0;
}

const GET = pointRead<BundleRow & { messages: Record<string, unknown>[]; forwards: Record<string, unknown>[] }>(`
  select id, source_thread_id, source_project_id, message_count, create_time, expire_time, messages, (
      select coalesce(jsonb_agg(to_jsonb(f) order by f.id), '[]') from (
        select id, target_thread_id, target_project_id, first_seq, last_seq, forward_time from bundle_forwards f
        where f.tenant_id = $1 and f.env = $2 and f.bundle_id = b.id
        order by f.id desc limit 100
      ) f
    ) as forwards
  from bundles b
  where tenant_id = $1 and env = $2 and user_id = $3 and id = $4::uuid and (expire_time is null or expire_time > now())`);

/** The messages of a bundle, as they are stored in it. What was given inline says so. */
export const bundledMessages = (messages: Record<string, unknown>[], sourceThreadId: string): Message[] =>
  messages.map((stored) => {
    const message = messageFromRow(rowFromJson(stored), sourceThreadId);
    if (!stored.unverified) return message;
    return { ...message, forwardedFrom: { bundleId: '', threadId: sourceThreadId, seq: 0, unverified: true } };
  });

export async function getBundle(db: TenantDb, id: string): Promise<Bundle | undefined> {
  const [row] = await db.query(GET, [id]);
  if (!row) return undefined;
  const forwards = row.forwards.map((forward) => BundleForward.fromPartial(rowFromJson(forward)));
  return { ...bundleFromRow(row), messages: bundledMessages(row.messages, row.sourceThreadId), forwards };
}

const LIST = pointRead<BundleRow>(`
  select id, source_thread_id, source_project_id, message_count, create_time, expire_time from bundles
  where tenant_id = $1 and env = $2 and user_id = $3 and $4 in ('', source_thread_id) and (expire_time is null or expire_time > now())
    and id < coalesce($5::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
  order by id desc limit $6::int`);

export async function listBundles(
  db: TenantDb,
  sourceThreadId: string,
  after: string | undefined,
  limit: number,
): Promise<BundleRow[]> {
  return db.query(LIST, [sourceThreadId, after, limit]);
}

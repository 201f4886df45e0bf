import { Snapshot_Kind, Snapshot_UploadState } from '../gen/memory/v1/artifact.ts';
import { unmatched } from '../profiles/email-matches.ts';

// What of a user goes, and what of others stays without the user in it. A table, or a column that names people, that is not
// here and not excused fails a test: whoever adds one decides. Conditions and values are about the row `t`; $1 is the tenant, $2
// the env, $3 the user, and in values h.pseudonym what stands for the user.

/** Rows of a table that an erasure removes, or changes: so many at once, until there are none. */
export interface Step {
  table: string;
  where: string;
  /** New values by column. Without, the rows go. */
  set?: Record<string, string>;
  /** What must hold for them to be taken. Until then they stay, and the erasure goes on. */
  once?: string;
  /** Where rows take along thousands of others. */
  batch?: number;
  /** What else the statement does with the rows, as a CTE over `done`, and the column that this needs of them. */
  also?: { cte: string; column: string };
}

const OWN = 't.user_id = $3';

// By index: what is left of deleted sessions goes with them.
const OF_SESSIONS = `t.session_id in (
      select s.id from sessions s where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.delete_time is null)`;

const OF_DROPPED = `t.thread_uid in (
      select d.thread_uid from dropped_threads d where d.tenant_id = $1 and d.env = $2 and d.user_id = $3)`;
const emptied = (table: string) =>
  `not exists (select from ${table} r where r.tenant_id = $1 and r.env = $2 and r.thread_uid = t.thread_uid)`;

// A thread's row goes in one statement with the note of what it held, as that of a deleted thread does: an append that comes
// later starts a thread of its own, which the next pass finds.
const QUEUED = {
  column: 'thread_uid',
  cte: `queued as (
    insert into dropped_threads (tenant_id, env, thread_uid, user_id, drop_time)
    select $1, $2, thread_uid, $3, clock_timestamp() from done
    on conflict do nothing
    returning 1
  )`,
};

/** Whether JSON has the user, `$u`, or a merge of the user's profile, one of `$merges`, where the path says. */
const finds = (column: string, path: string) =>
  `jsonb_path_exists(${column}, '${path}', jsonb_build_object('u', $3::text, 'merges', (
      select coalesce(jsonb_agg(m.id), '[]') from profile_merges m where m.tenant_id = $1 and m.env = $2 and m.from_user_id = $3)))`;
const MERGED = 'merge_ids[*] ? (@ == $merges[*])';
const ACTED = '** ? (@.actor == $u)';

const entries = (each: string, filter = 'true') => `(
      select coalesce(jsonb_agg(${each} order by n), '[]') from jsonb_array_elements(t.entries) with ordinality a (e, n) where ${filter})`;
const cameOtherwise = `not ${finds('e', `$.source.${MERGED}`)}`;

/** What others took over from the user's profile, wherever it may have come to since. */
const TAKEN_OVER: Step[] = [
  {
    table: 'profiles',
    where: finds('t.entries', `$[*].source.${MERGED}`),
    set: {
      entries: entries('e', cameOtherwise),
      email_key: `case when exists (select from jsonb_array_elements(t.entries) a (e) where e ->> 'field' = 'email' and not ${cameOtherwise}) then '' else t.email_key end`,
      merge_id: 'null',
      revision: 't.revision + 1',
      update_time: 'clock_timestamp()',
    },
  },
  {
    table: 'profile_changes',
    where: `(${finds('t.source', `$.${MERGED}`)} or ${finds('t.previous_source', `$.${MERGED}`)})`,
  },
  // Also from before a merge of theirs that can be undone.
  {
    table: 'profile_merges',
    where: `t.from_user_id <> $3 and (${finds('t.from_entries', `$[*].source.${MERGED}`)} or ${finds('t.into_entries', `$[*].source.${MERGED}`)})`,
    set: { from_entries: 'null', into_entries: 'null' },
  },
  // Results kept for replays hold whole profiles.
  { table: 'requests', where: finds('t.result', `$.**.${MERGED}`), set: { result: `'[{"gone": true}]'` } },
];

/** Columns that hold a name get another one in its place. */
const renamed = (table: string, columns: string[], { set = {}, also }: Partial<Step> = {}): Step => {
  const names = columns.map((column) => [column, `case when t.${column} = $3 then h.pseudonym else t.${column} end`]);
  const where = `(${columns.map((column) => `t.${column} = $3`).join(' or ')})`;
  return { table, where, set: { ...Object.fromEntries(names), ...set }, ...(also && { also }) };
};

// By its session the person could be found in what callers have logged.
const OF_ANOTHERS_SESSION = {
  session_id: `(
      select s.id from sessions s where s.tenant_id = $1 and s.env = $2 and s.id = t.session_id and s.user_id <> $3)`,
};

/** The fields of stored results that name users. */
const NAMES =
  'user_id userId created_by createdBy updated_by updatedBy actor from_user_id fromUserId into_user_id intoUserId'.split(
    ' ',
  );
const NAMED = `$.** ? (${NAMES.map((name) => `@.${name} == $u`).join(' || ')})`;

const BUDGET_OF = '$[*] ? (@.scope == 3 && @.subject == $u)';

const { PENDING, STORED } = Snapshot_UploadState;

// One that is being uploaded is taken from who does it, and left alone until that one must have noticed.
const rewritten = (row: string): Record<string, string> => ({
  rewrite: 'true',
  upload_state: String(PENDING),
  attempts: '0',
  reason: `''`,
  queue_time: 'clock_timestamp()',
  due_time: `clock_timestamp() + case when ${row}.uploader is null then interval '0' else interval '30 seconds' end`,
  uploader: 'null',
});
export const assigned = (set: Record<string, string>): string =>
  Object.entries(set)
    .map(([column, value]) => `${column} = ${value}`)
    .join(', ');

/** The snapshots of a project in which somebody got another name, if the store may have them. */
const REWRITTEN = {
  column: 'project_id',
  cte: `rewritten as (
    update snapshots s set ${assigned(rewritten('s'))}
    where s.tenant_id = $1 and s.env = $2 and s.project_id in (select project_id from done)
      and (s.upload_state = ${STORED} or s.attempts > 0 or s.queue_time > s.create_time)
    returning 1
  )`,
};

/** In this order: what others are found by goes after them. */
export const STEPS: Step[] = [
  { table: 'tenant_members', where: OWN },
  { table: 'handoffs', where: OWN },
  { table: 'bundle_forwards', where: OWN },
  { table: 'bundles', where: OWN },
  { table: 'session_keys', where: OF_SESSIONS },
  { table: 'turn_results', where: OF_SESSIONS },
  { table: 'turns', where: OF_SESSIONS },
  { table: 'state_checkpoints', where: OF_SESSIONS },
  { table: 'context_entries', where: OF_SESSIONS },
  { table: 'context_archives', where: OF_SESSIONS },
  { table: 'session_contexts', where: OF_SESSIONS },
  { table: 'tool_calls', where: OWN },
  { table: 'prompts', where: OWN },
  { table: 'budgets', where: `(t.scope = 3 and t.subject = $3 or ${OF_SESSIONS})` },
  // By two indexes: those that live, and tombstones.
  { table: 'sessions', where: `${OWN} and t.delete_time is null`, batch: 100 },
  { table: 'sessions', where: `${OWN} and t.delete_time is not null`, batch: 100 },

  { table: 'threads', where: OWN, also: QUEUED },
  { table: 'messages', where: OF_DROPPED },
  { table: 'thread_events', where: OF_DROPPED },
  { table: 'message_streams', where: OWN },
  { table: 'thread_readings', where: OWN },
  { table: 'dropped_threads', where: `${OWN} and ${emptied('messages')} and ${emptied('thread_events')}` },

  // Only what is in the sums: those of the day and of the project stay.
  { table: 'llm_requests', where: `${OWN} and t.folded` },
  { table: 'usage_rollups', where: 't.grain = 3 and t.subject = $3' },
  { table: 'usage_rollups', where: `t.grain = 4 and ${OWN}` },

  { table: 'profiles', where: OWN },
  ...TAKEN_OVER,
  // Others may merge on, and undo, while values are looked for: they are found by these merges until one look finds none anywhere.
  {
    table: 'profile_merges',
    where: '$3 in (t.from_user_id, t.into_user_id)',
    once: TAKEN_OVER.map(
      ({ table, where }) => `not exists (select from ${table} t where t.tenant_id = $1 and t.env = $2 and ${where})`,
    ).join(' and '),
  },
  { table: 'email_matches', where: unmatched('t') },
  {
    table: 'profiles',
    where: finds('t.entries', `$[*].source.${ACTED}`),
    set: {
      entries: entries(`jsonb_set(e, '{source}', rename_in(e -> 'source', '{actor}', $3, h.pseudonym))`),
    },
  },
  {
    table: 'profile_changes',
    where: `(${finds('t.source', `$.${ACTED}`)} or ${finds('t.previous_source', `$.${ACTED}`)})`,
    set: {
      source: `rename_in(t.source, '{actor}', $3, h.pseudonym)`,
      previous_source: `rename_in(t.previous_source, '{actor}', $3, h.pseudonym)`,
    },
  },
  {
    table: 'profile_merges',
    where: `(${finds('t.from_entries', `$[*].source.${ACTED}`)} or ${finds('t.into_entries', `$[*].source.${ACTED}`)})`,
    set: { from_entries: 'null', into_entries: 'null' },
  },

  // Answers to services that named no user, and to others.
  { table: 'requests', where: OWN },
  { table: 'requests', where: `t.user_id = '' and ${finds('t.result', '$.** ? (@.user_id == $u || @.userId == $u)')}` },
  {
    table: 'requests',
    where: finds('t.result', NAMED),
    set: { result: `rename_in(t.result, '{${NAMES}}', $3, h.pseudonym)` },
  },
  // A budget's subject is a user in its scope only.
  {
    table: 'requests',
    where: finds('t.result', BUDGET_OF),
    set: {
      result: `(
        select jsonb_agg(case when jsonb_path_exists(b, '${BUDGET_OF}', jsonb_build_object('u', $3::text))
          then jsonb_set(b, '{subject}', to_jsonb(h.pseudonym)) else b end order by n)
        from jsonb_array_elements(t.result) with ordinality a (b, n))`,
    },
  },

  renamed('budgets', ['updated_by']),
  renamed('memories', ['created_by', 'updated_by']),
  renamed('memory_versions', ['created_by']),
  renamed('project_profiles', ['created_by', 'updated_by']),
  renamed('project_profile_versions', ['created_by'], { also: REWRITTEN }),
  renamed('project_inputs', ['created_by', 'updated_by'], { set: OF_ANOTHERS_SESSION, also: REWRITTEN }),
  renamed('draft_revisions', ['created_by'], { set: OF_ANOTHERS_SESSION, also: REWRITTEN }),
  // A lock of theirs ends.
  {
    table: 'drafts',
    where: 't.locked_by = $3',
    set: {
      locked_by: `''`,
      lease_holder: 'null',
      lease_expire_time: 'null',
      fencing_token: 't.fencing_token + 1',
    },
  },
  renamed('drafts', ['created_by', 'updated_by'], { also: REWRITTEN }),
  renamed('artifacts', ['created_by'], { set: OF_ANOTHERS_SESSION, also: REWRITTEN }),
  {
    table: 'artifacts',
    where: `(t.reviewers ? $3 or ${finds('t.approvals', '$[*] ? (@.approver == $u)')})`,
    set: {
      reviewers: `(select coalesce(jsonb_agg(case when r = to_jsonb($3) then to_jsonb(h.pseudonym) else r end order by n), '[]')
        from jsonb_array_elements(t.reviewers) with ordinality a (r, n))`,
      approvals: `rename_in(t.approvals, '{approver}', $3, h.pseudonym)`,
    },
    also: REWRITTEN,
  },
  renamed('snapshots', ['created_by']),
  // An input that others have changed since may have named anybody in what was stored; and older servers do not rewrite.
  {
    table: 'snapshots',
    where: `t.upload_state = ${STORED} and (t.rewrite or t.kind = ${Snapshot_Kind.ARTIFACT} and exists (
      select from project_inputs i
      where i.tenant_id = $1 and i.env = $2 and i.project_id = t.project_id and i.update_time > t.store_time))`,
    set: rewritten('t'),
  },
];

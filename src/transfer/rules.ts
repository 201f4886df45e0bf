import { vocabulary } from '../memories/texts.ts';
import type { Table } from './catalog.ts';

// What of a tenant goes into an export. Everything does that is not named here: the tables and their columns are those of
// the schema, so that a new table comes along by itself.

/** Tables that stay where they are, each with the reason. */
export const LEFT_OUT: Record<string, string> = {
  requests: 'answers to retries of this place, partly sealed with its keys, and gone after a day',
  expiry_stats: 'what the sweeps of this place have done',
  quota_counts: 'what this place has counted, which every place does by itself',
  reading_rounds: 'how far this place was searched for messages that nobody had read',
  audit_blocks:
    'the chain of the events of this place: those that arrive are new ones there, and become part of its chain',
  dropped_threads: 'what the sweep has still to remove here, which an export leaves out',
  memory_words: 'words of memories, also of deleted ones until they are forgotten, which an import derives',
};

/** Of these, the ones that exports of older versions hold. */
export const FORMERLY_TAKEN = ['memory_words'];

/** Columns that the place of arrival fills itself. */
export const COLUMNS_LEFT_OUT: Record<string, string[]> = {
  // Transactions are numbered by each database for itself.
  audit_events: ['xid'],
  // Where a snapshot lies is of the place that it was exported from. It is uploaded to the store of this place, or found there.
  snapshots: ['upload_state', 'reason', 'attempts', 'uploader', 'link', 'sha256', 'size_bytes', 'store_time'],
};

/** Columns that do not go along with a project, as its rows become part of another whole. */
const COLUMNS_LEFT_OUT_OF_PROJECT: Record<string, string[]> = {
  // Its calls are not in the sums of the place of arrival, which adds them up.
  llm_requests: ['folded'],
};

/** Columns that follow from others of the row, or that each place moves by itself, and how they are made where rows arrive. */
export const DERIVED: Record<string, Record<string, string>> = {
  messages: { tsv: 'message_tsv(search_language, content)' },
  snapshots: { queue_time: 'now()', due_time: 'now()' },
};

/** CTEs that store what follows from the rows of a table that were stored, which are `fresh`. */
export const FOLLOWING: Record<string, string> = {
  memory_versions: `newest as (
    select m.project_id, m.key, f.value from fresh f
    join memories m on m.tenant_id = $1 and m.env = $2 and m.id = f.memory_id and m.version = f.version
  ), ${vocabulary('newest')}`,
};

/** The actions that an export and an import leave in the audit trail. They tell of a place, and stay in it. */
export const ACTIONS = { export: 'transfer.export', import: 'transfer.import' };

/** The tables of which an export holds rows. */
export const exported = (tables: Table[]): Table[] => tables.filter(({ name }) => !(name in LEFT_OUT));

/** The columns of a table that an export holds, of a tenant or of a project. */
export const columnsOf = ({ name, columns }: Table, project = ''): Table['columns'] => {
  const absent = [
    ...(COLUMNS_LEFT_OUT[name] ?? []),
    ...Object.keys(DERIVED[name] ?? {}),
    ...((project && COLUMNS_LEFT_OUT_OF_PROJECT[name]) || []),
  ];
  return columns.filter((column) => !absent.includes(column.name));
};

/** A condition on a row. $1 is the tenant, $2 the env, $3 the project if it is about one. */
type Condition = (row: string) => string;

const sameEnv = (a: string, b: string) => `${a}.tenant_id = ${b}.tenant_id and ${a}.env = ${b}.env`;

const ofThread =
  (inside: Condition): Condition =>
  (row) =>
    `exists (
    select from threads th where ${sameEnv('th', row)} and th.user_id = ${row}.user_id and th.thread_uid = ${row}.thread_uid
      and ${inside('th')})`;

// What a deleted or cleared thread held waits for the sweep under a uid that no thread has any more.
const ofLiveThread = ofThread((thread) => `${thread}.delete_time is null`);

/** Tables of which not every row goes along. */
export const ROWS: Record<string, Condition> = {
  messages: ofLiveThread,
  thread_events: ofLiveThread,
  message_streams: ofLiveThread,
  thread_readings: ofLiveThread,
  // One that is under way goes on where it is.
  erasures: (row) => `${row}.finish_time is not null`,
  audit_events: (row) => `${row}.action not in ('${Object.values(ACTIONS).join("', '")}')`,
};

const session: Condition = (row) =>
  `exists (select from sessions s where ${sameEnv('s', row)} and s.id = ${row}.session_id and s.project_id = $3)`;

// A thread is of the project to which its sessions belong. One that sessions of two projects point to is of neither: it
// would show the one what the other said. A deleted session keeps only threads that are deleted themselves.
const threadOfProject: Condition = (row) => {
  const pointing = (which: string) => `(
      select from sessions s where ${sameEnv('s', row)} and s.user_id = ${row}.user_id and s.thread_id = ${row}.thread_id
        and (s.delete_time is null or ${row}.delete_time is not null) and ${which})`;
  return `exists ${pointing('s.project_id = $3')} and not exists ${pointing(`s.project_id not in ($3, '')`)}`;
};

// As the project's id may hold any characters, what follows it must be whole: `projects/a/memories/…` is of a project `a` only
// if that is all. Where the ids of a project and its section hold `/drafts/` as well, nothing tells the two apart: it stays.
const eventOfProject: Condition = (row) => {
  const rest = `substr(${row}.resource, ${'projects//'.length + 1} + length($3))`;
  const draft = `${row}.action like any ('{drafts.%,sections.%}')`;
  const kinds = `^(profile|(memories|inputs|artifacts|snapshots)/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$`;
  return `starts_with(${row}.resource, 'projects/' || $3 || '/') and case when ${draft}
      then starts_with(${rest}, 'drafts/') and ${row}.resource !~ '/drafts/(.*/)?drafts/'
      else ${rest} ~ '${kinds}' end`;
};

/** How rows belong to a project, where neither a column `project_id`, a foreign key nor a session tells. */
const OF_PROJECT: Record<string, Condition> = {
  threads: threadOfProject,
  messages: ofThread(threadOfProject),
  thread_events: ofThread(threadOfProject),
  message_streams: ofThread(threadOfProject),
  thread_readings: ofThread(threadOfProject),
  bundles: (row) => `${row}.source_project_id = $3`,
  // Of the project itself, or of one of its sessions.
  budgets: (row) => `(${row}.scope = 2 and ${row}.subject = $3 or ${session(row)})`,
  audit_events: (row) => `(${session(row)} or ${eventOfProject(row)})`,
};

/** Tables that belong to the tenant or to its users, and to no project. */
export const OF_NO_PROJECT: Record<string, string> = {
  tenants: 'the tenant itself',
  tenant_members: 'who may come in',
  usage_rollups: 'sums of all calls, to which the place of arrival adds those that come',
  profiles: 'what a person said of themselves',
  profile_changes: 'how that came to be',
  profile_merges: 'which of them became one',
  email_matches: 'who may be the same person',
  erasures: 'who is gone',
  erased_users: 'who may not come back',
};

/** How rows of a table belong to a project, or undefined if nothing tells. */
export function ofProject(table: Table, tables: Table[]): Condition | undefined {
  const own = OF_PROJECT[table.name];
  if (own || table.name in OF_NO_PROJECT) return own;
  const has = (column: string) => table.columns.some(({ name }) => name === column);
  if (has('project_id')) return (row) => `${row}.project_id = $3`;
  for (const { target, columns, references } of table.parents) {
    const parent = tables.find(({ name }) => name === target);
    const inside = parent && parent !== table && ofProject(parent, tables);
    if (!inside) continue;
    const joined = (row: string) => columns.map((column, i) => `p.${references[i]} = ${row}.${column}`).join(' and ');
    return (row) => `exists (select from ${target} p where ${joined(row)} and ${inside('p')})`;
  }
  return has('session_id') ? session : undefined;
}

import { MessageRole } from '../gen/memory/v1/message.ts';
import {
  callNote,
  contentOf,
  objectOf,
  type Piece,
  resultNote,
  rowsOf,
  type Skipped,
  type Source,
  type SourceMessage,
} from './source.ts';

// Tables of ADK's DatabaseSessionService. Its apps are projects. A session's state is shown as an agent sees it: with the
// state of the app and of the user, by their prefixes. Two apps may use an id for a user: then the app is part of the thread's.

const SESSIONS = `
  select s.app_name, s.user_id, s.id, to_jsonb(s.state) as state, s.create_time::text as created, s.update_time::text as updated,
    (select to_jsonb(a.state) from app_states a where a.app_name = s.app_name) as app_state,
    (select to_jsonb(u.state) from user_states u where u.app_name = s.app_name and u.user_id = s.user_id) as user_state,
    exists (select from sessions o where o.user_id = s.user_id and o.id = s.id and o.app_name <> s.app_name) as shared
  from sessions s
  where (s.app_name, s.user_id, s.id) > ($1, $2, $3)
  order by s.app_name, s.user_id, s.id limit $4`;

// The first schema had a column for each field of an event, and actions that only Python reads; the next one holds it as JSON.
const EVENTS = `
  select e.id, e.timestamp::text as time, coalesce(to_jsonb(e) -> 'event_data', to_jsonb(e) - 'actions') as event
  from events e
  where e.app_name = $1 and e.user_id = $2 and e.session_id = $3 and (e.timestamp, e.id) > ($4, $5)
  order by e.timestamp, e.id limit $6`;

interface SessionRow {
  app_name: string;
  user_id: string;
  id: string;
  state: unknown;
  created: string;
  updated: string;
  app_state: unknown;
  user_state: unknown;
  shared: boolean;
}

interface EventRow {
  id: string;
  time: string;
  event: Record<string, any>;
}

const sessionKey = (row: SessionRow) => [row.app_name, row.user_id, row.id];

export const adk: Source = async function* (client) {
  for await (const rows of rowsOf<SessionRow>(client, SESSIONS, [], ['', '', ''], sessionKey)) {
    for (const row of rows) {
      yield {
        id: row.id,
        user: row.user_id,
        projectId: row.app_name,
        threadId: row.shared ? `${row.app_name}/${row.id}` : row.id,
        title: '',
        state: {
          ...objectOf(row.state),
          ...prefixed('app', row.app_state),
          ...prefixed('user', row.user_state),
        },
        metadata: {},
        createTime: row.created,
        updateTime: row.updated,
        async *messages() {
          const begin = ['-infinity', ''];
          const pages = rowsOf<EventRow>(client, EVENTS, sessionKey(row), begin, ({ time, id }) => [time, id]);
          for await (const page of pages) yield page.map(messageOf);
        },
      };
    }
  }
};

const prefixed = (prefix: string, state: unknown) =>
  Object.fromEntries(Object.entries(objectOf(state)).map(([key, value]) => [`${prefix}:${key}`, value]));

export function messageOf({ id, time, event }: EventRow): SourceMessage | Skipped {
  const { author, content, actions, invocation_id: invocation, ...rest } = event;
  const parts: Record<string, any>[] = objectOf(content).parts ?? [];
  if (parts.length === 0) return { skipped: 'message', id, why: 'an event without content' };
  const pieces = parts.map(pieceOf);
  const results = parts.flatMap((part) => (part.function_response ? [objectOf(part.function_response)] : []));
  const spoken = author === 'user' ? MessageRole.HUMAN : MessageRole.ASSISTANT;
  const changes = Object.values(objectOf(actions)).some((action) => action && Object.keys(action).length > 0);
  return {
    id,
    role: results.length > 0 ? MessageRole.TOOL : spoken,
    content: contentOf(pieces),
    toolCallId: results.length === 1 ? String(results[0]!.id ?? '') : '',
    details: {
      author,
      ...(invocation && { invocation_id: invocation }),
      ...(changes && { actions }),
      ...(rest.error_code && { error_code: rest.error_code, error_message: rest.error_message }),
      ...(pieces.some((piece) => 'note' in piece) && { parts }),
    },
    time,
  };
}

function pieceOf(part: Record<string, any>): Piece {
  const { function_call: call, function_response: response, inline_data: inline, file_data: file } = part;
  if (part.thought) return { note: '[reasons]' };
  if (typeof part.text === 'string') return { text: part.text };
  if (call) return { note: callNote(call.name, call.args) };
  if (response) return { note: resultNote(response.name, response.response) };
  const type = inline?.mime_type ?? file?.mime_type;
  return { note: `[${type ?? Object.keys(part).join(', ')}]` };
}

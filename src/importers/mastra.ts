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

// Tables of @mastra/pg. Times without a zone are in UTC; a column with one came later. The working memory of a resource, which is
// Mastra's word for whose the thread is, is state; that of a thread lies in its metadata.

const THREADS = `
  select t.id, t."resourceId" as user, t.title, t.metadata, r.resource,
    coalesce(to_jsonb(t) ->> 'createdAtZ', t."createdAt"::text || '+00') as created,
    coalesce(to_jsonb(t) ->> 'updatedAtZ', t."updatedAt"::text || '+00') as updated
  from mastra_threads t
  left join lateral (
    select jsonb_build_object('workingMemory', r."workingMemory", 'metadata', r.metadata) as resource
    from mastra_resources r where r.id = t."resourceId"
  ) r on true
  where t.id > $1 order by t.id limit $2`;

// "createdAt" orders a thread as Mastra itself does.
const MESSAGES = `
  select m.id, m.role, m.content, m."createdAt"::text as place, coalesce(to_jsonb(m) ->> 'createdAtZ', m."createdAt"::text || '+00') as time
  from mastra_messages m
  where m.thread_id = $1 and (m."createdAt", m.id) > ($2::timestamp, $3)
  order by m."createdAt", m.id limit $4`;

const ROLES: Record<string, MessageRole> = {
  user: MessageRole.HUMAN,
  assistant: MessageRole.ASSISTANT,
  system: MessageRole.SYSTEM,
  tool: MessageRole.TOOL,
};

interface ThreadRow {
  id: string;
  user: string;
  title: string;
  metadata: unknown;
  resource: unknown;
  created: string;
  updated: string;
}

interface MessageRow {
  id: string;
  role: string;
  content: string;
  place: string;
  time: string;
}

export const mastra: Source = async function* (client) {
  for await (const rows of rowsOf<ThreadRow>(client, THREADS, [], [''], (row) => [row.id])) {
    for (const row of rows) {
      yield {
        id: row.id,
        user: row.user,
        projectId: '',
        threadId: row.id,
        title: row.title,
        state: stateOf(row.resource),
        metadata: objectOf(parsed(row.metadata)),
        createTime: row.created,
        updateTime: row.updated,
        async *messages() {
          const begin = ['-infinity', ''];
          const pages = rowsOf<MessageRow>(client, MESSAGES, [row.id], begin, ({ place, id }) => [place, id]);
          for await (const page of pages) yield page.map(messageOf);
        },
      };
    }
  }
};

function stateOf(resource: unknown): Record<string, unknown> {
  const { workingMemory, metadata } = objectOf(resource);
  const more = objectOf(parsed(metadata));
  return {
    ...(workingMemory && { workingMemory }),
    ...(Object.keys(more).length > 0 && { resource: more }),
  };
}

/** JSON that may have been stored as a string. */
function parsed(value: unknown): unknown {
  if (typeof value !== 'string') return value;
  try {
    return JSON.parse(value);
  } catch {
    return value;
  }
}

export function messageOf({ id, role, content, time }: MessageRow): SourceMessage | Skipped {
  const known = ROLES[role];
  if (!known) return { skipped: 'message', id, why: `its role is "${role}"` };
  const value = parsed(content);
  // Format 2 has parts; before, the content was a text, or an array of parts.
  const parts = typeof value === 'string' ? [{ type: 'text', text: value }] : (objectOf(value).parts ?? value);
  if (!Array.isArray(parts)) return { skipped: 'message', id, why: 'its content is of no format that is known' };
  const pieces = parts.map(pieceOf);
  const { metadata } = objectOf(value);
  const results = parts.filter((part) => part.type === 'tool-result');
  return {
    id,
    role: known,
    content: contentOf(pieces),
    toolCallId: results.length === 1 ? String(results[0].toolCallId ?? '') : '',
    details: {
      ...(metadata && { metadata }),
      ...(pieces.some((piece) => 'note' in piece) && { parts }),
    },
    time,
  };
}

function pieceOf(part: Record<string, any>): Piece {
  const call = objectOf(part.toolInvocation ?? part);
  if (part.type === 'text') return { text: String(part.text ?? '') };
  if (part.type === 'tool-invocation' && call.state === 'result')
    return { note: resultNote(call.toolName, call.result) };
  if (part.type === 'tool-invocation' || part.type === 'tool-call') return { note: callNote(call.toolName, call.args) };
  if (part.type === 'tool-result') return { note: resultNote(call.toolName, call.result) };
  if (part.type === 'reasoning') return { note: '[reasons]' };
  return { note: `[${part.mimeType ?? part.mediaType ?? part.type}]` };
}

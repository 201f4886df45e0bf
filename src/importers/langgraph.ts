import type pg from 'pg';
import { MessageRole } from '../gen/memory/v1/message.ts';
import { unpack } from './msgpack.ts';
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

// Tables of LangGraph's Postgres checkpointer. A thread's newest checkpoint holds its channels: one of them the messages, the
// others its state. Each channel is one value, and read as a whole. Messages have no times: theirs is the checkpoint's. What
// belongs to a subgraph has a namespace of its own, and stays.

const THREADS = `
  select c.thread_id, c.checkpoint_id, c.metadata, c.checkpoint ->> 'ts' as updated, c.checkpoint -> 'channel_values' as inline,
    (select f.checkpoint ->> 'ts' from checkpoints f where f.thread_id = c.thread_id and f.checkpoint_ns = ''
      order by f.checkpoint_id limit 1) as created
  from (
    select distinct on (thread_id) * from checkpoints
    where checkpoint_ns = '' and thread_id > $1 order by thread_id, checkpoint_id desc limit $2
  ) c
  order by c.thread_id`;

const CHANNELS = `
  select b.channel, b.type, b.blob
  from checkpoints c, jsonb_each_text(c.checkpoint -> 'channel_versions') v
  join checkpoint_blobs b on b.channel = v.key and b.version = v.value
  where c.thread_id = $1 and c.checkpoint_ns = '' and c.checkpoint_id = $2
    and b.thread_id = $1 and b.checkpoint_ns = '' and b.type <> 'empty'`;

// Channels that say where the graph stands, and hold nothing for it.
const INTERNAL = /^(__.*__|__pregel.*|branch:.*|start:.*|.*:__start__)$/;

interface ThreadRow {
  thread_id: string;
  checkpoint_id: string;
  metadata: unknown;
  created: string;
  updated: string;
  inline: unknown;
}

export const langgraph: Source = async function* (client, owner) {
  for await (const rows of rowsOf<ThreadRow>(client, THREADS, [], [''], (row) => [row.thread_id])) {
    for (const row of rows) {
      const { user_id: named, step, source } = objectOf(row.metadata);
      const user = typeof named === 'string' && named ? named : owner;
      if (!user) {
        yield { skipped: 'session', id: row.thread_id, why: 'its metadata names no user_id: give --user' };
        continue;
      }
      const { channels, unreadable } = await channelsOf(client, row);
      const { messages = [], ...others } = channels;
      const state = Object.fromEntries(Object.entries(others).filter(([channel]) => !INTERNAL.test(channel)));
      yield {
        id: row.thread_id,
        user,
        projectId: '',
        threadId: row.thread_id,
        title: '',
        state,
        metadata: {
          checkpoint_id: row.checkpoint_id,
          step,
          source,
          ...(unreadable.size > 0 && { unreadable: [...unreadable.keys()] }),
        },
        createTime: row.created,
        updateTime: row.updated,
        async *messages() {
          const type = unreadable.get('messages');
          const why = type ? `they are serialised as "${type}"` : isDelta(row.metadata) && 'they are kept as deltas';
          if (why) yield [{ skipped: 'message', id: row.thread_id, why }];
          if (why || !Array.isArray(messages)) return;
          for (let from = 0; from < messages.length; from += 100) {
            const some = messages.slice(from, from + 100);
            yield some.map((message, i) => messageOf(message, from + i, row.updated));
          }
        },
      };
    }
  }
};

async function channelsOf(client: pg.Client, { thread_id, checkpoint_id, inline }: ThreadRow) {
  const { rows } = await client.query(CHANNELS, [thread_id, checkpoint_id]);
  const channels: Record<string, unknown> = { ...objectOf(inline) };
  const unreadable = new Map<string, string>();
  for (const { channel, type, blob } of rows) {
    const read = READERS[type];
    if (read) channels[channel] = read(blob);
    else if (!INTERNAL.test(channel)) unreadable.set(channel, type);
  }
  return { channels, unreadable };
}

/** Whether a thread's messages are a snapshot and what came since, in the checkpoints in between. */
function isDelta(metadata: unknown): boolean {
  const { counters_since_delta_snapshot: counters, delta_writes_versioned: versioned } = objectOf(metadata);
  return versioned !== undefined || 'messages' in objectOf(counters);
}

/** The serializers of LangGraph for JavaScript and for Python. */
const READERS: Record<string, (blob: Buffer) => unknown> = {
  json: (blob) => plain(JSON.parse(blob.toString())),
  msgpack: unpack,
  null: () => null,
};

/** A value of the serializer without the classes that it names: a Set or a Map is an array, an error its message. */
export function plain(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== 'object' || value === null) return value;
  const { lc, type, args, value: inner } = value as Record<string, any>;
  if (lc === 2 && type === 'undefined') return null;
  if (lc === 2 && type === 'delta_snapshot') return plain(inner);
  if (lc === 2 && type === 'constructor' && Array.isArray(args)) return plain(args[0]);
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, plain(item)]));
}

const ROLES: [RegExp, MessageRole][] = [
  [/^(human|user)/i, MessageRole.HUMAN],
  [/^(ai|assistant)/i, MessageRole.ASSISTANT],
  [/^(system|developer)/i, MessageRole.SYSTEM],
  [/^(tool|function)/i, MessageRole.TOOL],
];

/** A message as LangChain serialises it, `{lc: 1, id: [..., 'HumanMessage'], kwargs}`, or as a plain object. */
export function messageOf(message: unknown, place: number, time: string): SourceMessage | Skipped {
  const { lc, id: path, kwargs } = objectOf(message);
  const fields = lc === 1 ? objectOf(kwargs) : objectOf(message);
  const name = lc === 1 ? String(path?.at(-1) ?? '') : String(fields.role ?? fields.type ?? '');
  const kind = /^Chat/.test(name) ? String(fields.role) : name;
  const id = typeof fields.id === 'string' && fields.id ? fields.id : `#${place + 1}`;
  const role = ROLES.find(([pattern]) => pattern.test(kind))?.[1];
  if (!role) return { skipped: 'message', id, why: `its role is "${kind}"` };
  const calls: Record<string, any>[] = Array.isArray(fields.tool_calls) ? fields.tool_calls : [];
  const said = typeof fields.content === 'string' ? [{ type: 'text', text: fields.content }] : (fields.content ?? []);
  const pieces = [...said.map(pieceOf), ...calls.map((call): Piece => ({ note: callNote(call.name, call.args) }))];
  const { content, id: _id, type: _type, role: _role, tool_call_id: toolCallId, ...rest } = fields;
  const kept = Object.entries(rest).filter(([, value]) => value && Object.keys(Object(value)).length > 0);
  return {
    id,
    role,
    content: contentOf(pieces),
    toolCallId: typeof toolCallId === 'string' ? toolCallId : '',
    details: {
      ...Object.fromEntries(kept),
      ...(pieces.some((piece) => 'note' in piece) && typeof content !== 'string' && { parts: content }),
    },
    time,
  };
}

function pieceOf(part: Record<string, any> | string): Piece {
  if (typeof part === 'string') return { text: part };
  if (part.type === 'text') return { text: String(part.text ?? '') };
  if (part.type === 'tool_use') return { note: callNote(part.name, part.input) };
  if (part.type === 'tool_result') return { note: resultNote(part.tool_use_id, part.content) };
  return { note: `[${part.type}]` };
}

import { type Checkpoint, emptyCheckpoint, uuid6 } from '@langchain/langgraph-checkpoint';
import { PostgresSaver } from '@langchain/langgraph-checkpoint-postgres';
import pg from 'pg';
import { CONTENT, STATE } from '../subjects.ts';
import { MAX_CONNECTIONS, servePeer } from './serve.ts';

type Values = { messages: unknown[]; state: object };

// The saver alone, as its README shows it, without a graph, and with plain objects for messages: both save time. Like a graph,
// each change reads the latest checkpoint and puts the next one, with the channels that changed.
servePeer(async (connectionString) => {
  const saver = new PostgresSaver(new pg.Pool({ connectionString, max: MAX_CONNECTIONS }));
  await saver.setup();
  const configOf = (thread_id: string) => ({ configurable: { thread_id, checkpoint_ns: '' } });
  let step = 0;

  async function put(thread: string, from: Checkpoint, values: Partial<Values>): Promise<void> {
    const versions = Object.fromEntries(
      Object.keys(values).map((channel) => [channel, Number(from.channel_versions[channel] ?? 0) + 1]),
    );
    const checkpoint: Checkpoint = {
      ...from,
      id: uuid6(step++ & 0x3fff),
      ts: new Date().toISOString(),
      channel_values: { ...from.channel_values, ...values },
      channel_versions: { ...from.channel_versions, ...versions },
    };
    const config = { configurable: { ...configOf(thread).configurable, checkpoint_id: from.id } };
    await saver.put(config, checkpoint, { source: 'update', step, parents: {} }, versions);
  }
  async function latest(thread: string): Promise<Checkpoint & { channel_values: Values }> {
    return (await saver.getTuple(configOf(thread)))!.checkpoint as any;
  }
  const message = (content: string) => ({ role: 'user', content });

  return {
    most: 100_000, // all messages are one JSON string, which V8 limits to 512 MB
    create: (thread, size) =>
      put(thread, emptyCheckpoint(), { messages: Array.from({ length: size }, () => message(CONTENT)), state: STATE }),
    async append(thread, content) {
      const from = await latest(thread);
      await put(thread, from, { messages: [...from.channel_values.messages, message(content)] });
    },
    async putState(thread, state) {
      await put(thread, await latest(thread), { state });
    },
    last: async (thread, count) => (await latest(thread)).channel_values.messages.slice(-count),
    getState: async (thread) => (await latest(thread)).channel_values.state,
  };
});

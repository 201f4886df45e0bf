import { createRequire } from 'node:module';

// The real packages, from where the bench has them. They are none of the service's, so nothing is known of their types here.
const require = createRequire(new URL('../../bench/peers/package.json', import.meta.url));

export async function mastraStore(connectionString: string): Promise<{ memory: any; close(): Promise<void> }> {
  const { PostgresStore } = require('@mastra/pg');
  const store = new PostgresStore({ id: 'fixture', connectionString });
  await store.init();
  return { memory: await store.getStore('memory'), close: () => store.close() };
}

export async function langgraphSaver(connectionString: string): Promise<any> {
  const { PostgresSaver } = require('@langchain/langgraph-checkpoint-postgres');
  const saver = PostgresSaver.fromConnString(connectionString);
  await saver.setup();
  return saver;
}

export const langgraph = (): any => require('@langchain/langgraph-checkpoint');
export const langchain = (): any => require('@langchain/core/messages');

export function adkService(clientUrl: string): any {
  const { DatabaseSessionService } = require('@google/adk/sessions/database');
  const { PostgreSqlDriver } = require('@mikro-orm/postgresql');
  return new DatabaseSessionService({ driver: PostgreSqlDriver, clientUrl });
}

export const adkEvent = (event: object): any => require('@google/adk').createEvent(event);

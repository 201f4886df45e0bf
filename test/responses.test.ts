import { once } from 'node:events';
import { type ClientHttp2Session, type ClientHttp2Stream, connect as connectHttp2 } from 'node:http2';
import { expect } from 'chai';
import { ListMessagesRequest, ListMessagesResponse } from '../src/gen/memory/v1/conversation_service.ts';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import { encode } from '../src/rpc/encode.ts';
import type { RunningServer } from '../src/server.ts';
import { type Clients, connect, headersOf, newTenant, startTestServer } from './support.ts';

const PATH = '/memory.v1.ConversationService/ListMessages';
const READERS = 4;
const CALLS = 40;

/** Texts that only this tenant has: short and long ones, beyond ASCII, and one that makes the shared memory grow. */
const textsOf = (tenant: string) => [1, 10, 1000, 3000].map((times) => `${tenant} é👋 ${times} `.repeat(times));

/** Asks for a thread's messages with windows of 100 bytes, and reads nothing until it is told to. */
function askSlowly(session: ClientHttp2Session, tenant: string): ClientHttp2Stream {
  const message = Buffer.from(ListMessagesRequest.encode(ListMessagesRequest.fromPartial({ threadId: 't' })).finish());
  const header = Buffer.alloc(5);
  header.writeUInt32BE(message.length, 1);
  const stream = session.request({
    ':method': 'POST',
    ':path': PATH,
    'content-type': 'application/grpc',
    te: 'trailers',
    ...headersOf(tenant),
  });
  stream.pause();
  stream.end(Buffer.concat([header, message]));
  return stream;
}

async function readOn(stream: ClientHttp2Stream): Promise<string[]> {
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk);
  return textsIn(ListMessagesResponse.decode(Buffer.concat(chunks).subarray(5)));
}

const textsIn = ({ messages }: ListMessagesResponse) => messages.map(({ content }) => content).reverse();

describe('responses', () => {
  let server: RunningServer;
  let tenants: { tenant: string; client: Clients; texts: string[] }[];
  const sessions: ClientHttp2Session[] = [];

  before(async () => {
    server = await startTestServer();
    tenants = await Promise.all(
      [1, 2, 3].map(async () => {
        const tenant = await newTenant();
        const client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
        const texts = textsOf(tenant);
        for (const content of texts) {
          await client.conversation.appendMessages({ threadId: 't', messages: [{ role: MessageRole.HUMAN, content }] });
        }
        return { tenant, client, texts };
      }),
    );
  });
  after(async () => {
    for (const session of sessions) session.destroy();
    for (const { client } of tenants) client.close();
    await server.stop();
  });

  it('hold what their own tenant asked for, also when they are read slowly while many others are answered', async () => {
    const slow = tenants.flatMap(({ tenant, texts }) => {
      const session = connectHttp2(`http://127.0.0.1:${server.port}`, { settings: { initialWindowSize: 100 } });
      sessions.push(session);
      return Array.from({ length: READERS }, () => ({ stream: askSlowly(session, tenant), texts }));
    });
    await Promise.all(slow.map(({ stream }) => once(stream, 'response'))); // their bytes wait in the server now

    const fast = Array.from({ length: CALLS }, () =>
      tenants.map(async ({ client, texts }) => {
        expect(textsIn(await client.conversation.listMessages({ threadId: 't' }))).to.deep.equal(texts);
      }),
    );
    await Promise.all(fast.flat());
    for (const { stream, texts } of slow) expect(await readOn(stream)).to.deep.equal(texts);
  });

  it('are bytes of their own, whatever is encoded later', () => {
    const messages = [1, 5000, 3, 400_000, 2, 70_000].map((length) => ({ content: 'é'.repeat(length) }));
    const wanted = messages.map((message) => Buffer.from(ListMessagesResponse.encode(listOf(message)).finish()));
    const bytes = messages.map((message) => encode(ListMessagesResponse, listOf(message)));
    bytes.forEach((each, i) => expect(each.equals(wanted[i]!), `message ${i}`).to.equal(true));
  });

  it('are whole after one that could not be encoded', () => {
    const bad = listOf({ content: 'left behind', tokenCount: 0.5 });
    expect(() => encode(ListMessagesResponse, bad)).to.throw();
    const good = listOf({ content: 'good' });
    expect(encode(ListMessagesResponse, good).equals(ListMessagesResponse.encode(good).finish())).to.equal(true);
  });
});

const listOf = (message: object) => ListMessagesResponse.fromPartial({ messages: [message] });

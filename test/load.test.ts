import { randomUUID } from 'node:crypto';
import { ChannelCredentials, status } from '@grpc/grpc-js';
import { expect } from 'chai';
import pg from 'pg';
import { AppendMessagesRequest, ConversationServiceClient } from '../src/gen/memory/v1/conversation_service.ts';
import { MessageRole } from '../src/gen/memory/v1/message.ts';
import type { RunningServer } from '../src/server.ts';
import {
  appUrl,
  type Clients,
  connect,
  failure,
  failureOf,
  headersOf,
  metadataOf,
  newDatabase,
  newTenant,
  ownerUrl,
  runSql,
  startTestServer,
  until,
} from './support.ts';

describe('load', () => {
  let server: RunningServer;
  let tenant: string;
  let client: Clients;

  const start = async (settings: Parameters<typeof startTestServer>[0] = {}) => {
    server = await startTestServer(settings);
    tenant = await newTenant();
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  };
  afterEach(async () => {
    client.close();
    await server.stop();
  });

  const append = (content: string, { requestId = '', deadline = Date.now() + 15_000 } = {}) =>
    client.conversation.appendMessages(
      { threadId: 't', requestId, messages: [{ role: MessageRole.HUMAN, content }] },
      undefined,
      { deadline },
    );

  /** Holds the row of thread `t`, so that appends to it wait. Gives what lets it go. */
  async function hold(): Promise<() => Promise<void>> {
    await append('first');
    const holder = new pg.Client({ connectionString: appUrl() });
    await holder.connect();
    await holder.query(`begin; set local app.tenant_id = '${tenant}'; set local app.env = 'dev'`);
    await holder.query(`select from threads where tenant_id = $1 for update`, [tenant]);
    return () => holder.end();
  }
  /** How many statements of this tenant's calls wait for the row. */
  const waiting = async () =>
    (
      await runSql(
        ownerUrl(),
        `select count(*)::int as n from pg_stat_activity a
         where wait_event_type = 'Lock' and query like '%with session as materialized%' and exists (
           select from pg_locks l where l.pid = a.pid and not l.granted)`,
      )
    )[0].n as number;

  it('refuses what is too much at once, serves the rest, and goes on', async () => {
    await start({ maxInFlight: 4 });
    const release = await hold();
    const held = Array.from({ length: 4 }, () => append('held'));
    await until(async () => server.kernel.inFlight.count === 4);
    const refused = await failure(append('too much'));
    expect(refused).to.include({ code: status.RESOURCE_EXHAUSTED, reason: 'TOO_MANY_CALLS' });
    expect(refused.retryAfterMs).to.be.greaterThan(0);
    await release();
    expect((await Promise.all(held)).map((r) => r.messages[0]!.seq).sort()).to.deep.equal([2, 3, 4, 5]);
    expect((await append('after')).messages[0]!.seq).to.equal(6);
  });

  it('ends a call at its deadline, in the database too, and nothing of it is done', async () => {
    await start();
    const release = await hold();
    expect(await failure(append('late', { deadline: Date.now() + 300 }))).to.include({
      code: status.DEADLINE_EXCEEDED,
    });
    await until(async () => (await waiting()) === 0);
    await release();
    expect((await append('next')).messages[0]!.seq).to.equal(2);
  });

  it('cancels the query of a call that its client cancels', async () => {
    await start();
    const release = await hold();
    const raw = new ConversationServiceClient(`127.0.0.1:${server.port}`, ChannelCredentials.createInsecure());
    const messages = [{ role: MessageRole.HUMAN, content: 'gone' }];
    const request = AppendMessagesRequest.fromPartial({ threadId: 't', messages });
    const ended = new Promise<number>((resolve) => {
      const call = raw.appendMessages(request, metadataOf(headersOf(tenant)), (error) => resolve(error?.code ?? 0));
      until(async () => (await waiting()) > 0).then(() => call.cancel());
    });
    expect(await ended).to.equal(status.CANCELLED);
    await until(async () => server.kernel.inFlight.count === 0);
    raw.close();
    await release();
    expect((await append('next')).messages[0]!.seq).to.equal(2);
  }).timeout(20_000); // by itself it would end after 30 s

  it('loses and doubles nothing when backends are killed under load, and recovers', async () => {
    // A database of its own: the kills must not reach other tests.
    const { name, owner, app } = await newDatabase();
    tenant = 'acme';
    await runSql(owner, `insert into tenants (tenant_id, envs) values ('acme', '{dev}')`);
    await runSql(owner, `insert into tenant_members (tenant_id, env, user_id, role) values ('acme', 'dev', 'user', 1)`);
    server = await startTestServer({ poolSize: 4 }, undefined, app);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));

    const acknowledged: string[] = [];
    let killing = true;
    let killed = 0;
    const killer = (async () => {
      while (killing) {
        const rows = await runSql(
          ownerUrl(),
          `select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and random() < 0.5`,
          [name],
        );
        killed += rows.length;
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    })();
    await Promise.all(
      Array.from({ length: 8 }, async (_, worker) => {
        for (let i = 0; i < 60 || killed <= 10; i++) {
          const content = `${worker}-${i}`;
          const requestId = randomUUID();
          for (;;) {
            const error = await append(content, { requestId }).then(
              () => undefined,
              (e) => failureOf(e),
            );
            if (!error) break;
            expect(error.code, error.message).to.equal(status.UNAVAILABLE);
          }
          acknowledged.push(content);
        }
      }),
    );
    killing = false;
    await killer;
    const stored: string[] = [];
    let seq = 0;
    for (;;) {
      const position = { $case: 'afterSeq' as const, value: seq };
      const { messages } = await client.conversation.listMessages({ threadId: 't', position, pageSize: 500 });
      if (messages.length === 0) break;
      for (const message of messages) {
        expect(message.seq).to.equal(++seq);
        stored.push(message.content);
      }
    }
    expect(stored.sort()).to.deep.equal(acknowledged.sort());
  });
});

import { execFileSync } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect } from 'chai';
import { exportJWK, generateKeyPair, SignJWT } from 'jose';
import { readable } from '../src/cli/readable.ts';
import type { Kind, Told } from '../src/cli/telling.ts';
import { StreamOpen } from '../src/gen/memory/v1/conversation_service.ts';
import { WatchSessionResponse } from '../src/gen/memory/v1/memory_service.ts';
import { MessageRole, MessageState } from '../src/gen/memory/v1/message.ts';
import { ThreadEvent } from '../src/gen/memory/v1/thread_event.ts';
import type { RunningServer } from '../src/server.ts';
import { certificates } from './fixtures/certificates.ts';
import { killAll, MAIN, memoryd, printed, type Run, run } from './fixtures/command.ts';
import { appUrl, type Clients, connect, headersOf, metadataOf, newTenant, startTestServer } from './support.ts';

const HOSTILE = 'a\u001b[2Jb\u202ec\u0085d\u2028e';
const SPELLED = 'a\\u001b[2Jb\\u202ec\\u0085d\\u2028e';

const human = (content: string) => ({ role: MessageRole.HUMAN, content });
const serve = (port: number) =>
  memoryd(
    ['serve', '--port', String(port), '--auth', 'trusted', '--key-file', process.env.MEMORYD_TEST_KEY_FILE!].concat(
      '--drain-wait',
      '0s',
      '--snapshot-store',
      'none',
    ),
    { DATABASE_URL: appUrl() },
  );
const portOf = async (server: Run) => Number((await printed(server, /"port":(\d+).*"msg":"ready"/))[1]);

const linesOf = (of: Run): any[] =>
  of
    .out()
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line));
/** What each line tells, in a word. */
const kindsOf = (of: Run): string[] => linesOf(of).map((line) => Object.keys(line).find((key) => key !== 'revision')!);

describe('memoryd tail', function () {
  this.timeout(30_000);
  let server: RunningServer;
  let tenant: string;
  let client: Clients;
  let threadId: string;
  let threads = 0;
  const append = (...contents: string[]) =>
    client.conversation.appendMessages({ threadId, messages: contents.map(human) });
  /** Streams a message, which is whole when this is over. */
  async function stream(text: string): Promise<void> {
    const call = client.streams.conversation.streamMessage(metadataOf(headersOf(tenant)));
    const open = StreamOpen.fromPartial({ threadId, role: MessageRole.ASSISTANT, clientId: 'answer' });
    call.write({ frame: { $case: 'open', value: open } });
    call.write({ frame: { $case: 'chunk', value: { offset: 0, text } } });
    call.end({ frame: { $case: 'finish', value: { metadata: undefined } } });
    for await (const answer of call) if (answer.frame.$case === 'finished') return;
  }
  const whose = () => ['--tenant', tenant, '--env', 'dev', '--user', 'user'];
  const flags = (...more: string[]) => ['tail', ...whose(), '--address', `127.0.0.1:${server.port}`, ...more];
  const tail = (...more: string[]) => memoryd(flags('--thread', threadId, ...more));

  before(async () => {
    server = await startTestServer();
    tenant = await newTenant(['user', 'grüße, 100%']);
    client = connect(`127.0.0.1:${server.port}`, headersOf(tenant));
  });
  after(async () => {
    client.close();
    await server.stop();
  });
  beforeEach(() => {
    threadId = `thread ${++threads}`;
  });
  afterEach(killAll);

  describe('in a pipe', () => {
    it('tells a line of JSON for each event, and ends when the thread is deleted', async () => {
      await append('Why?');
      const following = tail();
      await printed(following, /"appended"/);
      await stream('Because.');
      const { messages } = await client.conversation.listMessages({ threadId });
      await client.conversation.deleteMessage({ messageId: messages[0]!.id });
      await printed(following, /"deleted"/);
      await client.conversation.clearHistory({ threadId });
      await printed(following, /"cleared"/);
      await client.conversation.deleteThread({ threadId });
      expect(await following.ended).to.equal(0);
      expect(following.err()).to.equal('');

      const lines = linesOf(following);
      const kinds = ['appended', 'appended', 'textDelta', 'finished', 'deleted', 'cleared', 'ended'];
      expect(kindsOf(following)).to.deep.equal(kinds);
      expect(lines.map(({ revision }) => revision)).to.deep.equal(kinds.map((_kind, place) => String(place + 1)));
      expect(lines[0].appended.message).to.include({ seq: '1', role: 'MESSAGE_ROLE_HUMAN', content: 'Why?' });
      expect(lines[0].appended.message.createTime).to.match(/^\d{4}-\d\d-\d\dT[\d:.]+Z$/);
      expect(lines[2].textDelta).to.deep.equal({ seq: '2', text: 'Because.' });
      expect(lines[3].finished.message).to.include({ seq: '2', state: 'MESSAGE_STATE_COMPLETE' });
      expect(lines[5].cleared).to.deep.equal({ throughSeq: '2' });
    });

    it('ends with --no-follow when everything was told, and starts after a revision', async () => {
      await append('one', 'two', 'three');
      const ended = tail('--no-follow', '--after', '1');
      expect(await ended.ended).to.equal(0);
      expect(linesOf(ended).map(({ appended }) => appended.message.content)).to.deep.equal(['two', 'three']);
      const nothing = tail('--no-follow', '--after', '3');
      expect(await nothing.ended).to.equal(0);
      expect(nothing.out()).to.equal('');
    });

    it('follows a session until it is over', async () => {
      const { session } = await client.memory.upsertSession({ session: { surfaceId: 'web', state: { step: 1 } } });
      const following = memoryd(flags('--session', session!.id));
      await printed(following, /"session"/);
      await client.memory.upsertSession({ session: { id: session!.id, title: 'Told' } });
      await printed(following, /Told/);
      await client.memory.endSession({ sessionId: session!.id });
      expect(await following.ended).to.equal(0);
      const lines = linesOf(following);
      expect(lines[0]).to.have.nested.property('session.state.step', 1);
      expect(lines[1]).to.have.nested.property('session.title', 'Told');
      expect(lines.at(-1).ended).to.deep.equal({ reason: 'REASON_ENDED' });
    });

    it('spells out what a terminal would act upon, as JSON that reads the same', async () => {
      await append(HOSTILE);
      const ended = tail('--no-follow');
      expect(await ended.ended).to.equal(0);
      expect(ended.out()).to.include(SPELLED);
      expect(linesOf(ended)[0].appended.message.content).to.equal(HOSTILE);
    });

    it('names users that are not ASCII', async () => {
      const user = 'grüße, 100%';
      const other = connect(`127.0.0.1:${server.port}`, headersOf(tenant, encodeURIComponent(user)));
      await other.conversation.appendMessages({ threadId, messages: [human('mine')] });
      other.close();
      const ended = tail('--no-follow', '--user', user);
      expect(await ended.ended).to.equal(0);
      expect(linesOf(ended)[0].appended.message.content).to.equal('mine');
    });

    it('ends well when nobody reads any more', async () => {
      await append('one');
      const following = tail();
      await printed(following, /one/);
      following.child.stdout!.destroy();
      await append('two');
      expect(await following.ended).to.equal(0);
      expect(following.err()).to.equal('');
    });

    for (const signal of ['SIGINT', 'SIGTERM'] as const) {
      it(`ends well on ${signal}`, async () => {
        await append('one');
        const following = tail();
        await printed(following, /one/);
        following.child.kill(signal);
        expect(await following.ended).to.equal(0);
        expect(following.err()).to.equal('');
      });
    }
  });

  it('goes on where it was when the server was killed, and when it was stopped, with nothing twice', async () => {
    let interrupted = serve(0);
    const port = await portOf(interrupted);
    await append('1');
    const following = tail('--address', `127.0.0.1:${port}`);
    await printed(following, /"1"/);
    for (const [at, signal] of (['SIGKILL', 'SIGTERM'] as const).entries()) {
      const away = new RegExp(`(?:trying again[^]*){${at + 1}}`);
      interrupted.child.kill(signal);
      await interrupted.ended;
      await append(`while away ${at}`);
      await printed({ ...following, out: following.err }, away);
      interrupted = serve(port);
      await printed(following, new RegExp(`while away ${at}`));
      await append(`back ${at}`);
      await printed(following, new RegExp(`back ${at}`));
    }
    following.child.kill('SIGINT');
    expect(await following.ended).to.equal(0);
    const contents = linesOf(following).map(({ appended }) => appended.message.content);
    expect(contents).to.deep.equal(['1', 'while away 0', 'back 0', 'while away 1', 'back 1']);
    expect(following.err()).to.match(/^memoryd: 127\.0\.0\.1:\d+: UNAVAILABLE: .*; trying again until it is back\n/);
    expect(following.err().trimEnd().split('\n')).to.have.length(2);
  });

  describe('refuses, in one line,', () => {
    const refusals: [string, () => string[], RegExp][] = [
      ['to follow nothing', () => ['tail', ...whose()], /needs --thread or --session/],
      ['to follow two things', () => flags('--thread', 'a', '--session', 'b'), /cannot be used with option/],
      ['a caller without a name', () => ['tail', '--thread', 'a', '--tenant', 'a'], /needs --tenant, --env and --user/],
      ['a revision that is none', () => flags('--thread', 'a', '--after', '-1'), /not a whole number/],
      ['a revision that was not reached', () => flags('--thread', threadId, '--after', '9'), /INVALID_ARGUMENT/],
      ['a thread that is not there', () => flags('--thread', 'nowhere'), /: NOT_FOUND: thread not found/],
      ['a session that is none', () => flags('--session', 'x'), /INVALID_ARGUMENT: session_id: /],
      ['an env that is none', () => flags('--thread', 'a', '--env', 'Ä'), /UNAUTHENTICATED: x-env is malformed/],
      ['an outsider', () => flags('--thread', 'a', '--user', 'nobody'), /PERMISSION_DENIED/],
      [
        'a server that is not there',
        () => ['tail', ...whose(), '--thread', 'a', '--address', '127.0.0.1:1'],
        /127\.0\.0\.1:1: UNAVAILABLE: /,
      ],
      ['a token that is none', () => flags('--thread', 'a', '--token', 'secret'), /--token: the file is not there/],
      ['a CA that is not there', () => flags('--thread', 'a', '--tls-ca', '/no/ca'), /--tls-ca: \/no\/ca is not there/],
      ['half of a certificate', () => flags('--thread', 'a', '--tls-cert', 'c.pem'), /go together/],
    ];
    for (const [name, args, message] of refusals) {
      it(name, async () => {
        await append('one');
        const refused = memoryd(args());
        expect(await refused.ended).to.equal(1);
        expect(refused.err()).to.match(message);
        expect(refused.err().trimEnd()).not.to.include('\n');
        expect(refused.err()).not.to.include('secret');
        expect(refused.out()).to.equal('');
      });
    }
  });

  describe('calls a server', () => {
    let folder: string;
    before(async () => {
      folder = await mkdtemp(join(tmpdir(), 'memoryd-tail-'));
    });
    after(() => rm(folder, { recursive: true }));

    it('with a token: itself, in a file, or in the environment', async () => {
      await append('one');
      const { publicKey, privateKey } = await generateKeyPair('ES256');
      const jwks = join(folder, 'jwks.json');
      await writeFile(jwks, JSON.stringify({ keys: [{ ...(await exportJWK(publicKey)), kid: 'k', alg: 'ES256' }] }));
      const settings = { auth: 'jwt', jwks, issuer: 'https://id.test', audience: 'memoryd' } as const;
      const checked = await startTestServer(settings);
      try {
        const jwt = await new SignJWT({ sub: 'user', tenants: [`${tenant}/dev`] })
          .setProtectedHeader({ alg: 'ES256', kid: 'k' })
          .setIssuer(settings.issuer)
          .setAudience(settings.audience)
          .setExpirationTime('5m')
          .sign(privateKey);
        const file = join(folder, 'token');
        await writeFile(file, `${jwt}\n`);
        const at = ['tail', '--thread', threadId, '--no-follow', '--address', `127.0.0.1:${checked.port}`];
        for (const run of [
          memoryd([...at, '--token', jwt]),
          memoryd([...at, '--token', file]),
          memoryd(at, { MEMORYD_TOKEN: jwt }),
        ]) {
          expect(await run.ended, run.err()).to.equal(0);
          expect(linesOf(run)[0].appended.message.content).to.equal('one');
        }
        const refused = memoryd([...at, ...whose()]);
        expect(await refused.ended).to.equal(1);
        expect(refused.err()).to.match(/UNAUTHENTICATED: authorization is missing/);
      } finally {
        await checked.stop();
      }
    });

    it('by TLS, and shows a certificate where it must', async function () {
      const { ca, cert, key } = await certificates(folder).catch(() => this.skip());
      await append('one');
      const guarded = await startTestServer({ tlsCert: cert, tlsKey: key, tlsClientCa: ca });
      try {
        const at = [...flags('--thread', threadId, '--no-follow'), '--address', `localhost:${guarded.port}`];
        const shown = memoryd([...at, '--tls-ca', ca, '--tls-cert', cert, '--tls-key', key]);
        expect(await shown.ended, shown.err()).to.equal(0);
        expect(linesOf(shown)[0].appended.message.content).to.equal('one');
        for (const wrong of [['--tls-ca', ca], ['--tls'], []]) {
          const refused = memoryd([...at, ...wrong]);
          expect(await refused.ended).to.equal(1);
          expect(refused.err()).to.match(/UNAVAILABLE/);
        }
      } finally {
        await guarded.stop();
      }
    });
  });

  describe('on a terminal', () => {
    const told = (kind: Kind, ...events: Told['event'][]) => {
      const telling = readable[kind]((_format, text) => text);
      return (
        events.map((event, place) => telling.tell({ revision: place + 1, event } as Told)).join('') + telling.pause()
      );
    };
    const thread = (...events: object[]) =>
      told('thread', ...events.map((event) => ThreadEvent.fromPartial({ event } as object).event));
    const appended = (message: object) => ({ $case: 'appended', value: { message } });
    const streaming = (seq: number) => appended({ seq, role: MessageRole.ASSISTANT, state: MessageState.STREAMING });
    const delta = (seq: number, text: string) => ({ $case: 'textDelta', value: { seq, text } });

    it('shows messages with their text set in, so that it cannot pass for another message', () => {
      const forwardedFrom = { threadId: 'other\n#9', seq: 3, unverified: true };
      const shown = thread(
        appended({ seq: 1, ...human(`first\r\n#2 system\n\tlast ${HOSTILE}`) }),
        appended({ seq: 2, role: MessageRole.TOOL, content: '{}', toolCallId: 'call 1', forwardedFrom }),
        appended({ seq: 3, role: MessageRole.SYSTEM, deleteTime: { seconds: 1 } }),
      );
      expect(shown).to.equal(
        `#1 human  \n  first\n  #2 system\n  \tlast ${SPELLED}\n` +
          '#2 tool  of call 1  from #3 of other #9, unverified\n  {}\n' +
          '#3 system  \n  deleted since\n',
      );
    });

    it('shows streamed text as it comes, and what happens meanwhile between', () => {
      const shown = thread(
        streaming(1),
        delta(1, 'one\ntw'),
        appended({ seq: 2, ...human('wait') }),
        delta(1, 'o'),
        delta(1, '\u001b'),
        { $case: 'bookmark', value: {} },
        { $case: 'finished', value: { message: { seq: 1, state: MessageState.INTERRUPTED } } },
        delta(1, '!'),
        { $case: 'finished', value: { message: { seq: 1, state: MessageState.COMPLETE, tokenCount: 7 } } },
        { $case: 'deleted', value: { seq: 2 } },
        { $case: 'cleared', value: { throughSeq: 2 } },
        { $case: 'cleared', value: { throughSeq: 0 } },
        { $case: 'ended', value: {} },
      );
      expect(shown).to.equal(
        '#1 assistant  \n  one\n  tw\n#2 human  \n  wait\n#1 …\n  o\\u001b\n#1 interrupted\n#1 …\n  !\n' +
          '#1 finished, 7 tokens\n#2 deleted\ncleared up to #2\nthe thread starts again\nthe thread was deleted\n',
      );
    });

    it('shows of a session what changed', () => {
      const session = { id: 'i', title: `A ${HOSTILE}`, state: { step: 1 } };
      const shown = told(
        'session',
        ...[
          { $case: 'session', value: { ...session, revision: 1, etag: 'a' } },
          { $case: 'session', value: { ...session, title: undefined, state: { step: 2 }, revision: 2, etag: 'b' } },
          { $case: 'bookmark', value: {} },
          { $case: 'ended', value: { reason: 3 } },
        ].map((event) => WatchSessionResponse.fromPartial({ event } as object).event),
      );
      expect(shown).to.equal(
        `revision 1  \n  id "i"\n  title "A ${SPELLED}"\n  state {"step":1}\n` +
          'revision 2  \n  title not set any more\n  state {"step":2}\nthe session was deleted\n',
      );
    });

    it('has colours, unless NO_COLOR is set, and says at which revision it ended', async function () {
      try {
        execFileSync('script', ['-qec', 'true', '/dev/null'], { stdio: 'ignore' });
      } catch {
        this.skip(); // not every system has what makes a terminal here
      }
      await append(HOSTILE);
      const words = [process.execPath, MAIN, ...flags('--thread', threadId, '--no-follow')];
      // Where CI is set, Node takes no terminal for one with colours.
      const command = `env -u CI ${words.map((word) => `'${word}'`).join(' ')}`;
      const shown = async (env: Record<string, string>) => {
        const ended = run('script', ['-qec', command, '/dev/null'], { TERM: 'xterm-256color', ...env });
        expect(await ended.ended, ended.err()).to.equal(0);
        return ended.out().replaceAll('\r\n', '\n');
      };
      const plain = await shown({ NO_COLOR: '1' });
      expect(plain).to.match(/^#1 human {2}\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n/);
      expect(plain).to.include(`\n  ${SPELLED}\nat revision 1\n`);
      expect(plain).not.to.include('\u001b');
      expect(await shown({ NO_COLOR: '' })).to.include('\u001b[36mhuman\u001b[39m');
    });
  });
});

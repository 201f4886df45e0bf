import { randomBytes, randomUUID } from 'node:crypto';
import { type Metadata, status } from '@grpc/grpc-js';
import { expect } from 'chai';
import { pino } from 'pino';
import type { RunningServer } from '../src/server.ts';
import { type Answer, addMembers, ask, comparable, dump, expectNothingOf } from './fixtures/answers.ts';
import { type Marks, type Place, type Planted, plant, requestIdsOf } from './fixtures/places.ts';
import { type Access, type Names, namesOfNothing, PROBES } from './fixtures/probes.ts';
import { listsOf, REFUSALS } from './fixtures/refusals.ts';
import { allTables, tenantTables } from './fixtures/roles.ts';
import { RPCS, rpcNamed } from './fixtures/rpcs.ts';
import {
  appUrl,
  type Clients,
  connect,
  headersOf,
  metadataOf,
  newDatabase,
  newTenant,
  ownerUrl,
  runSql,
  startTestServer,
} from './support.ts';

const { OK, INVALID_ARGUMENT, PERMISSION_DENIED } = status;

describe('isolation', () => suite(async () => () => {}));
// Each of the two walls must hold alone. Without the policies it is the statements' own predicates that keep places apart.
describe('isolation by predicates alone', () => suite(withoutPolicies));

/** Makes another database the one of the tests, in which row-level security is off. Gives what makes it as it was. */
async function withoutPolicies(): Promise<() => void> {
  const [owner, app] = [ownerUrl(), appUrl()];
  const use = (urls: { owner: string; app: string }) => {
    process.env.MEMORYD_TEST_OWNER_URL = urls.owner;
    process.env.MEMORYD_TEST_APP_URL = urls.app;
  };
  use(await newDatabase());
  const off = tenantTables(await allTables()).map((table) => `alter table ${table} disable row level security`);
  await runSql(ownerUrl(), off.join(';'));
  return () => use({ owner, app });
}

function suite(prepare: () => Promise<() => void>) {
  const word = () => [...randomBytes(20)].map((byte) => String.fromCharCode(97 + (byte % 26))).join('');
  const marks: Marks = { content: word(), id: word() };
  const requestIds = requestIdsOf();
  const lines: string[] = [];
  let server: RunningServer;
  let client: Clients;
  let victim: Planted;
  let others: Planted[];
  let stored: Record<string, string[]>;
  let restore: () => void;

  before(async () => {
    restore = await prepare();
    const log = pino({ level: 'trace' }, { write: (line: string) => void lines.push(line) });
    server = await startTestServer({}, log);
    client = connect(`127.0.0.1:${server.port}`);
    const tenant = await newTenant([], { pii: 3 });
    const elsewhere = await newTenant([], { pii: 3 });
    const places: Place[] = [
      { tenant, env: 'dev', user: 'user', admin: 'admin', destination: 'maybes' },
      { tenant, env: 'dev', user: 'other', admin: 'admin-2', destination: 'others' },
      { tenant, env: 'prod', user: 'user', admin: 'admin', destination: 'maybes' },
      { tenant: elsewhere, env: 'dev', user: 'user', admin: 'admin', destination: 'maybes' },
    ];
    await addMembers(places.flatMap((place) => [place, { ...place, user: place.admin, role: 2 }]));
    [victim, ...others] = (await Promise.all(places.map((place) => plant(client, place, marks, requestIds)))) as [
      Planted,
      ...Planted[],
    ];
    // Content is never logged, not even the caller's own; ids are.
    expect(lines.filter((line) => line.includes(marks.content))).to.deep.equal([]);
  });
  after(async () => {
    client?.close();
    await server?.stop();
    restore();
  });

  beforeEach(async () => {
    stored = await dump(victim.place);
    lines.length = 0;
  });
  afterEach(async () => {
    expect(lines.filter((line) => line.includes(marks.content) || line.includes(marks.id))).to.deep.equal([]);
    expect(await dump(victim.place)).to.deep.equal(stored);
  });

  it('covers every method', () => {
    const names = RPCS.map((rpc) => rpc.name).sort();
    expect(Object.keys(PROBES).sort(), 'give each method its probes').to.deep.equal(names);
    for (const name of names) expect(PROBES[name]!.probes, name).to.not.be.empty;
    const mutating = RPCS.filter((rpc) => rpc.mutating).map((rpc) => rpc.name);
    expect([...victim.changed].sort(), 'plant something with each').to.deep.equal(mutating.sort());
    expect(Object.keys(listsOf('')).sort()).to.deep.equal(
      RPCS.filter((rpc) => rpc.paged)
        .map((rpc) => rpc.name)
        .sort(),
    );
  });

  it('gives each place its own for the same request_ids', () => {
    const ids = [
      'sessionId',
      'endedSessionId',
      'deletedSessionId',
      'sessionKey',
      'messageId',
      'bundleId',
      'handoffId',
      'leaseToken',
      'tenantId',
    ] as const;
    for (const name of ids)
      expect(new Set([victim, ...others].map((planted) => planted[name])).size, name).to.equal(others.length + 1);
  });

  // Each attacker comes twice, as two strangers who own nothing: for what exists, and for what does not.
  const attackers: Record<string, (n: string, victim: Place, access: Access) => Place> = {
    'another tenant': (n, { user }, access) => ({
      tenant: `a-${n}`,
      env: 'dev',
      user: access === 'admin' ? 'boss' : user,
      admin: '',
      destination: '',
    }),
    'another env': (n, { tenant, user }, access) => ({
      tenant,
      env: `e-${n}`,
      user: access === 'admin' ? 'boss' : user,
      admin: '',
      destination: '',
    }),
    'another user': (n, { tenant, env }) => ({ tenant, env, user: `u-${n}`, admin: '', destination: '' }),
  };
  for (const [who, placeOf] of Object.entries(attackers)) {
    it(`answers ${who} for what exists as for what does not`, async () => {
      const run = randomUUID().slice(0, 8);
      const cases = RPCS.flatMap((rpc) =>
        PROBES[rpc.name]!.probes.map((probe, i) => {
          const { access } = PROBES[rpc.name]!;
          const place = (which: string) =>
            placeOf(`${run}-${rpc.name.split('/')[1]!.toLowerCase()}-${i}-${which}`, victim.place, access);
          return { rpc, probe, access, places: [place('x'), place('y')] as const };
        }),
      );
      const role = (access: Access) => (access === 'admin' && who !== 'another user' ? 2 : 1);
      await addMembers(
        cases.flatMap(({ places, access }) => places.map((place) => ({ ...place, role: role(access) }))),
      );
      const envs = cases.flatMap(({ places }) => places.map((place) => place.env));
      if (who === 'another env') {
        await runSql(ownerUrl(), 'update tenants set envs = envs || $2 where tenant_id = $1', [
          victim.place.tenant,
          envs,
        ]);
      }
      stored = await dump(victim.place);

      for (const { rpc, probe, access, places } of cases) {
        const what = `${rpc.name} ${probe.what}, by ${who}`;
        const mine = who === 'another user' && (access === 'admin' || access === 'handoff');
        const expected = mine || access === 'operator' ? PERMISSION_DENIED : probe.answer;
        const scopes: Record<string, string> = access === 'handoff' && !mine ? { 'x-scopes': 'memory:handoff' } : {};
        const answers = [];
        for (const [place, names, requestId] of [
          [places[0], victim, requestIds.get(rpc.name)],
          [places[1], namesOfNothing(), randomUUID()],
        ] as const) {
          const request = { ...probe.request(names), ...(rpc.mutating && { requestId }) };
          const headers = metadataOf({ ...headersOf(place.tenant, place.user, place.env), ...scopes });
          const answer = await ask(client, rpc, request, headers);
          expect(status[answer.code], `${what}: ${answer.message}`).to.equal(status[expected]);
          expectNothingOf(marks, victim, answer, request, what);
          answers.push(comparable(answer, names, place));
        }
        expect(answers[0], what).to.deep.equal(answers[1]);
      }
    });
  }

  it('refuses every method without a good identity', async () => {
    for (const rpc of RPCS) {
      const { access, probes } = PROBES[rpc.name]!;
      const answers: Record<string, Answer> = {};
      for (const [who, { headers, code }] of Object.entries(REFUSALS)) {
        const what = `${rpc.name} by ${who}`;
        const request = { ...probes[0]!.request(victim), ...(rpc.mutating && { requestId: requestIds.get(rpc.name) }) };
        const answer = await ask(client, rpc, request, metadataOf(headers(victim.place)));
        expect(status[answer.code], `${what}: ${answer.message}`).to.equal(status[code[access] ?? code.else]);
        expect(answer.reason, what).to.not.equal('');
        expectNothingOf(marks, victim, answer, request, what);
        answers[who] = { ...answer, response: undefined };
      }
      // Whether a tenant or an env exists is told to its members only.
      expect(answers['an unknown tenant'], rpc.name).to.deep.equal(answers['a stranger']);
      expect(answers['an unknown env'], rpc.name).to.deep.equal(answers['a stranger']);
      expect(answers['a scope in an unknown env'], rpc.name).to.deep.equal(answers['a scope in an unknown tenant']);
    }
  });

  it('refuses an identity header that is given twice', async () => {
    for (const rpc of RPCS) {
      for (const name of ['x-tenant-id', 'x-env', 'x-user-id']) {
        const metadata = metadataOf(headersOf(victim.place.tenant, victim.place.user, victim.place.env));
        metadata.add(name, 'another');
        const answer = await ask(client, rpc, PROBES[rpc.name]!.probes[0]!.request(victim), metadata);
        expect(status[answer.code], `${rpc.name}, ${name} twice: ${answer.message}`).to.equal('UNAUTHENTICATED');
        expectNothingOf(marks, victim, answer, {}, rpc.name);
      }
    }
  });

  it('lists only to an admin of the same tenant and env what another did', async () => {
    const rpc = rpcNamed('AuditService/ListAuditEvents');
    for (const { headers } of others) {
      for (const metadata of [headers.member, ...(headers === others[0]!.headers ? [] : [headers.admin])]) {
        const answer = await ask(client, rpc, { sessionId: victim.sessionId }, metadata);
        expect(answer.response.events).to.deep.equal([]);
      }
    }
    const seen = await ask(client, rpc, { sessionId: victim.sessionId }, victim.headers.admin);
    expect(seen.response.events).to.not.be.empty;
  });

  it('refuses what mixes own things with those of another, as if these did not exist', async () => {
    const ids = (id: string) => ({ selection: { $case: 'messageIds', value: { ids: [id] } } });
    for (const own of others) {
      const mixed: [string, Metadata, (names: Names) => object][] = [
        [
          'MemoryService/SaveBundle',
          own.headers.member,
          (n) => ({ sourceThreadId: 'plan', selection: ids(n.messageId) }),
        ],
        [
          'MemoryService/ForwardBundle',
          own.headers.member,
          (n) => ({ source: { $case: 'bundleId', value: n.bundleId }, targetThreadId: 'plan' }),
        ],
        [
          'MemoryService/ForwardBundle',
          own.headers.member,
          (n) => ({
            source: { $case: 'inline', value: { sourceThreadId: 'plan', selection: ids(n.messageId) } },
            targetThreadId: 'plan',
          }),
        ],
        [
          'MemoryService/AckHandoff',
          own.headers.service,
          (n) => ({ handoffId: n.handoffId, leaseToken: own.leaseToken }),
        ],
        [
          'MemoryService/ResumeSession',
          own.headers.member,
          (n) => ({ target: { $case: 'sessionKey', value: n.sessionKey } }),
        ],
        [
          'ConversationService/AppendMessages',
          own.headers.member,
          (n) => ({ threadId: 'plan', sessionId: n.sessionId, messages: [{ role: 1, content: 'x' }] }),
        ],
      ];
      for (const [name, metadata, request] of mixed) {
        // A service pulls and acknowledges the hand-offs of its tenant and env, whoever's they are.
        if (name.endsWith('AckHandoff') && own === others[0]) continue;
        const theirs = await ask(client, rpcNamed(name), request(victim), metadata);
        const nothing = await ask(client, rpcNamed(name), request(namesOfNothing()), metadata);
        expect(status[theirs.code], `${name}: ${theirs.message}`).to.equal('NOT_FOUND');
        expect(theirs, name).to.deep.equal(nothing);
      }
    }
  });

  it("refuses another's page token, as one that was never given out", async () => {
    const tokens = new Map<string, string>();
    for (const [name, { headers, args }] of Object.entries(listsOf(victim.turningSessionId))) {
      const { response } = await ask(client, rpcNamed(name), { ...args, pageSize: 1 }, victim.headers[headers]);
      expect(response?.nextPageToken, name).to.be.a('string').and.not.equal('');
      tokens.set(name, response.nextPageToken);
      const next = await ask(
        client,
        rpcNamed(name),
        { ...args, pageSize: 1, pageToken: response.nextPageToken },
        victim.headers[headers],
      );
      expect(next.code, name).to.equal(OK);
    }
    for (const [name, { headers, args, other }] of Object.entries(listsOf(victim.turningSessionId))) {
      const token = tokens.get(name)!;
      const uses: [string, object, string, Metadata][] = [];
      if (headers !== 'operator')
        for (const own of others)
          uses.push([`of ${own.place.env}/${own.place.user}`, args, token, own.headers[headers]]);
      if (other) uses.push(['with other arguments', other, token, victim.headers[headers]]);
      for (const [method, foreign] of tokens)
        if (method !== name) uses.push([`of ${method}`, args, foreign, victim.headers[headers]]);
      const garbage = await ask(
        client,
        rpcNamed(name),
        { ...args, pageToken: 'never-given-out' },
        victim.headers[headers],
      );
      for (const [what, request, pageToken, metadata] of uses) {
        const answer = await ask(client, rpcNamed(name), { ...request, pageToken }, metadata);
        expect(status[answer.code], `${name} with the token ${what}`).to.equal(status[INVALID_ARGUMENT]);
        expect(answer, `${name} with the token ${what}`).to.deep.equal(garbage);
      }
    }
  });
}

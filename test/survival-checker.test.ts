import { expect } from 'chai';
import { type Operation, whyNotLinearizable } from './survival/linearize.ts';
import {
  type SessionInput,
  type SessionOutput,
  type SessionState,
  sessionModel,
  type ThreadInput,
  type ThreadOutput,
  threadModel,
} from './survival/models.ts';
import { makeRandom } from './survival/random.ts';
import type { Random } from './survival/scenario.ts';

const RUNS = 100;
const CLIENTS = 5;
const CALLS = 8;

describe('the history check', () => {
  it('accepts every history of services that do as they should', () => {
    for (let run = 0; run < RUNS; run++) {
      expect(whyNotLinearizable(sessionModel, simulate(run, session()))).to.equal(undefined);
      expect(whyNotLinearizable(threadModel, simulate(run, thread()))).to.equal(undefined);
    }
  });

  it('leaves it open whether what nobody knows has happened, and when', () => {
    const unknown = at(1, Infinity, { kind: 'upsert', title: 'a' });
    const get = (start: number, title: string, revision: number) =>
      at(start, start + 1, { kind: 'get' }, { title, revision });
    const upsert = at(4, 5, { kind: 'upsert', title: 'b' }, { title: 'b', revision: 1 });
    for (const rest of [
      [get(2, '', 0), get(4, '', 0)],
      [get(2, 'a', 1), get(4, 'a', 1)],
      [get(2, '', 0), upsert, get(6, 'b', 1), get(8, 'a', 2)],
    ]) {
      expect(whyNotLinearizable(sessionModel, [unknown, ...rest])).to.equal(undefined);
    }
    const back = [unknown, get(2, 'a', 1), get(4, '', 0)];
    expect(whyNotLinearizable(sessionModel, back)).to.match(/^after 2 of 3 operations/);
  });

  const found = (name: string, history: (run: number) => string | undefined) =>
    it(`finds ${name}`, () => {
      const caught = Array.from({ length: RUNS }, (_, run) => history(run)).filter((why) => why !== undefined);
      expect(caught.length, `of ${RUNS} histories`).to.be.greaterThan(RUNS / 4);
    });
  const inSessions = (bug: SessionBug) => (run: number) =>
    whyNotLinearizable(sessionModel, simulate(run, session(bug)));
  const inThreads = (bug: ThreadBug) => (run: number) => whyNotLinearizable(threadModel, simulate(run, thread(bug)));

  found('lost updates', inSessions('lost update'));
  found('stale reads', inSessions('stale read'));
  found('an unknown change that happens twice', inSessions('twice'));
  found('two who hold the turn', inThreads('two holders'));
  found('fencing tokens that come again', inThreads('token comes again'));
  found('writes of those whose turn is over', inThreads('no fence'));
  found('an unknown message that is stored twice', inThreads('twice'));
});

const at = (
  start: number,
  end: number,
  input: SessionInput,
  output?: SessionOutput,
): Operation<SessionInput, SessionOutput> => ({ input, output, start, end });

type SessionBug = 'lost update' | 'stale read' | 'twice';
type ThreadBug = 'two holders' | 'token comes again' | 'no fence' | 'twice';

interface Service<Input, Output> {
  /** What a client asks next. */
  ask(random: Random, client: number): Input;
  /** Does it, at once. */
  act(input: Input): Output;
  /** What the client learns from the answer. */
  learn?(client: number, output: Output): void;
  /** Also does what nobody learns the outcome of a second time. */
  doubles: boolean;
}

/** A session in memory, without a bug or with one. */
function session(bug?: SessionBug): Service<SessionInput, SessionOutput> {
  let state: SessionState = { title: '', revision: 0 };
  let before = state;
  let made = 0;
  const known: number[] = [];
  return {
    doubles: bug === 'twice',
    ask(random, client) {
      const title = `t${made++}`;
      const kind = random.pick(['upsert', 'edit', 'edit', 'get', 'get'] as const);
      return kind === 'edit' ? { kind, title, revision: known[client] ?? 0 } : { kind, title };
    },
    act(input) {
      if (input.kind === 'get') return bug === 'stale read' ? before : state;
      const stale = input.kind === 'edit' && input.revision !== state.revision;
      // A check that was made before the other's write.
      const slips = bug === 'lost update' && input.kind === 'edit' && input.revision === before.revision;
      if (stale && !slips) return 'refused';
      before = state;
      state = { title: input.title, revision: (slips ? (input as { revision: number }).revision : state.revision) + 1 };
      return state;
    },
    learn(client, output) {
      known[client] = output === 'refused' ? state.revision : output.revision;
    },
  };
}

/** A thread in memory, without a bug or with one. */
function thread(bug?: ThreadBug): Service<ThreadInput, ThreadOutput> {
  let holder = '';
  let token = 0;
  const log: string[] = [];
  const tokens: number[] = [];
  let made = 0;
  const admits = (given: number) => bug === 'no fence' || (holder !== '' && given === token);
  return {
    doubles: bug === 'twice',
    ask(random, client) {
      const content = `m${made++}`;
      const own = tokens[client];
      const kind = random.pick(['acquire', 'append', 'append', 'list', 'renew', 'release'] as const);
      if (kind === 'acquire') return { kind, holder: `c${client}` };
      if (kind === 'append') return { kind, content, token: random.chance(0.5) ? (own ?? 0) : 0 };
      if (kind === 'list' || own === undefined) return { kind: 'list' };
      return { kind, token: own };
    },
    act(input) {
      if (input.kind === 'list') return { log: [...log] };
      if (input.kind === 'append') {
        if (input.token !== 0 && !admits(input.token)) return 'refused';
        return { seq: log.push(input.content) };
      }
      if (input.kind === 'acquire') {
        if (holder && bug !== 'two holders') return 'refused';
        holder = input.holder;
        return { token: ++token };
      }
      if (!admits(input.token)) return 'refused';
      if (input.kind === 'renew') return 'done';
      holder = '';
      token += bug === 'token comes again' ? -1 : 1;
      return 'done';
    },
    learn(client, output) {
      if (typeof output === 'object' && 'token' in output) tokens[client] = output.token;
    },
  };
}

/** What several clients see of a service: each call happens at a moment between its start and its end, some nobody knows of. */
function simulate<Input, Output>(run: number, service: Service<Input, Output>): Operation<Input, Output>[] {
  const random = makeRandom(run, 'simulation');
  const history: Operation<Input, Output>[] = [];
  const agenda: { time: number; act(): void }[] = [];
  const plan = (time: number, act: () => void) => void agenda.push({ time, act });
  const call = (client: number, start: number, left: number): void => {
    const input = service.ask(random, client);
    const moment = start + 1 + random.int(50);
    const end = moment + 1 + random.int(50);
    const unknown = random.chance(0.15);
    plan(moment, () => {
      const output = service.act(input);
      history.push({ input, output: unknown ? undefined : output, start, end: unknown ? Infinity : end });
      if (unknown && service.doubles) plan(moment + random.int(100), () => service.act(input));
      plan(end, () => {
        if (!unknown) service.learn?.(client, output);
        if (left > 1) call(client, end + random.int(20), left - 1);
      });
    });
  };
  for (let client = 0; client < CLIENTS; client++) call(client, random.int(50), CALLS);
  while (agenda.length > 0) {
    agenda.sort((a, b) => a.time - b.time);
    agenda.shift()!.act();
  }
  return history;
}

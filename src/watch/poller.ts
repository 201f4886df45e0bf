import type { Changes } from '../db/changes.ts';
import { Interrupted } from '../db/failure.ts';
import type { Database } from '../db/pool.ts';
import { reader, type Scope, type TenantDb } from '../db/transaction.ts';
import { type Known, movedOf, SUBJECT_KINDS, type SubjectKind } from './repository.ts';

/** How often a tenant is asked for news: soon after the last ones, and ever more rarely while there are none. */
const BUSY_MS = 100;
const IDLE_MS = 1000;
const SLOWER = 1.5;
/** A process asks at most so often in a second: of very many tenants each is then asked more rarely. */
const POLLS_PER_SECOND = 500;
/** Of so many subjects at once. */
const BATCH = 2000;
const READ_MS = 10_000;

/** A thread, a session or a trail of events that somebody watches. */
interface Subject extends Known {
  kind: SubjectKind;
  group: Group;
  watchers: number;
  /** Grows whenever there may be news. */
  version: number;
  /** What wakes who waits, and the revision that each has seen. */
  waiting: Map<() => void, number>;
  /** Reads under way, by position: watchers of the same position share one. */
  reads: Map<number | string, Promise<unknown>>;
}

/** The subjects of a tenant and env, by user and by kind and id. */
interface Group {
  scope: Scope;
  users: Map<string, Map<string, Subject>>;
  interval: number;
  timer: NodeJS.Timeout | undefined;
}

export interface Watch {
  /** Reads what comes after a position, once for all watches of the subject that are there. */
  read<Page>(after: number | string, read: (db: TenantDb) => Promise<Page>): Promise<Page>;
  /** That a revision was seen. */
  saw(revision: number): void;
  /** Resolves to true when there may be news since the last read began, to false after so many milliseconds without. */
  news(ms: number, signal: AbortSignal): Promise<boolean>;
  close(): void;
}

export interface Watches {
  open(scope: Scope, kind: SubjectKind, id: string): Watch;
  /** How many subjects are watched. */
  readonly count: number;
}

/**
 * Finds out for all watches of a process what has changed: at once if this process changed it, else by asking the database,
 * with one statement for all threads, and one for all sessions, that are watched of a tenant and env.
 */
export function watches(database: Database, changes: Changes): Watches {
  const groups = new Map<string, Group>();

  changes.listen(({ tenant, env, user }) => {
    const users = groups.get(groupKey(tenant, env))?.users;
    if (!users) return;
    // What is nobody's own, the trail of events, is moved by everybody.
    for (const whose of new Set([user, ''])) for (const subject of users.get(whose)?.values() ?? []) wake(subject);
  });

  function schedule(group: Group): void {
    const spread = Math.max(1, (groups.size * 1000) / POLLS_PER_SECOND / IDLE_MS);
    group.timer = setTimeout(() => poll(group), group.interval * spread);
    group.timer.unref();
  }

  async function poll(group: Group): Promise<void> {
    const db = reader(database, group.scope, { deadline: Date.now() + READ_MS });
    let moved = 0;
    try {
      for (const kind of SUBJECT_KINDS) {
        const subjects = subjectsOf(group).filter((subject) => subject.kind === kind);
        for (let from = 0; from < subjects.length; from += BATCH) {
          for (const subject of await movedOf(db, kind, subjects.slice(from, from + BATCH))) {
            moved++;
            wake(subject);
          }
        }
      }
    } catch {
      // The database is away, or too slow. Who reads now tells its client so, rather than that nothing has happened.
      for (const subject of subjectsOf(group)) wake(subject);
    }
    group.interval = moved > 0 ? BUSY_MS : Math.min(IDLE_MS, group.interval * SLOWER);
    if (group.users.size > 0) schedule(group);
  }

  function groupOf(scope: Scope): Group {
    const key = groupKey(scope.tenant, scope.env);
    let group = groups.get(key);
    if (!group) {
      group = { scope: { ...scope, user: '' }, users: new Map(), interval: BUSY_MS, timer: undefined };
      groups.set(key, group);
      schedule(group);
    }
    return group;
  }

  function leave(subject: Subject): void {
    const { group, user } = subject;
    if (--subject.watchers > 0) return;
    const others = group.users.get(user)!;
    others.delete(subjectKey(subject));
    if (others.size === 0) group.users.delete(user);
    if (group.users.size > 0) return;
    clearTimeout(group.timer);
    groups.delete(groupKey(group.scope.tenant, group.scope.env));
  }

  return {
    get count() {
      return [...groups.values()].reduce((sum, group) => sum + subjectsOf(group).length, 0);
    },

    open(scope, kind, id) {
      const group = groupOf(scope);
      const { user } = scope;
      const subjects = group.users.get(user) ?? new Map<string, Subject>();
      group.users.set(user, subjects);
      const key = subjectKey({ kind, id });
      const fresh = { kind, user, id, group, revision: 0, watchers: 0, version: 0 };
      const subject = subjects.get(key) ?? { ...fresh, waiting: new Map(), reads: new Map() };
      subjects.set(key, subject);
      subject.watchers++;
      let read = -1;
      let seen = 0;
      let closed = false;
      return {
        read(after, work) {
          read = subject.version;
          const shared = subject.reads.get(after);
          if (shared) return shared as ReturnType<typeof work>;
          const own = work(reader(database, scope, { deadline: Date.now() + READ_MS }));
          subject.reads.set(after, own);
          const forget = () => subject.reads.get(after) === own && subject.reads.delete(after);
          own.then(forget, forget);
          return own;
        },
        // Who read a moment before is not told by the poller what another has seen meanwhile.
        saw(revision) {
          seen = revision;
          if (revision <= subject.revision) return;
          subject.revision = revision;
          for (const [resolve, known] of subject.waiting) if (known < revision) resolve();
        },
        news: (ms, signal) =>
          subject.version > read || subject.revision > seen
            ? Promise.resolve(true)
            : waitFor(subject, seen, ms, signal),
        close() {
          if (!closed) leave(subject);
          closed = true;
        },
      };
    },
  };
}

const groupKey = (tenant: string, env: string) => `${tenant}/${env}`; // slugs
const subjectKey = ({ kind, id }: { kind: SubjectKind; id: string }) => `${kind}/${id}`;
const subjectsOf = (group: Group) => [...group.users.values()].flatMap((subjects) => [...subjects.values()]);

function wake(subject: Subject): void {
  subject.version++;
  subject.reads.clear(); // what they find may be older
  for (const resolve of subject.waiting.keys()) resolve();
}

function waitFor(subject: Subject, seen: number, ms: number, signal: AbortSignal): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const settle = (how: () => void) => () => {
      clearTimeout(timer);
      signal.removeEventListener('abort', abort);
      subject.waiting.delete(woken);
      how();
    };
    const woken = settle(() => resolve(true));
    const abort = settle(() => reject(new Interrupted('the call is over')));
    const timer = setTimeout(
      settle(() => resolve(false)),
      ms,
    );
    signal.addEventListener('abort', abort);
    subject.waiting.set(woken, seen);
    if (signal.aborted) abort();
  });
}

import { setImmediate } from 'node:timers/promises';
import { v7 as uuidv7 } from 'uuid';
import type { Database } from '../db/pool.ts';
import { query } from '../db/statement.ts';
import { reader, type Scope, type Stamp, type TenantTx, together, transaction } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import { MessageRole, MessageState } from '../gen/memory/v1/message.ts';
import { ProfileSource_Kind } from '../gen/memory/v1/profile.ts';
import { accumulate, admissible, type Change } from './accumulate.ts';
import { extract, READ_CHARACTERS } from './extract.ts';
import { lockProfile, saveProfile, sourceTime } from './repository.ts';

const LIMIT_MS = 10_000;
const BATCH = 200;
const THREADS = 100;

interface Unread {
  threadId: string;
  threadUid: string;
  /** Up to which seq the thread was read. Null: it never was. */
  position: number | null;
  waiting: boolean | null;
  /** Where to begin. */
  after: number;
}

// Seqs are given out under the lock of the thread's row: below one that is seen, none comes later. A thread that was never
// read begins with the first message since the tenant wants that; the walk back to it passes only those that will be read.
const UNREAD = query<Unread>(`
  select t.thread_id, t.thread_uid, r.seq as position, r.waiting, f.seq as after
  from tenants n
  join threads t on t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.delete_time is null and t.update_time >= n.extract_time
  left join thread_readings r on r.tenant_id = $1 and r.env = $2 and r.thread_uid = t.thread_uid
  cross join lateral (
    select coalesce(r.seq, (
      select m.seq from messages m
      where m.tenant_id = $1 and m.env = $2 and m.thread_uid = t.thread_uid and m.create_time < n.extract_time
      order by m.seq desc limit 1), t.base_seq) as seq
  ) f
  where n.tenant_id = $1 and t.last_seq > f.seq
  limit ${THREADS}`);

interface Read {
  seq: number;
  state: number;
  own: boolean;
  content: string;
  sessionId: string | null;
  createTime: Timestamp;
}

// What was forwarded was said in another thread, and is read there.
const MESSAGES = query<Read>(`
  select seq, state, role = ${MessageRole.HUMAN} and forwarded_from is null and delete_time is null as own,
    case when role = ${MessageRole.HUMAN} then left(content, ${READ_CHARACTERS}) else '' end as content, session_id, create_time
  from messages
  where tenant_id = $1 and env = $2 and thread_uid = $4::uuid and seq > $5::bigint
  order by seq limit ${BATCH}`);

// Of several processes that read the same, one moves the position, and with it in one transaction the profile.
const MOVE = query<{ seq: number }>(`
  insert into thread_readings as r (tenant_id, env, thread_uid, user_id, seq, waiting)
  select $1, $2, $4::uuid, $3, $5::bigint, $6::boolean
  from threads t where t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_uid = $4
  on conflict (tenant_id, env, thread_uid) do update set seq = excluded.seq, waiting = excluded.waiting where r.seq = $7::bigint
  returning seq`);

// Until the profile is stored, nothing of the thread is deleted. In a statement of its own: the next one sees what was
// deleted while this one waited.
const LOCK_THREAD = query(`
  select thread_uid from threads where tenant_id = $1 and env = $2 and user_id = $3 and thread_id = $4 for share`);
const STILL_THERE = query<{ seq: number }>(`
  select m.seq from messages m
  join threads t on t.tenant_id = $1 and t.env = $2 and t.user_id = $3 and t.thread_uid = m.thread_uid and t.delete_time is null
  where m.tenant_id = $1 and m.env = $2 and m.thread_uid = $4::uuid and m.seq = any ($5::bigint[]) and m.delete_time is null`);

const stamp = (): Stamp => ({
  actor: 'extraction',
  method: 'profiles.extract',
  requestId: null,
  fingerprint: null,
  eventId: uuidv7(),
  traceId: '',
  requester: '',
});

type Finding = Read & { found: Map<string, string> };

/** Reads what a user has written since the last time, for the user's profile. Resolves to how many messages that were. */
export async function readUser(database: Database, scope: Scope): Promise<number> {
  const limits = () => ({ deadline: Date.now() + LIMIT_MS });
  let count = 0;
  let overtaken = false;
  const threads = await reader(database, scope, limits()).query(UNREAD);
  for (const thread of threads) {
    for (let { position, after } = thread; ; ) {
      const messages = await reader(database, scope, limits()).query(MESSAGES, [thread.threadUid, after]);
      const streaming = messages.findIndex((message) => message.state === MessageState.STREAMING);
      const settled = streaming < 0 ? messages : messages.slice(0, streaming);
      const seq = settled.at(-1)?.seq ?? after;
      if (seq === position && thread.waiting) break; // nothing has moved
      const findings = await readEach(settled.filter((message) => message.own));
      const moved = await transaction(database, scope, stamp(), limits(), { repeatable: true }, async (tx) => {
        const there = findings.length > 0 ? await stillThere(tx, thread, findings) : [];
        const rows = await tx.query(MOVE, [thread.threadUid, seq, streaming >= 0, position]);
        if (rows.length > 0 && there.length > 0) await store(tx, thread.threadId, there);
        return rows.length > 0;
      });
      if (!moved) {
        overtaken = true; // by who saw perhaps less of it
        break;
      }
      count += settled.length;
      position = after = seq;
      if (streaming >= 0 || messages.length < BATCH) break;
    }
  }
  const more = overtaken || (threads.length === THREADS && count > 0);
  return more ? count + (await readUser(database, scope)) : count;
}

async function readEach(messages: Read[]): Promise<Finding[]> {
  const findings: Finding[] = [];
  for (const message of messages) {
    const found = extract(message.content);
    if (found.size > 0) findings.push({ ...message, found });
    await setImmediate(); // the worst message takes 3 ms
  }
  return findings;
}

async function stillThere(tx: TenantTx, { threadId, threadUid }: Unread, findings: Finding[]): Promise<Finding[]> {
  const seqs = findings.map(({ seq }) => String(seq));
  const [, rows] = await together([tx.query(LOCK_THREAD, [threadId]), tx.query(STILL_THERE, [threadUid, seqs])]);
  return findings.filter((finding) => rows.some(({ seq }) => seq === finding.seq));
}

async function store(tx: TenantTx, threadId: string, findings: Finding[]): Promise<void> {
  const profile = await lockProfile(tx);
  let { entries } = profile;
  const changes: Change[] = [];
  for (const { found, seq, sessionId, createTime } of findings) {
    const set_time = sourceTime(createTime);
    const source = {
      kind: ProfileSource_Kind.EXTRACTION,
      actor: 'extraction',
      session_id: sessionId ?? undefined,
      thread_id: threadId,
      message_seq: seq,
      set_time,
    };
    const made = accumulate(entries, admissible(entries, found, set_time), source);
    entries = made.entries;
    changes.push(...made.changes);
  }
  if (changes.length > 0) await saveProfile(tx, { entries, changes }, findings.at(-1)!.sessionId ?? '', 'extraction');
}

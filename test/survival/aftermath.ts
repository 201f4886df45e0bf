import { isDeepStrictEqual } from 'node:util';
import type { Message } from '../../src/gen/memory/v1/message.ts';
import { revisionOf } from '../../src/rpc/validate.ts';
import { allPages, type Clients, runSql } from '../support.ts';
import { checkArtifacts } from './artifacts.ts';
import { checkDrafts } from './drafts.ts';
import type { Entry, Ledger } from './ledger.ts';
import { checkMemories } from './memories.ts';
import { checkProfile } from './profiles.ts';
import type { Figures } from './scenario.ts';

interface Event {
  action: string;
  trace: string;
  resource: string;
  metadata: any;
}

const MAX_FAULTS = 10;

/**
 * Compares what is there in the end with what the clients were told. What was acknowledged happened once, what was refused
 * never, what is unknown once or never and then whole; and everything that is there, somebody has asked for. The service must
 * be at rest: an attempt that nobody waits for any more may still land.
 */
export async function checkAftermath(
  ledger: Ledger,
  tenant: string,
  clients: Clients,
  ownerUrl: string,
): Promise<Figures> {
  const faults = [...ledger.faults];
  const check = (holds: unknown, fault: () => string) => void (holds || faults.push(fault()));
  const rows = (sql: string) => runSql(ownerUrl, sql, [tenant]);

  const events: Event[] = await rows(
    `select action, trace_id as trace, resource, metadata from audit_events
      where tenant_id = $1 and outcome = 1 and action not in ('snapshots.store', 'snapshots.fail') order by id`,
  );
  const happened = checkEvents(ledger.entries, events, check);
  const threads = await rows('select thread_id, last_seq::int, fencing_token::int from threads where tenant_id = $1');
  const messages = new Map<string, Message[]>();
  for (const { thread_id: threadId, last_seq: lastSeq } of threads) {
    const all = await readThread(clients, threadId);
    messages.set(threadId, all);
    checkThread(threadId, all, lastSeq, events, check);
  }
  checkMessages(ledger.entries, happened, messages, check);
  for (const { thread_id: threadId, fencing_token: token } of threads) {
    const moved = events.filter((event) => /^turns\.(acquire|release)$/.test(event.action));
    const own = moved.filter((event) => event.resource === `threads/${threadId}`).length;
    check(own === token, () => `${threadId} has the fencing token ${token} after ${own} leases taken and given back`);
  }
  const { sessions } = await clients.memory.listSessions({ pageSize: 500 });
  for (const session of sessions) {
    const own = ledger.entries.filter((entry) => entry.intent.surfaceId === session.surfaceId);
    checkSession(session, own, events, check);
  }
  const counts = await rows('select sessions::int from quota_counts where tenant_id = $1 and sessions < 1000000');
  for (const { sessions: counted } of counts)
    check(counted === sessions.length, () => `${sessions.length} live sessions are counted as ${counted}`);
  await checkMemories(clients, happened, events, check);
  await checkUsage(ledger.entries, happened, clients, rows, check);
  await checkProfile(clients, happened, events, check);
  const bundles = await checkBundles(clients, messages, ledger.entries, happened, check);
  const revisions = await checkDrafts(rows, ledger.entries, happened, check);
  const uploads = await checkArtifacts(rows, ledger.entries, happened, check);
  const [{ turns, handoffs }] = await rows(
    `select (select count(*)::int from turns where tenant_id = $1) as turns,
      (select count(*)::int from handoffs where tenant_id = $1 and destination = 'maybes') as handoffs`,
  );
  const commits = [...happened].filter((entry) => entry.kind === 'commit').length;
  check(turns === commits, () => `${commits} commits left ${turns} turns`);
  const told = events.filter((event) => event.action === 'bundles.forward' && event.metadata.destination === 'maybes');
  check(handoffs === told.length, () => `${told.length} forwards left ${handoffs} hand-offs`);

  if (faults.length > 0) {
    const shown = faults.slice(0, MAX_FAULTS).join('\n  ');
    throw new Error(`${faults.length} things differ:\n  ${shown}`);
  }
  const unknown = ledger.entries.filter((entry) => entry.outcome === 'unknown');
  return {
    acknowledged: ledger.acknowledged,
    refused: ledger.entries.filter((entry) => entry.outcome === 'refused').length,
    unknown: unknown.length,
    'of these done': unknown.filter((entry) => happened.has(entry)).length,
    'done by a retry': ledger.entries.filter((entry) => entry.outcome === 'acknowledged' && entry.attempts > 1).length,
    messages: [...messages.values()].reduce((sum, { length }) => sum + length, 0),
    bundles,
    revisions,
    uploads,
  };
}

type Check = (holds: unknown, fault: () => string) => void;

const nameOf = ({ kind, id, outcome }: Entry): string => `${kind} ${id} (${outcome})`;

/** The entries that happened, as the audit log has it: each with exactly the events that it should leave. */
function checkEvents(entries: Entry[], events: Event[], check: Check): Set<Entry> {
  const byTrace = Map.groupBy(events, (event) => event.trace);
  const happened = new Set<Entry>();
  for (const entry of entries) {
    const trace = entry.id.replaceAll('-', '');
    const left = byTrace.get(trace) ?? [];
    byTrace.delete(trace);
    const actions = left.map((event) => event.action).sort();
    if (actions.length > 0) happened.add(entry);
    const whole = isDeepStrictEqual(actions, [...entry.intent.events].sort());
    const never = actions.length === 0;
    const right = { acknowledged: whole, refused: never, unknown: whole || never }[entry.outcome];
    check(right, () => `${nameOf(entry)} left the events [${actions.join()}]`);
  }
  for (const [trace, [event]] of byTrace) check(false, () => `nobody asked for ${event!.action} of trace ${trace}`);
  return happened;
}

async function readThread({ conversation }: Clients, threadId: string): Promise<Message[]> {
  const position = { $case: 'afterSeq' as const, value: 0 };
  const pages = await allPages((pageToken) =>
    conversation.listMessages({ threadId, position, pageSize: 500, pageToken }),
  );
  return pages.flatMap((page) => page.messages);
}

/** Gap-free, and each seq of one event. */
function checkThread(threadId: string, messages: Message[], lastSeq: number, events: Event[], check: Check): void {
  const gap = messages.findIndex((message, i) => message.seq !== i + 1);
  check(gap < 0, () => `${threadId} has seq ${messages[gap]!.seq} in place of ${gap + 1}`);
  check(
    messages.length === lastSeq,
    () => `${threadId} has ${messages.length} messages, and its last seq is ${lastSeq}`,
  );
  const spans = events.flatMap(({ action, resource, metadata }) => {
    if (action === 'messages.append' && resource === `threads/${threadId}`) {
      return [[metadata.first_seq, metadata.first_seq + metadata.count - 1]];
    }
    const landed = action === 'bundles.forward' && metadata.target_thread_id === threadId && !metadata.repeated;
    return landed ? [[metadata.first_seq, metadata.last_seq]] : [];
  });
  let next = 1;
  for (const [first, last] of spans.sort(([a], [b]) => a - b)) {
    check(first === next, () => `the events of ${threadId} go on with ${first} in place of ${next}`);
    next = last + 1;
  }
  check(next === lastSeq + 1, () => `the events of ${threadId} end before ${next}, its messages with ${lastSeq}`);
}

/** What was to be appended is there once, one after the other, if it happened, else not at all. */
function checkMessages(entries: Entry[], happened: Set<Entry>, threads: Map<string, Message[]>, check: Check): void {
  const stored = new Map<string, Message[]>();
  for (const [threadId, messages] of threads) {
    for (const message of messages) {
      if (message.forwardedFrom) continue;
      const key = `${threadId} ${message.content}`;
      stored.set(key, [...(stored.get(key) ?? []), message]);
    }
  }
  for (const entry of entries) {
    const { threadId, contents } = entry.intent;
    if (!contents) continue;
    const found = contents.map((content) => {
      const key = `${threadId} ${content}`;
      const all = stored.get(key) ?? [];
      stored.delete(key);
      return all;
    });
    const wanted = happened.has(entry) ? 1 : 0;
    for (const [i, all] of found.entries()) {
      check(all.length === wanted, () => `"${contents[i]}" of ${nameOf(entry)} is ${all.length} times in ${threadId}`);
      const told: Message | undefined = entry.response?.messages[i];
      const same = !told || (told.id === all[0]?.id && told.seq === all[0]?.seq);
      check(same, () => `"${contents[i]}" was told to be ${told?.seq} of ${threadId}, and is ${all[0]?.seq}`);
    }
    const seqs = found.flatMap((all) => all.slice(0, 1).map((message) => message.seq));
    check(
      seqs.every((seq, i) => seq === seqs[0]! + i),
      () => `${nameOf(entry)} lies apart, at ${seqs.join()}`,
    );
  }
  for (const key of stored.keys()) check(false, () => `nobody has sent what is in ${key}`);
}

/** Each call of a model that was to be recorded is there once if it happened, and in the sums once, whoever added up. */
async function checkUsage(
  entries: Entry[],
  happened: Set<Entry>,
  { usage }: Clients,
  rows: (sql: string) => Promise<any[]>,
  check: Check,
): Promise<void> {
  const ids = (await rows('select external_id as id from llm_requests where tenant_id = $1'))
    .map(({ id }) => id)
    .sort();
  const wanted = entries
    .filter((entry) => entry.intent.usage && happened.has(entry))
    .map((entry) => entry.intent.usage!);
  check(
    isDeepStrictEqual(ids, wanted.sort()),
    () => `${wanted.length} calls of models were recorded, and ${ids.length} are there`,
  );
  const [told] = (await usage.getUsage({})).usage;
  const cost = String(wanted.length / 10);
  check(
    told!.requests === wanted.length && told!.cost === cost,
    () => `${wanted.length} calls came to ${cost}, and are told as ${told!.requests} that came to ${told!.cost}`,
  );
  for (const { grain, day, told, counted } of await rows(RECOUNT))
    check(
      false,
      () => `the sums of grain ${grain} and ${day} hold ${told ?? 0} of ${counted ?? 0} calls, or another cost`,
    );
}

// By grain and day what the sums hold, beside the calls that are in them: where the two differ.
const RECOUNT = `
  with counted as (
    select g.grain, g.subject, (create_time at time zone 'UTC')::date as day, g.user_id, g.project_id, provider, model,
      count(*) as requests, sum(total_tokens) as tokens, sum(cost) as cost
    from llm_requests r cross join lateral (values
      (1, '', '', ''),
      (2, r.project_id, '', ''),
      (3, r.user_id, '', r.project_id),
      (4, coalesce(r.session_id::text, ''), r.user_id, r.project_id)
    ) g (grain, subject, user_id, project_id)
    where tenant_id = $1 and folded
    group by 1, 2, 3, 4, 5, 6, 7
  ), told as (
    select grain, subject, day, user_id, project_id, provider, model, requests, total_tokens as tokens, cost
    from usage_rollups where tenant_id = $1
  )
  select grain, day::text as day, t.requests::int as told, c.requests::int as counted
  from told t full join counted c using (grain, subject, day, user_id, project_id, provider, model)
  where (t.requests, t.tokens, t.cost) is distinct from (c.requests, c.tokens, c.cost)
  order by grain, day limit 20`;

/** Its revisions are a chain, each told to one change, and its state is what the changes make in the order of the chain. */
function checkSession(
  session: { id: string; revision: number; state?: unknown },
  entries: Entry[],
  events: Event[],
  check: Check,
): void {
  const chain = events
    .filter((event) => event.action === 'sessions.upsert' && event.resource === `sessions/${session.id}`)
    .sort((a, b) => a.metadata.revision - b.metadata.revision);
  const revisions = chain.map((event) => event.metadata.revision);
  check(
    revisions.every((revision, i) => revision === i + 1) && revisions.length === session.revision,
    () => `the revisions of ${session.id} are ${revisions.join()}, and it is at ${session.revision}`,
  );
  const byTrace = new Map(entries.map((entry) => [entry.id.replaceAll('-', ''), entry]));
  let state: Record<string, unknown> = {};
  for (const { trace, metadata } of chain) {
    const entry = byTrace.get(trace);
    if (!entry) continue; // told already as an event that nobody asked for
    if (entry.kind === 'edit') {
      const next = ((state.counter as number | undefined) ?? 0) + 1;
      const given = entry.intent.state!.counter;
      check(given === next, () => `${nameOf(entry)} wrote ${given} over a counter at ${next - 1}`);
    }
    state = { ...state, ...entry.intent.state };
    const response = entry.response;
    const told = response && (response.session?.revision ?? revisionOf(response.sessionEtag));
    check(
      !response || told === metadata.revision,
      () => `${nameOf(entry)} was told ${told}, and is ${metadata.revision}`,
    );
  }
  check(isDeepStrictEqual(session.state, state), () => `the state of ${session.id} is not what its changes make`);
}

/** Every bundle is whole, and so is each of its landings; no copy comes from anywhere else. Gives how many there are. */
async function checkBundles(
  { memory }: Clients,
  threads: Map<string, Message[]>,
  entries: Entry[],
  happened: Set<Entry>,
  check: Check,
): Promise<number> {
  const pages = await allPages((pageToken) => memory.listBundles({ pageSize: 500, pageToken }));
  const ids = pages.flatMap((page) => page.bundles.map((bundle) => bundle.id));
  const made = [...happened].filter((entry) => ['save', 'forward inline'].includes(entry.kind)).length;
  check(ids.length === made, () => `${made} bundles were made, and ${ids.length} are there`);
  const landings = new Map<string, string>();
  let copied = 0;
  for (const id of ids) {
    const { bundle } = await memory.getBundle({ bundleId: id });
    const { messages, messageCount, forwards } = bundle!;
    check(messages.length === messageCount, () => `bundle ${id} has ${messages.length} of ${messageCount} messages`);
    for (const { targetThreadId, firstSeq, lastSeq } of forwards) {
      landings.set(`${id} ${targetThreadId} ${firstSeq} ${lastSeq}`, id);
      const copies = threads.get(targetThreadId)?.slice(firstSeq - 1, lastSeq) ?? [];
      copied += copies.length;
      const same =
        copies.length === messages.length &&
        copies.every(
          (copy, i) =>
            copy.content === messages[i]!.content &&
            copy.forwardedFrom?.bundleId === id &&
            copy.forwardedFrom.seq === messages[i]!.seq,
        );
      check(same, () => `bundle ${id} has not landed whole at ${firstSeq} to ${lastSeq} of ${targetThreadId}`);
    }
  }
  const copies = [...threads.values()].flat().filter((message) => message.forwardedFrom).length;
  check(copies === copied, () => `${copies} copies are in threads, ${copied} of them by a landing`);
  const forwards = entries.filter((entry) => /^forward/.test(entry.kind));
  check(
    landings.size === forwards.filter((entry) => happened.has(entry)).length,
    () => `${forwards.length} forwards left ${landings.size} landings`,
  );
  for (const { response } of forwards) {
    if (!response) continue;
    const sent = response.bundle.id;
    const told = [...landings].some(
      ([at, id]) => id === sent && at.endsWith(` ${response.firstSeq} ${response.lastSeq}`),
    );
    check(told, () => `the landing of ${sent} at ${response.firstSeq} was told, and is not there`);
  }
  return ids.length;
}

import { ContextSection } from '../gen/memory/v1/conversation_service.ts';

/** What one item costs. */
export interface Cost {
  tokens: number;
  bytes: number;
}

export interface MessageCost extends Cost {
  seq: number;
  /** It was not read, as with it the messages come to more than was asked for: of tokens, or of bytes. */
  unread?: 'tokens' | 'bytes' | undefined;
}

export interface Material {
  /** The items of each section that is wanted, except messages, what matters most first. */
  items: Map<ContextSection, Cost[]>;
  /** What the summaries cover, in their order: the thread's messages up to these seqs. */
  coverage: number[];
  /** The newest messages, newest first, without a gap in what there is. Undefined if they are not wanted. */
  messages?: { costs: MessageCost[]; firstSeq: number; lastSeq: number } | undefined;
}

export interface Limits {
  lastN?: number | undefined;
  maxTokens?: number | undefined;
  maxBytes: number;
  budgets: Map<ContextSection, number>;
}

export type Reason = 'SUMMARY' | 'SECTION_BUDGET' | 'MAX_TOKENS' | 'LAST_N' | 'SIZE';

export interface Plan {
  /** For each section whether each of its items is kept. */
  kept: Map<ContextSection, boolean[]>;
  /** How many of the newest messages are kept. */
  keptMessages: number;
  tokens: Map<ContextSection, number>;
  truncated: { section: ContextSection; leftOut: number; reason: Reason }[];
}

const { PREFERENCES, PROFILE, PINNED, PROJECT_PROFILE, SUMMARIES } = ContextSection;
const { LATEST_TURN, SESSION_CONTEXT, MESSAGES, MEMORIES, DRAFTS } = ContextSection;

/** Who is served first. Messages come last, but half of everything is theirs if they need it. */
const ORDER = [
  ...[PREFERENCES, PROFILE, PINNED, PROJECT_PROFILE, SUMMARIES],
  ...[LATEST_TURN, SESSION_CONTEXT, MEMORIES, DRAFTS],
];
const REASONS: Reason[] = ['SUMMARY', 'SECTION_BUDGET', 'MAX_TOKENS', 'LAST_N', 'SIZE'];

const total = (costs: Iterable<Cost>): Cost => {
  const sum = { tokens: 0, bytes: 0 };
  for (const { tokens, bytes } of costs) {
    sum.tokens += tokens;
    sum.bytes += bytes;
  }
  return sum;
};

/**
 * Decides what of a context is kept. The sections take, in their order, whatever of them fits into their budget and into
 * what the messages leave; the messages take the rest, from the newest on, up to the first that does not fit. If not
 * everything fits, the messages that a kept summary covers are left out before any other.
 */
export function assemble(material: Material, limits: Limits): Plan {
  const { coverage, messages } = material;
  const room = { tokens: limits.maxTokens ?? Number.POSITIVE_INFINITY, bytes: limits.maxBytes };
  const short = isShort(material, limits, room);

  const covered = (kept: boolean[] = coverage.map(() => true)) =>
    short ? Math.max(0, ...coverage.filter((_, i) => kept[i])) : 0;
  // What the messages need depends on the summaries that stand for some of them, and these on what the messages leave.
  let through = covered();
  for (;;) {
    const others = takeInOrder(material, limits, room, neededBy(material, limits, through, room));
    const stood = covered(others.kept.get(SUMMARIES) ?? []);
    if (stood >= through) return withMessages(others, messages, limits, stood);
    through = stood; // so the messages need more
  }
}

function withMessages(others: Others, messages: Material['messages'], limits: Limits, through: number): Plan {
  const { left, ...kept } = others;
  const plan: Plan = { ...kept, keptMessages: 0 };
  if (messages) takeMessages(plan, messages, limits, left, through);
  plan.truncated.sort((a, b) => a.section - b.section || REASONS.indexOf(a.reason) - REASONS.indexOf(b.reason));
  return plan;
}

const budgetOf = (limits: Limits, section: ContextSection) => limits.budgets.get(section) ?? Number.POSITIVE_INFINITY;

/** Whether something has to be left out for want of room. */
function isShort({ items, messages }: Material, limits: Limits, room: Cost): boolean {
  if (!messages) return false;
  const sums = [...items].map(([section, costs]) => ({ ...total(costs), budget: budgetOf(limits, section) }));
  const wanted = total(sums.map(({ tokens, bytes, budget }) => ({ tokens: Math.min(tokens, budget), bytes })));
  const { costs, firstSeq } = messages;
  const sum = total(costs);
  const more = costs.some(({ unread }) => unread) || (!limits.lastN && (costs.at(-1)?.seq ?? firstSeq) > firstSeq);
  const over = wanted.tokens + sum.tokens > room.tokens || wanted.bytes + sum.bytes > room.bytes;
  return more || over || sum.tokens > budgetOf(limits, MESSAGES);
}

/** What is kept for messages: what those that no summary stands for need, but at most half of everything. */
function neededBy({ messages }: Material, limits: Limits, through: number, room: Cost): Cost {
  const needed = total(messages?.costs.filter(({ seq }) => seq > through) ?? []);
  const tokens = Math.min(needed.tokens, budgetOf(limits, MESSAGES), Math.floor(room.tokens / 2));
  return { tokens, bytes: Math.min(needed.bytes, Math.floor(room.bytes / 2)) };
}

type Others = Omit<Plan, 'keptMessages'> & { left: Cost };

function takeInOrder({ items }: Material, limits: Limits, room: Cost, needed: Cost): Others {
  const free = { tokens: room.tokens - needed.tokens, bytes: room.bytes - needed.bytes };
  const others: Others = { kept: new Map(), tokens: new Map(), truncated: [], left: room };
  for (const section of ORDER) {
    const costs = items.get(section);
    if (!costs) continue;
    let budget = budgetOf(limits, section);
    const leftOut = new Map<Reason, number>();
    const kept = costs.map((cost) => {
      const reason = obstacle(cost, budget, free);
      if (reason) {
        leftOut.set(reason, (leftOut.get(reason) ?? 0) + 1);
        return false;
      }
      budget -= cost.tokens;
      free.tokens -= cost.tokens;
      free.bytes -= cost.bytes;
      return true;
    });
    others.kept.set(section, kept);
    others.tokens.set(section, total(costs.filter((_, i) => kept[i])).tokens);
    for (const [reason, count] of leftOut) others.truncated.push({ section, leftOut: count, reason });
  }
  others.left = { tokens: free.tokens + needed.tokens, bytes: free.bytes + needed.bytes };
  return others;
}

/** Why an item does not fit. */
function obstacle({ tokens, bytes }: Cost, budget: number, left: Cost): Reason | undefined {
  if (tokens > budget) return 'SECTION_BUDGET';
  if (tokens > left.tokens) return 'MAX_TOKENS';
  return bytes > left.bytes ? 'SIZE' : undefined;
}

function takeMessages(
  plan: Plan,
  { costs, firstSeq, lastSeq }: NonNullable<Material['messages']>,
  limits: Limits,
  room: Cost,
  through: number,
): void {
  const left = { ...room };
  const tokenReason = budgetOf(limits, MESSAGES) <= room.tokens ? 'SECTION_BUDGET' : 'MAX_TOKENS';
  let budget = budgetOf(limits, MESSAGES);
  let used = 0;
  let reason: Reason | undefined;
  for (const cost of costs) {
    if (cost.seq <= through) break;
    const unread = cost.unread && (cost.unread === 'bytes' ? 'SIZE' : tokenReason);
    reason = unread ?? obstacle(cost, budget, left);
    if (reason) break;
    plan.keptMessages++;
    budget -= cost.tokens;
    left.tokens -= cost.tokens;
    left.bytes -= cost.bytes;
    used += cost.tokens;
  }
  plan.tokens.set(MESSAGES, used);

  // What is left out is told by seqs, as counting it would mean reading it.
  const oldestKept = plan.keptMessages > 0 ? costs[plan.keptMessages - 1]!.seq : lastSeq + 1;
  const oldestRead = costs.at(-1)?.seq ?? oldestKept;
  const oldestWanted = limits.lastN ? Math.min(oldestRead, Math.max(firstSeq, lastSeq - limits.lastN + 1)) : firstSeq;
  const leave = (why: Reason, leftOut: number) => {
    if (leftOut > 0) plan.truncated.push({ section: MESSAGES, leftOut, reason: why });
  };
  const uncovered = Math.max(oldestWanted, Math.min(oldestKept, through + 1));
  leave('SUMMARY', uncovered - oldestWanted);
  leave(reason ?? 'SIZE', oldestKept - uncovered);
  leave('LAST_N', oldestWanted - firstSeq);
}

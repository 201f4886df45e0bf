import { rowFromJson } from '../db/statement.ts';
import { type RevisionRow, revisionFromRow } from '../drafts/repository.ts';
import type { SessionContext } from '../gen/memory/v1/context.ts';
import { type Context, ContextSection } from '../gen/memory/v1/conversation_service.ts';
import { Profile } from '../gen/memory/v1/profile.ts';
import { PinnedRef, SummaryRef } from '../gen/memory/v1/session.ts';
import { Turn } from '../gen/memory/v1/turn.ts';
import { type MemoryRow, memoryFromRow } from '../memories/repository.ts';
import { type Entry, itemsOf, LISTS, present, textOf } from '../profiles/accumulate.ts';
import { profileFields } from '../profiles/fields.ts';
import { type ProfileRow, profileFromRow } from '../projects/repository.ts';
import { turnFromRow } from '../turns/repository.ts';
import { type JsonObject, Struct } from '../wire/struct.ts';
import type { ContextRow } from './context-repository.ts';
import { contextFromRow } from './repository.ts';

/** An item of a section: kept whole or left out. */
export interface Part {
  /** What is counted of it. Numbers, times and ids that the service made are not. */
  texts: string[];
  /** Of the response, at most. */
  bytes: number;
  put(context: Context): void;
}

// Tags, lengths, ids and times around the texts.
const FRAME_BYTES = 200;
const part = (texts: string[], put: Part['put'], bytes = 0): Part => ({
  texts,
  bytes: texts.reduce((sum, text) => sum + Buffer.byteLength(text) + 10, FRAME_BYTES + bytes),
  put,
});

/** The items of each section that was read, what matters most first. */
export function partsOf(row: ContextRow): Map<ContextSection, Part[]> {
  const parts = new Map<ContextSection, Part[]>();
  if (row.preferences) parts.set(ContextSection.PREFERENCES, preferenceParts(row.preferences));
  if (row.pinnedRefs) parts.set(ContextSection.PINNED, pinnedParts(row.pinnedRefs));
  if (row.summaryRefs) parts.set(ContextSection.SUMMARIES, summariesOf(row).map(summaryPart));
  if (row.live) parts.set(ContextSection.SESSION_CONTEXT, digestParts(contextFromRow(row)));
  if (row.latestTurn) parts.set(ContextSection.LATEST_TURN, turnParts(turnFromRow(rowFromJson(row.latestTurn))));
  if (row.memories) parts.set(ContextSection.MEMORIES, row.memories.map(memoryPart));
  if (row.profile) parts.set(ContextSection.PROFILE, profileParts(present(row.profile)));
  if (row.projectProfile) parts.set(ContextSection.PROJECT_PROFILE, [projectPart(rowFromJson(row.projectProfile))]);
  if (row.drafts)
    parts.set(
      ContextSection.DRAFTS,
      row.drafts.map((draft) => draftPart(rowFromJson(draft))),
    );
  return parts;
}

/** All of them or none, as compact JSON. */
function preferenceParts(preferences: JsonObject): Part[] {
  if (Object.keys(preferences).length === 0) return [];
  const put = (context: Context) => {
    context.preferences = preferences;
  };
  return [part([JSON.stringify(preferences)], put, Struct.encode(preferences).finish().length)];
}

/** The name and how to reach the person first, the address as a whole, then each preference, product and service. */
function profileParts(entries: Entry[]): Part[] {
  const profile = (context: Context) => {
    context.profile ??= Profile.fromPartial({});
    return context.profile;
  };
  const texts = (['name', 'email', 'phone'] as const).flatMap((field) => {
    const text = textOf(entries, field);
    return text ? part([text], (context) => Object.assign(profile(context), { [field]: text })) : [];
  });
  const { address } = profileFields(entries);
  const preferences = itemsOf(entries, 'preferences').map(({ item, value }) => {
    const one = { [item]: value };
    const put = (context: Context) => {
      profile(context).preferences = { ...profile(context).preferences, ...one };
    };
    return part([JSON.stringify(one)], put, Struct.encode(one).finish().length);
  });
  const lists = LISTS.flatMap((field) =>
    itemsOf(entries, field).map(({ value }) =>
      part([String(value)], (context) => profile(context)[field].push(String(value))),
    ),
  );
  const living = address
    ? part(nonEmpty(Object.values(address)), (context) => Object.assign(profile(context), { address }))
    : [];
  return [...texts, living, preferences, lists].flat();
}

/** The newest first. */
function pinnedParts(rows: Record<string, unknown>[]): Part[] {
  const refs = rows.map((row) => PinnedRef.fromPartial(rowFromJson(row)));
  return newestFirst(refs, (ref) => ref.pinTime).map((ref) =>
    part([ref.text, ref.uri], (context) => context.pinnedRefs.push(ref), Buffer.byteLength(ref.id)),
  );
}

/** The one that covers most first, then the newest. */
export function summariesOf(row: ContextRow): SummaryRef[] {
  const refs = (row.summaryRefs ?? []).map((ref) => SummaryRef.fromPartial(rowFromJson(ref)));
  return newestFirst(refs, (ref) => ref.createTime).sort((a, b) => b.throughSeq - a.throughSeq);
}

const summaryPart = (ref: SummaryRef): Part =>
  part([ref.text, ref.uri], (context) => context.summaries.push(ref), Buffer.byteLength(ref.id));

type Time = { seconds: number; nanos: number } | undefined;

/** By time, and else the later in the list first, as new refs come last there. */
function newestFirst<T>(list: T[], timeOf: (element: T) => Time): T[] {
  const nanos = (time: Time) => time?.nanos ?? 0;
  const seconds = (time: Time) => time?.seconds ?? 0;
  return [...list].reverse().sort((a, b) => {
    const [one, other] = [timeOf(a), timeOf(b)];
    return seconds(other) - seconds(one) || nanos(other) - nanos(one);
  });
}

/** Decisions, then files, memories and searches, of each the newest first. What is compressed is only counted. */
function digestParts(live: SessionContext): Part[] {
  const { compressedCount, sizeBytes } = live;
  const digest = (context: Context) => {
    context.sessionContext ??= {
      filesAccessed: [],
      fileImportanceScores: new Map(),
      recentSearches: [],
      decisions: [],
      savedMemories: [],
      compressed: [],
      compressedCount,
      sizeBytes,
    };
    return context.sessionContext;
  };
  return [
    ...live.decisions.map((decision) => part([decision.text], (context) => digest(context).decisions.push(decision))),
    ...live.filesAccessed.map((path) =>
      part(
        [path],
        (context) => {
          digest(context).filesAccessed.push(path);
          digest(context).fileImportanceScores.set(path, live.fileImportanceScores.get(path) ?? 0);
        },
        Buffer.byteLength(path),
      ),
    ),
    ...live.savedMemories.map((memory) => part([memory.key], (context) => digest(context).savedMemories.push(memory))),
    ...live.recentSearches.map((query) => part([query], (context) => digest(context).recentSearches.push(query))),
  ];
}

function memoryPart(row: MemoryRow): Part {
  const { projectId, createdBy, updatedBy, metadata } = row;
  const ids = [projectId, createdBy, updatedBy].reduce((sum, id) => sum + Buffer.byteLength(id), 0);
  const put = (context: Context) => context.memories.push(memoryFromRow(row));
  return part([row.key, row.value], put, ids + Struct.encode(metadata).finish().length);
}

const projectPart = (row: ProfileRow): Part =>
  part(
    [row.yaml!],
    (context) => {
      context.projectProfile = profileFromRow(row);
    },
    Buffer.byteLength(row.projectId + row.createdBy),
  );

const draftPart = (row: RevisionRow): Part =>
  part(
    [row.sectionId, row.content!],
    (context) => context.drafts.push(revisionFromRow(row)),
    Buffer.byteLength(row.projectId + row.createdBy),
  );

const nonEmpty = (texts: (string | undefined)[]): string[] => texts.filter((text): text is string => Boolean(text));

/** Its fields one by one: what was asked and answered first, how it was thought of last. */
function turnParts(turn: Turn): Part[] {
  const { id, sessionId, firstSeq, lastSeq, createTime } = turn;
  const results = turn.results.map(({ taskId, payloadJson }) => [taskId, payloadJson.toString()]);
  const texts: Partial<Record<keyof Turn, (string | undefined)[]>> = {
    query: [turn.query],
    response: [turn.response],
    intent: [turn.intent?.value, turn.intent?.reasoning],
    tasks: turn.tasks.flatMap((task) => [task.id, task.type, task.status, ...task.dependsOn]),
    report: [turn.report?.reportPath, turn.report?.summary, ...(turn.report?.previews ?? [])],
    results: results.flat(),
    plannerReasoning: [turn.plannerReasoning],
    reflection: [turn.reflection],
  };
  return Object.entries(texts).flatMap(([field, all]) => {
    const counted = nonEmpty(all);
    if (counted.length === 0) return [];
    return part(counted, (context) => {
      context.latestTurn ??= Turn.fromPartial({ id, sessionId, firstSeq, lastSeq, createTime });
      Object.assign(context.latestTurn, { [field]: turn[field as keyof Turn] });
    });
  });
}

import type { Turn } from '../gen/memory/v1/turn.ts';
import type { Check } from '../rpc/validate.ts';
import { fitted, leastOf, type Summary, summaryOf } from './summary.ts';
import { clip, clipBytes, jsonBytes, shares } from './text.ts';

/** What is stored of a turn, by the names of the columns. */
export interface TurnRecord {
  query: string;
  response: string;
  intent: { value: string; reasoning: string; confidence: number } | null;
  planner_reasoning: string;
  reflection: string;
  tasks: TaskRecord[];
  results: { task_id: string; data: Summary }[];
  report: { report_path: string; summary: string; previews: string[] } | null;
  /** The fields that are not whole. Of a result, its summary says so itself. */
  truncated: string[];
}

interface TaskRecord {
  id: string;
  type?: string;
  status?: string;
  depends_on?: string[];
}

const KIB = 1024;
const MAX_LISTED = 100;

/** Bytes of all that is stored of a turn, beyond query and response, as the table's constraint counts them. */
export const RECORD_BYTES = 16 * KIB - 1;
const RESULT_BYTES = 6 * KIB;
const TEXT_LENGTH = 2000;
const MAX_PREVIEWS = 5;
const PREVIEW_LENGTH = 500;
const TRUNCATED_BYTES = 200;

export function checkTurn(check: Check, field: string, turn: Turn): void {
  const bytes = (name: string, value: string, kib: number) => {
    check.text(`${field}.${name}`, value, Number.POSITIVE_INFINITY);
    check.that(Buffer.byteLength(value) <= kib * KIB, `${field}.${name}`, `over ${kib} KiB`);
  };
  bytes('query', turn.query, 64);
  bytes('response', turn.response, 256);
  bytes('planner_reasoning', turn.plannerReasoning, 16);
  bytes('reflection', turn.reflection, 16);
  if (turn.intent) {
    check.text(`${field}.intent.value`, turn.intent.value, 200);
    bytes('intent.reasoning', turn.intent.reasoning, 16);
    check.range(`${field}.intent.confidence`, turn.intent.confidence, 0, 1);
  }
  if (check.count(`${field}.tasks`, turn.tasks, MAX_LISTED)) checkTasks(check, `${field}.tasks`, turn.tasks);
  if (check.count(`${field}.results`, turn.results, MAX_LISTED)) {
    turn.results.forEach((result, i) => {
      check.id(`${field}.results[${i}].task_id`, result.taskId);
      check.that(result.payloadJson.length > 0, `${field}.results[${i}].payload_json`, 'required');
    });
  }
  if (turn.report) {
    check.text(`${field}.report.report_path`, turn.report.reportPath, 1024, 1);
    bytes('report.summary', turn.report.summary, 16);
    if (check.count(`${field}.report.previews`, turn.report.previews, 20)) {
      turn.report.previews.forEach((preview, i) => {
        check.text(`${field}.report.previews[${i}]`, preview, Number.POSITIVE_INFINITY);
      });
    }
  }
}

function checkTasks(check: Check, field: string, tasks: Turn['tasks']): void {
  const ids = new Map(tasks.map(({ id }, i) => [id, i]));
  tasks.forEach((task, i) => {
    check.id(`${field}[${i}].id`, task.id);
    check.that(ids.get(task.id) === i, `${field}[${i}].id`, 'used twice in the turn');
    check.text(`${field}[${i}].type`, task.type, 128);
    check.text(`${field}[${i}].status`, task.status, 64);
    if (!check.count(`${field}[${i}].depends_on`, task.dependsOn, MAX_LISTED)) return;
    task.dependsOn.forEach((id, j) => {
      check.id(`${field}[${i}].depends_on[${j}]`, id);
      check.that(ids.has(id), `${field}[${i}].depends_on[${j}]`, 'not a task of the turn');
    });
  });
  if (tasks.some((task) => task.dependsOn.length > MAX_LISTED)) return;
  for (const i of inCircles(tasks)) check.that(false, `${field}[${i}].depends_on`, 'waits for itself, in a circle');
}

/** The tasks that never come up if each one waits for those that it depends on. */
function inCircles(tasks: Turn['tasks']): number[] {
  const known = new Set(tasks.map(({ id }) => id));
  const done = new Set<string>();
  let waiting = tasks.map((task, i) => ({ ...task, i }));
  for (let before = -1; before !== waiting.length; ) {
    before = waiting.length;
    for (const { id, dependsOn } of waiting) {
      if (dependsOn.every((other) => done.has(other) || !known.has(other))) done.add(id);
    }
    waiting = waiting.filter(({ id }) => !done.has(id));
  }
  return waiting.map(({ i }) => i);
}

const utf8Bytes = (text: string) => Buffer.byteLength(text);

/**
 * What to store of a turn: all of it if it is small. If it is not, texts get their 2,000 characters and previews theirs
 * first, in plain letters, and tasks and results share what is left. The same turn always gives the same record.
 */
export function recordOf(turn: Turn): TurnRecord {
  const { intent, report } = turn;
  const previews = report?.previews.slice(0, MAX_PREVIEWS).map((preview) => clip(preview, PREVIEW_LENGTH)) ?? [];
  const wanted: TurnRecord = {
    query: turn.query,
    response: turn.response,
    intent: intent ? { ...pick(intent), reasoning: clip(intent.reasoning, TEXT_LENGTH) } : null,
    planner_reasoning: clip(turn.plannerReasoning, TEXT_LENGTH),
    reflection: clip(turn.reflection, TEXT_LENGTH),
    tasks: turn.tasks.map(taskRecord),
    results: turn.results.map((result) => ({
      task_id: result.taskId,
      data: fitted(summaryOf(Buffer.from(result.payloadJson)), RESULT_BYTES),
    })),
    report: report ? { report_path: report.reportPath, summary: clip(report.summary, TEXT_LENGTH), previews } : null,
    truncated: [],
  };
  const record = withinBytes(wanted);
  record.truncated = truncatedOf(turn, record);
  return record;
}

const pick = ({ value, confidence }: NonNullable<Turn['intent']>) => ({ value, confidence });

function taskRecord({ id, type, status, dependsOn }: Turn['tasks'][number]): TaskRecord {
  return {
    id,
    ...(type && { type }),
    ...(status && { status }),
    ...(dependsOn.length > 0 && { depends_on: dependsOn }),
  };
}

/** The bytes of a record beyond query and response. */
export function recordBytes(record: Omit<TurnRecord, 'query' | 'response'>): number {
  const { intent, planner_reasoning, reflection, tasks, results, report, truncated } = record;
  const json = [intent, report].filter((value) => value !== null);
  const all = [...json, tasks, results, truncated].reduce<number>((sum, value) => sum + jsonBytes(value), 0);
  return all + utf8Bytes(planner_reasoning) + utf8Bytes(reflection);
}

function withinBytes(wanted: TurnRecord): TurnRecord {
  const { intent, report } = wanted;
  const bare: TurnRecord = {
    ...wanted,
    intent: intent && { ...intent, reasoning: '' },
    report: report && { ...report, summary: '', previews: [] },
    planner_reasoning: '',
    reflection: '',
    tasks: [],
    results: [],
  };
  // Weights are the bytes that each gets when all want more.
  const wants = [
    { want: intent ? jsonBytes(intent.reasoning) : 0, weight: 2050 },
    { want: utf8Bytes(wanted.planner_reasoning), weight: 2050 },
    { want: utf8Bytes(wanted.reflection), weight: 2050 },
    { want: report ? jsonBytes(report.summary) : 0, weight: 2050 },
    { want: report ? jsonBytes(report.previews) : 0, weight: 2600 },
    { want: jsonBytes(wanted.tasks), weight: 2000 },
    { want: jsonBytes(wanted.results), weight: 3000 },
  ];
  const granted = shares(RECORD_BYTES - TRUNCATED_BYTES - recordBytes(bare), wants);
  const [reasoning, planner, reflection, summary, previews, tasks, results] = granted as [
    number,
    number,
    number,
    number,
    number,
    number,
    number,
  ];
  return {
    ...wanted,
    intent: intent && { ...intent, reasoning: clipBytes(intent.reasoning, reasoning, jsonBytes) },
    planner_reasoning: clipBytes(wanted.planner_reasoning, planner, utf8Bytes),
    reflection: clipBytes(wanted.reflection, reflection, utf8Bytes),
    report: report && {
      ...report,
      summary: clipBytes(report.summary, summary, jsonBytes),
      previews: fittedTexts(report.previews, previews),
    },
    tasks: fittedTasks(wanted.tasks, tasks),
    results: fittedResults(wanted.results, results),
  };
}

function fittedTexts(texts: string[], most: number): string[] {
  const parts = shares(
    most,
    texts.map((text) => ({ want: jsonBytes(text) + 2, weight: 1 })),
  );
  return texts.map((text, i) => clipBytes(text, parts[i]! - 2, jsonBytes));
}

/** All tasks if they fit; else without what they depend on, and then only the first. */
function fittedTasks(tasks: TaskRecord[], most: number): TaskRecord[] {
  if (jsonBytes(tasks) <= most) return tasks;
  const alone = tasks.map(({ depends_on: _, ...task }) => task);
  return alone.slice(
    0,
    countWithin(
      alone.map((task) => jsonBytes(task) + 2),
      most,
    ),
  );
}

/** As many results as have room for the least of a summary, and what is left shared among them. */
function fittedResults(results: TurnRecord['results'], most: number): TurnRecord['results'] {
  const least = results.map(({ task_id, data }) => {
    const whole = jsonBytes({ task_id, data });
    return Math.min(whole, jsonBytes({ task_id, data: leastOf(data) })) + 2;
  });
  const kept = results.slice(0, countWithin(least, most));
  const spare = most - least.slice(0, kept.length).reduce((sum, bytes) => sum + bytes, 0);
  const more = shares(
    spare,
    kept.map(({ task_id, data }, i) => ({ want: jsonBytes({ task_id, data }) + 2 - least[i]!, weight: 1 })),
  );
  return kept.map(({ task_id, data }, i) => ({
    task_id,
    data: fitted(data, least[i]! + more[i]! - 2 - jsonBytes({ task_id, data: 0 }) + 1),
  }));
}

function countWithin(sizes: number[], most: number): number {
  let sum = 0;
  const first = sizes.findIndex((size) => {
    sum += size;
    return sum > most;
  });
  return first < 0 ? sizes.length : first;
}

function truncatedOf(turn: Turn, record: TurnRecord): string[] {
  const { intent, report } = turn;
  const same = (a: string[] | undefined, b: string[] | undefined) => JSON.stringify(a) === JSON.stringify(b);
  const edges = (tasks: { depends_on?: string[] }[]) => tasks.some((task) => task.depends_on !== undefined);
  const cut: Record<string, boolean> = {
    'intent.reasoning': intent?.reasoning !== record.intent?.reasoning,
    planner_reasoning: turn.plannerReasoning !== record.planner_reasoning,
    reflection: turn.reflection !== record.reflection,
    tasks: turn.tasks.length > record.tasks.length,
    'tasks.depends_on': turn.tasks.some((task) => task.dependsOn.length > 0) && !edges(record.tasks),
    results: turn.results.length > record.results.length,
    'report.summary': report?.summary !== record.report?.summary,
    'report.previews': !same(report?.previews, record.report?.previews),
  };
  return Object.keys(cut).filter((field) => cut[field]);
}

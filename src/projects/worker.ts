import { parentPort } from 'node:worker_threads';
import { unifiedDiffs } from '../drafts/diff.ts';
import { readDocument } from './document.ts';
import { mergeDocuments } from './merge.ts';

// The thread that reads, merges and compares documents.

const JOBS = {
  check: (yaml: string) => readDocument(yaml).faults ?? [],
  merge: mergeDocuments,
  diff: unifiedDiffs,
};

export type Jobs = typeof JOBS;
/** What a job gave, or the name of the error that it failed with: never its text, which may quote a document. */
export type Answer = { answer: unknown } | { failure: string };
export type Order = { [Name in keyof Jobs]: { job: Name; given: Parameters<Jobs[Name]> } }[keyof Jobs];

parentPort!.on('message', ({ job, given }: Order) => {
  const work = JOBS[job] as (...given: unknown[]) => unknown;
  let answer: Answer;
  try {
    answer = { answer: work(...given) };
  } catch (error) {
    answer = { failure: (error as Error).name };
  }
  parentPort!.postMessage(answer);
});

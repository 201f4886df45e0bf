import { createTwoFilesPatch } from 'diff';

/** Lines that are taken out or put in. Finding so many takes a quarter of a second at most; ten times as many take minutes. */
const MAX_EDITS = 2000;
const MAX_MS = 1000;
const MAX_BYTES = 256 * 1024;

export interface Diff {
  text: string;
  /** It is not whole. */
  truncated: boolean;
}

/** Of each pair of texts how they differ: see {@link unifiedDiff}. */
export const unifiedDiffs = (pairs: [string, string][], names: [string, string]): Diff[] =>
  pairs.map(([before, after]) => unifiedDiff(before, after, names));

/** How two texts differ, as a unified diff, or '' if they do not. If too much has changed, all lines are replaced. */
function unifiedDiff(before: string, after: string, names: [string, string]): Diff {
  if (before === after) return { text: '', truncated: false };
  const options = { context: 3, maxEditLength: MAX_EDITS, timeout: MAX_MS };
  const patch = createTwoFilesPatch(...names, before, after, undefined, undefined, options);
  return cut(patch?.replace(/^=+\n/, '') ?? replaced(before, after, names));
}

function replaced(before: string, after: string, [from, to]: [string, string]): string {
  const [gone, come] = [linesOf(before), linesOf(after)];
  const range = (lines: string[]) => `${lines.length ? 1 : 0},${lines.length}`;
  const marked = (lines: string[], mark: string) =>
    lines.map((line) => `${mark}${line}${line.endsWith('\n') ? '' : '\n\\ No newline at end of file\n'}`).join('');
  return `--- ${from}\n+++ ${to}\n@@ -${range(gone)} +${range(come)} @@\n${marked(gone, '-')}${marked(come, '+')}`;
}

const linesOf = (text: string): string[] => text.match(/[^\n]*\n|[^\n]+$/g) ?? [];

/** Whole lines, as many as may be kept. */
function cut(text: string): Diff {
  const bytes = Buffer.from(text);
  if (bytes.length <= MAX_BYTES) return { text, truncated: false };
  const end = bytes.lastIndexOf('\n', MAX_BYTES - 1) + 1;
  return { text: bytes.toString('utf8', 0, end), truncated: true };
}

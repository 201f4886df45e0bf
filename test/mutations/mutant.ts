/** A known bug. */
export interface Mutant {
  /** What the service would do. */
  bug: string;
  /** Each text must be found exactly once, so that a mutant says when the code has moved on without it. */
  edits: { file: string; find: string; replace: string }[];
  /**
   * The test files of which at least one test must fail, without `.test.ts`: `file`, or of one `file: part of the title` of the
   * tests to run, where all of it take long.
   */
  caughtBy: string[];
}

/** A mutant of one edit. */
export const mutant = (bug: string, file: string, find: string, replace: string, ...caughtBy: string[]): Mutant => ({
  bug,
  edits: [{ file, find, replace }],
  caughtBy,
});

/** The end of what a failed installation said, on one line. */
const LAST = 400;

/** What cannot be installed cannot be tried: in CI that is a failure, as else nobody would ever see it; elsewhere it is told. */
export function missing(what: string, why: string): void {
  const told = `${what} cannot be installed: ${why.trim().replace(/\s+/g, ' ').slice(-LAST) || 'it does not say why'}`;
  if (process.env.CI) throw new Error(told);
  console.log(`skipped: ${told}`);
}

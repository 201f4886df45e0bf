const MOST = 400;

/** What cannot be installed cannot be tried: in CI that is a failure, as else nobody would ever see it; elsewhere it is told. */
export function missing(what: string, said: string): void {
  const lines = said.split('\n').filter((line) => line.trim() !== '' && !/^npm (?:warn|notice)/.test(line));
  const why = lines.join(' ').replace(/\s+/g, ' ').slice(0, MOST) || 'it does not say why';
  const told = `${what} cannot be installed: ${why}`;
  if (process.env.CI) throw new Error(told);
  console.log(`skipped: ${told}`);
}

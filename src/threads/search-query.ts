/** A word, a phrase in quotes or one whose quote was never closed, each perhaps with a minus before it. */
const TERM = /(-?)(?:"([^"]*)"?|([^\s"]+))/gu;

/**
 * What a user typed, in the syntax of to_tsquery: every word and phrase quoted, operators only of our own making, so that
 * nothing in it can be a syntax error or more than a word. Empty if there is nothing to look for.
 */
export function searchWords(query: string): string {
  const alternatives = [new Set<string>()];
  for (const [term, minus, phrase, word = ''] of query.matchAll(TERM)) {
    if (term === 'OR') {
      alternatives.push(new Set());
      continue;
    }
    const text = phrase ?? word.replace(/\*+$/, '');
    if (!text.trim()) continue;
    const quoted = `'${text.replace(/['\\]/g, '$&$&')}'`;
    alternatives.at(-1)!.add(`${minus && '!'}${quoted}${text === word || phrase !== undefined ? '' : ':*'}`);
  }
  return alternatives
    .filter((terms) => terms.size > 0)
    .map((terms) => [...terms].join(' & '))
    .join(' | ');
}

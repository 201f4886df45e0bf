/** A word, a phrase in quotes or one whose quote was never closed, each perhaps with a minus before it. */
const TERM = /(-?)(?:"([^"]*)"?|([^\s"]+))/gu;

/** A word that may be misspelt: letters alone, as many as leave something to compare. */
const CORRECTABLE = /^\p{L}{4,40}$/u;

interface Term {
  text: string;
  excluded: boolean;
  prefix: boolean;
  /** In quotes: meant as it is. */
  phrase: boolean;
}

/** What a user typed: alternatives of terms. */
function alternativesOf(query: string): Term[][] {
  const alternatives: Term[][] = [[]];
  for (const [term, minus, phrase, word = ''] of query.matchAll(TERM)) {
    if (term === 'OR') {
      alternatives.push([]);
      continue;
    }
    const text = phrase ?? word.replace(/\*+$/, '');
    const of = {
      text,
      excluded: minus !== '',
      prefix: phrase === undefined && text !== word,
      phrase: phrase !== undefined,
    };
    if (text.trim()) alternatives.at(-1)!.push(of);
  }
  return alternatives.filter((terms) => terms.length > 0);
}

const isCorrectable = ({ text, excluded, prefix, phrase }: Term) =>
  !excluded && !prefix && !phrase && CORRECTABLE.test(text);

/** The words of a query, in small letters, that others may have been meant by. */
export function correctableWords(query: string): string[] {
  const words = alternativesOf(query).flat().filter(isCorrectable);
  return [...new Set(words.map(({ text }) => text.toLowerCase()))];
}

const quoted = (text: string) => `'${text.replace(/['\\]/g, '$&$&')}'`;

/**
 * What a user typed, in the syntax of to_tsquery: every word and phrase quoted, operators only of our own making, so that
 * nothing in it can be a syntax error or more than a word. Empty if there is nothing to look for. With `likely`, each
 * word stands for those as well that may have been meant.
 */
export function searchWords(query: string, likely = new Map<string, string[]>()): string {
  const written = (term: Term) => {
    const word = `${term.excluded ? '!' : ''}${quoted(term.text)}${term.prefix ? ':*' : ''}`;
    const meant = isCorrectable(term) ? (likely.get(term.text.toLowerCase()) ?? []) : [];
    return meant.length > 0 ? `(${[word, ...meant.map(quoted)].join(' | ')})` : word;
  };
  return alternativesOf(query)
    .map((terms) => [...new Set(terms.map(written))].join(' & '))
    .join(' | ');
}

import { randomBytes } from 'node:crypto';
import type { Snippet } from '../gen/memory/v1/snippet.ts';

/** How ts_headline is told to mark what matches, and how its headlines become snippets. */
export interface Marks {
  options: string;
  snippetsOf(headline: string): Snippet[];
}

/** Marks that no text can hold by itself, as nobody knows them beforehand. */
export function makeMarks(): Marks {
  const mark = randomBytes(16).toString('hex');
  return {
    options: `StartSel=${mark}[, StopSel=${mark}], FragmentDelimiter=${mark}|, MaxFragments=3, MinWords=5, MaxWords=20, ShortWord=0`,
    snippetsOf: (headline) => snippets(headline, mark),
  };
}

function snippets(headline: string, mark: string): Snippet[] {
  return headline.split(`${mark}|`).map((passage) => {
    const [before = '', ...rest] = passage.split(`${mark}[`);
    const pieces = rest.flatMap((part) => {
      const [match = '', between = ''] = part.split(`${mark}]`);
      return [
        { text: match, match: true },
        { text: between, match: false },
      ];
    });
    const whole = [{ text: before, match: false }, ...pieces].filter((piece) => piece.text);
    return { pieces: whole.map(({ text, match }) => ({ text: shortened(text), match })) };
  });
}

const MAX_PIECE = 300;

/** A word may be as long as a message. */
function shortened(text: string): string {
  const characters = [...text];
  if (characters.length <= MAX_PIECE) return text;
  const half = MAX_PIECE / 2;
  return `${characters.slice(0, half - 1).join('')}…${characters.slice(-half).join('')}`;
}

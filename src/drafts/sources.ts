import type { DraftPrompt, DraftSource } from '../gen/memory/v1/draft.ts';
import type { Check } from '../rpc/validate.ts';

const MAX_SOURCES = 500;
const MAX_PROMPTS = 50;
const TOGETHER_BYTES = 256 * 1024;
const PROMPT_BYTES = 64 * 1024;

/** A source as it is stored: what it comes from, and the texts that are not empty. */
export interface StoredSource {
  passage?: string;
  inputId?: string;
  messageId?: string;
  uri?: string;
  locator?: string;
  quote?: string;
}

export function checkSources(check: Check, sources: readonly DraftSource[]): void {
  if (!check.count('sources', sources, MAX_SOURCES)) return;
  sources.forEach(({ passage, source, locator, quote }, i) => {
    const field = `sources[${i}]`;
    check.text(`${field}.passage`, passage, 500);
    check.that(source !== undefined, `${field}.source`, 'required');
    if (source?.$case === 'inputId') check.uuid(`${field}.input_id`, source.value);
    if (source?.$case === 'messageId') check.uuid(`${field}.message_id`, source.value);
    if (source?.$case === 'uri') check.text(`${field}.uri`, source.value, 2048, 1);
    check.text(`${field}.locator`, locator, 200);
    check.text(`${field}.quote`, quote, 2000);
  });
  checkTogether(check, 'sources', sources);
}

export function checkPrompts(check: Check, prompts: readonly DraftPrompt[]): void {
  if (!check.count('prompts', prompts, MAX_PROMPTS)) return;
  prompts.forEach(({ name, version, text }, i) => {
    check.text(`prompts[${i}].name`, name, 128, 1);
    check.text(`prompts[${i}].version`, version, 64);
    if (text) check.content(`prompts[${i}].text`, text, PROMPT_BYTES);
  });
  checkTogether(check, 'prompts', prompts);
}

function checkTogether(check: Check, field: string, list: readonly unknown[]): void {
  const fits = Buffer.byteLength(JSON.stringify(list)) <= TOGETHER_BYTES;
  check.that(fits, field, `over ${TOGETHER_BYTES / 1024} KiB together`);
}

export function storedSource({ passage, source, locator, quote }: DraftSource): StoredSource {
  return {
    ...(passage && { passage }),
    ...(source && { [source.$case]: source.$case === 'uri' ? source.value : source.value.toLowerCase() }),
    ...(locator && { locator }),
    ...(quote && { quote }),
  };
}

export function sourceFromStored({ passage = '', locator = '', quote = '', ...from }: StoredSource): DraftSource {
  const { inputId, messageId, uri } = from;
  const source: DraftSource['source'] = inputId
    ? { $case: 'inputId', value: inputId }
    : messageId
      ? { $case: 'messageId', value: messageId }
      : { $case: 'uri', value: uri! };
  return { passage, source, locator, quote };
}

/** The sources as a text of a line each, to tell how they differ. */
export const sourcesText = (sources: readonly StoredSource[]): string =>
  sources.map((source) => `${lineOf(source)}\n`).join('');

function lineOf({ passage = '', inputId, messageId, uri, locator, quote }: StoredSource): string {
  const from = inputId ? `input ${inputId}` : messageId ? `message ${messageId}` : `uri ${JSON.stringify(uri)}`;
  const place = locator ? ` at ${JSON.stringify(locator)}` : '';
  return `${JSON.stringify(passage)} from ${from}${place}${quote ? ` quoting ${JSON.stringify(quote)}` : ''}`;
}

import { once } from 'node:events';
import { reader } from '../db/transaction.ts';
import { type Usage, UsageDimension } from '../gen/memory/v1/usage.ts';
import { positionOf, readUsage } from '../usage/report.ts';
import { checkUsageFilter } from '../usage/validate.ts';
import { checked, direct } from './direct.ts';
import { visible } from './telling.ts';
import { existing } from './tenants.ts';

export interface UsageOptions {
  tenant: string;
  env: string;
  by: string[];
  from: string;
  to: string;
  user: string;
  session: string;
  project: string;
  provider: string;
  model: string;
}

const PAGE = 500;

/** The columns that tell what a row is of, by the names of the dimensions. */
const KEYS: Record<string, [UsageDimension, keyof Usage]> = {
  session: [UsageDimension.SESSION, 'sessionId'],
  user: [UsageDimension.USER, 'userId'],
  project: [UsageDimension.PROJECT, 'projectId'],
  day: [UsageDimension.DAY, 'day'],
  provider: [UsageDimension.PROVIDER, 'provider'],
  model: [UsageDimension.MODEL, 'model'],
};
const FIGURES: [heading: string, figure: keyof Usage][] = [
  ['requests', 'requests'],
  ['prompt tokens', 'promptTokens'],
  ['cached', 'cachedTokens'],
  ['completion tokens', 'completionTokens'],
  ['cost', 'cost'],
];

/** Reads all pages and tells them: to people at once, since columns are as wide as what is in them, to programs row by row. */
export async function tellUsage(options: UsageOptions, out: NodeJS.WriteStream = process.stdout): Promise<void> {
  const { tenant, env, by, user, session, project, provider, model, from, to } = options;
  const filter = {
    userId: user,
    sessionId: session.toLowerCase(),
    projectId: project,
    provider,
    model,
    startDay: from,
    endDay: to,
  };
  const groupBy = by.map((name) => KEYS[name]![0]);
  await direct(async (context) => {
    checked((check) => checkUsageFilter(check, filter));
    await existing(context, tenant, env);
    const db = reader(context.database, { tenant, env, user: '' }, context.limits);
    const rows: Usage[] = [];
    for (let after: string[] | undefined; ; ) {
      const page = await readUsage(db, groupBy, filter, after, PAGE);
      if (out.isTTY) rows.push(...page);
      else for (const usage of page) if (!out.write(`${jsonLine(by, usage)}\n`)) await once(out, 'drain');
      if (page.length < PAGE || by.length === 0) break;
      after = positionOf(groupBy, page.at(-1)!);
    }
    if (out.isTTY) out.write(table(by, rows));
  });
}

function jsonLine(by: string[], usage: Usage): string {
  const { requests, promptTokens, cachedTokens, completionTokens, totalTokens, cost, latencyMs } = usage;
  const keys = Object.fromEntries(by.map((name) => [name, usage[KEYS[name]![1]]]));
  return visible(
    JSON.stringify({ ...keys, requests, promptTokens, cachedTokens, completionTokens, totalTokens, cost, latencyMs }),
  );
}

/** Text to the left, figures to the right, by the columns that a terminal gives to each. */
export function table(by: string[], rows: Usage[]): string {
  const heads = [...by, ...FIGURES.map(([heading]) => heading)];
  const keys = by.map((name) => KEYS[name]![1]);
  const cells = rows.map((usage) => [
    ...keys.map((key) => visible(String(usage[key]) || '–').replace(/[\n\t]/g, ' ')),
    ...FIGURES.map(([, figure]) => grouped(String(usage[figure]))),
  ]);
  const widths = heads.map((head, i) => Math.max(...[head, ...cells.map((row) => row[i]!)].map(width)));
  const line = (row: string[]) =>
    row
      .map((cell, i) => {
        const space = ' '.repeat(widths[i]! - width(cell));
        return i < by.length ? cell + space : space + cell;
      })
      .join('  ')
      .trimEnd();
  return `${[line(heads), line(widths.map((n) => '─'.repeat(n))), ...cells.map(line)].join('\n')}\n`;
}

const grouped = (figure: string) => figure.replace(/\B(?=(\d{3})+(?!\d))(?<!\.\d*)/g, ',');

const letters = new Intl.Segmenter(undefined, { granularity: 'grapheme' });
const WIDE =
  /^[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]|\p{Emoji_Presentation}/u;

/** How many columns of a terminal a text takes. */
const width = (text: string): number =>
  [...letters.segment(text)].reduce((sum, { segment }) => sum + (WIDE.test(segment) ? 2 : 1), 0);

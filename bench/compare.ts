import type { Field } from './field.ts';
import type { Comparison, RatioBar } from './plan.ts';
import { type Bar, barOf } from './report.ts';
import { type PostgresCpu, type Round, type Row, ratio, runGroup, summarise } from './rounds.ts';

export interface Effort {
  /** Rounds of each group, and of those that a bar is about. */
  rounds: number;
  barRounds: number;
  ms: number;
}

/** Runs all comparisons, and judges the bars that are about them. */
export async function compareAll(
  postgresCpu: PostgresCpu,
  field: Field,
  comparisons: Comparison[],
  wanted: RatioBar[],
  effort: Effort,
  progress: (line: string) => void,
): Promise<{ rows: Row[]; bars: Bar[] }> {
  const rows: Row[] = [];
  const bars: Bar[] = [];
  for (const { operation, callers, contestants } of comparisons) {
    progress(`${operation}, ${callers} callers`);
    const about = wanted.filter((bar) => bar.operation === operation && bar.callers === callers);
    const rounds = about.length > 0 ? effort.barRounds : effort.rounds;
    const taking = contestants.flatMap((name) => field.get(name) ?? []);
    const group = { operation, callers, contestants: taking, rounds, ms: effort.ms };
    const results = await runGroup(postgresCpu, group);
    rows.push(...taking.map(({ name }) => summarise(group, name, results.get(name))));
    bars.push(...about.map((bar) => judge(bar, results)));
  }
  return { rows, bars };
}

/** Against the best of those that it is held against, if they are several. */
function judge(wanted: RatioBar, results: Map<string, Round[]>): Bar {
  const { name, callers, of, figure, to, toFigure, sense, bar } = wanted;
  const others = to.map((other) => results.get(other)).filter((rounds) => rounds !== undefined);
  const ratios = others.map((other) => ratio(results.get(of)!, figure, other, toFigure));
  const best = sense === 'at most' ? Math.max(...ratios) : Math.min(...ratios);
  return barOf(`${name}, ${callers} callers`, best, sense, bar);
}

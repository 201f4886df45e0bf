import type { Row } from './rounds.ts';

export interface Bar {
  name: string;
  value: number;
  bar: number;
  holds: boolean;
}

/** A figure that should be at most, or at least, so much. */
export const barOf = (name: string, value: number, sense: 'at most' | 'at least', bar: number): Bar => ({
  name: `${name}, ${sense}`,
  value: round(value),
  bar,
  holds: sense === 'at most' ? value <= bar : value >= bar,
});

const round = (value: number): number => Number(value.toPrecision(4));

export function roundedRow(row: Row): Row {
  const rounded = (value: unknown) => (typeof value === 'number' ? round(value) : value);
  return Object.fromEntries(Object.entries(row).map(([name, value]) => [name, rounded(value)])) as unknown as Row;
}

/** The rows as a table, groups apart, with what each costs in CPU as a multiple of the echo's. */
export function table(rows: Row[]): string {
  const lines: string[][] = [
    [
      'operation',
      'callers',
      '',
      'calls/s',
      'p50 ms',
      'p95 ms',
      'p99 ms',
      'CPU µs/call',
      '× echo',
      'Postgres µs/call',
      'RSS MB',
      'others %',
    ],
  ];
  let group = '';
  for (const row of rows) {
    const { operation, callers, contestant } = row;
    const echo = rows.find(
      (other) => other.operation === operation && other.callers === callers && other.contestant === 'echo',
    );
    const opens = group !== `${operation} ${callers}`;
    group = `${operation} ${callers}`;
    lines.push([
      opens ? operation : '',
      opens ? String(callers) : '',
      contestant,
      Number.isNaN(row.perSecond) ? 'cut off' : row.perSecond.toFixed(row.perSecond < 100 ? 1 : 0),
      ...[row.p50Ms, row.p95Ms, row.p99Ms].map((ms) => figure(ms, 2)),
      figure(row.cpuMicros, 0),
      figure(echo && row.cpuMicros / echo.cpuMicros, 2),
      figure(row.postgresCpuMicros, 0),
      figure(row.rssMb, 0),
      figure(row.othersPercent, 0),
    ]);
  }
  return aligned(lines, 3);
}

/** Nothing for what is not known. */
const figure = (value: number | undefined, digits: number): string =>
  value === undefined || Number.isNaN(value) ? '' : value.toFixed(digits);

export function barTable(bars: Bar[]): string {
  const lines = bars.map(({ name, value, bar, holds }) => [
    name,
    String(value),
    String(bar),
    holds ? 'holds' : 'DOES NOT HOLD',
  ]);
  return aligned([['', 'value', 'bar', ''], ...lines], 1);
}

/** Columns of equal width; the first ones are text, and the others figures. */
function aligned(lines: string[][], texts: number): string {
  const widths = lines[0]!.map((_, column) => Math.max(...lines.map((line) => line[column]!.length)));
  return lines
    .map((line) =>
      line
        .map((cell, column) => (column < texts ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

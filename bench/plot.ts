import { LARGE } from './plan.ts';
import type { Row } from './rounds.ts';

const COLUMN = 520;
const LABEL = 120;
const BAR = 300;
const LINE = 18;
const GAP = 26;
const MARGIN = 20;
const TOP = 64;

const COLOURS: Record<string, string> = {
  memoryd: '#1f6feb',
  [LARGE]: '#79b8ff',
  echo: '#8c959f',
  pg: '#57606a',
  pgbench: '#424a53',
};
const OTHERS = '#c69026';

interface Group {
  title: string;
  rows: Row[];
}

/** Calls per second of each operation by its most callers, as an SVG of two columns. Each group has a scale of its own. */
export function drawing(rows: Row[]): string {
  const groups = groupsOf(rows);
  const heightOf = ({ rows }: Group) => rows.length * LINE + GAP + LINE;
  const half = groups.reduce((sum, group) => sum + heightOf(group), 0) / 2;
  let drawn = '';
  let column = 0;
  let y = TOP;
  let lowest = y;
  for (const group of groups) {
    if (column === 0 && y - TOP >= half) {
      column = 1;
      y = TOP;
    }
    drawn += groupAt(group, MARGIN + column * COLUMN, y);
    y += heightOf(group);
    lowest = Math.max(lowest, y);
  }
  const [width, height] = [2 * COLUMN + MARGIN, lowest];
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="12">
<title>Calls per second of each operation</title>
<rect width="100%" height="100%" fill="white"/>
<text x="${MARGIN}" y="30" font-size="18">Calls per second</text>
<text x="${MARGIN}" y="48" fill="#57606a">Side by side in one run on one machine. Longer is better; each group has a scale of its own.</text>
${drawn}</svg>
`;
}

function groupsOf(rows: Row[]): Group[] {
  const operations = [...new Set(rows.map(({ operation }) => operation))];
  return operations.map((operation) => {
    const all = rows.filter((row) => row.operation === operation);
    const callers = Math.max(...all.map((row) => row.callers));
    return { title: `${operation}, ${callers} callers`, rows: all.filter((row) => row.callers === callers) };
  });
}

function groupAt({ title, rows }: Group, x: number, y: number): string {
  const most = Math.max(...rows.map(({ perSecond }) => perSecond || 0));
  const bars = rows.map(({ contestant, perSecond }, i) => {
    const top = y + LINE * (i + 1) - 4;
    const width = ((perSecond || 0) / most) * BAR;
    const value = Number.isNaN(perSecond) ? 'cut off' : perSecond.toLocaleString('en', { maximumSignificantDigits: 3 });
    return `<text x="${x + LABEL - 8}" y="${top + 11}" text-anchor="end">${escaped(contestant)}</text>
<rect x="${x + LABEL}" y="${top}" width="${width.toFixed(1)}" height="${LINE - 4}" fill="${COLOURS[contestant] ?? OTHERS}"/>
<text x="${(x + LABEL + width + 6).toFixed(1)}" y="${top + 11}">${value}</text>
`;
  });
  return `<text x="${x}" y="${y + 4}" font-weight="bold">${escaped(title)}</text>\n${bars.join('')}`;
}

const escaped = (text: string): string => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;');

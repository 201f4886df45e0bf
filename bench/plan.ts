import { OPERATIONS, sized, type Threads } from './peer.ts';
import type { Figure } from './rounds.ts';
import { FAN_OUT } from './watch.ts';

/** An operation that some do side by side. */
export interface Comparison {
  operation: string;
  callers: number;
  contestants: string[];
}

/** What a figure should come to as a multiple of that of others, or of another figure, in the same rounds. */
export interface RatioBar {
  name: string;
  operation: string;
  callers: number;
  of: string;
  figure: Figure;
  to: string[];
  toFigure?: Figure;
  sense: 'at most' | 'at least';
  bar: number;
}

/** The most callers. */
export const MOST = 64;
/** Our service on a large database. */
export const LARGE = 'memoryd, large';
/** Our service for a tenant whose messages are read for profiles. */
export const READING = 'memoryd, reading';
/** Our service while another tenant makes all the noise that its quotas, or nothing but the bounds on any tenant, let it make. */
export const BESIDE_QUOTAS = 'memoryd, beside quotas';
export const BESIDE_NOISE = 'memoryd, beside noise';
/** Callers of the tenant that makes no noise. */
export const FEW = 4;
export const PEERS = ['mastra', 'langgraph', 'adk'];
/** With peers, callers are called workers: as many as there are. */
export const WORKERS = [1, 16];

export const SINGLE = ['GetSession', 'UpsertSession', 'AppendMessages', 'ListMessages'];
const TURNS = ['BeginTurn + ReleaseTurn', 'CommitTurn', 'BeginTurn + CommitTurn'];
/** What is measured on a large database as well. */
export const GROWING = ['GetSession', 'ListMessages', 'GetContext'];

const compare = (operations: string[], callers: number[], contestants: string[]): Comparison[] =>
  operations.flatMap((operation) =>
    callers.map((callers) => ({
      operation,
      callers,
      contestants: GROWING.includes(operation) && callers === MOST ? [...contestants, LARGE] : contestants,
    })),
  );

export const COMPARISONS: Comparison[] = [
  ...compare(['GetSession'], [1, 16, MOST], ['echo', 'memoryd', 'pg', 'pgbench']),
  ...compare(['AppendMessages'], [1, 16, MOST], ['echo', 'memoryd', READING, 'pg', 'pgbench']),
  ...compare(['UpsertSession', 'ListMessages'], [1, 16, MOST], ['echo', 'memoryd', 'pg']),
  ...compare(['GetContext'], [1, MOST], ['echo', 'memoryd', 'single calls']),
  ...compare(TURNS, [1, MOST], ['memoryd', 'single calls']),
  ...compare(['ForwardBundle', 'RecordLlmRequest', 'GetUsage', 'GetProfile'], [1, MOST], ['memoryd']),
  ...compare(['SaveDraft', 'GetDraft', 'CommitArtifact'], [1, MOST], ['memoryd']),
  ...compare(['PutMemory', 'GetMemory', 'SearchMemories'], [1, MOST], ['memoryd']),
  ...compare(['UpdateProfile'], [1], ['memoryd']),
  ...compare([FAN_OUT], [1, 16], ['memoryd']),
  ...compare(['AppendMessages'], [FEW], ['memoryd', BESIDE_QUOTAS, BESIDE_NOISE]),
];

/** What all memories do, in threads of each size, by as many workers as it has threads for. */
export const peerComparisons = (threads: Threads[]): Comparison[] =>
  threads.flatMap(({ size, workers }) =>
    OPERATIONS.flatMap((operation) =>
      WORKERS.filter((callers) => callers <= workers).map((callers) => ({
        operation: sized(operation, size),
        callers,
        contestants: ['memoryd', ...PEERS],
      })),
    ),
  );

export const peerBars = (threads: Threads[]): RatioBar[] =>
  threads.flatMap(({ size, workers }) => {
    const ours = { of: 'memoryd', to: PEERS };
    const append = sized('append', size);
    const load = sized('load last 20', size);
    return [
      {
        ...ours,
        operation: append,
        callers: workers,
        figure: 'perSecond',
        sense: 'at least',
        bar: 2.5,
        name: `${append}, throughput vs the best peer`,
      },
      {
        ...ours,
        operation: load,
        callers: 1,
        figure: 'p50',
        sense: 'at most',
        bar: 1,
        name: `${load}, p50 vs the best peer in-process`,
      },
    ];
  });

export function barsOf(largeSize: number): RatioBar[] {
  const size = largeSize.toLocaleString('en');
  const ours = { callers: MOST, of: 'memoryd', sense: 'at most' as const };
  const large = { ...ours, of: LARGE, figure: 'p50' as const, to: ['memoryd'] };
  const slowest = { ...ours, figure: 'p99' as const, to: ['memoryd'], toFigure: 'p50' as const, bar: 6 };
  const get = { ...ours, operation: 'GetSession', to: ['echo'] };
  return [
    { ...get, name: 'GetSession server CPU per call vs echo', figure: 'cpu', bar: 1.8 },
    { ...get, name: 'GetSession throughput vs echo', figure: 'perSecond', sense: 'at least', bar: 0.6 },
    { ...large, name: `GetSession p50 with ${size} sessions vs 1,000`, operation: 'GetSession', bar: 1.3 },
    { ...large, name: `ListMessages p50, last 50 of ${size} vs of 100`, operation: 'ListMessages', bar: 1.3 },
    { ...large, name: `GetContext p50, ${size} messages vs 100`, operation: 'GetContext', bar: 1.5 },
    {
      name: 'AppendMessages p99 beside a noisy tenant with quotas vs alone',
      operation: 'AppendMessages',
      callers: FEW,
      of: BESIDE_QUOTAS,
      figure: 'p99',
      to: ['memoryd'],
      sense: 'at most',
      bar: 2,
    },
    ...SINGLE.map((operation) => ({ ...slowest, name: `${operation} p99 vs p50`, operation })),
  ];
}

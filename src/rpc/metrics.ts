import { status } from '@grpc/grpc-js';
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import type { Database } from '../db/pool.ts';

export type Counted = 'created' | 'read' | 'forwarded';

export interface Metrics {
  readonly registry: Registry;
  called(method: string, code: status, ms: number): void;
  unknownMethod(): void;
  connectionRefused(): void;
  /** Things that calls created, read or forwarded. */
  counted(what: Counted, kind: string, n: number): void;
  /** A call that a tenant's quota refused. Not by tenant: there may be any number of them. */
  refused(quota: string): void;
  /** Rows that the sweep removed. */
  swept(kind: string, rows: number): void;
  /** An attempt to upload a snapshot. */
  uploaded(outcome: 'stored' | 'retried' | 'failed'): void;
  /** How many snapshots wait for their upload, and how many were given up. */
  snapshots(counts: { pending: number; failed: number }): void;
}

type Count = { readonly count: number };

export function createMetrics(database: Database, inFlight: Count, openStreams: Count): Metrics {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  const registers = [registry];
  const calls = new Counter({
    name: 'memoryd_calls_total',
    help: 'Calls by method and status code.',
    labelNames: ['method', 'code'],
    registers,
  });
  const seconds = new Histogram({
    name: 'memoryd_call_seconds',
    help: 'How long calls took, by method.',
    labelNames: ['method'],
    buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10],
    registers,
  });
  const swept = new Counter({
    name: 'memoryd_swept_rows_total',
    help: 'Expired or deleted rows that the sweep removed, by kind.',
    labelNames: ['kind'],
    registers,
  });
  const counted = new Counter({
    name: 'memoryd_things_total',
    help: 'Sessions, messages and bundles that calls created, read or forwarded.',
    labelNames: ['what', 'kind'],
    registers,
  });
  const refused = new Counter({
    name: 'memoryd_quota_refusals_total',
    help: 'Calls that the quota of a tenant refused, by quota.',
    labelNames: ['quota'],
    registers,
  });
  const uploads = new Counter({
    name: 'memoryd_snapshot_uploads_total',
    help: 'Attempts to upload a snapshot, by outcome: stored, retried later, or failed for good.',
    labelNames: ['outcome'],
    registers,
  });
  const snapshots = new Gauge({
    name: 'memoryd_snapshots',
    help: 'Snapshots that are not in the store, by state. Each server that uploads tells those of all.',
    labelNames: ['state'],
    registers,
  });
  const unknown = new Counter({
    name: 'memoryd_unknown_methods_total',
    help: 'Calls of methods that do not exist.',
    registers,
  });
  const connections = new Counter({
    name: 'memoryd_refused_connections_total',
    help: 'Connections that were closed at once, as there were too many.',
    registers,
  });
  new Gauge({
    name: 'memoryd_pool_connections',
    help: 'Database connections of the pool and calls that wait for one, by state.',
    labelNames: ['state'],
    registers,
    collect() {
      for (const [state, count] of Object.entries(database.usage())) this.set({ state }, count);
    },
  });
  new Gauge({
    name: 'memoryd_calls_in_flight',
    help: 'Calls under way.',
    registers,
    collect() {
      this.set(inFlight.count);
    },
  });
  new Gauge({
    name: 'memoryd_open_streams',
    help: 'Open watches and message streams.',
    registers,
    collect() {
      this.set(openStreams.count);
    },
  });
  // One for each combination of labels, as looking it up by its labels costs more than to count.
  const counters = new Map<string, ReturnType<typeof calls.labels>>();
  const timers = new Map<string, ReturnType<typeof seconds.labels>>();
  const counterOf = (method: string, code: status) =>
    kept(counters, `${method} ${code}`, () => calls.labels(method, status[code]!));
  const timerOf = (method: string) => kept(timers, method, () => seconds.labels(method));
  return {
    registry,
    called(method, code, ms) {
      counterOf(method, code).inc();
      timerOf(method).observe(ms / 1000);
    },
    counted: (what, kind, n) => counted.inc({ what, kind }, n),
    unknownMethod: () => unknown.inc(),
    connectionRefused: () => connections.inc(),
    refused: (quota) => refused.inc({ quota }),
    uploaded: (outcome) => uploads.inc({ outcome }),
    snapshots(counts) {
      for (const [state, count] of Object.entries(counts)) snapshots.set({ state }, count);
    },
    swept: (kind, rows) => swept.inc({ kind }, rows),
  };
}

function kept<T>(map: Map<string, T>, key: string, make: () => T): T {
  let value = map.get(key);
  if (value === undefined) {
    value = make();
    map.set(key, value);
  }
  return value;
}

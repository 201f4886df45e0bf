import type { Database } from '../db/pool.ts';
import { query } from '../db/statement.ts';
import { type Scope, type TenantTx, transaction } from '../db/transaction.ts';
import { countSessions } from './sessions.ts';

/** The tables with content, and the columns that tell how large a row is. */
export const CONTENT: Record<string, string[]> = {
  artifacts: ['byte_size', 'size_bytes'],
  bundles: ['byte_size'],
  context_archives: ['byte_size'],
  context_entries: ['byte_size'],
  draft_revisions: ['byte_size', 'size_bytes'],
  memory_versions: ['byte_size'],
  messages: ['byte_size'],
  project_inputs: ['byte_size', 'content_bytes'],
  project_profile_versions: ['size_bytes'],
  prompts: ['byte_size'],
  sessions: ['byte_size'],
  state_checkpoints: ['byte_size'],
  tool_calls: ['byte_size'],
  turns: ['byte_size'],
};

/** Measuring takes at most this part of the time. */
const PART = 50;
const CALL_MS = 10 * 60_000;

const BOUNDED = query<{ tenantId: string; envs: string[]; sessions: boolean; bytes: boolean }>(`
  select t.tenant_id, t.envs, t.policies -> 'quotas' ? 'max_sessions' as sessions,
    t.policies -> 'quotas' ? 'max_stored_bytes' and coalesce(
      q.stored_bytes_time <= clock_timestamp() - greatest(${PART} * q.measure_seconds, 50) * interval '1 second', true) as bytes
  from tenants t
  left join quota_counts q on q.tenant_id = t.tenant_id
  where t.tenant_id > $4 and t.policies -> 'quotas' ?| array['max_sessions', 'max_stored_bytes']
  order by t.tenant_id limit 1000`);

const MEASURE = query<{ bytes: number }>(`
  select ${Object.entries(CONTENT)
    .map(
      ([table, columns]) =>
        `(select coalesce(sum(${columns.map((column) => `${column}::bigint`).join(' + ')}), 0)::bigint from ${table} where tenant_id = $1 and env = $2)`,
    )
    .join(' + ')} as bytes`);

const STORE = query(`
  insert into quota_counts as q (tenant_id, sessions, stored_bytes, stored_bytes_time, measure_seconds)
  values ($1, ${Number.MAX_SAFE_INTEGER}, $4::bigint, clock_timestamp(), $5::float8)
  on conflict (tenant_id) do update set stored_bytes = excluded.stored_bytes, stored_bytes_time = excluded.stored_bytes_time,
    measure_seconds = excluded.measure_seconds`);

/** Counts the sessions and measures the content of all tenants that have a quota for them. */
export async function measureAll(
  database: Database,
  signal?: AbortSignal,
): Promise<{ counted: number; measured: number }> {
  const done = { counted: 0, measured: 0 };
  const run = <T>(scope: Omit<Scope, 'user'>, work: (tx: TenantTx) => Promise<T>) => {
    signal?.throwIfAborted();
    const limits = { deadline: Date.now() + CALL_MS, signal };
    return transaction(database, { ...scope, user: '' }, undefined, limits, { repeatable: true }, work);
  };
  for (let after = ''; ; ) {
    const tenants = await run({ tenant: '', env: '' }, (tx) => tx.final(BOUNDED, [after]));
    if (tenants.length === 0) return done;
    for (const { tenantId: tenant, envs, sessions, bytes } of tenants) {
      if (sessions) {
        await run({ tenant, env: '' }, countSessions);
        done.counted++;
      }
      if (bytes) {
        const start = performance.now();
        let sum = 0;
        for (const env of envs) sum += (await run({ tenant, env }, (tx) => tx.final(MEASURE)))[0]!.bytes;
        const seconds = (performance.now() - start) / 1000;
        await run({ tenant, env: '' }, (tx) => tx.final(STORE, [sum, seconds]));
        done.measured++;
      }
    }
    after = tenants.at(-1)!.tenantId;
  }
}

import type { Database } from '../db/pool.ts';
import { query, type Statement, type Value } from '../db/statement.ts';
import { type Scope, transaction } from '../db/transaction.ts';
import { DERIVE_MEMORIES } from '../memories/texts.ts';
import { settled } from '../threads/repository.ts';

interface Waiting {
  tenantId: string;
  envs: string[];
  searchLanguage: string;
  /** As text, since its microseconds count. */
  since: string;
}

const DIRECTORY: Scope = { tenant: '', env: '', user: '' };

const WAITING = query<Waiting>(`
  select tenant_id, envs, search_language, language_time::text as since from tenants
  where language_time <= clock_timestamp() - make_interval(secs => $5::float8) and tenant_id > $4
  order by tenant_id limit 100`);

// A vector in another language than the tenant's is made anew, and one of a message that is older than vectors; a message that
// is being streamed gets its own when it ends. What is done already is only read, so a walk that was cut begins again.
const DERIVE_MESSAGES = query<Step>(`
  with step as materialized (
    select thread_uid, seq from messages
    where tenant_id = $1 and env = $2 and (thread_uid, seq) > ($5::uuid, $6::bigint)
    order by thread_uid, seq limit 200
  ), derived as (
    update messages m set search_language = $4, tsv = message_tsv($4, m.content)
    from step
    where m.tenant_id = $1 and m.env = $2 and m.thread_uid = step.thread_uid and m.seq = step.seq
      and m.search_language is distinct from $4 and ${settled('m')}
    returning 1
  )
  select array[thread_uid::text, seq::text] as position, (select count(*) from derived)::int as n
  from step order by thread_uid desc, seq desc limit 1`);

interface Step {
  /** Of the last row that it looked at. */
  position: string[];
  n: number;
}

const FIRST = '00000000-0000-0000-0000-000000000000';

/** What is searched, and where a walk over it begins. */
const KINDS: { derive: Statement<Step>; from: string[] }[] = [
  { derive: DERIVE_MESSAGES, from: [FIRST, '0'] },
  { derive: DERIVE_MEMORIES, from: [FIRST] },
];

const DONE = query<{ tenantId: string }>(`
  update tenants set former_languages = '{}', language_time = null
  where tenant_id = $1 and language_time = $4::timestamptz
  returning tenant_id`);

/**
 * Derives the words of messages and memories anew where the tenant's language changed, so long ago that nobody writes in
 * the former one any more; a search looks in both until then. Resolves to how many it derived.
 */
export async function rederive(database: Database, settledMs: number, signal?: AbortSignal): Promise<number> {
  const run = <Row>(scope: Scope, statement: Statement<Row>, values: Value[]): Promise<Row[]> => {
    signal?.throwIfAborted();
    const limits = { deadline: Date.now() + 60_000, signal };
    return transaction(database, scope, undefined, limits, { repeatable: true }, (tx) => tx.final(statement, values));
  };
  let count = 0;
  for (let after = ''; ; ) {
    const waiting = await run(DIRECTORY, WAITING, [after, settledMs / 1000]);
    if (waiting.length === 0) return count;
    for (const { tenantId, envs, searchLanguage, since } of waiting) {
      for (const env of envs) {
        for (const { derive, from } of KINDS) {
          for (let position = from; ; ) {
            const [step] = await run({ tenant: tenantId, env, user: '' }, derive, [searchLanguage, ...position]);
            if (!step) break;
            count += step.n;
            position = step.position;
          }
        }
      }
      await run({ tenant: tenantId, env: '', user: '' }, DONE, [since]);
      after = tenantId;
    }
  }
}

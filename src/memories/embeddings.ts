import { pointRead, query } from '../db/statement.ts';
import type { TenantDb, TenantTx } from '../db/transaction.ts';
import { invalid, notInstalled } from '../rpc/errors.ts';
import type { Check } from '../rpc/validate.ts';

const MAX_DIMENSION = 2000;

/** Adds what is wrong with an embedding. */
export function checkEmbedding(check: Check, embedding: number[]): void {
  if (embedding.length === 0 || !check.count('embedding', embedding, MAX_DIMENSION)) return;
  check.that(embedding.every(Number.isFinite), 'embedding', 'not finite numbers');
  check.that(
    embedding.some((number) => number !== 0),
    'embedding',
    'all numbers are 0',
  );
}

// The column is there where the extension is: see src/db/migrate.ts.
const SPACE = pointRead<{ installed: boolean; dimension: number | null }>(`
  select exists (
    select from pg_attribute where attrelid = 'memory_embeddings'::regclass and attname = 'embedding' and not attisdropped
  ) as installed, (
    select e.dimension from memory_embeddings e where e.tenant_id = $1 and e.env = $2 and e.project_id = $4 limit 1
  ) as dimension`);

/** Throws if there can be no such embedding in the project. Resolves to whether the project has embeddings. */
export async function expectEmbeddable(db: TenantDb, projectId: string, embedding: number[]): Promise<boolean> {
  const [space] = await db.query(SPACE, [projectId]);
  const { installed, dimension } = space!;
  if (!installed)
    throw notInstalled(
      'vector',
      'embeddings need the Postgres extension vector (pgvector): install it in the database, then run `memoryd migrate`',
    );
  if (dimension !== null && dimension !== embedding.length)
    throw invalid([
      { field: 'embedding', description: `has ${embedding.length} numbers, those of the project have ${dimension}` },
    ]);
  return dimension !== null;
}

const FIRST = query(
  `select pg_advisory_xact_lock(hashtextextended(concat_ws('/', 'memoryd.embeddings', $1, $2, $4::text), 0))`,
);

/**
 * Before a put with an embedding. Of a project's first ones, those that come at once wait for each other. (One that comes
 * while the last is deleted may stay beside others of another dimension: a search sees those of its own.)
 */
export async function admitEmbedding(tx: TenantTx, projectId: string, embedding: number[]): Promise<void> {
  if (await expectEmbeddable(tx, projectId, embedding)) return;
  await tx.query(FIRST, [projectId]);
  await expectEmbeddable(tx, projectId, embedding);
}

/** Of the statement that puts a memory, what goes with its CTE `saved` if it has no embedding (any more). */
export const WITHOUT_EMBEDDING = `unembedded as (
    delete from memory_embeddings e using saved where e.tenant_id = $1 and e.env = $2 and e.memory_id = saved.id
    returning 1
  )`;

/** The same if it has one: $19 numbers, in $20. */
export const WITH_EMBEDDING = `embedded as (
    insert into memory_embeddings (tenant_id, env, memory_id, project_id, version, dimension, embedding)
    select $1, $2, id, project_id, version, $19::int, $20::vector from saved
    on conflict (tenant_id, env, memory_id) do update
      set version = excluded.version, dimension = excluded.dimension, embedding = excluded.embedding
    returning 1
  )`;

import { audited, requested } from '../db/change.ts';
import { change, pointRead } from '../db/statement.ts';
import type { TenantDb, TenantTx } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import type { StateCheckpoint } from '../gen/memory/v1/turn.ts';
import { notFound, type RpcError } from '../rpc/errors.ts';
import { COLUMNS_OF_S, LIVE, READABLE, type SessionRow, whyNotSaved } from '../sessions/repository.ts';

interface CheckpointRow {
  id: string;
  turnId: string | null;
  state: object;
  createTime: Timestamp;
  byteSize: number;
}

// Rows past 1 MiB are never read.
const LIST = pointRead<CheckpointRow>(`
  select id, turn_id, state, create_time, byte_size
  from (
    select c.*, sum(byte_size) over (order by id desc rows unbounded preceding) as running
    from (
      select * from state_checkpoints
      where tenant_id = $1 and env = $2 and user_id = $3
        and session_id = (
          select s.id from sessions s
          where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $4::uuid and ${READABLE})
        and id < coalesce($5::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
      order by id desc limit $6::int
    ) c
  ) c
  where running - byte_size <= 1048576
  order by id desc`);

export async function listCheckpoints(
  db: TenantDb,
  sessionId: string,
  after: string | undefined,
  limit: number,
): Promise<CheckpointRow[]> {
  return db.query(LIST, [sessionId, after, limit]);
}

export const checkpointFromRow = ({ id, turnId, state, createTime }: CheckpointRow): StateCheckpoint => ({
  id,
  turnId: turnId ?? '',
  state,
  createTime,
});

const RESTORE = change<SessionRow>(`
  with saved as (
    update sessions s
    set state = c.state,
      update_time = greatest(s.update_time, w.at),
      last_activity_time = greatest(s.last_activity_time, w.at),
      expire_time = case when s.sliding_ttl is null then s.expire_time else w.at + s.sliding_ttl end,
      revision = s.revision + 1
    from state_checkpoints c, (select clock_timestamp() as at) w
    where s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = $11::uuid and ${LIVE}
      and c.tenant_id = $1 and c.env = $2 and c.user_id = $3 and c.session_id = $11 and c.id = $12::uuid
      and ($13::bigint is null or s.revision = $13)
    returning ${COLUMNS_OF_S}
  ), ${audited('sessions.restore_state', 'saved', {
    resource: `'sessions/' || id`,
    session: 'id',
    metadata: `jsonb_build_object('checkpoint_id', $12, 'revision', revision)`,
  })}, ${requested('saved')}
  select * from saved`);

/** Sets a session's state back. Gives no rows if it refused: see {@link whyNotRestored}. */
export async function restoreState(
  tx: TenantTx,
  sessionId: string,
  checkpointId: string,
  revision: number | undefined,
): Promise<SessionRow[]> {
  return tx.final(RESTORE, [sessionId, checkpointId, revision]);
}

const FIND = pointRead<{ id: string }>(`
  select id from state_checkpoints
  where tenant_id = $1 and env = $2 and user_id = $3 and session_id = $4::uuid and id = $5::uuid`);

export async function whyNotRestored(db: TenantDb, sessionId: string, checkpointId: string): Promise<RpcError> {
  const why = await whyNotSaved(db, { id: sessionId, surfaceId: '', projectId: '', threadId: '' });
  if (why.reason !== 'ETAG_MISMATCH') return why;
  const [checkpoint] = await db.query(FIND, [sessionId, checkpointId]);
  return checkpoint ? why : notFound('checkpoint');
}

// A session that is deleted or has expired gives nothing back, swept or not.
const NEWEST_OF_PROJECT = change<{ sessionId: string; state: object }>(`
  select c.session_id, c.state
  from state_checkpoints c
  join sessions s on s.tenant_id = $1 and s.env = $2 and s.user_id = $3 and s.id = c.session_id and ${READABLE}
  where c.tenant_id = $1 and c.env = $2 and c.user_id = $3 and c.project_id = $11
  order by c.create_time desc, c.id desc limit 1`);

/** The last state that any of the user's sessions of a project left. */
export async function newestCheckpoint(
  tx: TenantTx,
  projectId: string,
): Promise<{ sessionId: string; state: object } | undefined> {
  const [row] = await tx.query(NEWEST_OF_PROJECT, [projectId]);
  return row;
}

import { randomUUID } from 'node:crypto';
import { status } from '@grpc/grpc-js';
import type { Erasure } from '../../src/gen/memory/v1/erasure.ts';
import { type Clients, connect, runSql, until } from '../support.ts';
import type { Figures } from './scenario.ts';

const KINDS = ['bundles', 'llm_requests', 'messages', 'sessions', 'threads'];
const ROWS = `select ${KINDS.map((kind) => `(select count(*)::int from ${kind} where tenant_id = $1 and user_id = 'user') as ${kind}`).join(', ')}`;

/** Erases who did it all, and kills something in the middle: every row is gone, and was counted once. */
export async function checkErasure(
  tenant: string,
  address: string,
  ownerUrl: string,
  kill: () => Promise<void>,
): Promise<Figures> {
  const operator = { 'x-tenant-id': tenant, 'x-env': 'dev', 'x-scopes': 'memory:operator' };
  const rows = async (): Promise<Record<string, number>> => (await runSql(ownerUrl, ROWS, [tenant]))[0];
  const ask = (work: (admin: Clients['admin']) => Promise<{ erasure?: Erasure | undefined }>): Promise<Erasure> =>
    until(async () => {
      const clients = connect(address, operator);
      return work(clients.admin)
        .then(({ erasure }) => erasure!)
        .catch((error) => {
          if (error.code === status.UNAVAILABLE) return undefined;
          throw error;
        })
        .finally(() => clients.close());
    });

  const there = await rows();
  const requestId = randomUUID();
  const { id } = await ask((admin) => admin.eraseUser({ userId: 'user', requestId }));
  await until(async () => (await rows()).messages! < there.messages!);
  await kill();
  const passed = await until(async () => {
    const now = await ask((admin) => admin.getErasure({ erasureId: id }));
    return now.waitingFor === 'LATE_WRITES' && now;
  });
  const counted = new Map(passed.counts.map(({ kind, removedCount }) => [kind, removedCount]));
  const left = await rows();
  for (const kind of KINDS) {
    const fault = `of ${there[kind]} ${kind} an erasure has counted ${counted.get(kind) ?? 0}, and left ${left[kind]}`;
    if (left[kind] !== 0 || (counted.get(kind) ?? 0) !== there[kind]) throw new Error(fault);
  }
  return { erased: KINDS.reduce((sum, kind) => sum + there[kind]!, 0) };
}

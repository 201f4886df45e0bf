import { createHash } from 'node:crypto';
import type { Keyring } from '../db/keyring.ts';
import { timestampText } from '../db/statement.ts';
import type { TenantScope } from '../db/transaction.ts';
import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';
import type { ErasureReceipt } from '../gen/memory/v1/erasure.ts';

interface Erased {
  id: string;
  createTime: Timestamp;
  removed: Record<string, number>;
  renamed: Record<string, number>;
}

const sorted = (counts: Record<string, number>) => Object.fromEntries(Object.entries(counts).sort());

/** What an erasure has done, as a text that is always the same. It holds nothing of the user. */
export const receiptText = (
  { tenant, env }: TenantScope,
  { id, createTime, removed, renamed }: Erased,
  finishTime: string,
): string =>
  JSON.stringify({
    erasure_id: id,
    tenant_id: tenant,
    env,
    create_time: timestampText(createTime),
    finish_time: finishTime,
    removed: sorted(removed),
    renamed: sorted(renamed),
  });

export const receiptOf = (text: string, signature: string): ErasureReceipt => ({
  text,
  sha256: createHash('sha256').update(text).digest('hex'),
  signature,
});

export const signReceipt = (keyring: Keyring, { tenant, env }: TenantScope, text: string): string =>
  keyring.sign(['erasure', tenant, env], text);

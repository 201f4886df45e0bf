import type { TenantTx } from '../db/transaction.ts';
import type { Call } from './context.ts';

/** What was prepared for a change is not so any more. */
export class Outdated extends Error {}

/**
 * Makes a change from what takes long to prepare, outside of its transaction: no row and no connection is held meanwhile.
 * `work` throws `Outdated` if others were faster; then it is prepared anew, until the call's time is over. What is refused while
 * preparing is refused only if the request_id has no result yet.
 */
export async function changePrepared<Ready, Row>(
  call: Call,
  request: { requestId: string },
  prepare: () => Promise<Ready>,
  work: (tx: TenantTx, ready: Ready) => Promise<Row[]>,
): Promise<Row[]> {
  for (;;) {
    const ready = await prepare().then(
      (value) => () => value,
      (refusal) => () => {
        throw refusal;
      },
    );
    try {
      return await call.change(request, async (tx) => work(tx, ready()));
    } catch (error) {
      if (!(error instanceof Outdated)) throw error;
    }
  }
}

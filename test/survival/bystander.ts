import { setTimeout as sleep } from 'node:timers/promises';
import { type ServiceError, status } from '@grpc/grpc-js';
import { connect } from '../support.ts';
import { quantile } from './quantile.ts';

/** Someone who behaves: writes and reads at a steady pace, and notes how long it took. */
export interface Bystander {
  /** In milliseconds, since it was asked last. */
  p99(): number;
  longest(): number;
  /** Throws if a call has failed. */
  end(): Promise<void>;
}

const PAUSE_MS = 5;
const APPENDS = 1 / 5;

export function startBystander(address: string, headers: Record<string, string>, mayBeAway = false): Bystander {
  const client = connect(address, headers);
  let times: number[] = [];
  let over = false;

  async function call(n: number): Promise<void> {
    const threadId = `bystander${Math.floor(n * APPENDS) % 10}`;
    const before = performance.now();
    if (n % (1 / APPENDS) === 0) {
      await client.conversation.appendMessages({ threadId, messages: [{ role: 1, content: 'well' }] });
    } else await client.conversation.listMessages({ threadId, pageSize: 5 });
    times.push(performance.now() - before);
  }
  const done = (async () => {
    for (let n = 0; !over; n++) {
      await call(n).catch((error: ServiceError) => {
        if (!mayBeAway || error.code !== status.UNAVAILABLE) throw error;
      });
      await sleep(PAUSE_MS);
    }
  })();
  done.catch(() => {}); // told by end()

  const asked = (figure: (all: number[]) => number) => {
    const result = figure(times);
    times = [];
    return result;
  };
  return {
    p99: () => asked((all) => quantile(all, 0.99)),
    longest: () => asked((all) => quantile(all, 1)),
    async end() {
      over = true;
      await done;
      client.close();
    },
  };
}

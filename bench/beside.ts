import { setTimeout as sleep } from 'node:timers/promises';
import type { Child } from './child.ts';
import type { Noise } from './noise.ts';
import type { Contestant } from './rounds.ts';

/** Until the noise is what it stays, which has a second's worth of calls at once where a rate bounds it. */
const LEAD_MS = 250;

/** What makes the calls of a contestant, while others make noise. */
export function beside({ name: contestant, load }: Contestant, noise: Child, about: Noise): Child {
  const run = async (order: object) => {
    await noise.ask('start', about);
    await sleep(LEAD_MS);
    const result = await load.ask('run', { ...order, contestant });
    await noise.ask('stop');
    return result;
  };
  return {
    ask: (name, body) => (name === 'run' ? run(body as object) : load.ask(name, body)) as Promise<any>,
    stop: load.stop,
  };
}

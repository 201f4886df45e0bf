import type { Logger } from 'pino';
import { describe } from '../rpc/observe.ts';

// Under npm one Ctrl-C arrives twice: from the terminal, and handed on by npm.
const ONE_KEY_MS = 250;

/**
 * Runs until a signal, then stops once, in order; a second signal ends the process at once. What nobody caught ends it
 * too: its state is not known any more, and whoever supervises it starts it again.
 */
export function untilSignal(log: Logger, stop: () => Promise<void>): Promise<void> {
  return new Promise((resolve, reject) => {
    let since = 0;
    const onSignal = (signal: NodeJS.Signals) => {
      if (since && Date.now() - since < ONE_KEY_MS) return;
      if (since) process.exit(signal === 'SIGINT' ? 130 : 143);
      since = Date.now();
      log.info({ signal }, 'stopping');
      stop().then(resolve, reject);
    };
    process.on('SIGINT', onSignal);
    process.on('SIGTERM', onSignal);
  });
}

/** An error that nobody caught: told, and the end. */
export function endOnUncaught(log: Logger): void {
  const end = (error: unknown) => {
    log.fatal({ err: describe(error) }, 'uncaught');
    process.exit(1);
  };
  process.on('uncaughtException', end);
  process.on('unhandledRejection', end);
}

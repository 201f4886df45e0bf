import { type Logger, pino } from 'pino';

/**
 * JSON lines on stdout, unless at once written in batches: a write for each call would stop the event loop whenever
 * whoever reads is slow. A batch waits at most 200 ms, and what is left is written when the process ends, also by an error
 * that nobody caught.
 */
export function createLog(level: string, atOnce = false): Logger {
  const behind = { sync: false, minLength: 16_000, periodicFlush: 200 };
  const stdout = pino.destination({ dest: 1, ...(atOnce ? { sync: true } : behind) });
  return pino(
    {
      level,
      base: null,
      timestamp: isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    stdout,
  );
}

let lastMs = 0;
let lastTime = '';

/** As pino's own, but formatted once a millisecond: with the larger batches 5 % of the server CPU of a GetSession. */
function isoTime(): string {
  const now = Date.now();
  if (now !== lastMs) {
    lastMs = now;
    lastTime = `,"time":"${new Date(now).toISOString()}"`;
  }
  return lastTime;
}

export const silentLog = (): Logger => pino({ level: 'silent' });

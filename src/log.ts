import { type Logger, pino } from 'pino';

/**
 * JSON lines on stdout, unless at once written in batches: a line for each call would stop the event loop whenever
 * whoever reads is slow. What is left is written when the process ends.
 */
export function createLog(level: string, atOnce = false): Logger {
  const behind = { sync: false, minLength: 4096, periodicFlush: 200 };
  const stdout = pino.destination({ dest: 1, ...(atOnce ? { sync: true } : behind) });
  return pino(
    {
      level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    stdout,
  );
}

export const silentLog = (): Logger => pino({ level: 'silent' });

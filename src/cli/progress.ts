const TERMINAL_MS = 100;
const PIPE_MS = 5000;

/** Tells on stderr how far a command is: in one line that changes on a terminal, in a line now and then elsewhere. */
export function progress(text: () => string): { tick(): void; end(): void } {
  const { stderr } = process;
  let last = Date.now();
  return {
    tick() {
      const now = Date.now();
      if (now - last < (stderr.isTTY ? TERMINAL_MS : PIPE_MS)) return;
      last = now;
      stderr.write(stderr.isTTY ? `\r\x1b[K${text()}` : `${text()}\n`);
    },
    end() {
      if (stderr.isTTY) stderr.write('\r\x1b[K');
    },
  };
}

/** As people read sizes: `12.3 MB`. */
export const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`;
export const thousands = (count: number): string => count.toLocaleString('en');

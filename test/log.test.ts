import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { expect } from 'chai';

const LOGGING = new URL('fixtures/logging.ts', import.meta.url).pathname;
const LINES = 3000;

const start = (ending: string, lines: number) => {
  const child = spawn(process.execPath, [LOGGING, ending, String(lines)], { stdio: ['ignore', 'pipe', 'inherit'] });
  return { child, lines: createInterface({ input: child.stdout }) };
};

async function everyLine(ending: string): Promise<any[]> {
  const found = [];
  for await (const line of start(ending, LINES).lines) found.push(JSON.parse(line));
  return found;
}

const numbersOf = (lines: any[]) =>
  lines
    .filter(({ msg }) => msg === 'call')
    .map(({ n }) => n)
    .sort((a, b) => a - b);
const ALL = Array.from({ length: LINES }, (_, n) => n);

describe('log', () => {
  it('is whole when the process ends', async () => {
    expect(numbersOf(await everyLine('exit'))).to.deep.equal(ALL);
  });

  it('is whole when an error that nobody caught ends the process, and tells it', async () => {
    const lines = await everyLine('throw');
    expect(numbersOf(lines)).to.deep.equal(ALL);
    // Not always last: a batch that was being written may end after it.
    const fatal = lines.filter(({ level }) => level === 'fatal');
    expect(fatal.map(({ msg }) => msg)).to.deep.equal(['uncaught']);
  });

  it('does not wait for a batch to be full', async () => {
    const { child, lines } = start('wait', 1);
    try {
      const [line] = await once(lines, 'line');
      const { time, ...rest } = JSON.parse(line);
      expect(rest).to.deep.equal({ level: 'info', n: 0, msg: 'call' });
      expect(new Date(time).toISOString()).to.equal(time);
    } finally {
      child.kill();
    }
  });
});

// Those that wait the longest begin first, so that the others run beside them.
const LONGEST = ['uploads', 'erasures', 'turn-kill', 'erasure-snapshots', 'transfer-command', 'erasure-rules'];

export default {
  spec: [...LONGEST.map((name) => `test/${name}.test.ts`), `test/!(${LONGEST.join('|')}).test.ts`],
  extension: ['ts'],
  timeout: 60_000,
  parallel: true,
  jobs: 4,
  retries: 1,
  reporter: 'test/reporter.ts',
  require: ['test/database.ts'],
};

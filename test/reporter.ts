import Mocha from 'mocha';

/** Tells also what failed at first and passed when it was run again, and how it had failed: it may be the machine, or the test. */
export default class extends Mocha.reporters.Spec {
  constructor(runner: Mocha.Runner, options: Mocha.MochaOptions) {
    super(runner, options);
    runner.on('retry', (test: Mocha.Test, error: Error) => {
      Mocha.reporters.Base.consoleLog(`    run again: ${test.fullTitle()}, which failed: ${error.message}`);
    });
  }
}

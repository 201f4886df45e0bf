import { isolationSuite } from './fixtures/isolation.ts';

describe('isolation', () => isolationSuite());

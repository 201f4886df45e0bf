import { isolationSuite } from './fixtures/isolation.ts';
import { allTables, tenantTables } from './fixtures/roles.ts';
import { ownerUrl, runSql } from './support.ts';

async function switchPoliciesOff(): Promise<void> {
  const off = tenantTables(await allTables()).map((table) => `alter table ${table} disable row level security`);
  await runSql(ownerUrl(), off.join(';'));
}

// Each of the two walls must hold alone: here it is the statements' own predicates that keep places apart.
describe('isolation without row-level security', () => isolationSuite(switchPoliciesOff));

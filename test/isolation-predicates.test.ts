import { isolationSuite } from './fixtures/isolation.ts';
import { allTables, tenantTables } from './fixtures/roles.ts';
import { appUrl, newDatabase, ownerUrl, runSql } from './support.ts';

/** Makes another database the one of this file's tests, in which row-level security is off. Gives what undoes that. */
async function withoutPolicies(): Promise<() => void> {
  const [owner, app] = [ownerUrl(), appUrl()];
  const use = (urls: { owner: string; app: string }) => {
    process.env.MEMORYD_TEST_OWNER_URL = urls.owner;
    process.env.MEMORYD_TEST_APP_URL = urls.app;
  };
  use(await newDatabase());
  const off = tenantTables(await allTables()).map((table) => `alter table ${table} disable row level security`);
  await runSql(ownerUrl(), off.join(';'));
  return () => use({ owner, app });
}

// Each of the two walls must hold alone: here it is the statements' own predicates that keep places apart.
describe('isolation without row-level security', () => isolationSuite(withoutPolicies));

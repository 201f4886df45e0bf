import { type Mutant, mutant } from './mutant.ts';

/** Bugs that count wrongly, tell others, keep what must not be kept, or let spend what is spent. */
export const USAGE: Mutant[] = [
  mutant(
    'usage is added up again and again',
    'src/usage/fold.ts',
    'update llm_requests r set folded = true',
    'update llm_requests r set folded = false',
    'usage-rollups',
  ),
  mutant(
    'usage is told only once it is added up',
    'src/usage/report.ts',
    'from waiting',
    'from waiting where false',
    'usage',
  ),
  mutant(
    'a member is told the usage of all',
    'src/usage/whose.ts',
    'return call.identity.user;',
    'return userId;',
    'usage-told',
  ),
  mutant(
    'a cached token costs as much as any',
    'src/usage/calls.ts',
    'coalesce(c.cached, c.prompt, 0)',
    'coalesce(c.prompt, 0)',
    'usage',
  ),
  mutant(
    'a call of a model is counted twice',
    'migrations/0014_usage.sql',
    'create unique index llm_requests_external',
    'create index llm_requests_external',
    'usage',
  ),
  mutant(
    'bodies of requests are stored',
    'src/usage/calls.ts',
    'request: requestParameters(request.request),',
    'request: request.request,',
    'usage',
  ),
  mutant(
    'secrets in calls of tools are stored',
    'src/usage/calls.ts',
    'input: redactStruct(call.input),',
    'input: call.input,',
    'records',
  ),
  mutant(
    'a turn begins though its budget is spent',
    'src/usage/budgets.ts',
    'budget.enforce && budget.exceeded)',
    'budget.enforce && budget.exceeded && budget.msLeft < 0)',
    'budgets',
  ),
  mutant(
    'a turn reads what waits of all times for its budget',
    'src/usage/budgets.ts',
    ` and id > (select ${'$'}{idBefore('min(began)')} from budget)`,
    '',
    'usage-rollups: are told beside 20,000 calls that wait for them',
  ),
  mutant(
    'fewer tokens are believed in all than in the parts',
    'src/usage/calls.ts',
    'request.totalTokens >= parts',
    'request.totalTokens >= 0',
    'usage',
  ),
  mutant(
    'a tenant with much to add up holds up the others',
    'src/tenants/places.ts',
    'if (await step(place)) more.push(place);',
    'while (await step(place));',
    'usage-rollups: are made of what waits in turns',
  ),
  mutant(
    'a member changes the budget that an admin has set',
    'src/usage/budgets.ts',
    'where (not b.by_admin or excluded.by_admin)',
    'where true',
    'budgets',
  ),
];

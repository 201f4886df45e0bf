import { type Budget, Budget_Period, Budget_Scope } from '../gen/memory/v1/usage.ts';
import type { UsageServiceService } from '../gen/memory/v1/usage_service.ts';
import type { Call } from '../rpc/context.ts';
import { denied, notFound } from '../rpc/errors.ts';
import type { Handlers } from '../rpc/implement.ts';
import { type Memberships, refuseErased } from '../rpc/membership.ts';
import { Check, revisionOf } from '../rpc/validate.ts';
import {
  budgetFromRow,
  deleteBudget,
  findBudget,
  type Key,
  listBudgets,
  setBudget,
  statusFromRow,
  whyNotChanged,
} from './budgets.ts';
import { checkCost } from './calls.ts';
import { isAdmin } from './whose.ts';

export type BudgetMethods = 'setBudget' | 'getBudget' | 'listBudgets' | 'deleteBudget';

const { TENANT, USER, SESSION } = Budget_Scope;

export const budgetHandlers = (members: Memberships): Pick<Handlers<typeof UsageServiceService>, BudgetMethods> => ({
  async setBudget(request, call) {
    const check = new Check();
    if (check.that(request.budget !== undefined, 'budget', 'required')) checkBudget(check, request.budget!);
    check.optionalUuid('request_id', request.requestId);
    check.done();

    const budget = { ...request.budget!, ...keyOf(request.budget!) } as Budget;
    const admin = mayChange(call, budget);
    if (budget.scope === USER) await refuseErased(members, call, [budget.subject]);
    const revision = revisionOf(budget.etag);
    const [row] = await call.change(request, async (tx) => {
      const saved = await setBudget(tx, budget, admin, revision);
      if (saved.length === 0) throw await whyNotChanged(call.db, budget, admin, revision);
      return saved;
    });
    members.forget(call.identity.tenant);
    return { budget: budgetFromRow(row!) };
  },

  async getBudget(request, call) {
    const check = new Check();
    checkKey(check, '', request);
    check.done();

    const found = await findBudget(call.db, keyOf(request), isAdmin(call));
    if (!found) throw notFound('budget');
    return { status: statusFromRow(found) };
  },

  async listBudgets(request, call) {
    const check = new Check();
    check.page(request);
    check.done();

    const page = call.page(request);
    const found = await listBudgets(call.db, isAdmin(call), page.after, page.limit);
    const { rows, nextPageToken } = page.cut(found, (row) => [String(row.scope), row.subject, String(row.period)]);
    return { budgets: rows.map(statusFromRow), nextPageToken };
  },

  async deleteBudget(request, call) {
    const check = new Check();
    checkKey(check, '', request);
    check.etag('etag', request.etag);
    check.optionalUuid('request_id', request.requestId);
    check.done();

    const key = keyOf(request);
    const admin = mayChange(call, key);
    const revision = revisionOf(request.etag);
    await call.change(request, async (tx) => {
      const gone = await deleteBudget(tx, key, admin, revision);
      if (gone.length === 0) throw await whyNotChanged(call.db, key, admin, revision);
      return gone;
    });
    members.forget(call.identity.tenant);
    return {};
  },
});

/** Ids of sessions are stored as the database writes them. */
const keyOf = ({ scope, subject, period }: Key): Key => ({
  scope,
  subject: scope === SESSION ? subject.toLowerCase() : subject,
  period,
});

function checkKey(check: Check, within: string, { scope, subject, period }: Key): void {
  check.oneOf(`${within}scope`, scope, Budget_Scope);
  check.oneOf(`${within}period`, period, Budget_Period);
  if (scope === TENANT) check.that(subject === '', `${within}subject`, 'not empty, as the scope is TENANT');
  else if (scope === SESSION) check.uuid(`${within}subject`, subject);
  else check.id(`${within}subject`, subject);
}

function checkBudget(check: Check, budget: Budget): void {
  checkKey(check, 'budget.', budget);
  checkCost(check, 'budget.cost_limit', budget.costLimit);
  check.seq('budget.token_limit', budget.tokenLimit);
  check.that(budget.costLimit !== '' || budget.tokenLimit !== 0, 'budget.cost_limit', 'required without token_limit');
  check.etag('budget.etag', budget.etag);
}

/** Refuses who may not change the budget; tells whether it is an admin. */
function mayChange(call: Call, { scope, subject }: Key): boolean {
  const admin = isAdmin(call);
  const own = (scope === USER && subject === call.identity.user) || scope === SESSION;
  if (!admin && !own) throw denied('ADMIN_REQUIRED', 'budgets of others are for admins');
  return admin;
}

import type { Check } from '../rpc/validate.ts';
import type { UsageFilter } from './report.ts';

type Filter = Omit<UsageFilter, 'startDay' | 'endDay'>;

export function checkFilter(check: Check, { userId, sessionId, projectId, provider, model }: Filter): void {
  check.optionalId('user_id', userId);
  check.optionalUuid('session_id', sessionId);
  check.optionalId('project_id', projectId);
  check.optionalId('provider', provider);
  check.optionalId('model', model);
}

export function checkUsageFilter(check: Check, filter: UsageFilter): void {
  checkFilter(check, filter);
  check.that(isDay(filter.startDay), 'start_day', 'not a day such as 2026-11-01');
  check.that(isDay(filter.endDay), 'end_day', 'not a day such as 2026-11-30');
}

/** A day of the calendar, or ''. */
function isDay(text: string): boolean {
  if (text === '') return true;
  const day = /^\d{4}-\d\d-\d\d$/.test(text) && !text.startsWith('0000') ? new Date(`${text}T00:00:00Z`) : undefined;
  return day !== undefined && !Number.isNaN(day.getTime()) && day.toISOString().startsWith(text);
}

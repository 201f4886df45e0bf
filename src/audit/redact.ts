import { Budget_Period, Budget_Scope } from '../gen/memory/v1/usage.ts';
import type { ChainedEvent } from './chain.ts';

// What is left of an event when a person is erased: the pseudonym, what was done, when, with which figures, and to which
// resource if it is one that members share. Ids by which the person could be found in what callers have logged are gone.

/** A person as events name them, and what they are to be called. */
export interface Erased {
  user: string;
  pseudonym: string;
}

/** The personal columns of an event, as `erase_from_audit` takes them. */
export interface Redacted {
  id: string;
  user_id: string;
  actor: string;
  resource: string;
  session_id: string | null;
  request_id: string | null;
  trace_id: string;
  metadata: unknown;
}

/** Kinds of resources that are nobody's own: of these only the person's name goes. A budget of a session is the session's. */
const SHARED = /^(projects|tenants|members|handoffs|budgets(?!\/4\/))\//;
const DENIED = '2';

// The places of an event that name users, beside whose it is and who acted. Everywhere else the same text is another's name: a
// project's id, a section's, a key or a word.
const RESOURCES = [
  (user: string) => `members/${user}`,
  (user: string) => `profiles/${user}`,
  ...[Budget_Period.DAY, Budget_Period.MONTH].map(
    (period) => (user: string) => `budgets/${Budget_Scope.USER}/${user}/${period}`,
  ),
];

/** The resources that name a user. */
export const resourcesNaming = (user: string): string[] => RESOURCES.map((named) => named(user));

/** The fields of metadata that name users. */
export const NAMING_FIELDS = ['from_user_id', 'into_user_id'];

export function redacted(event: ChainedEvent, erased: Erased): Redacted {
  const { id, resource, sessionId, requestId, traceId } = event;
  const metadata = event.metadata === null ? null : JSON.parse(event.metadata);
  const renamed = {
    id,
    user_id: event.userId,
    actor: event.actor === erased.user ? erased.pseudonym : event.actor,
    resource: RESOURCES.find((named) => named(erased.user) === resource)?.(erased.pseudonym) ?? resource,
    session_id: sessionId,
    request_id: requestId,
    trace_id: traceId,
    metadata: renamedIn(metadata, erased),
  };
  if (event.userId !== erased.user) return renamed;
  const kind = resource.split('/', 1)[0];
  return {
    ...renamed,
    user_id: erased.pseudonym,
    resource: SHARED.test(resource) || event.outcome === DENIED ? renamed.resource : `${kind}/${erased.pseudonym}`,
    session_id: null,
    request_id: null,
    trace_id: '',
    metadata: figuresOf(metadata),
  };
}

function renamedIn(metadata: unknown, { user, pseudonym }: Erased): unknown {
  if (typeof metadata !== 'object' || metadata === null) return metadata;
  const naming = ([key, value]: [string, unknown]) => NAMING_FIELDS.includes(key) && value === user;
  return Object.fromEntries(Object.entries(metadata).map((entry) => [entry[0], naming(entry) ? pseudonym : entry[1]]));
}

/** Counts and the like, and why something was refused, which are words of ours. */
function figuresOf(metadata: unknown): unknown {
  if (typeof metadata !== 'object' || metadata === null) return null;
  const ours = ([key, value]: [string, unknown]) => ['number', 'boolean'].includes(typeof value) || key === 'reason';
  return Object.fromEntries(Object.entries(metadata).filter(ours));
}

/** What a tenant may keep only for so many days, by the kinds of its policy. */
export const AGING = ['messages', 'turns', 'checkpoints', 'audit', 'usage'] as const;
export type Aging = (typeof AGING)[number];

/** About a hundred years. */
export const MAX_DAYS = 36_500;

/**
 * The instant since when the tenant keeps a kind: what is as old or older is due. Null, and so nothing, without a policy. It is
 * looked up by the statement that removes, so that a policy that was taken away removes nothing more.
 */
export const keptSince = (kind: Aging): string => `(
  select now() - make_interval(hours => 24 * (p.policies -> 'retention' ->> '${kind}_days')::int) from tenants p where p.tenant_id = $1)`;

// The ids of calls are UUIDv7: they begin with the milliseconds by the clock of the server that made them, which may be some way
// off the database's. So a time is a place in an index by id, from which on the rows then tell for themselves.

const DAY_MS = 24 * 3600 * 1000;
const [FIRST_ID, LAST_ID] = ['00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff'];

function idAt(ms: number): string {
  const hex = Math.min(Math.max(ms, 0), 2 ** 48 - 1)
    .toString(16)
    .padStart(12, '0');
  return `${hex.slice(0, 8)}-${hex.slice(8)}-0000-0000-000000000000`;
}

/** Between which ids those are that calls of a time can have. */
export const idsBetween = (startTime: string | null, endTime: string | null): { from: string; to: string } => ({
  from: startTime ? idAt(Date.parse(startTime) - DAY_MS) : FIRST_ID,
  to: endTime ? idAt(Date.parse(endTime) + DAY_MS) : LAST_ID,
});

/** The same of UTC days, both part of the time. */
export const idsOfDays = (startDay: string, endDay: string) =>
  idsBetween(startDay || null, endDay ? new Date(Date.parse(endDay) + DAY_MS).toISOString() : null);

/** In SQL, an id below those of calls since a time of this era, without a time zone. */
export const idBefore = (time: string): string =>
  `(lpad(to_hex((extract(epoch from ${time} - interval '1 day') * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid`;

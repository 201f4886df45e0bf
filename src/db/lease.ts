import type { Timestamp } from '../gen/google/protobuf/timestamp.ts';

// Leases, as fragments of SQL for the statements of any table with the columns `lease_holder` (null: nobody), its
// `lease_expire_time`, and `fencing_token`, which grows with each lease taken and each lease ended, and so tells every writer
// of the past from the present one. A lease ends when it is released or another takes it. One that has only lapsed still
// admits its holder's writes, as nobody else can have written since.
//
// `row` is the alias of the table; `at`, `until`, `token` and `exempt` are SQL expressions. An ON CONFLICT calls no clock
// (Citus), so there the time comes from a column of `excluded`: read before the row's lock was waited for, it can only refuse
// what has just come free, never admit two.

/** Whether the lease can be taken: there is none, or it has lapsed. */
export const free = (row: string, at: string) => `(${row}.lease_holder is null or ${row}.lease_expire_time <= ${at})`;

/** Whether this token is that of the lease. */
export const held = (row: string, token: string) =>
  `(${row}.lease_holder is not null and ${row}.fencing_token = ${token})`;

/**
 * Whether a write may happen: with a token (not 0) if that is current, without one if the write is exempt or there is no live
 * lease. It belongs into the WHERE of the very statement that writes, so that the row's lock decides.
 */
export const fenced = (row: string, token: string, exempt: string, at: string) =>
  `(case when ${token} = 0 then ${exempt} or ${free(row, at)} else ${held(row, token)} end)`;

/** The SET list that takes a lease which is free. `given` is the alias of the new holder and time: `excluded`, for one. */
export const taken = (row: string, given: string) =>
  `lease_holder = ${given}.lease_holder, lease_expire_time = ${given}.lease_expire_time,
        fencing_token = ${row}.fencing_token + 1`;

/** The SET list that keeps a lease which is held for longer. */
export const renewed = (until: string) => `lease_expire_time = ${until}`;

/** The SET list that ends a lease, whether there is one or not. */
export const ended = (row: string) =>
  `lease_holder = null, lease_expire_time = null, fencing_token = ${row}.fencing_token + 1`;

/** The lease of a row, as columns to select: what {@link LeaseState} holds. The token is for its holder only. */
export const stateOf = (row: string) =>
  `${row}.lease_holder, ${row}.lease_expire_time,
    (extract(epoch from ${row}.lease_expire_time - clock_timestamp()) * 1000)::float8 as lease_left_ms`;

export interface LeaseState {
  leaseHolder: string | null;
  leaseExpireTime: Timestamp | null;
  leaseLeftMs: number | null;
}

/** A problem to be told to the user in one clear line, without a stack. */
export class UserError extends Error {}

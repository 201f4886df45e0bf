import type { Random } from '../scenario.ts';

/** Who is attacked, and as whom. */
export interface Target {
  host: string;
  port: number;
  /** Headers of a member, so that what gets through reaches the database. */
  identity: Record<string, string>;
}

/** How an attack's inputs were answered, by the answer's name; the numbers add up to the inputs. */
export type Tally = Record<string, number>;

/** Sends one batch of inputs of a kind. It throws if something was not answered that had to be. */
export type Attack = (target: Target, random: Random) => Promise<Tally>;

export function counted(answers: string[]): Tally {
  const tally: Tally = {};
  for (const answer of answers) tally[answer] = (tally[answer] ?? 0) + 1;
  return tally;
}

export const bytesOf = (random: Random, length: number): Buffer =>
  Buffer.from(Array.from({ length }, () => random.int(256)));

/** The same list many times. */
export const repeat = <T>(count: number, make: (index: number) => T): T[] =>
  Array.from({ length: count }, (_, index) => make(index));

export function grpcHeaders({ identity, host, port }: Target, path: string): Record<string, string> {
  return {
    ':method': 'POST',
    ':scheme': 'http',
    ':path': path,
    ':authority': `${host}:${port}`,
    te: 'trailers',
    'content-type': 'application/grpc',
    ...identity,
  };
}

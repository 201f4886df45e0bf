/** Who calls, for whose memory, as the request's metadata and its token tell. */
export interface Caller {
  /** '' where none is named: only operators may leave it out. */
  tenant: string;
  env: string;
  /** '' where none is named. */
  user: string;
  /** The user itself, or the service that acts for the user. */
  actor: string;
  scopes: ReadonlySet<string>;
  /** The token, or whoever is trusted in its place, vouches for the user's membership of the tenant. */
  vouched: boolean;
}

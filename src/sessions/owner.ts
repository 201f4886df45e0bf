import { v7 as uuidv7 } from 'uuid';
import type { Call } from '../rpc/context.ts';
import { unauthenticated } from '../rpc/errors.ts';

/** What the ids of users begin with whom the service minted. */
export const MINTED = 'anon-';

/** The call in the name of the user that it is for: the one of the metadata, or one that is minted here. */
export function ownerOf(call: Call, anonymous: boolean): Call {
  if (call.identity.user) return call;
  if (!anonymous) throw unauthenticated('IDENTITY_REQUIRED', 'x-user-id is missing');
  return call.as({ user: `${MINTED}${uuidv7()}` });
}

/** How long nothing happens before a watch says so. */
const BOOKMARK_MS = 15_000;

/**
 * When the next bookmark is due: at once when all that was stored has been told, then after a while without news. Also after a
 * while in which what was stored is only passed over.
 */
export function bookmarks(now = () => performance.now()) {
  let last = now();
  let caughtUp = false;
  const left = () => Math.max(0, last + BOOKMARK_MS - now());
  return {
    /** Something was told. */
    told() {
      last = now();
    },
    isDue({ passing = false } = {}) {
      if ((caughtUp || passing) && left() > 0) return false;
      caughtUp ||= !passing;
      last = now();
      return true;
    },
    left,
  };
}

/** How long nothing happens before a watch says so. */
const BOOKMARK_MS = 15_000;

/** When the next bookmark is due: at once when all that was stored has been told, then after a while without news. */
export function bookmarks() {
  let due = 0;
  return {
    /** Something was told. */
    told() {
      if (due > 0) due = performance.now() + BOOKMARK_MS;
    },
    isDue() {
      if (performance.now() < due) return false;
      due = performance.now() + BOOKMARK_MS;
      return true;
    },
    left: () => Math.max(0, due - performance.now()),
  };
}

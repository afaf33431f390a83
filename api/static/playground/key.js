/**
 * The API key: taken from the link that `maskfleet up` prints (`#key=…`), kept for this tab, sent as Authorization only.
 *
 * A fragment is never sent to a server; it is removed from the address bar at once, so that it is in no bookmark.
 */

const NAME = "maskfleet.key";

/** Return what the address's fragment says, such as {job: "job_…"}, and take the key out of it. */
export function readFragment() {
  const fields = new URLSearchParams(location.hash.slice(1));
  if (fields.has("key")) {
    keepKey(fields.get("key"));
    fields.delete("key");
    const rest = fields.toString();
    history.replaceState(null, "", location.pathname + location.search + (rest ? `#${rest}` : ""));
  }
  return Object.fromEntries(fields);
}

export const keptKey = () => sessionStorage.getItem(NAME) ?? "";

export const keepKey = (key) => sessionStorage.setItem(NAME, key.trim());

export const forgetKey = () => sessionStorage.removeItem(NAME);
